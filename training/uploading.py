"""Bringing published checkpoints to the job's URL: in a persister, by a thread of its own, one at a time.

Each rank's persister puts that rank's files; rank 0's waits for word of all and puts the manifest, which is
the commit. All ranks agree on what is uploaded (`Order.upload`): a save that finds an upload under way is
left out, and the last one is made up for at the end. What fails costs that upload and nothing else; the
timeline says so. Files are read from disk through descriptors: no rename and no retention comes between.
"""

import os
import shutil
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from ..proto.shim_line import ShimLink
from ..spec.folder_names import FolderName
from . import notes
from .errors import StorageFailed
from .folders import UPLOADS
from .manifest import FileEntry
from .orders import Order
from .remote import Remote
from .say import say

_WHY_LENGTH_MAX = 500


@dataclass(frozen=True, slots=True)
class Commit:
    """Rank 0's part. `kept`: what may stay at the URL; None: nothing is to be removed yet."""

    path: Path
    world_size: int
    document: bytes
    files: Mapping[str, FileEntry]
    kept: frozenset[FolderName] | None


@dataclass(slots=True)
class Upload:
    """One rank's part of a checkpoint: open descriptors of its files."""

    order: Order
    files: Mapping[str, FileEntry]
    descriptors: dict[str, int]
    commit: Commit | None = None

    @classmethod
    def of(cls, order: Order, files: Mapping[str, FileEntry]) -> "Upload":
        """While the files are where the order has brought them. Raises OSError."""
        upload = cls(order, files, {})
        try:
            for name in files:
                upload.descriptors[name] = os.open(order.aside / name, os.O_RDONLY | os.O_CLOEXEC)
        except OSError:
            upload.close()
            raise
        return upload

    def close(self) -> None:
        for descriptor in self.descriptors.values():
            os.close(descriptor)
        self.descriptors.clear()


@dataclass(slots=True)
class Uploader:
    """`on_done(name)` is called in the uploading thread when an upload is over, however it went."""

    remote: Remote
    link: ShimLink | None
    parent: int
    """The rank."""
    on_done: Callable[[FolderName], None]
    uploaded: set[FolderName]
    """What is there is added to it."""
    _left_out: Upload | None = None
    _thread: threading.Thread | None = None

    def take(self, upload: Upload) -> None:
        """Of every order that went well. What was left out before is older: this one stands for it."""
        if self._left_out is not None:
            self._left_out.close()
            self._left_out = None
        if not upload.order.upload:
            self._left_out = upload
            return
        self._join()  # at most what it does after its last word to the ranks
        self._begin(upload)

    def finish(self) -> None:
        """Nothing more comes: the last one is uploaded, too."""
        self._join()
        if self._left_out is not None:
            self._begin(self._left_out)
            self._left_out = None
            self._join()

    def _begin(self, upload: Upload) -> None:
        self._thread = threading.Thread(target=self._run, args=(upload,), name="upload")
        self._thread.start()

    def _join(self) -> None:
        if self._thread is not None:
            self._thread.join()
            self._thread = None

    def _run(self, upload: Upload) -> None:
        since_s, order = time.monotonic(), upload.order
        words = Path(order.root) / f"{UPLOADS}{order.name}"
        why = self._put(upload)
        try:
            if upload.commit is None:
                words.mkdir(parents=True, exist_ok=True)
                notes.leave(words, order.rank, why, {})
            else:
                self._commit(upload.commit, order, words, why, since_s)
        except OSError as failure:
            say(f"word of the upload of step {order.step} could not be left: {notes.told_of(failure)}")
        finally:
            self.on_done(order.name)

    def _put(self, upload: Upload) -> str:
        """What went wrong."""
        try:
            for file, descriptor in upload.descriptors.items():
                self.remote.put(upload.order.name, file, Path(f"/proc/self/fd/{descriptor}"))
        except StorageFailed as failure:
            return failure.message
        finally:
            upload.close()
        return ""

    def _commit(self, commit: Commit, order: Order, words: Path, why: str, since_s: float) -> None:
        others = set(range(commit.world_size)) - {order.rank}
        try:
            if not why:
                notes.gather(words, others, self.parent)
                self.remote.commit(order.name, commit.document, commit.files)
                self.uploaded.add(order.name)
        except StorageFailed as failure:
            why = failure.message
        shutil.rmtree(words, ignore_errors=True)
        self._tell(commit, order, why[:_WHY_LENGTH_MAX], time.monotonic() - since_s)
        if not why and commit.kept is not None:
            self._let_go(commit.kept, order.name)

    def _tell(self, commit: Commit, order: Order, why: str, seconds: float) -> None:
        url = f"{self.remote.url}/{order.name}"
        if why:
            say(f"checkpoint of step {order.step} was NOT uploaded, and stays where it was: {why}")
        if self.link is not None:
            told = {"step": order.step, "path": str(commit.path), "url": url, "seconds": seconds, "why": why}
            self.link.ask({"op": "uploaded", **told})

    def _let_go(self, kept: frozenset[FolderName], before: FolderName) -> None:
        """What cannot be removed now is found again after the next upload."""
        try:
            self.remote.keep_only(kept, before)
        except StorageFailed as failure:
            say(f"older uploads stay for now: {failure.message}")
