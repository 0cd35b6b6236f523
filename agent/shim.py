"""A task's parent: starts its ranks, outlives agent and zygote, reaps every descendant, and writes what
became of them into the journal before anyone hears of it.
One thread, one event loop; no process is left at its end.

Limits that must hold while the agent is dead (grace, timeout, lease, the logs' bound) are kept here, on the
monotonic clock. Standard library only.
"""

import contextlib
import errno
import os
import signal
import time
from typing import Any, NamedTuple

from ..proto.notice import Notice
from . import kernel
from .claims import disclaim
from .containment import drop_group, drop_left
from .gang_watch import POLL_S, GangWatch
from .keeping import KEEP_S, KEPT, Keeping, Successor, attempt_message
from .lease_watch import Lease
from .messages import TOLD, Invalid, checked
from .ranks import Kept, Rank, Ranks, Worker
from .shim_door import Connection
from .shim_process import ShimProcess
from .telling import Telling

_NEVER = float("inf")
_LOOK_S = 1.0
_ROUNDS_MAX = 256
_AT_ONCE_S = 0.003
"""A program that ends so soon is told of once, with one fsync."""
_KILL_S = 60.0


class ClaimedTask(NamedTuple):
    """What a shim has claimed."""

    folder: str
    launch: dict[str, Any]
    claim_fd: int


class Shim:
    """Of one task."""

    def __init__(self, task: ClaimedTask, control: Connection, process: ShimProcess) -> None:
        """`control`: the agent's connection, watching."""
        self._folder = task.folder
        self._claim_fd = task.claim_fd
        self._control = control
        self._process = process
        self._reusable = True
        self._launch = launch = task.launch
        process.memory.set_mark(launch["mark"])
        kernel.set_name("pace-shim")
        self._door = process.door
        self._telling = Telling(task.folder + "/journal.jsonl", process.door)
        self._journal = self._telling.journal
        self._door.on_line, process.on_signals = self._on_line, self._on_signals
        self._ranks = Ranks(task.folder, launch, process)
        self._watch = GangWatch(task.folder, launch, process.pid)
        self._keeping = Keeping(launch, self._ranks.workers, process.door)
        self.successor: Successor | None = None
        self._stop_why = ""
        self._late_why = ""
        self._asked_to_keep: tuple[float, str, float] | None = None
        self._save_request = 0
        self._refused: dict[str, Any] | None = None
        self._over = False
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
        self._telling.append(
            "started",
            {
                "pids": [worker.pid for worker in self._ranks.workers],
                "start_mode": self._launch["start_mode"],
                "prepared": self._launch.get("prepared", ""),
                "network": self._launch.get("network", ""),
                "record": self._launch.get("record", ""),
                "shim_pid": self._process.pid,
                "first_rank": self._launch["ranks"][0]["rank"],
            },
        )
        for worker in self._ranks.workers:
            if worker.line is not None:
                told = attempt_message(self._ranks.environment(worker), worker.log)
                self._telling.reply(worker.line, told)
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
        while not (self._telling.flush(but=self._control if self._over else None) and self._over):
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
        due_at = min(poll_at, self._watch.sample_at, self._ranks.look_at)
        keep_at = min(self._keeping.look_at, self._keeping.until)
        return min(self._timeout_at, self._kill_at, self._look_at, self._give_up_at, keep_at, due_at)

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
            fields["cause"] = self._ranks.verdict(worker)
            if evidence:
                fields["evidence"] = evidence
        self._telling.append("exited", fields)

    def _end(self, problem: str) -> None:
        """Nothing is left that could run: the last entry."""
        if inside := self._ranks.end_containers():
            problem += f"; {len(inside)} processes in containers cannot be killed: {inside[:10]}"
        drop_left(self._launch["leaves"])
        if self._refused:
            self._telling.append("refused", self._refused)
        else:
            fields = {
                "exit_codes": [worker.exit_code for worker in self._ranks.workers],
                "log_bytes": [os.fstat(worker.log_fd).st_size for worker in self._ranks.workers],
                "why": (self._stop_why or "exited") + (self._late_why if self._failed() else "") + problem,
            }
            self._telling.append("ended", fields)
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
        self._telling.append("ended", fields)
        self.successor = self._keeping.hand_on()
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
        if now >= self._keeping.look_at:
            self._keeping.look_at = _NEVER
            if late := self._keeping.late:
                self._watch.inspect(late, "told to leave the gang")
        if now >= self._keeping.until:
            self._keeping.until = _NEVER
            if why := self._keeping.why_late():
                self._late_why = f"; {why}"
            self._ranks.kill()
        if now >= self._give_up_at and not self._over:
            left = kernel.descendants(self._process.pid)
            self._end(f"; {len(left)} processes cannot be killed: {left[:10]}")
        if not self._over:
            self._on_heartbeats(now)
            self._write_metrics(everything=False)
        if now >= self._look_at:
            self._look_at = now + _LOOK_S
            for worker in self._ranks.workers:
                worker.bound_log(self._launch["log_bytes_max"])
            if self._lease.ran_out():
                self._stop(0.0, "lease ran out")
            if self._give_up_at != _NEVER and not self._over:
                self._end_leftovers()

    def _on_heartbeats(self, now: float) -> None:
        """What there is to tell of the ranks' steps, or of there being none."""
        workers = self._ranks.workers
        if found := self._watch.inspected(workers):
            self._telling.append("inspected", found)
            self._keeping.on_inspected(found["ranks"])
        if now >= self._watch.sample_at and (paced := self._watch.sample(workers)):
            self._journal.append_metrics(paced, "paced")
        if now >= self._look_at and not self._stop_why and (stalled := self._watch.look(workers)):
            self._telling.append("stalled", stalled)

    def _keep_or_stop(self) -> None:
        """Decided when all has been heard that was said before: a rank's `stay` may have come no later than
        the agent's word."""
        while self._asked_to_keep is not None:
            (grace_s, why, keep_s), self._asked_to_keep = self._asked_to_keep, None
            self._hear_out()
            if self._over or self._stop_why or self._ranks.killing or not self._keeping.able:
                self._stop(grace_s, why)
            elif grace_s > 0 and self._keeping.ask():
                self._kill_at = min(self._kill_at, time.monotonic() + grace_s)
                self._write_notice(self._kill_at)
            else:
                self._keeping.hold(keep_s)

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
        stay = self._keeping.asked and not self._stop_why
        value = Notice(stay or bool(self._stop_why), kill_at, self._save_request, stay).encode()
        with contextlib.suppress(OSError):  # a full disk: SIGTERM says the same
            fd = os.open(self._folder + "/notice", os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
            os.pwrite(fd, value, 0)
            os.close(fd)

    # -- what is said at the door ------------------------------------------------------------

    def _on_line(self, connection: Connection, line: bytes) -> None:
        try:
            op, fields = checked(line)
        except Invalid as error:
            self._telling.reply(connection, {"ok": False, "error": str(error)})
            return
        if op == "metrics":
            self._ranks.on_metrics(fields)
            self._write_metrics(everything=False)
        elif op in TOLD:
            self._telling.reply(connection, {"ok": True, "seq": self._telling.append(op, fields)})
        elif op == "watch":
            connection.watching, connection.told_bytes = True, -1
        elif op == "trim":
            self._journal.trim(fields.get("bytes", 0))
        elif op == "arrived":
            self._on_arrived(connection)
        elif op == "take":
            self._telling.reply(connection, {"ok": self._take(connection, fields.get("folder", ""))})
        else:
            self._on_request(op, fields, connection)
            self._telling.reply(connection, {"ok": True})

    def _on_request(self, op: str, fields: dict[str, Any], connection: Connection) -> None:
        if op == "inspect" and not self._over and not self._refused:
            self._watch.inspect(self._ranks.workers, "no step for long")
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

    def _on_arrived(self, line: Connection) -> None:
        if ranks := self._keeping.on_arrived(line):
            self._kill_at = _NEVER
            self._telling.append("waiting", {"ranks": ranks})
        self._hand_on_if_ready()

    def _take(self, connection: Connection, folder: str) -> bool:
        """For the job's next attempt. False: these ranks cannot go on in it."""
        busy = self._over or self._refused or self._stop_why or self._ranks.killing
        if busy or not self._keeping.take(folder, connection):
            return False
        self._hand_on_if_ready()
        return True

    def _hand_on_if_ready(self) -> None:
        if not self._over and self._keeping.ready:
            self._hand_on()

    def _write_metrics(self, everything: bool) -> None:
        for fields in self._ranks.metrics_due(everything=everything):
            self._journal.append_metrics(fields)
