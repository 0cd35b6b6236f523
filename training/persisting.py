"""A rank's hold on its persister: started at the first save, one order under way at a time, never waited for
without a bound.

Started by exec, not by fork alone: a fork beside CUDA and threads is not safe, and copies page tables.
"""

import contextlib
import json
import os
import select
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from . import scratch
from .orders import Answer, Order, Setting
from .persister import mark_failed
from .say import say

ORDER_S = 900.0
"""Longer than a persister waits for anything: one that has not answered then is stuck, and is ended."""
UPLOAD_S = 900.0
"""At the end of a run, for its last upload."""
FAILED_S = 2.0
_SAY_WAITING_S = 2.0
_END_S = 5.0


class Persister:
    """`setting` is told at each start of the process, which inherits `lock_fd`."""

    def __init__(self, setting: Setting, lock_fd: int | None = None) -> None:
        self._setting = setting
        self._inherited = () if lock_fd is None else (lock_fd,)
        self._pid = os.getpid()
        self._process: subprocess.Popen[bytes] | None = None
        self._received = b""
        self._answer: Answer | None = None
        self._uploading = False
        self._ended_how = ""
        """The last process."""
        self._order: Order | None = None
        self._since_s = 0.0

    @property
    def under_way(self) -> Order | None:
        """What has been ordered and not yet answered."""
        return self._order

    @property
    def uploading(self) -> bool:
        """As it has last said: `poll` hears it."""
        return self._uploading

    @property
    def since_s(self) -> float:
        """Seconds since the order under way."""
        return time.monotonic() - self._since_s

    def begin(self, order: Order) -> None:
        """Nothing may be under way. A persister that cannot be started or told is a failure like another."""
        assert self._order is None
        self._order, self._since_s, self._ended_how = order, time.monotonic(), "could not be started"
        try:
            if self._process is None:
                self._process = self._start()
            assert self._process.stdin is not None
            self._process.stdin.write(order.encode())
            self._process.stdin.flush()
            if self._setting.url and order.upload and not order.error:
                self._uploading = True
        except OSError:  # `poll` finds it dead and says so
            self._end()

    def poll(self) -> Answer | None:
        """The answer to the order under way, when it is there."""
        if self._order is None:
            self._read(0.0)
            return None
        return self._wait(0.0)

    def wait(self, why: str) -> Answer | None:
        """The same, waited for; None when nothing is under way. A long wait is said, with `why`."""
        if self._order is None:
            return None
        answer = self._wait(_SAY_WAITING_S)
        if answer is None:
            say(f"waits for the checkpoint of step {self._order.step} to be on disk ({why})")
            answer = self._wait(max(_END_S, ORDER_S - self.since_s))
        if answer is None:
            self._end()
            answer = self._on_death(f"was not on disk within {ORDER_S:.0f} s")
        return answer

    def finish(self) -> None:
        """This process is about to end: wait for what is under way. Not long where the script has failed: its
        peers may be gone, and the next attempt waits for nothing but our end. What is not done then goes on
        without us, as far as it is let.
        """
        if self._order is None or self._pid != os.getpid():
            return
        if not _script_failed():
            self.wait("the process ends")
        elif self._wait(FAILED_S) is None:
            say(f"leaves the checkpoint of step {self._order.step} unfinished: the script has failed")

    def close(self) -> None:
        """End the process when it has done what was ordered. In a forked child: it is the parent's."""
        if self._pid != os.getpid() or self._order is not None:
            return
        if self._process is not None:
            assert self._process.stdin is not None
            with contextlib.suppress(OSError):
                self._process.stdin.close()
            if not self._await_end(self._process):
                return
        self._end()
        if self._setting.scratch:
            scratch.drop(Path(self._setting.scratch))

    def abandon(self) -> None:
        """Kill it, whatever is under way."""
        self._order = None
        self._end()

    def _await_end(self, process: "subprocess.Popen[bytes]") -> bool:
        """False: it is left to finish an upload without us, since the script has failed."""
        if _has_ended(process, FAILED_S):
            return True
        if self._setting.url and _script_failed():
            return False
        patience_s = UPLOAD_S if self._setting.url else _END_S
        if self._setting.url:
            say(f"waits for the last checkpoint to be uploaded to {self._setting.url} (the process ends)")
        if not _has_ended(process, patience_s):
            say(f"the process that writes checkpoints has not ended within {patience_s:.0f} s: it is ended")
        return True

    def _start(self) -> "subprocess.Popen[bytes]":
        """Not from the script's folder (-P), and out of reach of a terminal's Ctrl-C."""
        command = [sys.executable, "-P", "-m", "paceline.training.persister"]
        process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            start_new_session=True,
            pass_fds=self._inherited,
        )
        assert process.stdin is not None
        process.stdin.write(self._setting.encode())
        self._received, self._answer = b"", None
        return process

    def _wait(self, patience_s: float) -> Answer | None:
        if self._order is None:
            return None
        until_s = time.monotonic() + patience_s
        while self._answer is None:
            if self._process is None:
                return self._on_death(self._ended_how)
            if not self._read(max(0.0, until_s - time.monotonic())):
                return None
        if self._answer.error and self._order.upload:
            self._uploading = False  # it never began
        answer, self._answer, self._order = self._answer, None, None
        return answer

    def _read(self, patience_s: float) -> bool:
        """Take what it has said, or hear of its end; False when there is nothing."""
        if self._process is None:
            return False
        assert self._process.stdout is not None
        poller = select.poll()
        poller.register(self._process.stdout, select.POLLIN)
        if not poller.poll(patience_s * 1000):
            return False
        data = os.read(self._process.stdout.fileno(), 64 * 1024)
        if not data:
            self._ended_how = f"ended with {self._process.wait(_END_S)}"
            self._end()
        *lines, self._received = (self._received + data).split(b"\n")
        for line in lines:
            told: dict[str, Any] = json.loads(line)
            if "uploaded" in told:
                self._uploading = False
            else:
                self._answer = Answer(**told)
        return True

    def _on_death(self, what: str) -> Answer:
        """Rank 0's persister must not wait for ours."""
        assert self._order is not None
        order, self._order = self._order, None
        why = f"the process that writes it {what}"
        if order.publish is None:
            mark_failed(order, why)
        return Answer(str(order.name), f"rank {order.rank}: {why}", told=False)

    def _end(self) -> None:
        process, self._process = self._process, None
        self._uploading = False
        if process is None:
            return
        process.kill()
        process.wait()
        for stream in (process.stdin, process.stdout):
            if stream is not None:
                try:
                    stream.close()
                except OSError:  # what was not sent is not wanted
                    continue


def _has_ended(process: "subprocess.Popen[bytes]", patience_s: float) -> bool:
    try:
        process.wait(patience_s)
    except subprocess.TimeoutExpired:
        return False
    return True


def _script_failed() -> bool:
    """An exception that nobody caught is what ends this process."""
    return getattr(sys, "last_value", None) is not None
