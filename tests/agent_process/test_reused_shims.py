"""A shim serves one program after the other, and each as if it had been made for it alone."""

import asyncio
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
from paceline.agent import kernel, starter
from paceline.agent.supervisor import Supervisor
from paceline.agent.supervisor_config import SupervisorConfig
from paceline.agent.task import Task, write_launch
from paceline.proto.marks import mark_of
from paceline.spec.ids import TaskKey
from support.processes import (
    alive,
    begun,
    ended,
    key,
    kill,
    of_kind,
    output,
    run,
    start_task,
    strays,
    supervised,
    until,
)

SLEEPER = "echo up; exec sleep 600"


async def free_shim(supervisor: Supervisor, state: Path, at: TaskKey) -> int:
    """Run a task to its end; pid of its shim, which is free then."""
    [said] = of_kind(await run(supervisor, start_task(at, "true", state)), "started")
    await until(lambda: strays(state).keys() == {said.shim_pid}, "its shim is free")
    await until(lambda: supervisor._shims._free, "the agent knows it")
    return int(said.shim_pid)


async def test_each_task_is_served_as_if_by_a_shim_of_its_own(tmp_path: Path) -> None:
    script = "pwd; echo $PACELINE_TASK $PACELINE_MARK $MINE; ls -l /proc/self/fd | grep -c ' -> '; exit $CODE"
    async with supervised(tmp_path / "state", warm=False) as supervisor:
        shims, sizes = [], []
        for number, code in ((1, 3), (2, 0), (3, 7)):
            cwd = tmp_path / str(number)
            cwd.mkdir()
            at = key(number)
            fields = {"environment": {"CODE": str(code)} | ({"MINE": "mine"} if number == 1 else {})}
            entries = await run(supervisor, start_task(at, script, cwd, **fields))
            [said], [over] = of_kind(entries, "started"), of_kind(entries, "ended")
            folder = tmp_path / "state" / "tasks" / str(at)
            where, words, _ = output(supervisor, at).split("\n", 2)
            assert where == str(cwd)
            assert words.split()[1] == mark_of(folder)
            assert ("mine" in words) == (number == 1)
            assert (list(over.exit_codes), over.why) == ([code], "exited")
            await until(lambda folder=folder: (folder / "shim.pid").read_text().split() == ["0", "0"], "left")
            await until(lambda: supervisor._shims._free, "its shim is free")
            shims.append(said.shim_pid)
            sizes.append(len(os.listdir(f"/proc/{said.shim_pid}/fd")))  # noqa: PTH208
        assert len(set(shims)) == 1
        assert len(set(sizes)) == 1
        assert os.readlink(f"/proc/{shims[0]}/cwd") == "/"  # noqa: PTH115


async def test_programs_inherit_nothing_but_their_three_descriptors(tmp_path: Path) -> None:
    command = f"{sys.executable} -c 'import os; print(sorted(os.listdir(\"/proc/self/fd\"), key=int))'"
    async with supervised(tmp_path / "state", warm=False) as supervisor:
        for number in (1, 2):
            await run(supervisor, start_task(key(number), command, tmp_path))
            assert output(supervisor, key(number)) == "['0', '1', '2', '3']\n"  # 3: of the listing


async def test_nothing_of_a_task_lives_on_beside_the_next(tmp_path: Path) -> None:
    hiding = "setsid env -i /bin/sleep 600 & echo pid $!"
    async with supervised(tmp_path / "state", warm=False) as supervisor:
        entries = await run(supervisor, start_task(key(1), hiding, tmp_path))
        hidden = int(output(supervisor, key(1)).split()[1])
        assert not alive(hidden)
        await until(lambda: supervisor._shims._free, "its shim is free")
        await supervisor.start(start_task(key(2), SLEEPER, tmp_path))
        said = await begun(supervisor, key(2))
        assert said.shim_pid == of_kind(entries, "started")[0].shim_pid
        assert set(kernel.children(said.shim_pid)) == set(said.pids)
        assert kernel.marked(mark_of(tmp_path / "state" / "tasks" / "1.1.0")) == []


async def test_a_stop_of_a_former_task_does_not_reach_the_next(tmp_path: Path) -> None:
    async with supervised(tmp_path, warm=False) as supervisor:
        await supervisor.start(start_task(key(1), SLEEPER, tmp_path))
        said = await begun(supervisor, key(1))
        stops = [supervisor.stop(key(1), 0.0, "cancelled") for _ in range(5)]
        await asyncio.gather(*stops)
        await ended(supervisor, key(1))
        await until(lambda: supervisor._shims._free, "its shim is free")
        await supervisor.start(start_task(key(2), SLEEPER, tmp_path))
        assert (await begun(supervisor, key(2))).shim_pid == said.shim_pid
        await supervisor.stop(key(1), 0.0, "cancelled")
        await supervisor.forget(key(1))
        assert not supervisor.ended(key(2))
        await supervisor.stop(key(2), 5.0, "cancelled")
        assert of_kind(await ended(supervisor, key(2)), "exited")[0].exit_code == -15


async def test_a_shim_that_left_its_task_while_the_next_attempt_was_written_is_not_asked_for_its_ranks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    writing, go_on = threading.Event(), threading.Event()

    def slowly(task: Task, launch: dict[str, Any]) -> None:
        if task.key == key(1, attempt=2):
            writing.set()
            assert go_on.wait(20)
        write_launch(task, launch)

    monkeypatch.setattr(starter, "write_launch", slowly)
    async with supervised(tmp_path, warm=False) as supervisor:
        await supervisor.start(start_task(key(1), "until [ -e over ]; do sleep 0.01; done", tmp_path))
        first = await begun(supervisor, key(1))
        second = asyncio.create_task(supervisor.start(start_task(key(1, attempt=2), SLEEPER, tmp_path)))
        await until(writing.is_set, "the second attempt is being written")
        (tmp_path / "over").touch()
        await until(lambda: supervisor._shims._free, "the first one's shim is free")
        go_on.set()
        await second
        assert (await begun(supervisor, key(1, attempt=2))).shim_pid == first.shim_pid


async def test_a_shim_that_died_while_it_was_free_is_not_used(tmp_path: Path) -> None:
    async with supervised(tmp_path, warm=False) as supervisor:
        for number, signum in ((1, signal.SIGKILL), (11, signal.SIGTERM)):
            dead = await free_shim(supervisor, tmp_path, key(number))
            kill(dead, signum)
            await until(lambda: not supervisor._shims._free, "the agent knows")
            entries = await run(supervisor, start_task(key(number + 1), "true", tmp_path))
            assert of_kind(entries, "started")[0].shim_pid != dead
            await until(lambda: supervisor._shims._free, "the other is free")
            supervisor._shims._free.pop().link.close()
            await until(lambda: not strays(tmp_path), "it has left")


async def test_a_shim_that_was_stopped_while_it_was_free_is_killed_and_its_task_refused(
    tmp_path: Path,
) -> None:
    async with supervised(tmp_path, warm=False, answer_s=0.3) as supervisor:
        stopped = await free_shim(supervisor, tmp_path, key(1))
        kill(stopped, signal.SIGSTOP)
        [refused] = of_kind(await run(supervisor, start_task(key(2), "true", tmp_path)), "refused")
        assert (refused.reason.code, refused.transient) == ("shim-died", True)
        assert not alive(stopped)
        assert of_kind(await run(supervisor, start_task(key(3), "true", tmp_path)), "ended")


async def test_the_next_agent_finds_the_task_that_the_shim_is_at_now(tmp_path: Path) -> None:
    first = Supervisor(tmp_path, SupervisorConfig(warm=False, rendezvous_ports=1))
    await first.recover()
    shim = await free_shim(first, tmp_path, key(1))
    await first.start(start_task(key(2), SLEEPER, tmp_path))
    said = await begun(first, key(2))
    assert said.shim_pid == shim
    await first.close()
    async with supervised(tmp_path, warm=False) as second:
        assert second.ended(key(1))
        assert not second.ended(key(2))
        assert list((await begun(second, key(2))).pids) == list(said.pids)
        assert alive(said.pids[0])
        await second.stop(key(2), 5.0, "cancelled")
        assert of_kind(await ended(second, key(2)), "exited")[0].exit_code == -15
        await until(lambda: not alive(shim), "without its first agent it serves nobody else")


AGENT = """
import asyncio, sys
from pathlib import Path
from paceline.agent.supervisor import Supervisor
from paceline.agent.supervisor_config import SupervisorConfig
from paceline.proto.generated import agent_pb2
from paceline.spec.ids import TaskKey

async def main():
    supervisor = Supervisor(Path(sys.argv[1]), SupervisorConfig(warm=False, rendezvous_ports=1))
    await supervisor.recover()
    await supervisor.start(agent_pb2.StartTask.FromString(Path(sys.argv[2]).read_bytes()))
    await supervisor.wait_ended(supervisor.tasks()[0])
    print("ended", flush=True)
    await asyncio.sleep(600)

asyncio.run(main())
"""


async def test_a_free_shim_leaves_with_its_killed_agent(tmp_path: Path) -> None:
    (tmp_path / "task").write_bytes(start_task(key(1), "true", tmp_path).SerializeToString())
    agent = subprocess.Popen(  # noqa: ASYNC220
        [sys.executable, "-c", AGENT, str(tmp_path / "state"), str(tmp_path / "task")],
        stdout=subprocess.PIPE,
        text=True,
        env=dict(os.environ),
    )
    assert agent.stdout is not None
    with agent.stdout:
        try:
            assert await asyncio.to_thread(agent.stdout.readline) == "ended\n"
            assert strays(tmp_path / "state")
        finally:
            agent.kill()
            agent.wait()
    await until(lambda: not strays(tmp_path / "state"), "the free shim has left", 5)


async def test_free_shims_are_bounded_in_number_and_time(tmp_path: Path) -> None:
    async with supervised(tmp_path, warm=False, idle_shim_s=1.0) as supervisor:
        keys = [key(1 + each) for each in range(40)]
        await asyncio.gather(*(supervisor.start(start_task(at, "read x; true", tmp_path)) for at in keys))
        await asyncio.gather(*(ended(supervisor, at) for at in keys))
        assert len({of_kind(supervisor.entries(at, 0, 9), "started")[0].shim_pid for at in keys}) <= 40
        await until(lambda: len(strays(tmp_path)) <= 32, "no more than so many are kept")
        await until(lambda: not strays(tmp_path), "none is kept for long")


async def test_a_program_that_is_over_at_once_ends_once(tmp_path: Path) -> None:
    """Its SIGCHLD may come before or after the shim's first look."""
    async with supervised(tmp_path / "state", warm=False) as supervisor:
        for number in range(1, 41):
            entries = await run(supervisor, start_task(key(number), "exit 3", tmp_path))
            assert [entry.WhichOneof("kind") for entry in entries] == ["started", "exited", "ended"]
            await until(lambda number=number: supervisor._tasks[key(number)].is_left, "its shim has left")
            supervisor._tasks[key(number)].journal.grow()
            assert len(supervisor.entries(key(number), 0, 9)) == 3
