"""What nobody refers to goes from a store when it is old; see store.py on the times of its files.

A round renews all that is referred to, and removes the trees that are old all the same. Then no tree is left
that names an old blob, and the old blobs go, too. A round comes in small steps and may end after any of them.
Whoever is told meanwhile that something is here, has it: a file is moved aside first, and moved back if its
time is new by then.
"""

import os
import re
import time
from collections.abc import Collection, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from .store import ContentStore
from .times import FRESH_S, renewed

GRACE_S: Final = 7 * 86400.0
"""Longer than any upload takes, and than there is between an upload and the submit."""
_FILE: Final = re.compile(r"(?P<hash>[0-9a-f]{64})(\.json)?", re.ASCII)
_GONE: Final = ".gone"
_TIMED: Final = "timed"
"""In the store's folder, once times are what they should be: an earlier version did not keep them."""


@dataclass(slots=True)
class Count:
    """Of a round, so far."""

    files: int = 0
    """Trees and blobs that stay."""
    bytes: int = 0
    trees_gone: int = 0
    blobs_gone: int = 0
    bytes_gone: int = 0


@dataclass(slots=True)
class Round:
    """Blocks on the disk: go through `steps` in a thread. They raise OSError where the disk refuses."""

    store: ContentStore
    referred: Collection[str]
    """Hashes of trees and of blobs that stay, however old."""
    grace_s: float = GRACE_S
    count: Count = field(default_factory=Count)

    def steps(self) -> Iterator[None]:
        """Yields after each small step."""
        before_s = time.time() - self.grace_s
        if not (self.store.root / _TIMED).exists():
            yield from self._renew_all()
        for hash_ in self.referred:
            self._renew(hash_)
            yield
        for path in self._files(self.store.trees):
            self.count.trees_gone += self._is_gone(path, before_s)
            yield
        for path in self._files(self.store.blobs):
            self.count.blobs_gone += self._is_gone(path, before_s - FRESH_S)
            yield
        self.store.drop_stale_parts()

    def _renew_all(self) -> Iterator[None]:
        for path in self._files(self.store.trees):
            self.store.has_tree(_hash_of(path), 0.0)
            yield
        for path in self._files(self.store.blobs):
            renewed(path)
            yield
        with suppress(FileNotFoundError):  # there is no store yet
            (self.store.root / _TIMED).touch()

    def _renew(self, hash_: str) -> None:
        """Half of the grace is left for the rounds to come, if one of them fails."""
        if not self.store.has_tree(hash_, self.grace_s / 2):
            renewed(str(self.store.blob_path(hash_)))

    def _files(self, folder: Path) -> Iterator[str]:
        """Those that are kept there; what a round that was killed had moved aside is back."""
        for prefix in range(256):
            below = f"{folder}/{prefix:02x}"
            with suppress(FileNotFoundError):
                for name in os.listdir(below):  # noqa: PTH208
                    path = f"{below}/{name.removesuffix(_GONE)}"
                    if name.endswith(_GONE):
                        os.rename(f"{below}/{name}", path)  # noqa: PTH104
                    if _FILE.fullmatch(os.path.basename(path)):  # noqa: PTH119
                        yield path

    def _is_gone(self, path: str, before_s: float) -> bool:
        """It is removed, where it is old and nobody is told of it meanwhile."""
        gone = path + _GONE
        try:
            info = os.stat(path)  # noqa: PTH116
            if info.st_mtime < before_s and _hash_of(path) not in self.referred:
                os.rename(path, gone)  # noqa: PTH104
                if os.stat(gone).st_mtime < before_s:  # noqa: PTH116
                    os.unlink(gone)  # noqa: PTH108
                    self.count.bytes_gone += info.st_size
                    return True
                os.rename(gone, path)  # noqa: PTH104
        except FileNotFoundError:
            return False
        self.count.files += 1
        self.count.bytes += info.st_size
        return False


def _hash_of(path: str) -> str:
    return os.path.basename(path)[:64]  # noqa: PTH119
