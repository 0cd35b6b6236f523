"""Exit codes as people read them. As waitpid says: negative for a signal."""

from signal import Signals


def how_it_exited(exit_code: int, cause: str) -> str:
    """`exited with code 3`, `was killed by signal 9 (SIGKILL), out of memory: ...`."""
    if exit_code >= 0:
        return f"exited with code {exit_code}"
    try:
        name = f" ({Signals(-exit_code).name})"
    except ValueError:
        name = ""
    return f"was killed by signal {-exit_code}{name}" + (f", {cause}" if cause else "")


def job_exit_code(exit_code: int) -> int:
    """What a shell would say: 128 + the signal."""
    return exit_code if exit_code >= 0 else 128 - exit_code
