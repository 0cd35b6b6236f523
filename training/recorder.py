"""torch's flight recorder of gloo's collectives, to be asked as NCCL's can be: through a named pipe.

torch (2.13) records gloo's collectives but writes them to no file. Here a thread waits on the pipe that
`TORCH_NCCL_DEBUG_INFO_PIPE_FILE` names for each rank and writes what is recorded to
`TORCH_FR_DUMP_TEMP_FILE`, both as NCCL's own does. Importing this costs no torch.
"""

import os
import sys
import threading
from contextlib import suppress
from pathlib import Path
from typing import Any

_ASK_BYTES = 128
_answering: "list[_Answering]" = []
"""At most one."""


def answer_collectives() -> None:
    """From now on this rank answers, where its gang is asked at all and NCCL does not answer for it."""
    pipe, trace = (
        os.environ.get(name, "") for name in ("TORCH_NCCL_DEBUG_INFO_PIPE_FILE", "TORCH_FR_DUMP_TEMP_FILE")
    )
    rank = os.environ.get("RANK", "")
    if not (pipe and trace and rank) or _dump() is None:
        return
    while _answering:
        _answering.pop().end()
    with suppress(OSError):  # no room on the disk: it is not asked
        _answering.append(_Answering(Path(f"{pipe}{rank}.pipe"), Path(f"{trace}{rank}")))


class _Answering:
    """Raises OSError where the pipe cannot be made."""

    def __init__(self, pipe: Path, trace: Path) -> None:
        self._trace = trace
        self._over = False
        try:
            os.mkfifo(pipe, 0o600)
        except FileExistsError:
            if _is_read(pipe):  # by NCCL
                raise
            pipe.unlink()  # of a rank that was here before
            os.mkfifo(pipe, 0o600)
        self._fd = os.open(pipe, os.O_RDWR | os.O_CLOEXEC)  # never at its end
        threading.Thread(target=self._answer, name="paceline-collectives", daemon=True).start()

    def end(self) -> None:
        self._over = True
        os.write(self._fd, b"\n")

    def _answer(self) -> None:
        while os.read(self._fd, _ASK_BYTES) and not self._over:
            with suppress(OSError):  # a full disk: whoever asks goes without
                self._write()
        os.close(self._fd)

    def _write(self) -> None:
        dump = _dump()
        if dump is None:
            return
        self._trace.parent.mkdir(parents=True, exist_ok=True)
        part = self._trace.with_suffix(".part")
        part.write_bytes(dump())
        part.replace(self._trace)


def _dump() -> Any:
    distributed: Any = sys.modules.get("torch._C._distributed_c10d")
    return getattr(distributed, "_dump_fr_trace", None)


def _is_read(pipe: Path) -> bool:
    try:
        os.close(os.open(pipe, os.O_WRONLY | os.O_NONBLOCK | os.O_CLOEXEC))
    except OSError:
        return False
    return True
