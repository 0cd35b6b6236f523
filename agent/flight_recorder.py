"""torch's flight recorder: asked for what it holds when a gang is still, and read.

By torch's documentation and source: a ring of the last collectives of each rank is kept when its size is set;
a rank over NCCL makes a named pipe, and whatever is written into that makes it write the ring to a file. Over
gloo, which makes none, training/recorder.py does the same. `torchfrtrace` reads these files, too. They are
pickles of plain values that the job's own process has written: what would call anything is refused.
Standard library only.
"""

import io
import os
import pickle
from collections.abc import Mapping
from typing import Any, Final

COLLECTIVES: Final = 2000
"""Held by each rank."""
GROUPS_MAX: Final = 16
"""Told of each rank."""
_BYTES_MAX: Final = 64 * 1024 * 1024
_NAME_CHARS_MAX: Final = 50
_UNREADABLE: Final = (
    EOFError,
    pickle.UnpicklingError,
    LookupError,
    TypeError,
    ValueError,
    AttributeError,
    ArithmeticError,
)
"""A trace that is being written, or another version's, or not torch's at all."""
_TRACE: Final = "collectives-"
_PIPE: Final = "TORCH_NCCL_DEBUG_INFO_PIPE_FILE"
_FILE: Final = "TORCH_FR_DUMP_TEMP_FILE"
SIZE: Final = "TORCH_FR_BUFFER_SIZE"
_OF_OLD: Final = {"TORCH_NCCL_TRACE_BUFFER_SIZE": SIZE, "TORCH_NCCL_DEBUG_INFO_TEMP_FILE": _FILE}
"""Names before torch 2.9, which goes by the new ones where it finds both, and warns."""


def variables(
    task_folder: str, job_folder: str, attempt: int, user: Mapping[str, str], *, old_names: bool
) -> dict[str, str]:
    """For the ranks of a gang; what `user` sets comes first, by either name. `old_names`: theirs may be a
    torch that knows no others."""
    found = {
        SIZE: str(COLLECTIVES),
        _PIPE: f"{task_folder}/collectives-",
        _FILE: f"{trace_folder(job_folder, attempt)}/{_TRACE}",
    }
    found |= {name: user[name] for name in found if name in user}
    for old, new in _OF_OLD.items():
        if old in user and new not in user:
            found[new] = user[old]
        if old_names or old in user:
            found[old] = found[new]
    return found


def trace_folder(job_folder: str, attempt: int) -> str:
    return f"{job_folder}/traces/{attempt}"


def ask(environment: dict[str, str], rank: int) -> str:
    """Have the rank write its ring; where that will be. Empty: there is no recorder."""
    pipe, trace = environment.get(_PIPE, ""), environment.get(_FILE, "")
    if not pipe or not trace:
        return ""
    try:
        fd = os.open(f"{pipe}{rank}.pipe", os.O_WRONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:  # no group was made, or it is of a torch that records none
        return ""
    try:
        os.write(fd, b"1\n")
    except OSError:  # nobody reads any more
        return ""
    finally:
        os.close(fd)
    return f"{trace}{rank}"


def read(path: str, since_s: float) -> list[dict[str, Any]] | None:
    """Of each process group, those first that something is waited for in: its name, the number of the last
    collective that this rank has begun and what that is, and the same of the first that has not ended (0:
    there is none). None: the file is not there yet, or not whole. `since_s`: by the wall clock, which file
    systems go by."""
    try:
        with open(path, "rb") as file:  # noqa: PTH123
            stat = os.fstat(file.fileno())
            if stat.st_mtime < since_s or stat.st_size > _BYTES_MAX:
                return None
            ring = _Plain(io.BytesIO(file.read())).load()
        return _groups(ring["entries"])
    except (OSError, *_UNREADABLE):
        return None


class _Plain(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        raise pickle.UnpicklingError(f"{module}.{name} is no plain value")


def _groups(entries: list[dict[str, Any]]) -> list[dict[str, Any]]:
    newest: dict[str, int] = {}  # of a group that was made again, only the last counts
    for entry in entries:
        name, made = str(entry["process_group"][0]), int(entry["pg_id"])
        newest[name] = max(made, newest.get(name, made))
    found: dict[str, dict[str, Any]] = {}
    for entry in entries:
        name = str(entry["process_group"][0])
        if entry["pg_id"] != newest[name] or entry["is_p2p"]:
            continue
        number, what = int(entry["collective_seq_id"]), str(entry["profiling_name"])[:_NAME_CHARS_MAX]
        group = found.setdefault(
            name,
            {"group": name[:_NAME_CHARS_MAX], "last": 0, "last_name": "", "waiting": 0, "waiting_name": ""},
        )
        if number >= group["last"]:
            group |= {"last": number, "last_name": what}
        is_open = not entry["retired"] and entry["state"] != "completed"
        if is_open and (not group["waiting"] or number < group["waiting"]):
            group |= {"waiting": number, "waiting_name": what}
    return sorted(found.values(), key=lambda group: not group["waiting"])[:GROUPS_MAX]
