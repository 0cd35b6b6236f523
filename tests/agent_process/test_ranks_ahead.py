"""Shims of warm zygotes are used again, and forked ahead with a rank: no task can tell."""

import json
import signal
from pathlib import Path
from typing import Any

import pytest
from paceline.agent import kernel
from paceline.agent.supervisor import Supervisor
from paceline.agent.supervisor_config import SupervisorConfig
from paceline.proto.marks import mark_of
from support.processes import (
    LIGHT,
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

TELLS = """
import json, os, signal, sys
print(json.dumps({
    "pid": os.getpid(), "parent": os.getppid(), "leads": os.getsid(0) == os.getpid() == os.getpgid(0),
    "umask": os.umask(0o77), "cwd": os.getcwd(), "argv": sys.argv,
    "mark": os.environ["PACELINE_MARK"], "mine": os.environ.get("MINE"),
    "seen": os.environ["PACELINE_MARK"].encode() in open("/proc/self/environ", "rb").read(),
    "descriptors": sorted(os.listdir("/proc/self/fd"), key=int),
    "caught": [n for n in signal.valid_signals() if callable(signal.getsignal(n))],
    "blocked": sorted(signal.pthread_sigmask(signal.SIG_BLOCK, [])),
    "files": sorted({line.split(None, 5)[5].strip() for line in open("/proc/self/maps")
                     if len(line.split(None, 5)) == 6 and "/tasks/" in line}),
    "modules": sorted(name for name in sys.modules if name == "left"),
    "comm": open("/proc/self/comm").read().strip(), "command": open("/proc/self/cmdline").read(),
}))
"""
SLEEPS = "import time\nprint('up', flush=True)\ntime.sleep(600)"


@pytest.fixture
def code(tmp_path: Path) -> Path:
    folder = tmp_path / "code"
    folder.mkdir()
    (folder / "tells.py").write_text(TELLS)
    (folder / "sleeps.py").write_text(SLEEPS)
    (folder / "changes.py").write_text(
        "import os, signal, sys, mmap\n"
        "os.environ['MINE'] = 'left'; sys.modules['left'] = sys; os.chdir('/tmp'); os.umask(0)\n"
        "signal.signal(signal.SIGUSR1, lambda *_: None); signal.pthread_sigmask(signal.SIG_BLOCK, {10})\n"
        "held = open('/etc/passwd')\n"
    )
    return folder


def spares(shim: int) -> list[int]:
    return [pid for pid in kernel.children(shim) if name_of(pid) == "pace-spare"]


def name_of(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/comm").read_text().strip()
    except OSError:
        return ""


async def free_shim(supervisor: Supervisor, at: Any, code: Path, script: str = "tells.py") -> int:
    """Run a task to its end; pid of its shim, which is free then and has forked a rank ahead."""
    entries = await run(supervisor, start_task(at, f"python {script}", code))
    [said] = of_kind(entries, "started")
    assert said.start_mode.startswith("warm")
    shim = int(said.shim_pid)
    await until(lambda: spares(shim), "it has forked a rank ahead")
    await until(lambda: shim in free_pids(supervisor), "the agent knows that it is free")
    return shim


def free_pids(supervisor: Supervisor) -> list[int]:
    return [shim.pid for shim in supervisor._shims._free]


async def only(supervisor: Supervisor, shim: int) -> None:
    """Let all other free shims go: the next task is that one's."""
    await until(lambda: not supervisor._starter._ahead, "none is being forked ahead")  # type: ignore[union-attr]
    for each in [each for each in supervisor._shims._free if each.pid != shim]:
        supervisor._shims._free.remove(each)
        each.link.close()


async def test_a_task_by_a_rank_forked_ahead_is_as_if_forked_for_it(tmp_path: Path, code: Path) -> None:
    async with supervised(tmp_path / "state") as supervisor:
        first = await free_shim(supervisor, key(1), code)
        await only(supervisor, first)
        [ahead] = spares(first)
        entries = await run(
            supervisor, start_task(key(2), "python tells.py a", code, environment={"MINE": "mine"})
        )
        [said] = of_kind(entries, "started")
        assert (said.shim_pid, list(said.pids)) == (first, [ahead])
        was, now = (json.loads(output(supervisor, key(each))) for each in (1, 2))
        assert (now["pid"], now["parent"], now["mine"], was["mine"]) == (ahead, first, "mine", None)
        assert now["mark"] == mark_of(tmp_path / "state" / "tasks" / "2.1.0")
        assert now["command"].endswith("tells.py a\0")
        assert (now["seen"], now["argv"]) == (True, ["tells.py", "a"])
        own = ("pid", "parent", "mark", "mine", "argv", "command")
        assert {k: v for k, v in now.items() if k not in own} == {
            k: v for k, v in was.items() if k not in own
        }


async def test_nothing_of_a_task_is_left_in_the_next(tmp_path: Path, code: Path) -> None:
    async with supervised(tmp_path / "state") as supervisor:
        shim = await free_shim(supervisor, key(1), code)
        for number, script in ((2, "changes.py"), (3, "tells.py")):
            await only(supervisor, shim)
            assert await free_shim(supervisor, key(number), code, script) == shim
        was, now = (json.loads(output(supervisor, key(each))) for each in (1, 3))
        own = ("pid", "parent", "mark")
        assert {k: v for k, v in now.items() if k not in own} == {
            k: v for k, v in was.items() if k not in own
        }


async def test_only_tasks_of_the_same_zygote_are_served(tmp_path: Path, code: Path) -> None:
    """Another import-sensitive environment is another zygote; a program is the lean one's."""
    async with supervised(tmp_path / "state") as supervisor:
        shim = await free_shim(supervisor, key(1), code)
        other = start_task(key(2), "python tells.py", code, environment={"PYTHONHASHSEED": "7"})
        program = start_task(key(3), "true", code)
        for request in (other, program):
            [said] = of_kind(await run(supervisor, request), "started")
            assert said.shim_pid != shim
        assert spares(shim)


async def test_what_is_forked_ahead_and_dies_is_not_used(tmp_path: Path, code: Path) -> None:
    async with supervised(tmp_path / "state") as supervisor:
        shim = await free_shim(supervisor, key(1), code)
        await only(supervisor, shim)
        [ahead] = spares(shim)
        kill(ahead, signal.SIGKILL)
        await until(lambda: not kernel.children(shim), "its shim has reaped it")
        entries = await run(supervisor, start_task(key(2), "python tells.py", code))
        assert of_kind(entries, "started")[0].shim_pid == shim
        assert list(of_kind(entries, "ended")[0].exit_codes) == [0]
        await until(lambda: spares(shim), "it has forked another")
        await only(supervisor, shim)
        [ahead] = spares(shim)
        kill(shim, signal.SIGKILL)
        await until(lambda: not alive(ahead), "the rank goes with its shim")
        entries = await run(supervisor, start_task(key(3), "python tells.py", code))
        assert of_kind(entries, "started")[0].shim_pid != shim
        assert list(of_kind(entries, "ended")[0].exit_codes) == [0]


async def test_a_rank_forked_ahead_is_stopped_and_killed_as_any(tmp_path: Path, code: Path) -> None:
    async with supervised(tmp_path / "state") as supervisor:
        shim = await free_shim(supervisor, key(1), code)
        for number, end in ((2, "stop"), (3, "kill")):
            await only(supervisor, shim)
            [ahead] = spares(shim)
            await supervisor.start(start_task(key(number), "python sleeps.py", code))
            said = await begun(supervisor, key(number))
            assert list(said.pids) == [ahead]
            await until(lambda number=number: output(supervisor, key(number)) == "up\n", "it runs")
            assert kernel.children(shim) == [ahead]
            if end == "stop":
                await supervisor.stop(key(number), 5.0, "cancelled")
                assert of_kind(await ended(supervisor, key(number)), "exited")[0].exit_code == -15
                await until(lambda: spares(shim), "it has forked another")
                await until(lambda: shim in free_pids(supervisor), "the agent knows that it is free")
            else:
                kill(shim, signal.SIGKILL)
                assert of_kind(await ended(supervisor, key(number)), "exited")[0].exit_code == -9
                assert not alive(ahead)


async def test_a_start_that_had_to_wait_for_a_fork_has_one_more_made_ahead(
    tmp_path: Path, code: Path
) -> None:
    async with supervised(tmp_path / "state") as supervisor:
        await supervisor.start(start_task(key(1), "python sleeps.py", code))
        shim = (await begun(supervisor, key(1))).shim_pid
        await until(lambda: free_pids(supervisor), "one is ready beside it")
        [ahead] = free_pids(supervisor)
        assert ahead != shim
        await until(lambda: spares(ahead), "with a rank")
        assert set(strays(tmp_path / "state")) >= {ahead, *spares(ahead)}
        supervisor._shims._free[0].free_since_s -= 1.0
        await supervisor.start(start_task(key(2), "python sleeps.py", code))
        assert (await begun(supervisor, key(2))).shim_pid == ahead
        assert not supervisor._starter._ahead  # type: ignore[union-attr]


async def test_those_forked_ahead_are_kept_for_a_bounded_time(tmp_path: Path, code: Path) -> None:
    async with supervised(tmp_path / "state", idle_shim_s=1.0) as supervisor:
        await run(supervisor, start_task(key(1), "python tells.py", code))
        await until(lambda: not supervisor._starter._ahead, "one more was forked")  # type: ignore[union-attr]
        await until(lambda: not strays(tmp_path / "state"), "none is kept for long")


async def test_they_leave_with_their_agent_and_the_next_finds_the_task(tmp_path: Path, code: Path) -> None:
    config = SupervisorConfig(preload=LIGHT, rendezvous_ports=1)
    first = Supervisor(tmp_path / "state", config)
    await first.recover()
    shim = await free_shim(first, key(1), code)
    await only(first, shim)
    await first.start(start_task(key(2), "python sleeps.py", code))
    said = await begun(first, key(2))
    assert said.shim_pid == shim
    await until(lambda: free_pids(first) or not first._starter._ahead, "none is being forked")  # type: ignore[union-attr]
    await first.close()
    async with supervised(tmp_path / "state") as second:
        await until(lambda: strays(tmp_path / "state").keys() == {shim, *said.pids}, "free ones have left")
        assert list((await begun(second, key(2))).pids) == list(said.pids)
        await second.stop(key(2), 5.0, "cancelled")
        assert of_kind(await ended(second, key(2)), "exited")[0].exit_code == -15
        await until(lambda: not alive(shim), "without its first agent it serves nobody else")


async def test_a_task_of_two_ranks_takes_one_that_was_forked_ahead(tmp_path: Path, code: Path) -> None:
    async with supervised(tmp_path / "state") as supervisor:
        shim = await free_shim(supervisor, key(1), code)
        await only(supervisor, shim)
        [ahead] = spares(shim)
        request = start_task(key(2), "python tells.py", code, processes=2, world_size=2)
        entries = await run(supervisor, request)
        [said] = of_kind(entries, "started")
        assert said.shim_pid == shim
        assert said.pids[0] == ahead
        told = [json.loads(output(supervisor, key(2), rank)) for rank in (0, 1)]
        assert [each["pid"] for each in told] == list(said.pids)
        assert told[0]["descriptors"] == told[1]["descriptors"]
        assert all(each["leads"] and each["parent"] == shim for each in told)


async def test_a_task_too_large_to_be_handed_over_has_a_shim_of_its_own(tmp_path: Path, code: Path) -> None:
    (code / "sizes.py").write_text("import os; print(sum(len(os.environ[f'BIG{n}']) for n in range(4)))")
    large = {f"BIG{number}": "x" * 100_000 for number in range(4)}
    async with supervised(tmp_path / "state") as supervisor:
        shim = await free_shim(supervisor, key(1), code)
        for number, command in ((2, "python sizes.py"), (3, "sh -c 'exec python sizes.py'")):
            entries = await run(supervisor, start_task(key(number), command, code, environment=large))
            assert of_kind(entries, "started")[0].shim_pid != shim
            assert output(supervisor, key(number)) == "400000\n"
        assert spares(shim)


async def test_a_rank_forked_ahead_enters_the_group_of_its_task(tmp_path: Path, code: Path) -> None:
    (code / "group.py").write_text("print(open('/proc/self/cgroup').read())")
    async with supervised(tmp_path / "state", groups_without_limits=True) as supervisor:
        if supervisor._groups.root is None:
            pytest.skip(supervisor.containment())
        shim = await free_shim(supervisor, key(1), code)
        await only(supervisor, shim)
        [ahead] = spares(shim)
        entries = await run(supervisor, start_task(key(2), "python group.py", code))
        assert list(of_kind(entries, "started")[0].pids) == [ahead]
        group = supervisor._groups.root / str(key(2))
        assert f"/{group.parent.name}/{group.name}\n" in output(supervisor, key(2))
        assert not group.exists()
