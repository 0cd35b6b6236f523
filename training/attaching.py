"""Giving a checkpoint's attached files back to what they are of: an engine, which loads them, or a folder.

Each rank reads what it needs; at another world size a ZeRO engine's are converted first, by rank 0.
"""

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from . import attached, engines, universal
from .attached import Files
from .errors import StorageFailed


class Attaching:
    """`thing`: the engine or the files given to restore; None: neither. `names`: of the attached files."""

    def __init__(
        self, thing: Any, checkpoint: Path, names: frozenset[str], *, rank: int, resized: bool
    ) -> None:
        self._thing = thing
        self._checkpoint = checkpoint
        self._converts = False
        self._universal = engines.is_engine(thing) and resized and universal.is_needed(names)
        self.needs: frozenset[str] = frozenset()
        """Names of those that this rank reads."""
        if self._universal:
            self._converts = rank == 0 and bool(universal.damage_of(checkpoint))
            self.needs = names if self._converts else frozenset()
        elif engines.is_engine(thing):
            self.needs = names if resized else engines.needed(thing, names, rank)
        elif isinstance(thing, Files):
            self.needs = names

    def convert(self, images: Mapping[str, Path]) -> None:
        """Rank 0's part of a resize, when nobody has done it before. Raises StorageFailed."""
        if not self._converts:
            return
        universal.convert(self._sources(images), self._checkpoint)
        damage = universal.damage_of(self._checkpoint)
        if damage:
            raise StorageFailed(f"it could not be converted for another world size: {damage}")

    def load(self, images: Mapping[str, Path]) -> None:
        """Collective for an engine."""
        if self._universal:
            universal.load(self._thing, self._checkpoint)
        elif isinstance(self._thing, Files):
            attached.copy(self._thing.folder, self._sources(images))
        elif self._thing is not None:
            with tempfile.TemporaryDirectory(prefix="paceline-engine-") as folder:
                tag = Path(folder) / self._checkpoint.name
                attached.link(tag, self._sources(images))
                engines.load(self._thing, tag)

    def _sources(self, images: Mapping[str, Path]) -> dict[str, Path]:
        return {name: images.get(name, self._checkpoint / name) for name in self.needs}
