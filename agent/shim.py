"""A task's parent: starts its ranks, outlives agent and zygote, reaps every descendant, and writes what
became of them into the journal before anyone hears of it.
One thread, one event loop; no process is left at its end.

Limits that must hold while the agent is dead (grace, timeout, lease, the logs' bound) are kept here, on the
monotonic clock. Standard library only.
"""

import contextlib
import errno
import json
import os
import selectors
import signal
import socket
import time
import traceback
from typing import Any, NamedTuple

from . import kernel
from .claims import claim, disclaim
from .containment import drop_group, enter_group, kill_all, kill_group, memory_verdict, signal_all
from .journal import Journal
from .lease_watch import Lease
from .messages import Invalid, checked
from .rendezvous import serve_store
from .shim_door import Connection, Door

_NEVER = float("inf")
_LOOK_S = 1.0
_TAIL_BYTES = 4096
_ROUNDS_MAX = 256
_METRICS_PER_S = 100.0
_LAST_LINE_CHARS_MAX = 500
_AT_ONCE_S = 0.003
"""A program that ends so soon is told of once, with one fsync."""
_DRAIN_S = 5.0
_KILL_S = 60.0


class Rank(NamedTuple):
    """What a worker process is to become."""

    launch: dict[str, Any]
    rank: int
    environment: dict[str, str]
    memory: kernel.InitialMemory


class ClaimedTask(NamedTuple):
    """What a shim has claimed."""

    folder: str
    launch: dict[str, Any]
    claim_fd: int


class _Worker:
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
        self.metrics_waiting: dict[str, Any] | None = None

    @property
    def lives(self) -> bool:
        return self.pid > 0 and self.exit_code is None


def become_shim(
    folder: str,
    control_fd: int,
    listener_fd: int,
    memory: kernel.InitialMemory,
    keep: set[int],
    *,
    reusable: bool,
) -> Rank:
    """In a process just forked from a zygote. Returns only in the ranks, forked from here in turn."""
    os.setsid()
    claim_fd = claim(folder)
    if claim_fd < 0:
        os._exit(0)
    close_all_but(keep | {control_fd, listener_fd, claim_fd})
    try:
        control: Connection | None = Connection(socket.socket(fileno=control_fd))
        rank, launch = None, _read_launch(folder)
        while control is not None:
            shim = Shim(ClaimedTask(folder, launch, claim_fd), control, memory, keep, reusable=reusable)
            rank = shim.start(listener_fd)
            if rank is not None:
                break
            shim.serve()
            control, listener_fd = shim.leave(), -1
            if control is not None:
                folder, launch = _wait_for_task(control)
                claim_fd = claim(folder) if folder else -1
                control = control if claim_fd >= 0 else None
    except BaseException:  # noqa: BLE001 - nothing may return into the zygote's loop
        traceback.print_exc()  # into the zygote's log; the agent sees the end of the connection and cleans up
        os._exit(70)
    if rank is None:
        os._exit(0)
    return rank


def _read_launch(folder: str) -> dict[str, Any]:
    with open(folder + "/launch.json", "rb") as file:  # noqa: PTH123
        launch: dict[str, Any] = json.loads(file.read())
    return launch


def _wait_for_task(control: Connection) -> tuple[str, dict[str, Any]]:
    """Between two tasks: the next one's folder and launch. Empty: the agent needs this process no longer, or
    is dead. What still comes for the last task is answered, and is of no effect."""
    kernel.set_name("pace-shim-free")
    sock = control.sock
    sock.setblocking(True)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    while True:
        while b"\n" in control.incoming:
            line, _, control.incoming = control.incoming.partition(b"\n")
            message = json.loads(line)
            if message["op"] == "take":
                return message["folder"], message["launch"]
            if message["op"] != "trim":
                control.outgoing += b'{"ok":true}\n'
        try:
            sock.sendall(control.outgoing)
            data = sock.recv(1 << 16)
        except OSError:  # the agent has died with words of ours unread
            return "", {}
        if not data:
            return "", {}
        control.incoming, control.outgoing = control.incoming + data, b""


def close_all_but(keep: set[int]) -> None:
    """Close every descriptor from 3 on that is not in `keep`."""
    low = 3
    for fd in sorted(fd for fd in keep if fd > 2):
        os.closerange(low, fd)
        low = fd + 1
    os.closerange(low, 1 << 20)


class Shim:
    def __init__(
        self,
        task: ClaimedTask,
        control: Connection,
        memory: kernel.InitialMemory,
        keep: set[int],
        *,
        reusable: bool,
    ) -> None:
        """`control`: the agent's connection, watching; with `reusable` it may be used for another task."""
        self._pid = os.getpid()
        self._folder = task.folder
        self._claim_fd = task.claim_fd
        self._control = control
        self._reusable = reusable
        self._memory = memory
        self._keep = keep
        self._launch = launch = task.launch
        memory.set_mark(launch["mark"])
        kernel.set_name("pace-shim")
        kernel.set_child_subreaper(True)
        self._journal = Journal(task.folder + "/journal.jsonl")
        self._selector = selectors.DefaultSelector()
        self._door = Door(self._selector, self._on_line)
        self._replies: list[tuple[Connection, dict[str, Any]]] = []
        self._workers: list[_Worker] = []
        self._store_pid = 0
        self._drain_fd = -1
        self._stop_why = ""
        self._killing = False
        self._refused: dict[str, Any] | None = None
        self._over = False
        self._free = False
        self._durable = False
        self._timeout_at = self._kill_at = self._give_up_at = _NEVER
        self._look_at = time.monotonic() + _LOOK_S
        self._lease = Lease(task.folder + "/../../lease", launch["exclusive"])
        control.watching, control.told_bytes = True, -1
        self._door.add(control)

    def start(self, listener_fd: int) -> Rank | None:
        """Everything up to `started` in the journal. Not None: this process is a rank, forked just now."""
        self._take_signals()
        try:
            self._make_files()
            if listener_fd >= 0 and self._launch["store"]:
                self._fork_store(listener_fd)
            for worker in self._workers:
                worker.pid = self._spawn(worker) or self._fork()
                if worker.pid == 0:
                    return self._become_rank(worker)
        except OSError as error:
            self._refuse(error)
            return None
        if listener_fd >= 0:
            os.close(listener_fd)
        timeout_s = self._launch["timeout_s"]
        self._timeout_at = time.monotonic() + timeout_s if timeout_s > 0 else _NEVER
        pids = [worker.pid for worker in self._workers]
        self._append(
            "started",
            {
                "pids": pids,
                "start_mode": self._launch["start_mode"],
                "shim_pid": self._pid,
                "first_rank": self._launch["ranks"][0]["rank"],
            },
        )
        return None

    def _take_signals(self) -> None:
        self._wakeup, self._wakeup_writer = socket.socketpair()
        self._wakeup.setblocking(False)
        self._wakeup_writer.setblocking(False)
        self._selector.register(self._wakeup, selectors.EVENT_READ, self._on_signals)
        signal.set_wakeup_fd(self._wakeup_writer.fileno(), warn_on_full_buffer=False)
        for number in (signal.SIGCHLD, signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, lambda number, frame: None)  # not SIG_IGN: a program would inherit that

    def _make_files(self) -> None:
        if self._launch["mode"] == "warm":
            self._write_notice(b"\0")
        self._door.open(self._folder)
        for local_rank, rank in enumerate(self._launch["ranks"]):
            self._workers.append(_Worker(local_rank, rank["rank"], f"{self._folder}/rank-{rank['rank']}.log"))

    def _fork(self) -> int:
        pid = os.fork()
        if pid == 0:
            self._close_ours()
            kernel.set_parent_death_signal(signal.SIGKILL)
            if os.getppid() != self._pid:
                os._exit(1)  # the shim died between the two calls
            reset_signals()
        return pid

    def _spawn(self, worker: _Worker) -> int:
        """Start a program without copying this process first, which is several times cheaper. 0: not possible
        here. Such a rank gets no signal when the shim dies: the agent finds it by its mark."""
        if self._launch["mode"] != "exec" or self._launch["cgroup"]:
            return 0
        try:
            os.chdir(self._launch["cwd"])
            return os.posix_spawn(
                self._launch["executable"],
                self._launch["argv"],
                self._environment(worker),
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

    def _close_ours(self) -> None:
        """In a forked process. Left to the garbage collector, these would later close descriptors of the same
        number that are somebody else's by then."""
        self._wakeup.close()
        self._wakeup_writer.close()
        self._door.close()
        self._selector.close()

    def _fork_store(self, listener_fd: int) -> None:
        reader, self._drain_fd = os.pipe()
        self._store_pid = self._fork()
        if self._store_pid == 0:
            try:
                close_all_but(self._keep | {listener_fd, reader})
                kernel.set_name("pace-store")
                self._memory.set_arguments([f"paceline: rendezvous store of {self._launch['mark']}"])
                store = self._launch["store"]
                serve_store(listener_fd, store["address"], store["port"], reader, _DRAIN_S)
            except BaseException:  # noqa: BLE001 - nor into the shim's
                traceback.print_exc()
                os._exit(1)
            os._exit(0)
        os.close(reader)

    def _become_rank(self, worker: _Worker) -> Rank:
        """In the forked process: leave the shim behind."""
        try:
            os.setsid()
            if self._launch["cgroup"]:
                enter_group(self._launch["cgroup"])
            null = os.open(os.devnull, os.O_RDONLY)
            os.dup2(null, 0)
            os.dup2(worker.log_fd, 1)
            os.dup2(worker.log_fd, 2)
            close_all_but(self._keep)
            os.chdir(self._launch["cwd"])
        except OSError as error:
            os.write(2, f"paceline: cannot start rank {worker.rank}: {error}\n".encode())
            os._exit(126)
        return Rank(self._launch, worker.rank, self._environment(worker), self._memory)

    def _environment(self, worker: _Worker) -> dict[str, str]:
        return {**self._launch["environment"], **self._launch["ranks"][worker.local_rank]["environment"]}

    def _refuse(self, error: OSError) -> None:
        """What was started so far dies; the node's fault, so another try may go well."""
        text = f"the shim could not start the ranks: {error}"
        reason = {
            "code": "node-trouble",
            "text": text,
            "fields": {"errno": errno.errorcode.get(error.errno or 0, "")},
        }
        self._refused = {"reason": reason, "transient": True}
        self._kill_ranks()

    # -- the loop ------------------------------------------------------------

    def serve(self) -> None:
        """Until the task has ended and its journal says so."""
        self._on_children()
        self._door.read_lines(self._control)  # what came together with the word to take the task
        if self._launch["mode"] == "exec":
            self._react(_AT_ONCE_S)
        while not (self._flush() and self._over):
            self._react(max(0.0, self._next_look() - time.monotonic()))
            self._on_clock()
        self._journal.close()

    def _react(self, patience_s: float) -> None:
        for key, _ in self._selector.select(patience_s):
            key.data()

    def _next_look(self) -> float:
        return min(self._timeout_at, self._kill_at, self._look_at, self._give_up_at)

    def _append(self, kind: str, fields: dict[str, Any]) -> int:
        self._durable = True
        return self._journal.append(kind, fields)

    def _flush(self) -> bool:
        """Make durable what this round brought, then tell whoever waits: one fsync however many there are.
        False: the disk does not take it now; nobody is told, and a later round tries again."""
        try:
            self._journal.flush(self._durable)
        except OSError:
            return False
        self._durable = False
        replies, self._replies = self._replies, []
        for connection, reply in replies:
            self._door.send(connection, reply)
        for connection in list(self._door.connections):
            if (
                connection.watching
                and connection.told_bytes != self._journal.size_bytes
                and not connection.outgoing
            ):
                connection.told_bytes = self._journal.size_bytes
                self._door.send(connection, self._growth(connection))
        return True

    def _growth(self, connection: Connection) -> dict[str, Any]:
        free = self._over and self._reusable and connection is self._control
        self._free = self._free or free
        return {"journal": self._journal.size_bytes, **({"free": True} if free else {})}

    def leave(self) -> Connection | None:
        """Close all that this task had open. The agent's connection, when it was told that this process is
        free for another task; else the process is to end."""
        control = self._control if self._free and self._control in self._door.connections else None
        self._door.connections.discard(self._control)
        signal.set_wakeup_fd(-1)
        self._close_ours()
        for worker in self._workers:
            os.close(worker.log_fd)
        self._lease.close()
        disclaim(self._claim_fd)
        if control is None or control.outgoing:
            return None
        self._memory.set_mark("idle@" + self._launch["mark"].partition("@")[2])
        return control

    # -- processes ------------------------------------------------------------

    def _on_signals(self) -> None:
        numbers = self._wakeup.recv(4096)
        if signal.SIGTERM in numbers:
            self._stop(self._launch["grace_s"], "stopped")
        if signal.SIGCHLD in numbers:
            self._on_children()

    def _on_children(self) -> None:
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                self._end("")
                return
            if pid == 0:
                break
            self._on_exit(pid, os.waitstatus_to_exitcode(status))
        if not any(worker.lives for worker in self._workers):
            self._end_store_and_leftovers()

    def _on_exit(self, pid: int, exit_code: int) -> None:
        if pid == self._store_pid:
            self._store_pid = 0
        for worker in self._workers:
            if worker.pid == pid and worker.lives:
                self._hear_out()
                worker.exit_code = exit_code
                worker.killed_by_us = bool(exit_code and (self._stop_why or self._killing))
                self._write_exit(worker)
                if exit_code:
                    self._kill_ranks()

    def _hear_out(self) -> None:
        """What a rank said before it ended comes before its end."""
        for _ in range(_ROUNDS_MAX):
            ready = [key for key, _ in self._selector.select(0) if key.fileobj is not self._wakeup]
            for key in ready:
                key.data()
            if not ready:
                break
        self._write_metrics(everything=True)

    def _kill_ranks(self) -> None:
        """SIGKILL to every rank that lives and its process group; nobody needs the store then."""
        self._killing = True
        if self._store_pid:
            signal_all([self._store_pid], signal.SIGKILL)
        for worker in self._workers:
            if worker.lives:
                signal_all([worker.pid], signal.SIGKILL)
                with contextlib.suppress(ProcessLookupError, PermissionError):
                    os.killpg(worker.pid, signal.SIGKILL)

    def _end_store_and_leftovers(self) -> None:
        """No rank lives. The store may serve other nodes' ranks to their end; everything else dies now."""
        if self._give_up_at == _NEVER:
            self._give_up_at = time.monotonic() + _KILL_S
        if self._drain_fd >= 0:
            os.close(self._drain_fd)
            self._drain_fd = -1
        spare_store = self._store_pid and self._launch["node_count"] > 1 and not self._failed()
        if self._launch["cgroup"]:
            kill_group(self._launch["cgroup"])
        kill_all(
            lambda: [
                pid for pid in kernel.descendants(self._pid) if pid != self._store_pid or not spare_store
            ]
        )

    def _failed(self) -> bool:
        return bool(self._stop_why) or any(worker.exit_code for worker in self._workers)

    def _write_exit(self, worker: _Worker) -> None:
        if self._refused:
            return
        killed = worker.exit_code == -signal.SIGKILL
        self._append(
            "exited",
            {
                "local_rank": worker.local_rank,
                "exit_code": worker.exit_code,
                "last_line": last_line(worker.log),
                "killed_by_us": worker.killed_by_us,
                "cause": memory_verdict(self._launch["cgroup"]) if killed and self._launch["cgroup"] else "",
            },
        )

    def _end(self, problem: str) -> None:
        """Nothing is left that could run: the last entry."""
        if self._refused:
            self._append("refused", self._refused)
        else:
            fields = {
                "exit_codes": [worker.exit_code for worker in self._workers],
                "log_bytes": [os.fstat(worker.log_fd).st_size for worker in self._workers],
                "why": (self._stop_why or "exited") + problem,
            }
            self._append("ended", fields)
        self._reusable = self._reusable and not problem and not self._refused
        if self._launch["cgroup"]:
            drop_group(self._launch["cgroup"])
        self._over = True

    # -- the clock ------------------------------------------------------------

    def _on_clock(self) -> None:
        now = time.monotonic()
        if now >= self._timeout_at:
            self._timeout_at = _NEVER
            self._stop(self._launch["grace_s"], "timeout")
        if now >= self._kill_at:
            self._kill_at = _NEVER
            self._kill_ranks()
        if now >= self._give_up_at and not self._over:
            left = kernel.descendants(self._pid)
            self._end(f"; {len(left)} processes cannot be killed: {left[:10]}")
        if now >= self._look_at:
            self._look_at = now + _LOOK_S
            self._bound_logs()
            self._write_metrics(everything=False)
            if self._lease.ran_out():
                self._stop(0.0, "lease ran out")
            if self._give_up_at != _NEVER and not self._over:
                self._end_store_and_leftovers()

    def _stop(self, grace_s: float, why: str) -> None:
        now = time.monotonic()
        if self._over or self._refused:
            return
        if not self._stop_why:
            self._stop_why = why
            self._write_notice(b"\1")
            if grace_s > 0:
                self._terminate_ranks()
        if grace_s <= 0:
            self._kill_at = _NEVER
            self._kill_ranks()
        else:
            self._kill_at = min(self._kill_at, now + grace_s)

    def _write_notice(self, value: bytes) -> None:
        """The ranks have it mapped, or look for it until it is there: a program gets it at the stop only."""
        with contextlib.suppress(OSError):  # a full disk: SIGTERM says the same
            fd = os.open(self._folder + "/notice", os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
            os.pwrite(fd, value, 0)
            os.close(fd)

    def _terminate_ranks(self) -> None:
        """SIGTERM to the ranks themselves: what they have forked is theirs to end. A shell passes no signal
        on, so there its children get it too."""
        for worker in self._workers:
            if worker.lives:
                below = kernel.children(worker.pid) if self._launch["shell"] else []
                signal_all([worker.pid, *below], signal.SIGTERM)

    def _bound_logs(self) -> None:
        """Give back the oldest blocks of a log that is longer than it may be; offsets stay as they are."""
        bytes_max = self._launch["log_bytes_max"]
        for worker in self._workers:
            beyond = os.fstat(worker.log_fd).st_size - bytes_max if bytes_max > 0 else 0
            end = beyond // kernel.BLOCK_BYTES * kernel.BLOCK_BYTES
            if end > worker.hole_bytes:
                kernel.punch_hole(worker.log_fd, worker.hole_bytes, end - worker.hole_bytes)
                worker.hole_bytes = end

    # -- what is said at the door ------------------------------------------------------------

    def _on_line(self, connection: Connection, line: bytes) -> None:
        try:
            op, fields = checked(line)
        except Invalid as error:
            self._replies.append((connection, {"ok": False, "error": str(error)}))
            return
        if op == "metrics":
            self._on_metrics(fields)
        elif op in ("checkpoint", "restored", "checkpoint_failed"):
            self._replies.append((connection, {"ok": True, "seq": self._append(op, fields)}))
        elif op == "watch":
            connection.watching, connection.told_bytes = True, -1
        elif op == "trim":
            self._journal.trim(fields.get("bytes", 0))
        else:
            if op == "stop":
                self._stop(float(fields.get("grace_s", 0.0)), fields.get("why") or "stopped")
            self._replies.append((connection, {"ok": True}))

    def _on_metrics(self, fields: dict[str, Any]) -> None:
        """Keep at most so many a second for each rank; of those that come too fast, the latest."""
        worker = next((worker for worker in self._workers if worker.rank == fields.get("rank")), None)
        if worker is not None:
            worker.metrics_waiting = fields
            self._write_metrics(everything=False)

    def _write_metrics(self, everything: bool) -> None:
        now = time.monotonic()
        for worker in self._workers:
            if worker.metrics_waiting and (everything or now - worker.metrics_at >= 1 / _METRICS_PER_S):
                self._journal.append_metrics(worker.metrics_waiting)
                worker.metrics_waiting, worker.metrics_at = None, now


def reset_signals() -> None:
    """As a fresh Python process has them."""
    signal.set_wakeup_fd(-1)
    for number in (signal.SIGCHLD, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)


def last_line(path: str) -> str:
    """The end of the last line of output that is not empty."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return ""
    try:
        size = os.fstat(fd).st_size
        data = os.pread(fd, _TAIL_BYTES, max(0, size - _TAIL_BYTES))
    finally:
        os.close(fd)
    lines = data.replace(b"\r", b"\n").rstrip().rsplit(b"\n", 1)
    return lines[-1].decode("utf-8", "replace").replace("\0", "")[-_LAST_LINE_CHARS_MAX:]
