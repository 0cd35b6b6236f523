"""Where each rank of a task is, as text: its Python stacks, taken from outside within a bounded time.

py-spy where it is installed beside the job's interpreter and may look (it reads the memory of a process,
stopped ones too); else, from ranks that answer STACK_SIGNAL, what they write to their own output. Both end in
the rank's log, where people look. Never holds up the shim: it is asked, and asks back on its clock.
Standard library only.
"""

import contextlib
import json
import os
import re
import shutil
import signal
import time
from collections.abc import Sequence
from typing import Any, Final

from ..proto.beats import STACK_SIGNAL, Beats
from . import flight_recorder, kernel
from .ranks import Worker
from .worker import __file__ as _worker_file

CAPTURE_S: Final = 5.0
"""Whoever has not shown its stacks by then does not."""
_SETTLED_S: Final = 0.1
"""Output that has not grown for so long is all of it."""
_OUTPUT_BYTES_MAX: Final = 256 * 1024
_FRAMES_MAX: Final = 40
_GROUP_CHARS: Final = 250
"""What one process group takes in an entry, at most: of many ranks, fewer are told."""
_HEAD: Final = re.compile(r"(Current thread|Thread) 0x[0-9a-f]+ (?:\[.*\] )?\(most recent call first\):")
_FRAME: Final = re.compile(r'  File "(.*)", line (\d+|\?\?\?) in (.*)')
_STATES: Final = {
    "R": "running",
    "S": "sleeping",
    "D": "waiting for the disk",
    kernel.STOPPED: "stopped by a signal",
    "t": "stopped by a debugger",
    "Z": "dead",
}


class _One:
    """A rank that is looked at."""

    def __init__(self, worker: Worker, pid: int) -> None:
        self.worker = worker
        self.pid = pid
        self.how = ""
        self.frames: list[str] = []
        self.from_bytes = os.fstat(worker.log_fd).st_size
        self.seen_bytes = self.from_bytes
        self.spy_pid = 0
        self.spy_fd = -1
        self.settled_at = 0.0
        self.done = False
        self.trace = ""
        """Where the flight recorder's is to be; empty: there is none."""
        self.groups: list[dict[str, Any]] | None = None
        """As it says; None: it is not there yet."""


class Capture:
    """Of all ranks at once; `finish` gives what has come."""

    def __init__(self, launch: dict[str, Any], now_s: float, why: str) -> None:
        """`why`: what a rank's log says that it is looked at for."""
        self._why = why
        self._begun_at = int(time.time())
        self._environment = launch["environment"]
        self._spy = _py_spy(launch)
        self._ones: list[_One] = []
        self._until_s = now_s + CAPTURE_S

    def begin(self, workers: Sequence[Worker], beats: Sequence[Beats], shim_pid: int, now_s: float) -> None:
        below = {*kernel.descendants(shim_pid), *(pid for worker in workers for pid in worker.processes())}
        trainers = {each.slot: each.pid for each in beats if each.pid in below}
        for worker in workers:
            if worker.lives:
                one = _One(worker, trainers.get(worker.local_rank, worker.pid))
                self._ones.append(one)
                if kernel.state(one.pid) != kernel.STOPPED:
                    one.trace = flight_recorder.ask(self._environment, worker.rank)
                if not self._start_spy(one):
                    self._signal(one, now_s)

    def on_exit(self, pid: int, exit_code: int, now_s: float) -> bool:
        """A child has ended. True: it was one of ours."""
        one = next((one for one in self._ones if one.spy_pid == pid), None)
        if one is None:
            return False
        text = _read_and_close(one.spy_fd)
        one.spy_pid, one.spy_fd = 0, -1
        one.frames = _frames_of_spy(text) if exit_code == 0 else []
        if one.frames:
            one.how, one.done = "py-spy", True
            self._write_log(one.worker, "py-spy", _told(one.frames))
        else:  # it may not look, or there is no Python in that process
            self._signal(one, now_s)
        return True

    def poll(self, now_s: float) -> bool:
        """True: there is nothing more to wait for."""
        for one in self._ones:
            if not one.done and not one.spy_pid:
                self._look_at_output(one, now_s)
        return now_s >= self._until_s or all(one.done and self._reads_trace(one) for one in self._ones)

    def finish(self, chars_max: int) -> list[dict[str, Any]]:
        """What has come, by rank."""
        found = []
        for one in self._ones:
            if one.spy_pid:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(one.spy_pid, signal.SIGKILL)
                os.close(one.spy_fd)
            text = _told(one.frames)
            while len(text) > chars_max:
                text = text[: text.rindex("\n")] if "\n" in text[:-1] else text[:chars_max]
            state = _STATES.get(kernel.state(one.pid), "gone")
            told = {"rank": one.worker.rank, "state": state, "how": one.how, "stack": text}
            if one.groups is not None:
                told |= {"trace": one.trace, "groups": one.groups[: max(1, chars_max // _GROUP_CHARS)]}
            found.append(told)
        return found

    def _reads_trace(self, one: _One) -> bool:
        """True: it has it, or there is none to wait for."""
        if one.trace and one.groups is None:
            one.groups = flight_recorder.read(one.trace, self._begun_at)
        return not one.trace or one.groups is not None

    def _start_spy(self, one: _One) -> bool:
        if not self._spy:
            return False
        try:
            one.spy_fd = os.memfd_create("stacks", os.MFD_CLOEXEC)
            argv = [self._spy, "dump", "--nonblocking", "--json", "--full-filenames", "--pid", str(one.pid)]
            one.spy_pid = os.posix_spawn(
                self._spy,
                argv,
                {"PATH": os.defpath},
                file_actions=(
                    (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0),
                    (os.POSIX_SPAWN_DUP2, one.spy_fd, 1),
                    (os.POSIX_SPAWN_OPEN, 2, os.devnull, os.O_WRONLY, 0),
                ),
            )
        except OSError:
            if one.spy_fd >= 0:
                os.close(one.spy_fd)
            one.spy_fd = -1
            return False
        return True

    def _signal(self, one: _One, now_s: float) -> None:
        """Only to a process that catches it: any other would die of it."""
        one.from_bytes = one.seen_bytes = os.fstat(one.worker.log_fd).st_size
        if not kernel.catches(one.pid, STACK_SIGNAL) or kernel.state(one.pid) == kernel.STOPPED:
            one.done = True
            return
        self._write_log(one.worker, "faulthandler", "")
        with contextlib.suppress(ProcessLookupError):
            os.kill(one.pid, STACK_SIGNAL)
        one.settled_at = now_s + CAPTURE_S

    def _write_log(self, worker: Worker, how: str, text: str) -> None:
        """Where the rank's own output goes: who reads that finds it."""
        with contextlib.suppress(OSError):  # a full disk
            head = f"paceline: {self._why}; where rank {worker.rank} is, by {how}, innermost first:\n"
            os.write(worker.log_fd, (head + (text + "\n" if text else "")).encode("utf-8", "replace"))

    def _look_at_output(self, one: _One, now_s: float) -> None:
        size = os.fstat(one.worker.log_fd).st_size
        if size != one.seen_bytes:
            one.seen_bytes = size
            one.frames = _frames_of_output(_read(one.worker.log, one.from_bytes, size))
            if one.frames:
                one.settled_at = now_s + _SETTLED_S
        if now_s >= one.settled_at:
            one.how = "faulthandler" if one.frames else ""
            one.done = True


def _py_spy(launch: dict[str, Any]) -> str:
    """The job's own, or the node's; empty: there is none."""
    home = os.path.dirname(launch["executable"])  # noqa: PTH120
    path = os.pathsep.join((home, launch["environment"].get("PATH", os.defpath)))
    return shutil.which("py-spy", path=path) or ""


def _told(frames: list[str]) -> str:
    return "\n".join(frames)


def _frames_of_spy(text: bytes) -> list[str]:
    """Of the main thread, innermost first: `function (file:line)`."""
    try:
        threads = json.loads(text)
        main = next((one for one in threads if one.get("thread_name") == "MainThread"), threads[0])
        return _of_the_job([(each["name"], each["filename"], each["line"]) for each in main["frames"]])
    except (ValueError, TypeError, KeyError, IndexError, AttributeError):  # another version's words
        return []


def _frames_of_output(text: str) -> list[str]:
    """Of the thread that took the signal, which is the main one unless that blocks it."""
    lines = text.splitlines()
    heads = [at for at, line in enumerate(lines) if _HEAD.fullmatch(line)]
    begin = next((at for at in heads if lines[at].startswith("Current")), heads[0] if heads else len(lines))
    frames: list[tuple[str, str, str]] = []
    for line in lines[begin + 1 :]:
        match = _FRAME.fullmatch(line)
        if match is None:
            break
        frames.append((match[3], match[1], match[2]))
    return _of_the_job(frames)


def _of_the_job(frames: Sequence[tuple[str, str, object]]) -> list[str]:
    """Without those by which a warm rank came to its script."""
    ours = next((at for at, frame in enumerate(frames) if frame[1] == _worker_file), len(frames))
    return [f"{name} ({file}:{line})" for name, file, line in frames[:ours][:_FRAMES_MAX]]


def _read(path: str, begin: int, end: int) -> str:
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        return os.pread(fd, min(end - begin, _OUTPUT_BYTES_MAX), begin).decode("utf-8", "replace")
    finally:
        os.close(fd)


def _read_and_close(fd: int) -> bytes:
    try:
        return os.pread(fd, 8 * _OUTPUT_BYTES_MAX, 0)
    finally:
        os.close(fd)
