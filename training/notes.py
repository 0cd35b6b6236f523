"""Word that ranks' persisters leave for rank 0's, in a folder that all of them reach: sizes and hashes of a
rank's files, or why it has none. One file a rank, there at once and whole.
"""

import contextlib
import json
import os
import time
from collections.abc import Mapping
from pathlib import Path

from .errors import StorageFailed
from .manifest import FileEntry

GANG_S = 600.0
"""How long rank 0's waits for the other ranks' parts."""
_ORPHAN_GANG_S = 30.0
_POLL_S = 0.01


def leave(folder: Path, rank: int, error: str, files: Mapping[str, FileEntry]) -> str:
    """The error, also that of the note. Where there is no room for the note it is left empty: rank 0's must
    not wait for what does not come.
    """
    told = {"error": error, "files": {n: [e.size_bytes, e.xxh3] for n, e in files.items()}}
    note = folder / f".rank-{rank}"
    try:
        if error:
            folder.mkdir(parents=True, exist_ok=True)
        note.with_suffix(".tmp").write_text(json.dumps(told))
        note.with_suffix(".tmp").rename(note)
    except FileNotFoundError:
        return error or "rank 0 has given this checkpoint up"
    except OSError as failure:
        with contextlib.suppress(OSError):  # nor for a name: then it waits for its time
            note.with_suffix(".tmp").open("wb").close()
            note.with_suffix(".tmp").rename(note)
        return error or told_of(failure)
    return error


def gather(folder: Path, ranks: set[int], parent: int) -> dict[str, FileEntry]:
    """The parts of `ranks`. Raises StorageFailed when one has none, or does not come; sooner when `parent`,
    the rank that started us, is gone.
    """
    missing, files = set(ranks), dict[str, FileEntry]()
    since = time.monotonic()
    while missing:
        for rank in sorted(missing):
            note = folder / f".rank-{rank}"
            if not note.exists():
                continue
            text = note.read_text()
            if not text:
                raise StorageFailed(f"rank {rank}: no room for word of its part")
            told = json.loads(text)
            if told["error"]:
                raise StorageFailed(f"rank {rank}: {told['error']}")
            files |= {name: FileEntry(size, xxh3) for name, (size, xxh3) in told["files"].items()}
            note.unlink()
            missing.discard(rank)
        bound_s = GANG_S if os.getppid() == parent else _ORPHAN_GANG_S
        if missing and time.monotonic() - since > bound_s:
            raise StorageFailed(f"no word from ranks {sorted(missing)[:8]} within {bound_s:.0f} s")
        if missing:
            time.sleep(_POLL_S)
    return files


def told_of(failure: OSError) -> str:
    where = f" ({Path(str(failure.filename)).name})" if failure.filename else ""
    return f"{failure.strerror or failure}{where}"
