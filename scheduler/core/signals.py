"""Exit codes as people read them. As waitpid says: negative for a signal."""

from signal import Signals

_SHELL_BASE = 128
_ENDING = frozenset({1, 2, 3, 4, 5, 6, 7, 8, 9, 11, 13, 15, 24, 25})
"""Signals that end a process which does not expect them."""


def how_it_exited(exit_code: int, cause: str) -> str:
    """`exited with code 3`, `was killed by signal 9 (SIGKILL), out of memory: ...`."""
    why = f", {cause}" if cause else ""
    if exit_code >= 0:
        return f"exited with code {exit_code}{why}"
    try:
        name = f" ({Signals(-exit_code).name})"
    except ValueError:
        name = ""
    return f"was killed by signal {-exit_code}{name}{why}"


def signal_of(exit_code: int) -> int | None:
    """The signal that ended it; also where a shell says so, whose code is then 128 + the signal."""
    if exit_code < 0:
        return -exit_code
    number = exit_code - _SHELL_BASE
    return number if number in _ENDING else None


def job_exit_code(exit_code: int) -> int:
    """What a shell would say: 128 + the signal."""
    return exit_code if exit_code >= 0 else 128 - exit_code
