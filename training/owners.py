"""Processes as owners of what lies on a node's disk: by their names, "PID.START", the dead are known."""

from pathlib import Path


def owner_name(pid: int) -> str:
    """That process's name, for good: its pid and the kernel's time of its start."""
    return f"{pid}.{_start_time(pid)}"


def is_alive(name: str) -> bool:
    """True while the process of that name runs; a name that is none has no owner."""
    pid, _, started = name.partition(".")
    return pid.isdecimal() and started not in ("", "0") and str(_start_time(int(pid))) == started


def _start_time(pid: int) -> int:
    """Field 22 of /proc/PID/stat; 0: gone, or a zombie."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return 0
    return 0 if fields[0] in ("Z", "X") else int(fields[19])
