"""What a task needs is on its node before it starts: verified, once, bounded, gone when nobody uses it."""

import asyncio
import os
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from paceline.agent.launch import Refusal
from paceline.agent.preparing import Prepared, Preparing
from paceline.content.manifest import Entry, manifest_of
from paceline.content.store import ContentStore
from paceline.proto.generated import agent_pb2, common_pb2
from support.processes import PYTHON, ended, key, of_kind, output, run, start_task, supervised

BIG = 2 << 20
"""Of a file that working folders link."""


@pytest.fixture
def store(tmp_path: Path) -> ContentStore:
    return ContentStore(tmp_path / "storage" / "content")


@pytest.fixture
def put(store: ContentStore) -> Iterator[object]:
    """Keeps files by their paths; the tree's id."""

    def keep(files: dict[str, bytes], mode: int = 0o644) -> str:
        entries = [Entry(path, len(data), mode, store.put_bytes(data)) for path, data in files.items()]
        return store.commit(manifest_of(entries).to_bytes())

    yield keep


@asynccontextmanager
async def preparing(
    tmp_path: Path, cache_bytes: int = 1 << 30, living: list = ()
) -> AsyncIterator[Preparing]:
    made = Preparing(tmp_path / "agent", cache_bytes, sys.executable)
    await made.begin(living)
    yield made
    await made.close()


def request(tmp_path: Path, *needs: agent_pb2.Need, job: int = 1, attempt: int = 1) -> agent_pb2.StartTask:
    return agent_pb2.StartTask(
        task=common_pb2.TaskKey(job=job, attempt=attempt, task=0),
        command="run @code/x --data @data",
        cwd="@code",
        environment={"DATA": "at @data"},
        needs=needs,
        content_folder=str(tmp_path / "storage" / "content"),
    )


def code(tree: str) -> agent_pb2.Need:
    return agent_pb2.Need(name="code", tree=tree, marker="@code")


def data(tree: str) -> agent_pb2.Need:
    return agent_pb2.Need(name="inputs.data", tree=tree, marker="@data")


def never() -> str:
    return ""


def read(folder: str) -> dict[str, bytes]:
    files = (path for path in Path(folder).rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def kept(tmp_path: Path) -> set[str]:
    return {path.name for path in (tmp_path / "agent" / "content" / "trees").iterdir() if path.is_dir()}


def blobs(tmp_path: Path) -> int:
    return len(list((tmp_path / "agent" / "content" / "blobs").glob("??/*")))


async def test_places_stand_where_the_markers_were(tmp_path: Path, put) -> None:
    asked = request(tmp_path, code(put({"x": b"1"})), data(put({"d/1": b"", "d/2": b""})))
    async with preparing(tmp_path) as made:
        done = await made.prepare(asked, never)
    work, there = done.places["@code"], done.places["@data"]
    told = done.applied(asked)
    assert told.command == f"run {work}/x --data {there}"
    assert (told.cwd, told.environment["DATA"]) == (work, f"at {there}")
    assert read(there) == {"d/1": b"", "d/2": b""}
    assert read(work) == {"x": b"1"}
    assert done.told.startswith("code (1 file, 1 bytes, 1 bytes fetched) in ")
    assert asked.cwd == "@code", "the request itself is as it came"


async def test_a_task_without_needs_is_left_as_it_is(tmp_path: Path) -> None:
    async with preparing(tmp_path) as made:
        asked = request(tmp_path)
        done = await made.prepare(asked, never)
        assert done == Prepared()
        assert done.applied(asked) is asked


async def test_an_input_of_one_file_is_a_folder_too(tmp_path: Path, put) -> None:
    """A model of one file is asked for by its folder; who wants the file says which."""
    async with preparing(tmp_path) as made:
        done = await made.prepare(request(tmp_path, data(put({"model.pt": b"w"}))), never)
    assert read(done.places["@data"]) == {"model.pt": b"w"}


async def test_attempts_write_as_they_like_and_none_sees_anothers(tmp_path: Path, put) -> None:
    tree = put({"config": b"1", "big": bytes(BIG)})
    async with preparing(tmp_path) as made:
        folders = []
        for attempt in (1, 2):
            done = await made.prepare(request(tmp_path, code(tree), attempt=attempt), never)
            folders.append(Path(done.places["@code"]))
            assert read(str(folders[-1])) == {"config": b"1", "big": bytes(BIG)}
            (folders[-1] / "config").write_bytes(b"2")
            (folders[-1] / "new").write_bytes(b"")
    assert (folders[0] / "big").samefile(folders[1] / "big"), "what is large is linked"
    assert (folders[0] / "big").stat().st_mode & 0o222 == 0


async def test_only_what_is_new_of_a_changed_tree_is_fetched(tmp_path: Path, put) -> None:
    files = {f"{number}.py": bytes([number]) * 100 for number in range(50)}
    async with preparing(tmp_path) as made:
        await made.prepare(request(tmp_path, code(put(files))), never)
        done = await made.prepare(request(tmp_path, code(put({**files, "7.py": b"new"})), job=2), never)
        assert "50 files, 4.9 kB, 3 bytes fetched" in done.told
        again = await made.prepare(request(tmp_path, code(put(files)), job=3), never)
        assert "fetched" not in again.told


async def test_the_least_recently_used_go_when_there_is_no_room(tmp_path: Path, put) -> None:
    a, b, c = (put({"f": bytes([number]) * 400_000}) for number in range(3))
    async with preparing(tmp_path, 1_000_000) as made:
        for job, tree in enumerate((a, b, a, c), 1):
            await made.prepare(request(tmp_path, code(tree), job=job), never)
        assert kept(tmp_path) == {a, c}
        assert blobs(tmp_path) == 2
        assert made._cache.size == 800_000


async def test_order_and_size_are_known_after_a_restart(tmp_path: Path, put) -> None:
    a, b, c = (put({"f": bytes([number]) * 400_000}) for number in range(3))
    async with preparing(tmp_path, 1_000_000) as made:
        for job, tree in enumerate((a, b, a), 1):
            await made.prepare(request(tmp_path, code(tree), job=job), never)
    (tmp_path / "agent" / "content" / "trees" / "half-done").mkdir()
    (tmp_path / "agent" / "content" / "blobs" / "aa").mkdir(exist_ok=True)
    (tmp_path / "agent" / "content" / "blobs" / "aa" / "left").write_bytes(b"x")
    async with preparing(tmp_path, 1_000_000) as made:
        assert made._cache.size == 800_000
        assert list((tmp_path / "agent" / "work").iterdir()) == [], "no task is here"
        await made.prepare(request(tmp_path, code(c)), never)
        assert kept(tmp_path) == {a, c}


async def test_what_a_task_reads_where_it_is_kept_does_not_go(tmp_path: Path, put) -> None:
    a, b = (put({"f": bytes([number]) * 600_000}) for number in range(2))
    reading = request(tmp_path, data(a))
    async with preparing(tmp_path, 1_000_000) as made:
        await made.prepare(reading, never)
        with pytest.raises(
            Refusal, match="1200000 bytes are needed at once; this node keeps at most 1000000"
        ):
            await made.prepare(request(tmp_path, code(b), job=2), never)
    async with preparing(tmp_path, 1_000_000, [reading]) as made:  # the agent was restarted, the task lives
        with pytest.raises(Refusal):
            await made.prepare(request(tmp_path, code(b), job=2), never)
        await made.release(reading, last=True, kept=False)
        await made.prepare(request(tmp_path, code(b), job=2), never)
        assert kept(tmp_path) == {b}


async def test_a_file_that_two_trees_share_stays_for_the_other(tmp_path: Path, put) -> None:
    a = put({"shared": b"s" * 300_000, "own": b"a" * 300_000})
    b = put({"shared": b"s" * 300_000, "own": b"b" * 300_000})
    c = put({"own": b"c" * 300_000})
    async with preparing(tmp_path, 1_000_000) as made:
        for job, tree in enumerate((a, b, c), 1):
            await made.prepare(request(tmp_path, code(tree), job=job), never)
        assert kept(tmp_path) == {b, c}
        assert made._cache.size == 900_000
        await made.prepare(request(tmp_path, code(b), job=4), never)


async def test_what_was_written_to_on_the_node_is_fetched_anew(tmp_path: Path, put) -> None:
    tree = put({"small": b"s", "big": bytes(BIG)})
    async with preparing(tmp_path) as made:
        done = await made.prepare(request(tmp_path, code(tree)), never)
        for name in ("small", "big"):
            path = tmp_path / "agent" / "content" / "trees" / tree / name
            path.chmod(0o644)
            path.write_bytes(b"x" * len(path.read_bytes()))
            done = await made.prepare(request(tmp_path, code(tree)), never)
            assert read(done.places["@code"]) == {"small": b"s", "big": bytes(BIG)}
        there = tmp_path / "agent" / "content" / "trees" / tree / "small"
        info = there.stat()
        there.chmod(0o644)
        there.write_bytes(b"x")
        os.utime(there, ns=(info.st_atime_ns, info.st_mtime_ns))  # whoever hides it is found by the hash
        done = await made.prepare(request(tmp_path, code(tree)), never)
        assert read(done.places["@code"])["small"] == b"s"


async def test_what_the_storage_lacks_or_has_damaged_is_refused_with_the_reason(
    tmp_path: Path, put, store: ContentStore
) -> None:
    tree = put({"f": b"abc"})
    async with preparing(tmp_path) as made:
        with pytest.raises(Refusal, match=r"code: there is no tree 0000.* \(looked in ") as caught:
            await made.prepare(request(tmp_path, code("0" * 64)), never)
        assert (caught.value.reason_code, caught.value.transient) == ("no-content", True)
        [blob] = (tmp_path / "storage" / "content" / "blobs").glob("??/*")
        blob.chmod(0o644)
        blob.write_bytes(b"abd")
        with pytest.raises(Refusal, match="is not what its hash says") as caught:
            await made.prepare(request(tmp_path, code(tree)), never)
        assert (caught.value.reason_code, caught.value.transient) == ("bad-content", False)
        with pytest.raises(Refusal):
            await made.prepare(request(tmp_path, code("../../etc")), never)
        assert kept(tmp_path) == set() and blobs(tmp_path) == 0
        assert made._cache.size == 0


async def test_a_need_that_this_agent_does_not_know_is_refused(tmp_path: Path) -> None:
    async with preparing(tmp_path) as made:
        need = agent_pb2.Need(name="dataset.x", url="ftp://x", marker="@x")
        with pytest.raises(Refusal, match=r"cannot provide dataset\.x"):
            await made.prepare(request(tmp_path, need), never)


async def test_many_who_ask_at_once_get_it_from_one_fetch(tmp_path: Path, put) -> None:
    tree = put({f"{number}": os.urandom(1000) for number in range(200)})
    async with preparing(tmp_path) as made:
        asked = [made.prepare(request(tmp_path, code(tree), job=job), never) for job in range(8)]
        done = await asyncio.gather(*asked)
    assert sum("fetched" in one.told for one in done) == 1
    assert len({one.places["@code"] for one in done}) == 8


async def test_a_task_that_is_stopped_meanwhile_waits_for_nothing_more(tmp_path: Path, put) -> None:
    tree = put({f"{number}": b"%d" % number for number in range(10)})
    said = iter(["", "", "cancelled by me", "cancelled by me"])
    async with preparing(tmp_path) as made:
        with pytest.raises(Refusal, match="cancelled by me before it had started"):
            await made.prepare(request(tmp_path, code(tree)), lambda: next(said, "cancelled by me"))
        await made.prepare(request(tmp_path, code(tree)), never)


async def test_a_real_task_runs_in_its_folder_which_goes_with_it(tmp_path: Path, put) -> None:
    script = b"import os, sys, helper\nprint(os.getcwd() == sys.path[0], helper.NAME, os.environ['PWD'])\n"
    tree = put({"train.py": script, "helper.py": b"NAME = 'helped'\n"})
    async with supervised(tmp_path / "state", warm=False) as supervisor:
        at = key(1)
        task = start_task(at, f"{PYTHON} train.py", tmp_path)
        task.cwd, task.content_folder = "@code", str(tmp_path / "storage" / "content")
        task.needs.append(code(tree))
        entries = await run(supervisor, task)
        work = tmp_path / "state" / "work" / "1.1.0"
        assert output(supervisor, at) == f"True helped {work}\n"
        assert of_kind(entries, "started")[0].prepared.startswith("code (2 files, ")
        assert work.exists()
        await supervisor.forget(at)
        assert not work.exists()
        lacking = start_task(key(2), "true", tmp_path, needs=[code("0" * 64)])
        await supervisor.start(lacking)
        [refused] = of_kind(await ended(supervisor, key(2)), "refused")
        assert (refused.reason.code, refused.transient) == ("no-content", True)
