"""Environments that jobs bring: built once per node and content, and kept; refused with the log's end."""

import asyncio
import os
import sys
import time
import venv
import zipfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from paceline.agent.environments import EnvironmentCache
from paceline.agent.launch import Refusal
from paceline.agent.preparing import Preparing
from paceline.proto.generated import agent_pb2, common_pb2
from support.processes import alive, key, of_kind, output, run, start_task, supervised, until
from support.wheels import make_wheel


@pytest.fixture
def wheels(tmp_path: Path) -> Path:
    """A folder with our-1 and our-2."""
    for version in "12":
        make_wheel(tmp_path / "wheels", "our", version)
    return tmp_path / "wheels"


def environment(wheels: Path, *lines: str) -> agent_pb2.Need:
    return agent_pb2.Need(name="environment", requirements=["--no-index", f"--find-links {wheels}", *lines])


def request(*needs: agent_pb2.Need, job: int = 1) -> agent_pb2.StartTask:
    return agent_pb2.StartTask(task=common_pb2.TaskKey(job=job, attempt=1, task=0), command="x", needs=needs)


@asynccontextmanager
async def preparing(state: Path, living: list = ()) -> AsyncIterator[Preparing]:
    made = Preparing(state, 1 << 30, sys.executable)
    await made.begin(living)
    yield made
    await made.close()


def never() -> str:
    return ""


def kept(state: Path) -> list[str]:
    return sorted(path.parent.name for path in (state / "environments").glob("*/built.json"))


async def test_two_jobs_at_once_and_an_agent_after_that_have_it_built_once(
    tmp_path: Path, wheels: Path
) -> None:
    asked = [request(environment(wheels, "our==1"), job=job) for job in (1, 2, 3)]
    async with preparing(tmp_path / "agent") as made:
        one, other = await asyncio.gather(*(made.prepare(each, never) for each in asked[:2]))
    assert one.interpreter == other.interpreter
    assert sorted(bool(each.build_log) for each in (one, other)) == [False, True]
    assert b"our" in one.build_log + other.build_log
    async with preparing(tmp_path / "agent") as made:
        later = await made.prepare(asked[2], never)
    assert later.interpreter == one.interpreter
    assert later.told.startswith("environment (kept) in ")
    assert len(kept(tmp_path / "agent")) == 1


async def test_a_job_runs_in_what_was_built_and_its_output_begins_with_the_log(
    tmp_path: Path, wheels: Path
) -> None:
    (tmp_path / "script.py").write_text("import our, sys, paceline; print(our.VERSION, sys.prefix)\n")
    asked = start_task(key(1), "python script.py", tmp_path, needs=[environment(wheels, "our==2")])
    async with supervised(tmp_path / "agent", warm=False) as supervisor:
        journal = await run(supervisor, asked, 120)
        text = output(supervisor, key(1))
    assert [exited.exit_code for exited in of_kind(journal, "exited")] == [0]
    assert text.startswith("$ ")
    assert "our" in text
    [folder] = kept(tmp_path / "agent")
    assert text.endswith(f"2 {tmp_path}/agent/environments/{folder}/venv\n")


async def test_what_cannot_be_built_is_refused_for_good_and_not_kept(tmp_path: Path, wheels: Path) -> None:
    async with preparing(tmp_path / "agent") as made:
        with pytest.raises(Refusal, match="could not be built") as refused:
            await made.prepare(request(environment(wheels, "our==3")), never)
        assert "our==3" in refused.value.message
        assert not refused.value.transient
        assert kept(tmp_path / "agent") == []
        with zipfile.ZipFile(wheels / "our-2-py3-none-any.whl") as old:
            parts = {name: old.read(name).decode() for name in old.namelist()}
        with zipfile.ZipFile(wheels / "our-3-py3-none-any.whl", "w") as new:
            for name, text in parts.items():
                new.writestr(name.replace("our-2", "our-3"), text.replace("Version: 2", "Version: 3"))
        assert (await made.prepare(request(environment(wheels, "our==3")), never)).build_log


async def test_another_line_is_another_environment_and_another_order_is_not(
    tmp_path: Path, wheels: Path
) -> None:
    cache = EnvironmentCache(tmp_path / "environments", 1 << 30, sys.executable)
    one = environment(wheels, "our==1", "numpy")
    assert cache.key(one) != cache.key(environment(wheels, "our==2", "numpy"))
    assert cache.key(one) == cache.key(environment(wheels, "numpy", "our==1"))


async def test_a_path_is_used_as_it_is_and_refused_where_it_is_not(tmp_path: Path) -> None:
    venv.create(tmp_path / "own", with_pip=False)
    python = str(tmp_path / "own" / "bin" / "python")
    async with preparing(tmp_path / "agent") as made:
        for path in (str(tmp_path / "own"), python):
            done = await made.prepare(request(agent_pb2.Need(name="environment", url=path)), never)
            assert done.interpreter == python
        with pytest.raises(Refusal, match="is not an interpreter here") as refused:
            await made.prepare(request(agent_pb2.Need(name="environment", url="/nowhere/python")), never)
        assert refused.value.transient


async def test_a_missing_python_is_named(tmp_path: Path) -> None:
    need = agent_pb2.Need(name="environment", requirements=["our"], python_version="3.99")
    cache = EnvironmentCache(tmp_path / "environments", 1 << 30, sys.executable)
    cache._uv = ""
    with pytest.raises(Refusal, match=r"has no Python 3\.99"):
        cache.key(need)


async def test_the_least_used_go_and_never_what_a_task_uses(tmp_path: Path) -> None:
    cache = EnvironmentCache(tmp_path / "environments", 250, sys.executable)
    for age, name in enumerate(("used", "old", "new")):
        folder = tmp_path / "environments" / name
        folder.mkdir(parents=True)
        (folder / "lock").touch()
        (folder / "built.json").write_text('{"bytes": 100}')
        os.utime(folder / "built.json", (time.time(), 1000 + age))
    cache._make_room({"used"})
    assert {path.name for path in (tmp_path / "environments").iterdir()} == {"used", "new"}


def slow_python(folder: Path) -> str:
    """Makes no environment before the file `go` is there; who is to make one says its pid in `pid`."""
    path = folder / "python"
    path.write_text(
        f"#!/bin/sh\ncase $* in *'-m venv'*) echo $$ > {folder}/pid.new; mv {folder}/pid.new {folder}/pid\n"
        f"while [ ! -e {folder}/go ]; do sleep 0.02; done;; esac\n"
        f'exec {sys.executable} "$@"\n'
    )
    path.chmod(0o755)
    return str(path)


async def builder(folder: Path) -> int:
    await until((folder / "pid").exists, "somebody builds")
    return int((folder / "pid").read_text())


async def test_a_build_that_nobody_wants_any_more_ends_and_one_that_another_wants_goes_on(
    tmp_path: Path, wheels: Path
) -> None:
    made = Preparing(tmp_path / "agent", 1 << 30, slow_python(tmp_path))
    made._environments._uv = ""
    await made.begin([])
    need, said = environment(wheels, "our==1"), {1: "", 2: "", 3: ""}
    try:
        tasks = [
            asyncio.create_task(made.prepare(request(need, job=job), lambda job=job: said[job]))
            for job in (1, 2)
        ]
        pid = await builder(tmp_path)
        said[1] = "cancelled"
        with pytest.raises(Refusal, match="cancelled before it had started"):
            await tasks[0]
        assert alive(pid), "another task wants it"
        said[2] = "cancelled"
        with pytest.raises(Refusal, match="cancelled before it had started"):
            await tasks[1]
        await until(lambda: not alive(pid), "the build has ended")
        (tmp_path / "go").touch()
        assert (await made.prepare(request(need, job=3), never)).build_log, "it is built anew"
    finally:
        await made.close()
    assert len(kept(tmp_path / "agent")) == 1


async def test_a_build_outlives_the_agent_and_ends_with_the_last_who_wants_it_there(
    tmp_path: Path, wheels: Path
) -> None:
    python = slow_python(tmp_path)
    need = environment(wheels, "our==1")
    first = Preparing(tmp_path / "agent", 1 << 30, python)
    first._environments._uv = ""
    await first.begin([])
    waits = asyncio.create_task(first.prepare(request(need), never))
    pid = await builder(tmp_path)
    waits.cancel()
    await asyncio.gather(waits, return_exceptions=True)
    await first.close()
    assert alive(pid), "the next agent finds it"
    second = Preparing(tmp_path / "agent", 1 << 30, python)
    second._environments._uv = ""
    await second.begin([])
    said = {"why": ""}
    try:
        waits = asyncio.create_task(second.prepare(request(need), lambda: said["why"]))
        await until(lambda: second._building, "it waits for that build")
        assert alive(pid)
        said["why"] = "cancelled"
        with pytest.raises(Refusal, match="cancelled before it had started"):
            await waits
        await until(lambda: not alive(pid), "the build has ended")
    finally:
        await second.close()
