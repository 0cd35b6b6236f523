"""Tasks without processes, for tests of the streams alone: journals in memory, output in real files.

The same methods as agent.supervisor.Supervisor; the test writes what a shim would have written.
"""

import asyncio
from collections.abc import Callable
from pathlib import Path

from paceline.proto.generated import agent_pb2, common_pb2
from paceline.spec.errors import NotFound
from paceline.spec.ids import TaskKey

from .small_scheduler import key_of


class FolderTasks:
    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.on_growth: Callable[[TaskKey], None] = lambda key: None
        self.requests: dict[TaskKey, agent_pb2.StartTask] = {}
        self.journals: dict[TaskKey, list[agent_pb2.JournalEntry]] = {}
        self.acknowledged: dict[TaskKey, int] = {}
        self.stopped: list[tuple[TaskKey, float, str]] = []
        self.started: list[TaskKey] = []
        self.forgotten: list[TaskKey] = []
        self.start_takes_s = 0.0
        self.ends_when_stopped = True
        self._ended: dict[TaskKey, asyncio.Event] = {}

    # What a shim would do.

    def put(self, key: TaskKey, processes: int = 1, *, exclusive: bool = False) -> None:
        """A task that is here already."""
        self.requests[key] = request_for(key, processes, exclusive=exclusive)
        self.journals[key] = []
        self._ended[key] = asyncio.Event()

    def append(self, key: TaskKey, **kind: object) -> agent_pb2.JournalEntry:
        journal = self.journals[key]
        entry = agent_pb2.JournalEntry(seq=len(journal) + 1, at_monotonic_s=1.0, **kind)  # type: ignore[arg-type]
        journal.append(entry)
        self.on_growth(key)
        return entry

    def metrics(self, key: TaskKey, step: int) -> None:
        self.append(
            key, metrics=agent_pb2.MetricsReported(rank=0, step=step, values={"loss": 1 / (1 + step)})
        )

    def end(self, key: TaskKey, why: str = "exited") -> None:
        if not self.ended(key):
            self.append(key, ended=agent_pb2.TaskEnded(exit_codes=[0], why=why))
            self._ended[key].set()

    def write(self, key: TaskKey, rank: int, data: bytes) -> None:
        path = self.log_files(key)[rank]
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("ab") as file:
            file.write(data)

    # What the agent asks.

    async def start(self, request: agent_pb2.StartTask) -> None:
        key = key_of(request.task)
        self.started.append(key)
        if self.start_takes_s:
            await asyncio.sleep(self.start_takes_s)
        if key not in self.requests:
            self.put(key, request.processes, exclusive=request.exclusive)
            self.requests[key] = request
            self.append(key, started=agent_pb2.TaskStarted(pids=[1]))

    async def stop(self, key: TaskKey, grace_s: float, why: str, keep_s: float) -> None:
        self.stopped.append((key, grace_s, why))
        if key in self.requests and self.ends_when_stopped:
            self.end(key, why)

    async def forget(self, key: TaskKey) -> None:
        self.forgotten.append(key)
        self.requests.pop(key, None)
        self.journals.pop(key, None)
        for path in self.log_files(key).values():
            path.unlink(missing_ok=True)

    async def wait_ended(self, key: TaskKey) -> None:
        if key in self.requests:
            await self._ended[key].wait()

    def acknowledge(self, key: TaskKey, seq: int) -> None:
        assert seq >= self.acknowledged.get(key, 0), f"{key}: acknowledged backwards"
        self.acknowledged[key] = seq

    def tasks(self) -> tuple[TaskKey, ...]:
        return tuple(self.requests)

    def request(self, key: TaskKey) -> agent_pb2.StartTask:
        if key not in self.requests:
            raise NotFound(f"no task {key}")
        return self.requests[key]

    def entries(self, key: TaskKey, after_seq: int, limit: int) -> list[agent_pb2.JournalEntry]:
        return self.journals.get(key, [])[after_seq : after_seq + limit]

    def ended(self, key: TaskKey) -> bool:
        return key not in self.requests or self._ended[key].is_set()

    def log_files(self, key: TaskKey) -> dict[int, Path]:
        request = self.requests.get(key)
        if request is None:
            return {}
        ranks = range(request.first_rank, request.first_rank + request.processes)
        return {rank: self.folder / f"{key}" / f"rank-{rank}.log" for rank in ranks}


def request_for(key: TaskKey, processes: int = 1, *, exclusive: bool = False) -> agent_pb2.StartTask:
    return agent_pb2.StartTask(
        task=common_pb2.TaskKey(job=key.job, attempt=key.attempt, task=key.task),
        command="true",
        processes=processes,
        world_size=processes,
        exclusive=exclusive,
        grace_s=1.0,
    )
