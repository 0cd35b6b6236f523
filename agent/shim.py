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
import signal
import socket
import time
import traceback
from typing import Any, NamedTuple

from ..proto.notice import Notice
from . import kernel
from .claims import claim, disclaim
from .containment import drop_group, signal_all
from .gang_watch import POLL_S, GangWatch
from .journal import Journal
from .keeping import KEEP_S, KEPT, Keeping, Successor, attempt_message
from .lease_watch import Lease
from .messages import Invalid, checked
from .ranks import Kept, Rank, Ranks, Worker, close_all_but
from .shim_door import Connection
from .shim_process import ShimProcess

_NEVER = float("inf")
_TOLD = frozenset(
    (
        "checkpoint",
        "restored",
        "checkpoint_failed",
        "uploaded",
        "damaged",
        "peer_memory",
        "stop_seen",
        "reformed",
    )
)
"""What ranks have in the journal, and are answered when it is durable."""
_LOOK_S = 1.0
_ROUNDS_MAX = 256
_METRICS_PER_S = 100.0
_AT_ONCE_S = 0.003
"""A program that ends so soon is told of once, with one fsync."""
_KILL_S = 60.0
_AT_LENGTH = ("traceback", "last_lines")
_EVIDENCE_BYTES_MAX = 24 * 1024
"""In one task's journal, whose entries must fit into what is reserved when the disk is full."""


class ClaimedTask(NamedTuple):
    """What a shim has claimed."""

    folder: str
    launch: dict[str, Any]
    claim_fd: int


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
        process = ShimProcess(memory, keep, reusable=reusable)
        control = Connection(socket.socket(fileno=control_fd))
        process.door.add(control)
        rank, launch, kept = None, _read_launch(folder), dict[int, Kept]()
        while claim_fd >= 0:
            shim = Shim(ClaimedTask(folder, launch, claim_fd), control, process)
            rank = shim.start(listener_fd, kept)
            if rank is not None:
                break
            shim.serve()
            listener_fd = claim_fd = -1
            may_serve_another, kept = shim.leave(), {}
            if shim.successor is not None:
                folder, launch, listener_fd, control, kept = shim.successor
                claim_fd = claim(folder)
            elif may_serve_another:
                folder, launch = process.wait_for_task(control)
                claim_fd = claim(folder) if folder else -1
        signal_all([each.pid for each in kept.values()] if rank is None else [], signal.SIGKILL)
    except BaseException:  # noqa: BLE001 - nothing may return into the zygote's loop
        traceback.print_exc()  # into the zygote's log; the agent sees the end of the connection and cleans up
        os._exit(70)
    if rank is None:
        process.door.leave()
        os._exit(0)
    return rank


def _gpus(launch: dict[str, Any]) -> str | None:
    """Those that its ranks see: a process that has begun on some cannot move to others."""
    gpus: str | None = launch["environment"].get("CUDA_VISIBLE_DEVICES")
    return gpus


def _read_launch(folder: str) -> dict[str, Any]:
    with open(folder + "/launch.json", "rb") as file:  # noqa: PTH123
        launch: dict[str, Any] = json.loads(file.read())
    return launch


class Shim:
    """Of one task."""

    def __init__(self, task: ClaimedTask, control: Connection, process: ShimProcess) -> None:
        """`control`: the agent's connection, watching."""
        self._folder = task.folder
        self._claim_fd = task.claim_fd
        self._control = control
        self._process = process
        self._reusable = process.reusable
        self._launch = launch = task.launch
        process.memory.set_mark(launch["mark"])
        kernel.set_name("pace-shim")
        self._journal = Journal(task.folder + "/journal.jsonl")
        self._door = process.door
        self._door.on_line, process.on_signals = self._on_line, self._on_signals
        self._replies: list[tuple[Connection, dict[str, Any]]] = []
        self._ranks = Ranks(task.folder, launch, process)
        self._watch = GangWatch(task.folder, launch, process.pid)
        self._keeping = Keeping(self._ranks.workers, process.door)
        self.successor: Successor | None = None
        self._stop_why = ""
        self._asked_to_keep: tuple[float, str, float] | None = None
        self._save_request = 0
        self._refused: dict[str, Any] | None = None
        self._evidence_bytes = 0
        self._over = False
        self._durable = False
        self._timeout_at = self._kill_at = self._give_up_at = _NEVER
        self._look_at = time.monotonic() + _LOOK_S
        self._lease = Lease(task.folder + "/../../lease", launch["exclusive"])
        control.watching, control.told_bytes = True, -1

    def start(self, listener_fd: int, kept: dict[int, Kept]) -> Rank | None:
        """Everything up to `started` in the journal. Not None: this process is a rank, forked just now."""
        try:
            if self._launch["mode"] == "warm":
                self._write_notice()
            self._door.show(self._folder)
            rank = self._ranks.start(listener_fd, kept)
        except OSError as error:
            self._refuse(error)
            return None
        if rank is not None:
            return rank
        timeout_s = self._launch["timeout_s"]
        self._timeout_at = time.monotonic() + timeout_s if timeout_s > 0 else _NEVER
        self._append(
            "started",
            {
                "pids": [worker.pid for worker in self._ranks.workers],
                "start_mode": self._launch["start_mode"],
                "shim_pid": self._process.pid,
                "first_rank": self._launch["ranks"][0]["rank"],
            },
        )
        for worker in self._ranks.workers:
            if worker.line is not None:
                told = attempt_message(self._ranks.environment(worker), worker.log)
                self._replies.append((worker.line, told))
        return None

    def _refuse(self, error: OSError) -> None:
        """What was started so far dies; the node's fault, so another try may go well."""
        text = f"the shim could not start the ranks: {error}"
        reason = {
            "code": "node-trouble",
            "text": text,
            "fields": {"errno": errno.errorcode.get(error.errno or 0, "")},
        }
        self._refused = {"reason": reason, "transient": True}
        self._ranks.kill()

    # -- the loop ------------------------------------------------------------

    def serve(self) -> None:
        """Until the task has ended and its journal says so."""
        self._on_children()
        self._door.read_lines(self._control)  # what came together with the word to take the task
        if self._launch["mode"] == "exec" and not self._over:
            self._process.react(_AT_ONCE_S)
        while not (self._flush() and self._over):
            self._process.react(max(0.0, self._next_look() - time.monotonic()))
            self._keep_or_stop()
            self._on_clock()

    def leave(self) -> bool:
        """Close all that this task had open, then tell of its end: who has heard of it finds nothing of ours
        at the folder. True when the agent's connection is there, and may bring another task."""
        lines = [each.line for each in self.successor.kept.values()] if self.successor is not None else []
        self._door.hide(but=[self._control, *lines])
        self._journal.close()
        self._keeping.close()
        self._ranks.close()
        self._watch.close()
        self._lease.close()
        disclaim(self._claim_fd)
        free = self._reusable and self.successor is None
        if free:
            self._process.memory.set_mark("idle@" + self._launch["mark"].partition("@")[2])
        self._door.send(
            self._control, {"journal": self._journal.size_bytes, **({"free": True} if free else {})}
        )
        return free and self._control in self._door.connections

    def _next_look(self) -> float:
        poll_at = time.monotonic() + POLL_S if self._watch.inspecting else _NEVER
        due_at = min(poll_at, self._watch.sample_at)
        return min(
            self._timeout_at, self._kill_at, self._look_at, self._give_up_at, self._keeping.until, due_at
        )

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
                and not (self._over and connection is self._control)  # which is told when all is closed
            ):
                connection.told_bytes = self._journal.size_bytes
                self._door.send(connection, {"journal": self._journal.size_bytes})
        return True

    # -- processes ------------------------------------------------------------

    def _on_signals(self, numbers: bytes) -> None:
        if signal.SIGTERM in numbers:
            self._stop(self._launch["grace_s"], "stopped")
        if signal.SIGCHLD in numbers:
            self._on_children()

    def _on_children(self) -> None:
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                if not self._over:
                    self._end("")
                return
            if pid == 0:
                break
            exit_code = os.waitstatus_to_exitcode(status)
            if not self._watch.on_exit(pid, exit_code):
                self._on_exit(pid, exit_code)
        if not self._ranks.any_lives:
            self._end_leftovers()

    def _on_exit(self, pid: int, exit_code: int) -> None:
        worker = self._ranks.on_exit(pid)
        if worker is None:
            return
        self._hear_out()
        worker.exit_code = exit_code
        worker.killed_by_us = bool(exit_code and (self._stop_why or self._ranks.killing))
        self._write_exit(worker)
        if exit_code and not (self._ranks.killing or self._stop_why) and self._keeping.able:
            self._keeping.hold(KEEP_S)
            self._hand_on_if_ready()
        elif exit_code:
            self._ranks.kill()

    def _hear_out(self) -> None:
        """What a rank said before it ended comes before its end."""
        for _ in range(_ROUNDS_MAX):
            if not self._process.react_to_words():
                break
        self._write_metrics(everything=True)

    def _end_leftovers(self) -> None:
        if self._give_up_at == _NEVER:
            self._give_up_at = time.monotonic() + _KILL_S
        self._ranks.end_leftovers(failed=self._failed())

    def _failed(self) -> bool:
        return bool(self._stop_why) or any(worker.exit_code for worker in self._ranks.workers)

    def _write_exit(self, worker: Worker) -> None:
        if self._refused:
            return
        fields: dict[str, Any] = {
            "local_rank": worker.local_rank,
            "exit_code": worker.exit_code,
            "killed_by_us": worker.killed_by_us,
        }
        if worker.exit_code:
            fields["last_line"], evidence = self._ranks.what_is_left(worker)
            fields["cause"] = self._ranks.memory_verdict(worker)
            if evidence:
                fields["evidence"] = self._bounded(evidence)
        self._append("exited", fields)

    def _bounded(self, evidence: dict[str, Any]) -> dict[str, Any]:
        """The first ranks of a task to fail tell all, the others in short."""
        size_bytes = len(json.dumps(evidence))
        if self._evidence_bytes + size_bytes > _EVIDENCE_BYTES_MAX:
            return {name: value for name, value in evidence.items() if name not in _AT_LENGTH}
        self._evidence_bytes += size_bytes
        return evidence

    def _end(self, problem: str) -> None:
        """Nothing is left that could run: the last entry."""
        if self._refused:
            self._append("refused", self._refused)
        else:
            fields = {
                "exit_codes": [worker.exit_code for worker in self._ranks.workers],
                "log_bytes": [os.fstat(worker.log_fd).st_size for worker in self._ranks.workers],
                "why": (self._stop_why or "exited") + problem,
            }
            self._append("ended", fields)
        self._reusable = self._reusable and not problem and not self._refused
        if self._launch["cgroup"]:
            drop_group(self._launch["cgroup"])
        self._over = True

    def _hand_on(self) -> None:
        """The next attempt's task takes the ranks that live: this one is over."""
        kept = sum(worker.lives for worker in self._ranks.workers)
        fields = {
            "log_bytes": [os.fstat(worker.log_fd).st_size for worker in self._ranks.workers],
            "why": f"{KEPT} {kept} of {len(self._ranks.workers)} ranks up for the next attempt",
        }
        self._append("ended", fields)
        self.successor = self._keeping.hand_on(self._launch["cgroup"])
        self._over = True

    # -- the clock ------------------------------------------------------------

    def _on_clock(self) -> None:
        now = time.monotonic()
        if now >= self._timeout_at:
            self._timeout_at = _NEVER
            self._stop(self._launch["grace_s"], "timeout")
        if now >= self._kill_at:
            self._kill_at = _NEVER
            self._ranks.kill()
        if now >= self._keeping.until:
            self._keeping.until = _NEVER
            self._ranks.kill()
        if now >= self._give_up_at and not self._over:
            left = kernel.descendants(self._process.pid)
            self._end(f"; {len(left)} processes cannot be killed: {left[:10]}")
        if not self._over:
            self._on_heartbeats(now)
        if now >= self._look_at:
            self._look_at = now + _LOOK_S
            for worker in self._ranks.workers:
                worker.bound_log(self._launch["log_bytes_max"])
            self._write_metrics(everything=False)
            if self._lease.ran_out():
                self._stop(0.0, "lease ran out")
            if self._give_up_at != _NEVER and not self._over:
                self._end_leftovers()

    def _on_heartbeats(self, now: float) -> None:
        """What there is to tell of the ranks' steps, or of there being none."""
        workers = self._ranks.workers
        if found := self._watch.inspected(workers):
            self._append("inspected", found)
        if now >= self._watch.sample_at and (paced := self._watch.sample(workers)):
            self._journal.append_metrics(paced, "paced")
        if now >= self._look_at and not self._stop_why and (stalled := self._watch.look(workers)):
            self._append("stalled", stalled)

    def _keep_or_stop(self) -> None:
        """Decided when all has been heard that was said before: a rank's `stay` may have come no later than
        the agent's word."""
        while self._asked_to_keep is not None:
            (grace_s, why, keep_s), self._asked_to_keep = self._asked_to_keep, None
            self._hear_out()
            if not (self._over or self._stop_why or self._ranks.killing) and self._keeping.able:
                self._keeping.hold(keep_s)
            else:
                self._stop(grace_s, why)

    def _stop(self, grace_s: float, why: str) -> None:
        now = time.monotonic()
        if self._over or self._refused:
            return
        asked_before, self._stop_why = self._stop_why, self._stop_why or why
        if grace_s > 0:
            self._kill_at = min(self._kill_at, now + grace_s)
        self._write_notice(self._kill_at if grace_s > 0 else now)
        if grace_s <= 0:
            self._kill_at = _NEVER
            self._ranks.kill()
        elif not asked_before:
            self._ranks.terminate()

    def _write_notice(self, kill_at: float = 0.0) -> None:
        """The ranks have it mapped, or look for it until it is there: a program gets it when there is
        something to say."""
        value = Notice(bool(self._stop_why), kill_at, self._save_request).encode()
        with contextlib.suppress(OSError):  # a full disk: SIGTERM says the same
            fd = os.open(self._folder + "/notice", os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
            os.pwrite(fd, value, 0)
            os.close(fd)

    # -- what is said at the door ------------------------------------------------------------

    def _on_line(self, connection: Connection, line: bytes) -> None:
        try:
            op, fields = checked(line)
        except Invalid as error:
            self._replies.append((connection, {"ok": False, "error": str(error)}))
            return
        if op == "metrics":
            self._on_metrics(fields)
        elif op in _TOLD:
            self._replies.append((connection, {"ok": True, "seq": self._append(op, fields)}))
        elif op == "watch":
            connection.watching, connection.told_bytes = True, -1
        elif op == "trim":
            self._journal.trim(fields.get("bytes", 0))
        elif op == "arrived":
            self._keeping.on_arrived(connection)
            self._hand_on_if_ready()
        elif op == "take":
            self._replies.append((connection, {"ok": self._take(connection, fields.get("folder", ""))}))
        else:
            self._on_request(op, fields, connection)
            self._replies.append((connection, {"ok": True}))

    def _on_request(self, op: str, fields: dict[str, Any], connection: Connection) -> None:
        if op == "inspect" and not self._over and not self._refused:
            self._watch.inspect(self._ranks.workers)
        elif op == "save" and not self._stop_why:
            self._save_request = max(self._save_request, fields.get("request", 0))
            self._write_notice()
        elif op == "stay":
            self._keeping.on_stay(connection, fields.get("rank", -1))
        elif op == "stop" and fields.get("mark", self._launch["mark"]) == self._launch["mark"]:
            grace_s, keep_s = (float(fields.get(name, 0.0)) for name in ("grace_s", "keep_s"))
            why = fields.get("why") or "stopped"
            if keep_s > 0:
                self._asked_to_keep = grace_s, why, keep_s
            else:
                self._stop(grace_s, why)

    def _take(self, connection: Connection, folder: str) -> bool:
        """The job's next attempt is here, says the agent. False: these ranks cannot go on in it."""
        busy = self._over or self._refused or self._stop_why or self._ranks.killing
        if busy or not connection.watching or not self._keeping.able:
            return False
        launch = _read_launch(folder)
        if launch["mode"] != self._launch["mode"] or _gpus(launch) != _gpus(self._launch):
            return False
        self._keeping.want(folder, launch, connection)
        self._hand_on_if_ready()
        return True

    def _hand_on_if_ready(self) -> None:
        if not self._over and self._keeping.ready:
            self._hand_on()

    def _on_metrics(self, fields: dict[str, Any]) -> None:
        """Keep at most so many a second for each rank; of those that come too fast, the latest."""
        worker = next((worker for worker in self._ranks.workers if worker.rank == fields.get("rank")), None)
        if worker is not None:
            worker.metrics_waiting = fields
            self._write_metrics(everything=False)

    def _write_metrics(self, everything: bool) -> None:
        now = time.monotonic()
        for worker in self._ranks.workers:
            if worker.metrics_waiting and (everything or now - worker.metrics_at >= 1 / _METRICS_PER_S):
                self._journal.append_metrics(worker.metrics_waiting)
                worker.metrics_waiting, worker.metrics_at = None, now
