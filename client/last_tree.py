"""What a folder was when a scheduler last had all of it: while it is much like that, only the change is sent.

A scheduler that does not know that tree, or not any more, says so, and is asked for all of it.
"""

import contextlib
from dataclasses import dataclass
from pathlib import Path

from ..content.errors import BadManifest
from ..content.manifest import Change, Manifest, change_between, hash_of, written_manifest
from .stat_cache import write_cache


@dataclass(frozen=True, slots=True)
class Since:
    """What has changed since the tree `base`."""

    base: str
    change: Change
    new: bytes
    """The text of `change.new`."""


class LastTree:
    """Of one folder, in a file of its own. A cache that cannot be read or written is none."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self._text = b""
        with contextlib.suppress(OSError):
            self._text = file.read_bytes()

    def since(self, now: Manifest, text: bytes) -> Since | None:
        """None: nothing has changed, or so much that it is less to send the manifest, `text`."""
        if text == self._text:
            return None
        try:
            change = change_between(written_manifest(self._text), now)
        except BadManifest:
            return None
        new = change.new.to_bytes()
        less = len(new) + sum(len(path.encode()) for path in change.gone) < len(text)
        return Since(hash_of(self._text), change, new) if less else None

    def note(self, text: bytes) -> None:
        """Of a manifest that a scheduler has."""
        if text != self._text:
            write_cache(self._file, text)
