"""Data at a URL is on a node before the start: fetched once, as it was when somebody looked, in its bound."""

import asyncio
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import psutil
import pytest
from paceline.agent.launch import Refusal
from paceline.agent.preparing import Preparing
from paceline.agent.tree_cache import TreeCache
from paceline.agent.url_cache import UrlCache
from paceline.content.urls import look
from paceline.proto.generated import agent_pb2, common_pb2
from support.cluster import wait_until
from support.web import WebServer


@pytest.fixture
def web() -> Iterator[WebServer]:
    made = WebServer()
    yield made
    made.close()


@asynccontextmanager
async def preparing(
    tmp_path: Path, cache_bytes: int = 1 << 30, living: list[agent_pb2.StartTask] = ()
) -> AsyncIterator[Preparing]:
    made = Preparing(tmp_path / "agent", cache_bytes, sys.executable)
    await made.begin(living)
    yield made
    await made.close()


def need(url: str) -> agent_pb2.Need:
    """Of what is there now."""
    seen = look(url)
    return agent_pb2.Need(
        name="inputs.x", url=url, version=seen.etag, bytes=seen.bytes, files=seen.files, marker="@x"
    )


def request(*needs: agent_pb2.Need, job: int = 1) -> agent_pb2.StartTask:
    return agent_pb2.StartTask(task=common_pb2.TaskKey(job=job, attempt=1), command="cat @x", needs=needs)


def never() -> str:
    return ""


def files_in(folder: Path) -> dict[str, bytes]:
    return {str(one.relative_to(folder)): one.read_bytes() for one in folder.rglob("*") if one.is_file()}


def trees(tmp_path: Path) -> list[Path]:
    return [one for one in (tmp_path / "agent/content/trees").iterdir() if one.is_dir()]


def incoming(tmp_path: Path) -> list[Path]:
    return list((tmp_path / "agent/content/incoming").iterdir())


async def test_many_tasks_fetch_it_once(tmp_path: Path, web: WebServer) -> None:
    asked = need(web.put("/x.csv", b"1,2\n", "v1"))
    async with preparing(tmp_path) as made:
        done = await asyncio.gather(*(made.prepare(request(asked, job=job), never) for job in range(5)))
        later = await made.prepare(request(asked, job=9), never)
    assert web.got == ["/x.csv"]
    places = {one.places["@x"] for one in (*done, later)}
    assert files_in(Path(places.pop())) == {"x.csv": b"1,2\n"} and not places
    told = [one.told for one in done if "fetched" in one.told]
    assert (
        len(told) == 1 and f"inputs.x (1 file, 4 bytes, 4 bytes fetched from {web.url}/x.csv) in " in told[0]
    )
    assert later.told.startswith("inputs.x (1 file, 4 bytes) in ")
    assert incoming(tmp_path) == []


async def test_it_is_kept_over_a_restart_and_in_use_it_stays(tmp_path: Path, web: WebServer) -> None:
    first = need(web.put("/a", bytes(600), "a"))
    second = need(web.put("/b", bytes(601), "b"))
    using = request(first)
    async with preparing(tmp_path, 1000) as made:
        await made.prepare(using, never)
    async with preparing(tmp_path, 1000, [using]) as made:
        assert "fetched" not in (await made.prepare(request(first, job=2), never)).told
        with pytest.raises(
            Refusal, match="1201 bytes are needed at once; this node keeps at most 1000"
        ) as caught:
            await made.prepare(request(second, job=3), never)
        assert (caught.value.reason_code, caught.value.transient) == ("cache-full", True)
        assert web.got == ["/a"], "what there is no room for is not fetched"
        for job, asked in ((1, first), (2, first), (3, second)):
            await made.release(request(asked, job=job), last=True, kept=False)
        await made.prepare(request(second, job=4), never)
        assert len(trees(tmp_path)) == 1
        await made.release(request(second, job=4), last=True, kept=False)
        await made.prepare(request(first, job=5), never)
    assert web.got == ["/a", "/b", "/a"], "the least recently used went"


async def test_what_changed_is_refused_for_good(tmp_path: Path, web: WebServer) -> None:
    asked = need(web.put("/x", b"1", "v1"))
    web.put("/x", b"22", "v2")
    async with preparing(tmp_path) as made:
        with pytest.raises(Refusal, match="1 bytes, etag v1; it is 1 file of 2 bytes, etag v2") as caught:
            await made.prepare(request(asked), never)
    refusal = caught.value
    assert (refusal.reason_code, refusal.transient) == ("data-changed", False)
    assert (
        refusal.message.startswith("inputs.x: http://127.0.0.1:")
        and "Register what is there now" in refusal.hint
    )
    assert trees(tmp_path) == [] and incoming(tmp_path) == []


@pytest.mark.parametrize(
    ("status", "code", "transient"),
    [(404, "no-data", False), (403, "no-data", False), (503, "data-away", True)],
)
async def test_what_can_help_is_told_apart(
    tmp_path: Path, web: WebServer, status: int, code: str, transient: bool
) -> None:
    asked = need(web.put("/x", b"1", "v1"))
    web.statuses["/x"] = status
    async with preparing(tmp_path) as made:
        with pytest.raises(Refusal, match=f"answers {status}") as caught:
            await made.prepare(request(asked), never)
        assert (caught.value.reason_code, caught.value.transient) == (code, transient)
        del web.statuses["/x"]
        assert (await made.prepare(request(asked), never)).places, "a refusal leaves nothing in the way"


async def test_a_scheme_that_nothing_opens_says_what_to_install(tmp_path: Path) -> None:
    asked = agent_pb2.Need(name="inputs.x", url="gs://bucket/x", version="1", bytes=1, files=1, marker="@x")
    async with preparing(tmp_path) as made:
        with pytest.raises(Refusal, match="gcsfs") as caught:
            await made.prepare(request(asked), never)
    assert (caught.value.transient, caught.value.hint) == (False, "On the node: pip install fsspec gcsfs.")


async def test_a_task_that_is_stopped_stops_the_fetch(tmp_path: Path, web: WebServer) -> None:
    asked = need(web.put("/x", bytes(100), "v1"))
    web.held.add("/x")
    async with preparing(tmp_path) as made:
        with pytest.raises(Refusal, match="cancelled before it had started"):
            await made.prepare(request(asked), lambda: "cancelled" if web.half_sent.is_set() else "")
        assert incoming(tmp_path) == [] and made._cache.size == 0
        web.held.clear()
        await made.prepare(request(asked), never)
        assert made._cache.size == 100


async def test_one_that_waits_fetches_itself_when_the_first_was_stopped(
    tmp_path: Path, web: WebServer
) -> None:
    asked = need(web.put("/x", bytes(100), "v1"))
    web.held.add("/x")
    async with preparing(tmp_path) as made:
        first = asyncio.create_task(
            made.prepare(request(asked, job=1), lambda: "cancelled" if web.half_sent.is_set() else "")
        )
        await asyncio.to_thread(web.half_sent.wait, 30)
        web.held.clear()
        done = await made.prepare(request(asked, job=2), never)
        with pytest.raises(Refusal):
            await first
    assert done.places and web.got == ["/x", "/x"]


async def test_one_that_waits_for_its_turn_may_be_stopped(tmp_path: Path, web: WebServer) -> None:
    asked = [need(web.put(f"/{name}", bytes(100), "v1")) for name in "abc"]
    web.held |= {"/a", "/b"}
    async with preparing(tmp_path) as made:
        over = ""
        first = [
            asyncio.create_task(made.prepare(request(one, job=job), lambda: over))
            for job, one in enumerate(asked[:2])
        ]
        await asyncio.to_thread(wait_until, "both are fetched", lambda: {"/a", "/b"} <= set(web.got) or None)
        with pytest.raises(Refusal, match="cancelled before it had started"):
            await made.prepare(request(asked[2], job=3), lambda: "cancelled")
        over = "cancelled, too"
        for task in first:
            with pytest.raises(Refusal, match="cancelled, too before it had started"):
                await task
        await made.prepare(request(asked[2], job=3), never)
    assert sorted(web.got) == ["/a", "/b", "/c"]


def test_a_server_that_falls_silent_is_given_up(tmp_path: Path, web: WebServer) -> None:
    asked = need(web.put("/x", bytes(100), "v1"))
    web.held.add("/x")
    cache = TreeCache(tmp_path, 1 << 30)
    cache.begin()
    urls = UrlCache(tmp_path, cache, stall_s=1.0)
    urls.begin()
    with pytest.raises(Refusal, match=r"/x: \d+ of 100 bytes came, and then none for 1 s") as caught:
        urls.fetch(asked, frozenset(), never)
    assert (caught.value.reason_code, caught.value.transient) == ("data-away", True)
    assert list((tmp_path / "incoming").iterdir()) == [] and cache.size == 0


def test_a_disk_that_is_too_small_says_both_numbers(tmp_path: Path, web: WebServer) -> None:
    url = web.put("/x", b"1", "v1")
    asked = agent_pb2.Need(name="inputs.x", url=url, version="v1", bytes=1 << 60, files=1)
    cache = TreeCache(tmp_path, 1 << 61)
    cache.begin()
    urls = UrlCache(tmp_path, cache)
    urls.begin()
    with pytest.raises(Refusal, match=rf"{1 << 60} bytes are to be fetched, and \d+ are free") as caught:
        urls.fetch(asked, frozenset(), never)
    assert caught.value.transient and web.got == []


AGENT = """
import asyncio, sys
from pathlib import Path
from paceline.agent.preparing import Preparing
from paceline.proto.generated import agent_pb2

async def main():
    made = Preparing(Path(sys.argv[1]), 1 << 30, sys.executable)
    await made.begin([])
    await made.prepare(agent_pb2.StartTask.FromString(bytes.fromhex(sys.argv[2])), lambda: "")

asyncio.run(main())
"""


def test_an_agent_that_is_killed_amid_it_leaves_nothing_half(tmp_path: Path, web: WebServer) -> None:
    asked = request(need(web.put("/x", b"12345678", "v1")))
    web.held.add("/x")
    killed = subprocess.Popen(
        [sys.executable, "-c", AGENT, str(tmp_path / "agent"), asked.SerializeToString().hex()]
    )
    try:
        assert web.half_sent.wait(60)
        [child] = psutil.Process(killed.pid).children()
    finally:
        killed.kill()
        killed.wait()
    wait_until("what fetched has ended, too", lambda: not child.is_running() or child.status() == "zombie")
    web.held.clear()

    async def again() -> str:
        async with preparing(tmp_path) as made:
            assert incoming(tmp_path) == [] and trees(tmp_path) == []
            return (await made.prepare(asked, never)).places["@x"]

    assert files_in(Path(asyncio.run(again()))) == {"x": b"12345678"}
