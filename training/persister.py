"""The process beside a rank that brings its images to storage: copies, hashes, fsyncs; rank 0's publishes.

Started by the rank (`python -P -m paceline.training.persister`), one order at a time over a pipe. When the
rank is gone it finishes what was ordered and ends. Each rank's part lies in the checkpoint's folder aside
with a note of sizes and hashes; rank 0's waits for all notes. No torch here.
"""

import contextlib
import io
import json
import os
import select
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path

from . import manifest, scratch
from .errors import NotAccepted, StorageFailed
from .images import map_image
from .manifest import FileEntry
from .orders import Answer, Order, decode_order, decode_setting
from .publishing import Publisher
from .say import say

GANG_S = 600.0
"""How long rank 0's waits for the other ranks' parts."""
_ORPHAN_GANG_S = 30.0
_POLL_S = 0.01
_LOOK_S = 1.0
_CHUNK_BYTES = 4 * 1024 * 1024
_NICENESS = 5


def main() -> None:
    with contextlib.suppress(OSError):
        os.nice(_NICENESS)
    orders, answers = sys.stdin.fileno(), sys.stdout.buffer
    parent = os.getppid()
    lines = _lines(orders, parent)
    setting = decode_setting(next(lines))
    publisher = Publisher(setting)
    try:
        for line in lines:
            order = decode_order(line)
            error = _carry_out(order, publisher, parent)
            answer = Answer(str(order.name), error, publisher.persist_s)
            with contextlib.suppress(BrokenPipeError):  # the rank is gone; what it ordered is done
                answers.write(json.dumps(asdict(answer)).encode() + b"\n")
                answers.flush()
    finally:
        if setting.scratch:
            scratch.drop(Path(setting.scratch))


def _lines(pipe: int, parent: int) -> Iterator[bytes]:
    """Until the rank closes the pipe, or is dead: what it forked may hold the pipe open."""
    received = b""
    while True:
        ready, _, _ = select.select([pipe], [], [], _LOOK_S)
        if not ready and os.getppid() != parent:
            return
        data = os.read(pipe, 64 * 1024) if ready else b""
        if ready and not data:
            return
        *whole, received = (received + data).split(b"\n")
        yield from whole


def _carry_out(order: Order, publisher: Publisher, parent: int) -> str:
    """What went wrong; empty when nothing did."""
    files: dict[str, FileEntry] = {}
    error = order.error
    if not error:
        try:
            files = _copy(order)
        except OSError as failure:
            error = _told(failure)
    if order.publish is None:
        return _note(order, error, files)
    error = f"rank {order.rank}: {error}" if error else ""
    try:
        if not error:
            files |= _gather(order, parent)
            publisher.publish(order, order.publish, files)
    except (StorageFailed, NotAccepted) as failure:
        error = failure.message
    except OSError as failure:
        error = f"rank {order.rank}: {_told(failure)}"
    if error:
        publisher.on_failed(order, error)
    return error


def mark_failed(order: Order, why: str) -> None:
    """Tell rank 0's that this rank's part does not come."""
    _note(order, why, {})


def _copy(order: Order) -> dict[str, FileEntry]:
    order.aside.mkdir(parents=True, exist_ok=True)
    done: dict[str, FileEntry] = {}
    try:
        for name, image in order.files.items():
            done[name] = _copy_file(Path(image), order.aside / name)
        for name in done:  # after all are written: the first takes the others' pages and names along
            _sync(order.aside / name)
    except OSError:
        for name in order.files:  # makes room for the note, too
            (order.aside / name).unlink(missing_ok=True)
        raise
    return done


def _copy_file(image: Path, target: Path) -> FileEntry:
    """The hash is of what is written: what the disk makes of it later shows at the restore."""
    digest = manifest.new_hash()
    source = memoryview(map_image(image))
    with target.open("wb", buffering=0) as file:
        for start in range(0, len(source), _CHUNK_BYTES):
            chunk = source[start : start + _CHUNK_BYTES]
            digest.update(chunk)
            _write_all(file, chunk)
    return FileEntry(len(source), digest.hexdigest())


def _write_all(file: io.FileIO, chunk: memoryview) -> None:
    written = 0
    while written < len(chunk):
        written += file.write(chunk[written:])


def _sync(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def _note(order: Order, error: str, files: Mapping[str, FileEntry]) -> str:
    """Leave word for rank 0's; the error, also that of the note."""
    told = {"error": error, "files": {n: [e.size_bytes, e.xxh3] for n, e in files.items()}}
    note = order.aside / f".rank-{order.rank}"
    try:
        if error:
            order.aside.mkdir(parents=True, exist_ok=True)
        note.with_suffix(".tmp").write_text(json.dumps(told))
        note.with_suffix(".tmp").rename(note)
    except FileNotFoundError:
        return error or "rank 0 has given this checkpoint up"
    except OSError as failure:
        return error or _told(failure)
    return error


def _gather(order: Order, parent: int) -> dict[str, FileEntry]:
    """The other ranks' parts. Raises StorageFailed when one has none, or does not come."""
    assert order.publish is not None
    missing = {rank for rank in range(order.publish.world_size) if rank != order.rank}
    files: dict[str, FileEntry] = {}
    since = time.monotonic()
    while missing:
        for rank in sorted(missing):
            note = order.aside / f".rank-{rank}"
            if not note.exists():
                continue
            told = json.loads(note.read_text())
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


def _told(failure: OSError) -> str:
    where = f" ({Path(str(failure.filename)).name})" if failure.filename else ""
    return f"{failure.strerror or failure}{where}"


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        say("a checkpoint under way was interrupted")
        sys.exit(130)
