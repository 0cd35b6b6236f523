"""Calls of the Linux kernel that the standard library does not offer, and what /proc says of processes.

Standard library only: zygote, shim and worker live on it in any interpreter.
"""

import ctypes
import os
import re
import time
from collections.abc import Iterator
from typing import Final

_libc = ctypes.CDLL(None, use_errno=True)
_libc.fallocate.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64]
_PR_SET_PDEATHSIG = 1
_PR_SET_NAME = 15
_PR_SET_CHILD_SUBREAPER = 36
_FALLOC_KEEP_SIZE = 1
_FALLOC_PUNCH_HOLE = 2
_HAS_CHILDREN_FILES = os.path.exists(f"/proc/self/task/{os.getpid()}/children")  # noqa: PTH110
"""False where the kernel was built without CONFIG_PROC_CHILDREN."""
_TICKS_PER_S = os.sysconf("SC_CLK_TCK")
_SYSLOG_ACTION_READ_ALL = 3
_LOG_BYTES = 256 * 1024
_KILLED = re.compile(rb"\[ *(\d+)\.\d+\][^\n]*Killed process (\d+) ")
_KILL_AGE_S_MAX = 600
STOPPED: Final = "T"
"""The state of a process that a signal has stopped."""
BLOCK_BYTES = 4096
MARK = "PACELINE_MARK"
CONTAINER = "PACELINE_CONTAINER"
"""In the environment of all that runs in a rank's container: its name."""
MARK_BYTES_MAX = 64


def set_child_subreaper(on: bool) -> None:
    """Orphans among this process's descendants become its children, whatever session they made."""
    _check(_libc.prctl(_PR_SET_CHILD_SUBREAPER, int(on), 0, 0, 0))


def set_parent_death_signal(signal_number: int) -> None:
    """This process gets the signal when its parent dies; the caller checks that it had not died before."""
    _check(_libc.prctl(_PR_SET_PDEATHSIG, signal_number, 0, 0, 0))


def set_name(name: str) -> None:
    """What `ps` calls this process: at most 15 bytes."""
    _check(_libc.prctl(_PR_SET_NAME, name.encode()[:15] + b"\0", 0, 0, 0))


def reserve(fd: int, offset: int, length_bytes: int) -> None:
    """Take blocks for that range, the file's size as it was. OSError when the disk is full."""
    _check(_libc.fallocate(fd, _FALLOC_KEEP_SIZE, offset, length_bytes))


def punch_hole(fd: int, offset: int, length_bytes: int) -> None:
    """Give the blocks of that range back; it reads as zeros, and every offset stays."""
    _check(_libc.fallocate(fd, _FALLOC_KEEP_SIZE | _FALLOC_PUNCH_HOLE, offset, length_bytes))


def killed_for_memory(pid: int) -> bool:
    """The kernel's log says that it killed this process lately for lack of memory. False where this user may
    not read the log."""
    buffer = ctypes.create_string_buffer(_LOG_BYTES)
    size = _libc.klogctl(_SYSLOG_ACTION_READ_ALL, buffer, _LOG_BYTES)
    return names_killed(buffer.raw[: max(size, 0)], pid, time.monotonic())


def names_killed(log: bytes, pid: int, now_s: float) -> bool:
    """The same of that log's text. Its clock drifts a little from the monotonic one."""
    since_s = now_s - _KILL_AGE_S_MAX
    return any(int(one[2]) == pid and int(one[1]) >= since_s for one in _KILLED.finditer(log))


def _check(result: int) -> None:
    if result != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


def start_time(pid: int) -> int | None:
    """Field 22 of /proc/PID/stat: with the pid it names a process for good. None: gone, or a zombie."""
    fields = _stat(pid)
    return int(fields[19]) if fields and fields[0] not in ("Z", "X") else None


def is_alive(pid: int, started: int) -> bool:
    """True while the process of that pid and start time has not ended."""
    return start_time(pid) == started


def _stat(pid: int) -> list[str]:
    """Fields of /proc/PID/stat from the third (state) on; empty: no such process."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:  # noqa: PTH123 - pathlib costs the shim 100 us a call
            text = file.read().decode("utf-8", "replace")
    except (FileNotFoundError, ProcessLookupError):
        return []
    return text[text.rindex(")") + 2 :].split()


def state(pid: int) -> str:
    """R, S, D, T, Z ... as /proc/PID/stat has it; empty: gone."""
    return (_stat(pid) or [""])[0]


def cpu_s(pid: int) -> float:
    """Processor time that the process has used, and those of its children that it has reaped."""
    fields = _stat(pid)
    return sum(map(int, fields[11:15])) / _TICKS_PER_S if fields else 0.0


def waits_in(pid: int) -> str:
    """The number of the system call that its main thread is in, or "running"; empty: it may not be seen."""
    try:
        with open(f"/proc/{pid}/syscall", "rb") as file:  # noqa: PTH123
            return file.read(32).split()[0].decode()
    except (OSError, IndexError):
        return ""


def catches(pid: int, signal_number: int) -> bool:
    """True when the process has a handler for it."""
    try:
        with open(f"/proc/{pid}/status", "rb") as file:  # noqa: PTH123
            lines = file.read().splitlines()
    except (FileNotFoundError, ProcessLookupError):
        return False
    caught = next((line for line in lines if line.startswith(b"SigCgt:")), b"SigCgt: 0")
    return bool(int(caught.split()[1], 16) >> (signal_number - 1) & 1)


def all_pids() -> Iterator[int]:
    """Every process that this one can see."""
    return (int(name) for name in os.listdir("/proc") if name.isdigit())  # noqa: PTH208


def descendants(root: int) -> list[int]:
    """Children of `root`, their children and so on, parents first; zombies included."""
    found = children(root)
    for pid in found:
        found.extend(children(pid))
    return found


def children(pid: int) -> list[int]:
    """Direct children of the process, zombies included; none when it is gone."""
    if not _HAS_CHILDREN_FILES:
        return [child for child in all_pids() if (fields := _stat(child)) and int(fields[1]) == pid]
    found: list[int] = []
    try:
        for thread in os.listdir(f"/proc/{pid}/task"):  # noqa: PTH208
            with open(f"/proc/{pid}/task/{thread}/children", "rb") as file:  # noqa: PTH123
                found += map(int, file.read().split())
    except (FileNotFoundError, ProcessLookupError):
        return found
    return found


def session_of(pid: int) -> int:
    """The session that the process is in: the pid of its leader; 0: gone."""
    fields = _stat(pid)
    return int(fields[3]) if fields else 0


def marked(*marks: str) -> list[int]:
    """Processes that carry one of these PACELINE_MARKs in their initial environment."""
    return _having(MARK, *marks)


def contained(*names: str) -> list[int]:
    """Processes in containers of these names, by the same sign, the oldest first."""
    if not names:
        return []
    found = ((start_time(pid), pid) for pid in _having(CONTAINER, *names))
    return [pid for _, pid in sorted((started, pid) for started, pid in found if started is not None)]


def _having(variable: str, *values: str) -> list[int]:
    wanted = {f"{variable}={value}".encode() for value in values}
    return [pid for pid in all_pids() if not wanted.isdisjoint(_environment(pid).split(b"\0"))]


def _environment(pid: int) -> bytes:
    try:
        with open(f"/proc/{pid}/environ", "rb") as file:  # noqa: PTH123
            return file.read()
    except (FileNotFoundError, ProcessLookupError, PermissionError):
        return b""  # gone, or another user's: not one of ours


class InitialMemory:
    """The argument and environment strings that the kernel gave this process, as /proc shows them to others.

    A process forked from a zygote carries the zygote's; overwritten in place, `ps` names the script, and the
    mark is found in whatever is forked from it. The zygote must have been started with a mark of
    MARK_BYTES_MAX bytes and with room in its arguments.
    """

    def __init__(self) -> None:
        fields = _stat(os.getpid())
        self._arguments = (int(fields[45]), int(fields[46]))
        environment = _environment(os.getpid())
        at = (b"\0" + environment).find(f"\0{MARK}=".encode())
        self._mark_address = int(fields[47]) + at + len(MARK) + 1 if at >= 0 else 0

    def set_mark(self, mark: str) -> None:
        """Carry this mark from now on, and so does every process forked from here."""
        if self._mark_address:
            ctypes.memmove(self._mark_address, mark.encode().ljust(MARK_BYTES_MAX, b"\0"), MARK_BYTES_MAX)

    def set_arguments(self, arguments: list[str]) -> None:
        """Show these as the command line. A last byte that is not 0 tells the kernel to stop at the first."""
        start, end = self._arguments
        room = end - start - 2
        text = " ".join(arguments).encode("utf-8", "replace")[:room]
        ctypes.memmove(start, text.ljust(room + 1, b"\0") + b".", room + 2)
