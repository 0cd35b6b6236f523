"""The process beside a rank that brings its images to storage: copies, hashes, fsyncs; rank 0's publishes.

Started by the rank (`python -P -m paceline.training.persister`), one order at a time over a pipe. When the
rank is gone it finishes what was ordered and ends. Each rank's part lies in the checkpoint's folder aside
with a note of sizes and hashes; rank 0's waits for all notes. No torch here.
"""

import contextlib
import errno
import fcntl
import io
import json
import os
import select
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path
from typing import Protocol

from ..spec.folder_names import FolderName
from . import manifest, notes, scratch
from .errors import NotAccepted, StorageFailed, Unanswered
from .images import map_image
from .manifest import FileEntry
from .orders import Answer, Order, decode_order, decode_setting
from .peer_calls import Caller
from .peer_sending import PeerSender
from .publishing import Publisher
from .remote import Remote
from .say import say
from .uploading import Commit, Upload, Uploader

_LOOK_S = 1.0
_BURIAL_S = 10.0
"""An agent has ended the ranks of a shim that is dead long before that."""
_WRITERS = 2
_BLOCK_BYTES = 4096
_NICENESS = 5
_SPEAKING = threading.Lock()


class Taker(Protocol):
    """Brings what is in storage to another place, too."""

    def take(self, part: Upload) -> None:
        """Its own part of an order that went well, to close."""


def main() -> None:
    with contextlib.suppress(OSError):
        os.nice(_NICENESS)
    parent = os.getppid()
    lines = _lines(sys.stdin.fileno(), parent)
    setting = decode_setting(next(lines))
    publisher = Publisher(setting)
    uploader: Uploader | None = None
    takers: list[Taker] = []
    if setting.url:
        remote = Remote(setting.url)
        uploader = Uploader(remote, publisher.link, parent, _say_uploaded, publisher.uploaded)
        takers.append(uploader)
    if setting.peer is not None:
        caller = Caller(setting.peer, setting.job, setting.attempt)
        takers.append(PeerSender(caller, publisher.link, tells=setting.first_of_node))
    try:
        for line in lines:
            order = decode_order(line)
            error = _carry_out(order, publisher, takers, parent)
            _say(asdict(Answer(str(order.name), error, publisher.persist_s)))
        if uploader is not None:
            uploader.finish()
    finally:
        publisher.close()
        if setting.scratch:
            scratch.drop(Path(setting.scratch))


def _say(told: Mapping[str, object]) -> None:
    """One line in one piece: the uploading thread speaks, too."""
    line = memoryview(json.dumps(told).encode() + b"\n")
    with _SPEAKING, contextlib.suppress(BrokenPipeError):  # the rank is gone; what it ordered is done
        _write_all(io.FileIO(sys.stdout.fileno(), "wb", closefd=False), line)


def _say_uploaded(name: FolderName) -> None:
    _say({"uploaded": str(name)})


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


def _carry_out(order: Order, publisher: Publisher, takers: Sequence[Taker], parent: int) -> str:
    """What went wrong; empty when nothing did."""
    files: dict[str, FileEntry] = {}
    parts: list[Upload] = []
    error = order.error
    if not error:
        try:
            files = _copy(order)
            parts += (Upload.of(order, files) for _ in takers)
        except OSError as failure:
            error = notes.told_of(failure)
    if order.publish is None:
        error = notes.leave(order.aside, order.rank, error, files)
    else:
        error, commit = _publish(order, publisher, files, error, parent)
        for part in parts:
            part.commit = commit
    for part in parts if error else ():
        part.close()
    for taker, part in zip(takers, parts, strict=True) if not error else ():
        taker.take(part)
    return error


def _publish(
    order: Order, publisher: Publisher, files: Mapping[str, FileEntry], error: str, parent: int
) -> tuple[str, Commit | None]:
    """Also what went wrong before, told; what an upload must know."""
    assert order.publish is not None
    commit: Commit | None = None
    error = f"rank {order.rank}: {error}" if error else ""
    unanswered = False
    try:
        if not error:
            others = set(range(order.publish.world_size)) - {order.rank}
            files = {**files, **notes.gather(order.aside, others, parent)}
            commit = publisher.publish(order, order.publish, files)
    except (StorageFailed, NotAccepted) as failure:
        error = failure.message
        unanswered = isinstance(failure, Unanswered)
    except OSError as failure:
        error = f"rank {order.rank}: {notes.told_of(failure)}"
    if error:
        publisher.on_failed(order, error)
    if unanswered:
        _wait_buried(parent)
    return error, commit


def _wait_buried(parent: int) -> None:
    """A shim that has died may have taken note of this checkpoint: the next attempt goes on from it then, and
    else from the one before. While the order is under way no save is staged, and memory keeps them both.
    """
    until_s = time.monotonic() + _BURIAL_S
    ended: list[int] = []
    while not ended and os.getppid() == parent and (left_s := until_s - time.monotonic()) > 0:
        ended, _, _ = select.select([sys.stdin.fileno()], [], [], min(_LOOK_S, left_s))


def mark_failed(order: Order, why: str) -> None:
    """Tell rank 0's that this rank's part does not come."""
    notes.leave(order.aside, order.rank, why, {})


def _copy(order: Order) -> dict[str, FileEntry]:
    """One is hashed while another is written: the disk always has something to do."""
    order.aside.mkdir(parents=True, exist_ok=True)
    try:
        with ThreadPoolExecutor(_WRITERS) as crew:
            targets = [order.aside / name for name in order.files]
            entries = list(crew.map(_copy_file, map(Path, order.files.values()), targets))
        for target in targets:  # after all are written: the first takes the others' pages and names along
            manifest.sync_file(target)
    except OSError:
        for name in order.files:  # makes room for the note, too
            (order.aside / name).unlink(missing_ok=True)
        raise
    return dict(zip(order.files, entries, strict=True))


def _copy_file(image: Path, target: Path) -> FileEntry:
    """The hash is of what is written: what the disk makes of it later shows at the restore."""
    source = map_image(image)
    entry = FileEntry(len(source), manifest.hash_bytes(source))
    with target.open("wb", buffering=0) as file:
        _write_directly(file, source)
        _write_all(file, source[file.tell() :])
    return entry


def _write_directly(file: io.FileIO, source: memoryview) -> None:
    """All whole blocks, past the page cache: that would cost a copy, and push out what training reads.
    Nothing where the file system does not do that.
    """
    flags = fcntl.fcntl(file, fcntl.F_GETFL)
    try:
        fcntl.fcntl(file, fcntl.F_SETFL, flags | os.O_DIRECT)
        _write_all(file, source[: len(source) // _BLOCK_BYTES * _BLOCK_BYTES])
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
    finally:
        fcntl.fcntl(file, fcntl.F_SETFL, flags)


def _write_all(file: io.FileIO, chunk: memoryview) -> None:
    written = 0
    while written < len(chunk):
        written += file.write(chunk[written:])


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        say("a checkpoint under way was interrupted")
        sys.exit(130)
