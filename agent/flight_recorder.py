"""torch's flight recorder of NCCL's collectives: asked to write what it holds when a gang is still.

By torch's documentation and source: a ring of the last collectives of each rank is kept when its size is set;
a rank makes a named pipe, and whatever is written into that makes it write the ring to a file, which
`torchfrtrace` reads. It is a pickle: nothing of ours opens it. Standard library only.
"""

import os
from typing import Final

COLLECTIVES: Final = 2000
"""Held by each rank."""
_TRACE: Final = "nccl-trace-"


def variables(task_folder: str, job_folder: str, attempt: int) -> dict[str, str]:
    """For ranks with GPUs; what the user has set comes first."""
    return {
        "TORCH_NCCL_TRACE_BUFFER_SIZE": str(COLLECTIVES),
        "TORCH_NCCL_DEBUG_INFO_PIPE_FILE": f"{task_folder}/nccl-",
        "TORCH_NCCL_DEBUG_INFO_TEMP_FILE": f"{trace_folder(job_folder, attempt)}/{_TRACE}",
    }


def trace_folder(job_folder: str, attempt: int) -> str:
    return f"{job_folder}/traces/{attempt}"


def ask(environment: dict[str, str], rank: int) -> str:
    """Have the rank write its ring; where that will be. Empty: there is no recorder."""
    pipe = environment.get("TORCH_NCCL_DEBUG_INFO_PIPE_FILE", "")
    trace = environment.get("TORCH_NCCL_DEBUG_INFO_TEMP_FILE", "")
    if not pipe or not trace:
        return ""
    try:
        fd = os.open(f"{pipe}{rank}.pipe", os.O_WRONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:  # no group over NCCL was made
        return ""
    try:
        os.write(fd, b"1\n")
    except OSError:  # nobody reads any more
        return ""
    finally:
        os.close(fd)
    return f"{trace}{rank}"


def is_written(path: str, since_s: float) -> bool:
    """By the wall clock, which file systems go by."""
    try:
        return os.stat(path).st_mtime >= since_s  # noqa: PTH116
    except OSError:
        return False
