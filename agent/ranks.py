"""The ranks of one task and the store where they meet: started here, children of the shim, killed here.

What becomes of them is the shim's to say. Standard library only.
"""

import contextlib
import json
import math
import os
import signal
import time
import traceback
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from . import kernel
from .containment import (
    NODE_OUT_OF_MEMORY,
    enter_group,
    kill_all,
    kill_group,
    memory_verdict,
    signal_all,
)
from .evidence import error_path, what_is_left
from .journal import json_double
from .printed import Printed
from .rendezvous import serve_store
from .shim_door import Connection
from .shim_process import ShimProcess

_DRAIN_S = 5.0
_METRICS_PER_S = 100.0
_METRICS_WAITING_MAX = 1024
_AT_LENGTH = ("traceback", "last_lines")
_EVIDENCE_BYTES_MAX = 24 * 1024
"""In one task's journal, whose entries must fit into what is reserved when the disk is full."""


class Rank(NamedTuple):
    """What a worker process is to become."""

    launch: dict[str, Any]
    rank: int
    environment: dict[str, str]
    memory: kernel.InitialMemory


class Kept(NamedTuple):
    """A process that was a rank of the attempt before, and the line on which it waits for this one."""

    pid: int
    line: Connection


class Worker:
    """One rank's process, as its parent sees it."""

    def __init__(self, local_rank: int, rank: int, log: str) -> None:
        self.local_rank = local_rank
        self.rank = rank
        self.log = log
        self.log_fd = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        self.hole_bytes = 0
        self.pid = 0
        self.exit_code: int | None = None
        self.killed_by_us = False
        self.metrics_at = 0.0
        self.metrics_waiting: dict[int, dict[str, Any]] = {}
        """By step: of each metric the last value alone."""
        self.line: Connection | None = None
        """On which it said that it would stay up for the next attempt (keeping.py)."""
        self.stays = self.arrived = False

    @property
    def lives(self) -> bool:
        return self.pid > 0 and self.exit_code is None

    def bound_log(self, bytes_max: int) -> None:
        """Give back the oldest blocks of a log that is longer than it may be; offsets stay as they are."""
        beyond = os.fstat(self.log_fd).st_size - bytes_max if bytes_max > 0 else 0
        end = beyond // kernel.BLOCK_BYTES * kernel.BLOCK_BYTES
        if end > self.hole_bytes:
            kernel.punch_hole(self.log_fd, self.hole_bytes, end - self.hole_bytes)
            self.hole_bytes = end


class Ranks:
    """Of the task whose launch this is."""

    def __init__(self, folder: str, launch: dict[str, Any], process: ShimProcess) -> None:
        self._folder = folder
        self._launch = launch
        self._process = process
        self._store_pid = 0
        self._drain_fd = -1
        self._evidence_bytes = 0
        self._printed: Printed | None = None
        self.workers: list[Worker] = []
        self.killing = False

    @property
    def any_lives(self) -> bool:
        return any(worker.lives for worker in self.workers)

    def start(self, listener_fd: int, kept: Mapping[int, Kept]) -> Rank | None:
        """All of them but those that are `kept`, by local rank. Not None: this process is a rank, forked just
        now. Raises OSError; what was started by then is in `workers`."""
        for local_rank, rank in enumerate(self._launch["ranks"]):
            self.workers.append(Worker(local_rank, rank["rank"], f"{self._folder}/rank-{rank['rank']}.log"))
        if self._launch["metric_patterns"]:
            self._printed = Printed(self.workers[0].log, self._launch["metric_patterns"])
        for local_rank, (pid, line) in kept.items():
            self.workers[local_rank].pid, self.workers[local_rank].line = pid, line
        if listener_fd >= 0 and self._launch["store"]:
            self._fork_store(listener_fd)
        for worker in self.workers:
            if worker.pid:
                continue
            worker.pid = self._spawn(worker) or self._process.fork()
            if worker.pid == 0:
                return self._become_rank(worker)
        if listener_fd >= 0:
            os.close(listener_fd)
        return None

    def on_exit(self, pid: int) -> Worker | None:
        """The worker that has ended; None for the store and for what ranks left behind."""
        if pid == self._store_pid:
            self._store_pid = 0
        worker = next((worker for worker in self.workers if worker.pid == pid and worker.lives), None)
        if self._printed is not None and worker is self.workers[0]:
            self._printed.ended = True
        return worker

    def on_metrics(self, fields: dict[str, Any]) -> None:
        """They wait for their turn; of those that come too fast, the latest of each name."""
        worker = next((worker for worker in self.workers if worker.rank == fields.get("rank")), None)
        if worker is None:
            return
        step, values, waiting = fields.get("step", 0), fields.get("values", {}), worker.metrics_waiting
        values = {**waiting.pop(step, {}).get("values", {}), **values}
        for other, earlier in list(waiting.items()):
            left = {name: value for name, value in earlier["values"].items() if name not in values}
            waiting[other] = {**earlier, "values": left}
            if not left:
                del waiting[other]
        waiting[step] = {**fields, "values": values}
        while len(waiting) > 1 and sum(len(one["values"]) for one in waiting.values()) > _METRICS_WAITING_MAX:
            del waiting[next(iter(waiting))]

    def metrics_due(self, *, everything: bool) -> Iterator[dict[str, Any]]:
        """At most so many a second of each rank; or all that wait."""
        now = time.monotonic()
        for worker in self.workers:
            waiting = worker.metrics_waiting
            while waiting and (everything or now - worker.metrics_at >= 1 / _METRICS_PER_S):
                yield waiting.pop(next(iter(waiting)))
                worker.metrics_at = now
        if self._printed is not None and (everything or now >= self._printed.due_at):
            for step, values in self._printed.look():
                told = {name: json_double(value) for name, value in values.items()}
                yield {"rank": self.workers[0].rank, "step": step, "values": told}

    @property
    def look_at(self) -> float:
        """When what rank 0 prints is looked at next, on the monotonic clock."""
        return self._printed.due_at if self._printed is not None else math.inf

    def kill(self) -> None:
        """SIGKILL to every rank that lives and its process group; nobody needs the store then."""
        self.killing = True
        if self._store_pid:
            signal_all([self._store_pid], signal.SIGKILL)
        for worker in self.workers:
            if worker.lives:
                signal_all([worker.pid], signal.SIGKILL)
                with contextlib.suppress(ProcessLookupError, PermissionError):
                    os.killpg(worker.pid, signal.SIGKILL)

    def terminate(self) -> None:
        """SIGTERM to the ranks themselves: what they have forked is theirs to end. A shell passes no signal
        on, so there its children get it too."""
        for worker in self.workers:
            if worker.lives:
                below = kernel.children(worker.pid) if self._launch["shell"] else []
                signal_all([worker.pid, *below], signal.SIGTERM)

    def end_leftovers(self, *, failed: bool) -> None:
        """No rank lives. The store may serve other nodes' ranks to their end; everything else dies now."""
        if self._drain_fd >= 0:
            os.close(self._drain_fd)
            self._drain_fd = -1
        spare_store = self._store_pid and self._launch["node_count"] > 1 and not failed
        if self._launch["cgroup"]:
            kill_group(self._launch["cgroup"])
        kill_all(
            lambda: [
                pid
                for pid in kernel.descendants(self._process.pid)
                if pid != self._store_pid or not spare_store
            ]
        )

    def what_is_left(self, worker: Worker) -> tuple[str, dict[str, Any]]:
        """Of a rank that has failed: its last line, and the fields of `Evidence` in its `exited` entry."""
        error_file = error_path(self._folder, worker.rank)
        last_line, evidence = what_is_left(worker.log, error_file, killed_by_us=worker.killed_by_us)
        return last_line, self._bounded(evidence) if evidence else evidence

    def memory_verdict(self, worker: Worker) -> str:
        """Of a rank that has failed: the kernel's word, where it ended it for lack of memory; else empty."""
        if worker.killed_by_us:
            return ""
        group = self._launch["cgroup"]
        if group and (verdict := memory_verdict(group)):
            return verdict
        killed = worker.exit_code == -signal.SIGKILL and kernel.killed_for_memory(worker.pid)
        return NODE_OUT_OF_MEMORY if killed else ""

    def close(self) -> None:
        """Also the store: who meets again does so at another."""
        if self._store_pid:
            signal_all([self._store_pid], signal.SIGKILL)
        if self._drain_fd >= 0:
            os.close(self._drain_fd)
        if self._printed is not None:
            self._printed.close()
        for worker in self.workers:
            os.close(worker.log_fd)

    def _bounded(self, evidence: dict[str, Any]) -> dict[str, Any]:
        """The first ranks of a task to fail tell all, the others in short."""
        size_bytes = len(json.dumps(evidence))
        if self._evidence_bytes + size_bytes > _EVIDENCE_BYTES_MAX:
            return {name: value for name, value in evidence.items() if name not in _AT_LENGTH}
        self._evidence_bytes += size_bytes
        return evidence

    def _spawn(self, worker: Worker) -> int:
        """Start a program without copying this process first, which is several times cheaper. 0: not possible
        here. Such a rank gets no signal when the shim dies: the agent finds it by its mark."""
        if self._launch["mode"] != "exec" or self._launch["cgroup"] or self._launch["prepare"]:
            return 0
        try:
            os.chdir(self._launch["cwd"])
            return os.posix_spawn(
                self._launch["executable"],
                self._launch["argv"],
                self.environment(worker),
                file_actions=(
                    (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0),
                    (os.POSIX_SPAWN_DUP2, worker.log_fd, 1),
                    (os.POSIX_SPAWN_DUP2, worker.log_fd, 2),
                ),
                setsid=True,
                setsigdef=(signal.SIGPIPE, signal.SIGXFSZ),  # Python ignores them; what it starts must not
            )
        except OSError:  # a rank that is forked says in its log why it cannot become that program
            return 0
        finally:
            os.chdir("/")

    def _fork_store(self, listener_fd: int) -> None:
        process = self._process
        reader, self._drain_fd = os.pipe()
        self._store_pid = process.fork()
        if self._store_pid == 0:
            try:
                close_all_but(process.keep | {listener_fd, reader})
                kernel.set_name("pace-store")
                process.memory.set_arguments([f"paceline: rendezvous store of {self._launch['mark']}"])
                store = self._launch["store"]
                serve_store(listener_fd, store["address"], store["port"], reader, _DRAIN_S)
            except BaseException:  # noqa: BLE001 - nor into the shim's
                traceback.print_exc()
                os._exit(1)
            os._exit(0)
        os.close(reader)

    def _become_rank(self, worker: Worker) -> Rank:
        """In the forked process: leave the shim behind."""
        try:
            os.setsid()
            if self._launch["cgroup"]:
                enter_group(self._launch["cgroup"])
            null = os.open(os.devnull, os.O_RDONLY)
            os.dup2(null, 0)
            os.dup2(worker.log_fd, 1)
            os.dup2(worker.log_fd, 2)
            close_all_but(self._process.keep)
            os.chdir(self._launch["cwd"])
        except OSError as error:
            os.write(2, f"paceline: cannot start rank {worker.rank}: {error}\n".encode())
            os._exit(126)
        return Rank(self._launch, worker.rank, self.environment(worker), self._process.memory)

    def environment(self, worker: Worker) -> dict[str, str]:
        return {**self._launch["environment"], **self._launch["ranks"][worker.local_rank]["environment"]}


def close_all_but(keep: set[int]) -> None:
    """Close every descriptor from 3 on that is not in `keep`."""
    low = 3
    for fd in sorted(fd for fd in keep if fd > 2):
        os.closerange(low, fd)
        low = fd + 1
    os.closerange(low, 1 << 20)
