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
    kill_until_gone,
    memory_verdict,
    signal_all,
)
from .evidence import began_path, error_path, what_is_left
from .journal import json_double
from .printed import Printed
from .rendezvous import serve_store
from .shim_door import Connection
from .shim_process import ShimProcess

_DRAIN_S = 5.0
_INSIDE_S = 10.0
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
        self.container = ""
        """In which it runs, as its engine's client; empty: in none."""

    @property
    def lives(self) -> bool:
        return self.pid > 0 and self.exit_code is None

    def processes(self) -> list[int]:
        """Its own, those below it, those in its container."""
        return [self.pid, *kernel.descendants(self.pid), *kernel.contained(*filter(None, [self.container]))]

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
            worker = Worker(local_rank, rank["rank"], f"{self._folder}/rank-{rank['rank']}.log")
            worker.container = rank.get("container", "")
            self.workers.append(worker)
        if self._launch["metric_patterns"]:
            self._printed = Printed(self.workers[0].log, self._launch["metric_patterns"])
        for local_rank, (pid, line) in kept.items():
            self.workers[local_rank].pid, self.workers[local_rank].line = pid, line
        if listener_fd >= 0 and self._launch["store"]:
            self._fork_store(listener_fd)
        for worker in self.workers:
            if worker.pid:
                continue
            worker.pid = self._spawn(worker) or self._give_to_spare(worker) or self._process.fork()
            if worker.pid == 0:
                os.setsid()
                return become_rank(self._launch, worker.local_rank, worker.log_fd, self._process)
        self._process.drop_spare()
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
                told = waiting.pop(next(iter(waiting)))
                yield {**told, "order": list(told["values"])}
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
        signal_all(self._contained(), signal.SIGKILL)

    def terminate(self) -> None:
        """SIGTERM to the ranks themselves: what they have forked is theirs to end. A shell passes no signal
        on, so there its children get it too. In a container, that is what runs there; before anything does,
        the client that starts it."""
        for worker in self.workers:
            if worker.lives:
                inside = kernel.contained(*filter(None, [worker.container]))
                first = inside[0] if inside else worker.pid
                below = kernel.children(first) if self._launch["shell"] else []
                signal_all([first, *below], signal.SIGTERM)

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
                for pid in (*kernel.descendants(self._process.pid), *self._contained())
                if pid != self._store_pid or not spare_store
            ]
        )

    def end_containers(self) -> list[int]:
        """What runs in them is dead then, also below a daemon, which nobody here can wait for; what cannot be
        killed is named."""
        return kill_until_gone(self._contained, _INSIDE_S)

    def what_is_left(self, worker: Worker) -> tuple[str, dict[str, Any]]:
        """Of a rank that has failed: its last line, and the fields of `Evidence` in its `exited` entry."""
        error_file = error_path(self._folder, worker.rank)
        last_line, evidence = what_is_left(worker.log, error_file, killed_by_us=worker.killed_by_us)
        return last_line, self._bounded(evidence) if evidence else evidence

    def verdict(self, worker: Worker) -> str:
        """Of a rank that has failed: the kernel's word, where it ended it for lack of memory, or that its
        container was never there; else empty."""
        if worker.killed_by_us:
            return ""
        if worker.container and not os.path.exists(began_path(self._folder, worker.rank)):  # noqa: PTH110
            return f"no container: {os.path.basename(self._launch['executable'])} did not start it"  # noqa: PTH119
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

    def _contained(self) -> list[int]:
        """A daemon's containers are not below this process."""
        return kernel.contained(*(worker.container for worker in self.workers if worker.container))

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
                _argv(self._launch, worker.local_rank),
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

    def _give_to_spare(self, worker: Worker) -> int:
        """The pid of a process that was forked ahead, and is this rank now. 0: there is none."""
        spare, self._process.spare = self._process.spare, None
        return spare.pid if spare and spare.give(self._launch, worker.local_rank, worker.log_fd) else 0

    def environment(self, worker: Worker) -> dict[str, str]:
        return _environment(self._launch, worker.local_rank)


def become_rank(launch: dict[str, Any], local_rank: int, log_fd: int, process: ShimProcess) -> Rank:
    """In a forked process that leads a session: leave the shim behind."""
    number = launch["ranks"][local_rank]["rank"]
    try:
        if launch["cgroup"]:
            enter_group(launch["cgroup"])
        null = os.open(os.devnull, os.O_RDONLY)
        os.dup2(null, 0)
        os.dup2(log_fd, 1)
        os.dup2(log_fd, 2)
        close_all_but(process.keep)
        os.chdir(launch["cwd"])
    except OSError as error:
        os.write(2, f"paceline: cannot start rank {number}: {error}\n".encode())
        os._exit(126)
    environment = _environment(launch, local_rank)
    return Rank({**launch, "argv": _argv(launch, local_rank)}, number, environment, process.memory)


def _environment(launch: dict[str, Any], local_rank: int) -> dict[str, str]:
    """Of the process that is started: that of a container's client is its own, and the rank's is inside."""
    client: dict[str, str] | None = launch["client"]
    if client is not None:
        return client
    return {**launch["environment"], **launch["ranks"][local_rank]["environment"]}


def _argv(launch: dict[str, Any], local_rank: int) -> list[str]:
    found: list[str] = launch["ranks"][local_rank].get("argv") or launch["argv"]
    return found


def close_all_but(keep: set[int]) -> None:
    """Close every descriptor from 3 on that is not in `keep`."""
    low = 3
    for fd in sorted(fd for fd in keep if fd > 2):
        os.closerange(low, fd)
        low = fd + 1
    os.closerange(low, 1 << 20)
