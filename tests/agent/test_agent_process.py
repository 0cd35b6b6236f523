"""The agent as a process, with real tasks: its stream and its output survive what happens to it."""

import asyncio
import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import psutil
import pytest
from paceline.proto.generated import agent_pb2
from paceline.spec.ids import TaskKey
from support.proxy import Proxy
from support.small_scheduler import SmallScheduler, key, message_of

TOKEN = "a-token-of-at-least-twenty-characters"


class AgentProcess:
    """`pace agent` on a state folder of its own; what it leaves behind is killed by its task marks."""

    def __init__(self, folder: Path) -> None:
        self.state = folder / "agent-state"
        self.log = folder / "agent.log"
        self.token = folder / "agent.token"
        self.token.write_text(TOKEN)
        self.token.chmod(0o600)
        self.child: subprocess.Popen[bytes] | None = None

    def start(self, address: str, *options: str, environment: dict[str, str] | None = None) -> None:
        command = [sys.executable, "-P", "-m", "paceline.agent.main", "--scheduler", address]
        command += ["--state", str(self.state), "--name", "node-1", "--token-file", str(self.token), "--cold"]
        with self.log.open("ab") as log:
            self.child = subprocess.Popen(
                [*command, *options],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env={**os.environ, **(environment or {})},
            )

    def signal(self, number: int) -> int:
        """Send it, wait for the end; the exit code."""
        assert self.child is not None
        self.child.send_signal(number)
        try:
            return self.child.wait(20)
        except subprocess.TimeoutExpired as error:
            raise AssertionError(f"the agent goes on:\n{self.said()}") from error

    def wait(self) -> int:
        assert self.child is not None
        try:
            return self.child.wait(20)
        except subprocess.TimeoutExpired as error:
            raise AssertionError(f"the agent goes on:\n{self.said()}") from error

    def said(self) -> str:
        return self.log.read_text()

    def close(self) -> None:
        if self.child is not None and self.child.poll() is None:
            self.child.send_signal(signal.SIGCONT)
            self.child.kill()
            self.child.wait(20)
        for process in self.left():
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()

    def left(self) -> list[psutil.Process]:
        """Every process that works for this state folder."""
        found = []
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error):
                folder = process.environ().get("PACELINE_TASK_FOLDER", "")
                if folder.startswith(str(self.state)) or str(self.state) in " ".join(process.cmdline()):
                    found.append(process)
        return found


@pytest.fixture
def agent(tmp_path: Path) -> Iterator[AgentProcess]:
    process = AgentProcess(tmp_path)
    yield process
    process.close()


@contextlib.asynccontextmanager
async def joined(agent: AgentProcess, *options: str) -> AsyncIterator[SmallScheduler]:
    async with SmallScheduler() as scheduler:
        agent.start(scheduler.address, *options)
        await scheduler.until_connected(timeout_s=30)
        yield scheduler
        assert scheduler.offences == []


def start(task: TaskKey, command: str, folder: Path, processes: int = 1) -> agent_pb2.StartTask:
    return agent_pb2.StartTask(
        task=message_of(task),
        command=command,
        cwd=str(folder),
        processes=processes,
        world_size=processes,
        node_count=1,
        grace_s=2.0,
        job_folder=str(folder / "job"),
        job_name="test",
        log_bytes_max=64 << 20,
    )


def counting_until(enough: Path) -> str:
    return f"i=0; until [ -e {enough} ]; do i=$((i+1)); echo line $i; sleep 0.005; done; echo over"


def is_whole(output: bytes) -> bool:
    """Every number once, in order, and the last word."""
    lines = output.splitlines()
    return lines == [b"line %d" % number for number in range(1, len(lines))] + [b"over"]


async def test_a_task_from_start_to_end(agent: AgentProcess, tmp_path: Path) -> None:
    async with joined(agent) as scheduler:
        scheduler.start(start(key(1), "echo out; echo err >&2; exit 3", tmp_path))
        ended = await scheduler.until(lambda: scheduler.ended(key(1)))
        assert list(ended.exit_codes) == [3] and ended.why == "exited"
        assert scheduler.kinds(key(1)) == ["started", "exited", "ended"]
        await scheduler.until(lambda: not list((agent.state / "tasks").iterdir()))
        assert bytes(scheduler.logs[key(1), 0]) == b"out\nerr\n"
        said = json.loads((agent.state / "agent.json").read_text())
        assert agent.child and said["pid"] == agent.child.pid and said["name"] == "node-1"
        assert said["node_id"] == scheduler.hellos[0].node_id
        inventory = scheduler.hellos[0].inventory
        assert inventory.address == "127.0.0.1" and inventory.capacity.cpu_milli > 0
        assert "libnvidia-ml" in inventory.gpu_status and not inventory.gpus
        assert agent.signal(signal.SIGTERM) == 0
        assert "no task was running" in agent.said()


async def test_killed_again_and_again_while_it_ships_it_loses_and_doubles_nothing(
    agent: AgentProcess, tmp_path: Path
) -> None:
    async with joined(agent) as scheduler:
        enough = tmp_path / "enough"
        scheduler.start(start(key(1), counting_until(enough), tmp_path, processes=3))
        for round_number in range(4):
            stored = scheduler.stored[key(1), 0]
            await scheduler.until(lambda stored=stored: scheduler.stored[key(1), 0] > stored + 50, 30)
            agent.signal(signal.SIGKILL)
            agent.start(scheduler.address)
            await scheduler.until_connected(round_number + 2, timeout_s=30)
        enough.touch()
        ended = await scheduler.until(lambda: scheduler.ended(key(1)), timeout_s=30)
        assert list(ended.exit_codes) == [0, 0, 0]
        await scheduler.until(lambda: not list((agent.state / "tasks").iterdir()))
        for rank in range(3):
            assert is_whole(scheduler.logs[key(1), rank])
        assert [entry.seq for entry in scheduler.entries[key(1)]] == [1, 2, 3, 4, 5]
        assert scheduler.jumps == []


async def test_what_ended_while_the_agent_was_dead_is_told(agent: AgentProcess, tmp_path: Path) -> None:
    async with joined(agent) as scheduler:
        flag = tmp_path / "go"
        command = f"echo before; until [ -e {flag} ]; do sleep 0.02; done; echo after; exit 7"
        scheduler.start(start(key(1), command, tmp_path))
        await scheduler.until(lambda: scheduler.stored[key(1), 0] > 0)
        agent.signal(signal.SIGKILL)
        flag.touch()
        await scheduler.until(lambda: not agent.left())
        agent.start(scheduler.address)
        ended = await scheduler.until(lambda: scheduler.ended(key(1)))
        assert list(ended.exit_codes) == [7]
        await scheduler.until(lambda: scheduler.logs[key(1), 0] == b"before\nafter\n")


async def test_sigterm_leaves_the_tasks_and_says_so(agent: AgentProcess, tmp_path: Path) -> None:
    async with joined(agent) as scheduler:
        scheduler.start(start(key(1), "echo $$; exec sleep 60", tmp_path))
        await scheduler.until(lambda: scheduler.stored[key(1), 0] > 0)
        pid = int(scheduler.logs[key(1), 0])
        assert agent.signal(signal.SIGTERM) == 0
        assert "1 tasks go on without the agent (1.1.0)" in agent.said(), scheduler.entries
        assert psutil.pid_exists(pid)
        agent.start(scheduler.address)
        await scheduler.until_connected(2, timeout_s=30)
        scheduler.stop(key(1), 0.0)
        ended = await scheduler.until(lambda: scheduler.ended(key(1)))
        assert (list(ended.exit_codes), ended.why) == ([-9], "cancelled")
        assert not psutil.pid_exists(pid)


@pytest.mark.parametrize(("hangs_up", "why"), [(False, "preempted"), (True, "agent stopped")])
async def test_stop_tasks_ends_them_and_tells(
    agent: AgentProcess, tmp_path: Path, hangs_up: bool, why: str
) -> None:
    """By the scheduler, which knows how long they need; by itself where no scheduler is heard."""
    async with joined(agent, "--stop-tasks") as scheduler:
        scheduler.start(start(key(1), "trap 'echo bye; exit 4' TERM; while :; do sleep 0.05; done", tmp_path))
        await scheduler.until(lambda: scheduler.kinds(key(1)) == ["started"])
        await asyncio.sleep(0.2)  # the trap is set
        stopped = asyncio.create_task(asyncio.to_thread(agent.signal, signal.SIGTERM))
        await scheduler.until(lambda: any(said.leaving for said in scheduler.inventories))
        if hangs_up:
            scheduler.hang_up()
        else:
            assert not scheduler.ended(key(1)), "it waits for the scheduler's word"
            scheduler.stop(key(1), 30.0, "preempted")
        assert await stopped == 0
        ended = scheduler.ended(key(1))
        assert ended and (list(ended.exit_codes), ended.why) == ([4], why)
        assert [entry.exited.killed_by_us for entry in scheduler.entries[key(1)] if entry.HasField("exited")]
        assert scheduler.logs[key(1), 0].endswith(b"bye\n")
        assert not agent.left()


async def test_one_agent_per_state_folder(agent: AgentProcess, tmp_path: Path) -> None:
    async with joined(agent) as scheduler:
        assert agent.child is not None
        first = agent.child
        agent.start(scheduler.address)
        assert await asyncio.to_thread(agent.wait) == 3
        assert f"another agent (pid {first.pid}) runs with the state folder" in agent.said()
        agent.child = first


async def test_another_cluster_s_scheduler_is_not_obeyed(agent: AgentProcess, tmp_path: Path) -> None:
    async with joined(agent) as scheduler:
        await scheduler.until((agent.state / "agent.json").exists)  # it knows the cluster
        agent.signal(signal.SIGTERM)
        scheduler.cluster_id = "cluster-b"
        agent.start(scheduler.address)
        assert await asyncio.to_thread(agent.wait) == 5
        assert "this node belongs to cluster cluster-a" in agent.said()


async def test_a_stopped_agent_cannot_keep_an_exclusive_task_alive(
    agent: AgentProcess, tmp_path: Path
) -> None:
    async with SmallScheduler() as scheduler:
        scheduler.lease_exclusive_s = 1.5
        agent.start(scheduler.address)
        await scheduler.until_connected(timeout_s=30)
        request = start(key(1), "echo $$; exec sleep 60", tmp_path)
        request.exclusive = True
        scheduler.start(request)
        scheduler.start(start(key(2), "echo $$; exec sleep 60", tmp_path))
        await scheduler.until(lambda: scheduler.stored[key(1), 0] and scheduler.stored[key(2), 0])
        exclusive, fenced = (int(scheduler.logs[key(job), 0]) for job in (1, 2))
        assert agent.child is not None
        agent.child.send_signal(signal.SIGSTOP)
        at_s = time.monotonic()
        await scheduler.until(lambda: not psutil.pid_exists(exclusive), timeout_s=60)
        assert 1.0 < time.monotonic() - at_s < 60
        assert psutil.pid_exists(fenced)
        agent.child.send_signal(signal.SIGCONT)
        ended = await scheduler.until(lambda: scheduler.ended(key(1)), timeout_s=15)
        assert ended.why == "lease ran out"


async def test_a_partition_while_it_ships_loses_nothing(agent: AgentProcess, tmp_path: Path) -> None:
    async with SmallScheduler() as scheduler:
        with Proxy(("127.0.0.1", scheduler.port)) as proxy:
            agent.start(f"127.0.0.1:{proxy.port}")
            await scheduler.until_connected(timeout_s=30)
            enough = tmp_path / "enough"
            scheduler.start(start(key(1), counting_until(enough), tmp_path))
            await scheduler.until(lambda: scheduler.stored[key(1), 0] > 200)
            proxy.stall()
            await asyncio.sleep(1.0)
            proxy.heal()
            enough.touch()
            await scheduler.until(lambda: scheduler.ended(key(1)), timeout_s=30)
            await scheduler.until(lambda: is_whole(scheduler.logs[key(1), 0]))
        assert scheduler.offences == [] and scheduler.jumps == []
