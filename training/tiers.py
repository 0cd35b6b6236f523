"""From where each file of a checkpoint is read: this node's memory where it is and verifies, else storage.

Only files that some rank will read are looked at, each by one rank: an image by one of its node's, a file in
storage by one of all. Storage is not touched for what every node that needs it has in memory.
"""

import mmap
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path

from . import images, manifest
from .environment import Environment
from .gang import Gang
from .manifest import Manifest


@dataclass(frozen=True, slots=True)
class _Has:
    """What a rank needs, and what its node's memory has. Sent to all."""

    node: int
    needs: frozenset[str]
    images: frozenset[str]


class Tiers:
    """Of one checkpoint. Collective."""

    def __init__(self, gang: Gang, environment: Environment) -> None:
        self._gang = gang
        self._node = environment.node_rank
        self._has_memory = environment.memory_folder is not None
        self._needs: frozenset[str] = frozenset()
        self._why: dict[str, str] = {}
        self.images: dict[str, Path] = {}
        """Verified, and wanted here."""
        self.mapped: dict[str, mmap.mmap] = {}
        """Those of them that this rank has looked at."""

    def verify(
        self, folder: Path, document: Manifest, needs: Collection[str], found: Mapping[str, Path]
    ) -> str:
        """What is wrong with the first file that no tier has whole; empty when all can be read."""
        self._needs = frozenset(needs)
        self.images = {name: path for name, path in found.items() if name in document.files}
        has: list[_Has] = self._gang.gather(_Has(self._node, self._needs, frozenset(self.images)))
        if any(one.needs & one.images for one in has):
            has = self._without_bad_images(document, has)
        self.images = {name: path for name, path in self.images.items() if name in self._needs}
        missing = sorted({name for one in has for name in one.needs - one.images})
        if not missing:
            return ""
        share = missing[self._gang.rank :: len(has)]
        checked = {name: manifest.damage_of(folder / name, document.files[name]) for name in share}
        mine = {name: why for name, why in checked.items() if why}
        said: list[dict[str, str]] = self._gang.gather(mine)
        return next((f"{name}: {why}" for bad in said for name, why in bad.items()), "")

    def _without_bad_images(self, document: Manifest, has: list[_Has]) -> list[_Has]:
        said: list[dict[str, str]] = self._gang.gather(self._bad_images(document, has))
        bad: dict[int, dict[str, str]] = {}
        for one, found in zip(has, said, strict=True):
            bad.setdefault(one.node, {}).update(found)
        self._why = {name: f"{why} in memory" for name, why in bad[self._node].items()}
        self.images = {name: path for name, path in self.images.items() if name not in self._why}
        return [_Has(one.node, one.needs, one.images - bad[one.node].keys()) for one in has]

    def describe(self) -> str:
        """For people: the tier, and why not a faster one."""
        wanted = sorted(self._needs)
        there = [name for name in wanted if name in self.images]
        if there == wanted and wanted:
            return "memory"
        if not self._has_memory:
            return "storage (this run has no folder in memory)"
        missing = [name for name in wanted if name not in self.images]
        why = "; ".join(_by_reason({name: self._why.get(name, "not in memory here") for name in missing}))
        return (
            f"storage ({why})"
            if not there
            else f"memory, and storage for {len(missing)} of {len(wanted)} files ({why})"
        )

    def slot_of(self, rank: int) -> int | None:
        """Where that rank's own images are; None: nothing of it was read from memory here."""
        own = (path for name, path in self.images.items() if name.startswith(f"__{rank}_"))
        return next((images.slot_of(path) for path in own), None)

    def _bad_images(self, document: Manifest, has: list[_Has]) -> dict[str, str]:
        """Those of this node that somebody here needs, shared among its ranks."""
        peers = [rank for rank, one in enumerate(has) if one.node == self._node]
        needed = frozenset[str]().union(*(has[rank].needs for rank in peers))
        names = sorted(needed & frozenset(self.images))[peers.index(self._gang.rank) :: len(peers)]
        found: dict[str, str] = {}
        for name in names:
            mapped = images.map_verified(self.images[name], document.files[name])
            if isinstance(mapped, str):
                found[name] = mapped
            else:
                self.mapped[name] = mapped
        return found


def _by_reason(whys: Mapping[str, str]) -> list[str]:
    """The same told once, with the first of those it holds for."""
    names: dict[str, list[str]] = {}
    for name, why in whys.items():
        names.setdefault(why, []).append(name)
    return [
        f"{first}{f' and {len(others)} more' if others else ''}: {why}"
        for why, (first, *others) in names.items()
    ]
