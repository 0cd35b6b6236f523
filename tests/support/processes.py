"""A node's process side for tests: a real supervisor, start requests, and checks that nothing is left."""

import asyncio
import contextlib
import os
import signal
import sys
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

from paceline.agent import kernel
from paceline.agent.supervisor import Supervisor
from paceline.agent.supervisor_config import SupervisorConfig
from paceline.proto.generated import agent_pb2
from paceline.proto.marks import mark_of
from paceline.spec.ids import Attempt, JobId, TaskKey

LIGHT = ("json", "random", "logging")
"""Preloads for tests of what does not depend on torch."""


def key(job: int, attempt: int = 1, task: int = 0) -> TaskKey:
    return TaskKey(JobId(job), Attempt(attempt), task)


def start_task(at: TaskKey, command: str, cwd: Path, **fields: Any) -> agent_pb2.StartTask:
    """A StartTask of one process, unless the fields say otherwise."""
    processes = fields.setdefault("processes", 1)
    fields.setdefault("world_size", processes)
    fields.setdefault("node_count", 1)
    fields.setdefault("grace_s", 5.0)
    request = agent_pb2.StartTask(command=command, cwd=str(cwd), job_folder=str(cwd), **fields)
    request.task.job, request.task.attempt, request.task.task = at.job, at.attempt, at.task
    return request


@contextlib.asynccontextmanager
async def supervised(state: Path, **config: Any) -> AsyncIterator[Supervisor]:
    """A recovered supervisor. At the end every task of it is forgotten, and nothing may carry its marks."""
    config.setdefault("preload", LIGHT)
    config.setdefault("rendezvous_ports", 2)
    supervisor = Supervisor(state, SupervisorConfig(**config))
    await supervisor.recover()
    try:
        yield supervisor
    finally:
        await asyncio.gather(*(supervisor.forget(each) for each in supervisor.tasks()))
        await supervisor.close()
        await until(lambda: not strays(state), "no process is left", 5)  # a shim leaves after its last word


def strays(state: Path) -> dict[int, str]:
    """Processes of any task of that state folder, forked or exec'd."""
    agent = mark_of(state / "tasks" / "0.0.0").partition("@")[2].encode()
    found = {}
    for pid in kernel.all_pids():
        with contextlib.suppress(OSError):
            if b"@" + agent in Path(f"/proc/{pid}/environ").read_bytes():
                found[pid] = Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode()
    return found


async def run(
    supervisor: Supervisor, request: agent_pb2.StartTask, deadline_s: float = 60.0
) -> list[agent_pb2.JournalEntry]:
    """Start, wait for the end, return the journal."""
    at = key(request.task.job, request.task.attempt, request.task.task)
    await supervisor.start(request)
    return await ended(supervisor, at, deadline_s)


async def begun(supervisor: Supervisor, at: TaskKey) -> Any:
    """The task's `started` entry, once it is there."""
    return (await until(lambda: of_kind(supervisor.entries(at, 0, 100), "started"), "started"))[0]


async def ended(
    supervisor: Supervisor, at: TaskKey, deadline_s: float = 60.0
) -> list[agent_pb2.JournalEntry]:
    """Wait for the end of the task, return its journal, whose seqs must have no gap."""
    async with asyncio.timeout(deadline_s):
        await supervisor.wait_ended(at)
    entries = await until(lambda: supervisor.entries(at, 0, 1000), "told, with what it ran with")
    assert [entry.seq for entry in entries] == list(range(1, len(entries) + 1))
    return entries


def of_kind(entries: list[agent_pb2.JournalEntry], kind: str) -> list[Any]:
    return [getattr(entry, kind) for entry in entries if entry.WhichOneof("kind") == kind]


def output(supervisor: Supervisor, at: TaskKey, rank: int = 0) -> str:
    path = supervisor.log_files(at)[rank]
    return path.read_text(errors="replace") if path.exists() else ""


async def until(condition: Callable[[], object], what: str, deadline_s: float = 60.0) -> Any:
    """Wait until the condition holds and return its value; fails with `what` at the deadline."""
    give_up_at = time.monotonic() + deadline_s
    while not (value := condition()):
        if time.monotonic() > give_up_at:
            raise AssertionError(f"not within {deadline_s} s: {what}")
        await asyncio.sleep(0.01)
    return value


def alive(pid: int) -> bool:
    """True while that process runs: a zombie does not."""
    return kernel.start_time(pid) is not None


def kill(pid: int, number: int = signal.SIGKILL) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)


PYTHON = sys.executable
