"""From where each file of a checkpoint is read: this node's memory where it is and verifies, else storage,
else where it was uploaded.

Only files that some rank will read are looked at, each by one rank: an image by one of its node's, a file in
storage by one of all. A slower tier is not touched for what every node that needs it has in a faster one.
"""

import mmap
from collections.abc import Collection, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from . import images, manifest
from .candidates import Candidate
from .copying import threads
from .environment import Environment
from .gang import Gang
from .manifest import Manifest
from .remote import Remote


@dataclass(frozen=True, slots=True)
class _Has:
    """What a rank needs, and what its node's memory has. Sent to all."""

    node: int
    needs: frozenset[str]
    images: frozenset[str]


class Tiers:
    """Of one checkpoint. Collective."""

    def __init__(self, gang: Gang, environment: Environment, remote: Remote | None) -> None:
        self._gang = gang
        self._remote = remote
        self._task_folder = environment.task_folder
        self._fetched: dict[str, Path] = {}
        """Brought here by this rank."""
        self._why_not_storage: dict[str, str] = {}
        """Of the files that this node reads from where they were uploaded."""
        self._node = environment.node_rank
        self._has_memory = environment.memory_folder is not None
        self._needs: frozenset[str] = frozenset()
        self._why: dict[str, str] = {}
        self.images: dict[str, Path] = {}
        """Verified, and wanted here."""
        self.mapped: dict[str, mmap.mmap] = {}
        """Those of them that this rank has looked at."""

    def verify(
        self, candidate: Candidate, document: Manifest, needs: Collection[str], found: Mapping[str, Path]
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
        with ThreadPoolExecutor(threads()) as crew:
            whys = crew.map(
                lambda name: manifest.damage_of(candidate.path / name, document.files[name]), share
            )
            mine = {name: why for name, why in zip(share, whys, strict=True) if why}
        said: list[dict[str, str]] = self._gang.gather(mine)
        bad = {name: why for of_rank in said for name, why in of_rank.items()}
        if bad and self._remote is not None:
            bad = self._fetch(self._remote, candidate, document, has, bad)
        return next((f"{name}: {why}" for name, why in bad.items()), "")

    def _fetch(
        self, remote: Remote, candidate: Candidate, document: Manifest, has: list[_Has], bad: dict[str, str]
    ) -> dict[str, str]:
        """Each node brings what its ranks need of it, shared among them; what is still bad, and why."""
        peers = [rank for rank, one in enumerate(has) if one.node == self._node]
        wanted = sorted({name for rank in peers for name in has[rank].needs - has[rank].images} & bad.keys())
        problems: dict[str, str] = {}
        for name in wanted[peers.index(self._gang.rank) :: len(peers)]:
            target = self._place_for(candidate, name)
            if problem := remote.fetch(candidate.name, name, document.files[name], target):
                problems[name] = f"{bad[name]}; {problem} at {remote.url}"
            else:
                self._fetched[name] = target
        said: list[tuple[int, dict[str, Path], dict[str, str]]] = self._gang.gather(
            (self._node, self._fetched, problems)
        )
        for node, there, _ in said:
            if node == self._node:
                self.images |= {name: path for name, path in there.items() if name in self._needs}
        self._why_not_storage = {name: bad[name] for name in wanted if name in self.images}
        return {name: why for _, _, found in said for name, why in found.items()}

    def _place_for(self, candidate: Candidate, name: str) -> Path:
        """On this node's own disk; gone after the reading."""
        assert self._task_folder is not None  # there is no URL outside Paceline
        return self._task_folder / "fetched" / str(candidate.name) / name

    def drop(self) -> None:
        """What was brought here has been read, by all."""
        for path in self._fetched.values():
            path.unlink(missing_ok=True)

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
        wanted, far = sorted(self._needs), self._why_not_storage
        near = [name for name in wanted if name not in far]
        if not far:
            return self._describe_near(near)
        assert self._remote is not None
        why = "; ".join(
            _by_reason({n: f"{self._why_not_memory(n)}, {far[n]} in storage" for n in sorted(far)})
        )
        if not near:
            return f"{self._remote.url} ({why})"
        rest = f"{self._remote.url} for {len(far)} of {len(wanted)} files ({why})"
        return f"{self._describe_near(near)}, and {rest}"

    def _describe_near(self, wanted: list[str]) -> str:
        there = [name for name in wanted if name in self.images]
        if there == wanted and wanted:
            return "memory"
        if not self._has_memory:
            return "storage (this run has no folder in memory)"
        missing = [name for name in wanted if name not in self.images]
        why = "; ".join(_by_reason({name: self._why_not_memory(name) for name in missing}))
        return (
            f"storage ({why})"
            if not there
            else f"memory, and storage for {len(missing)} of {len(wanted)} files ({why})"
        )

    def _why_not_memory(self, name: str) -> str:
        return self._why.get(name, "not in memory here")

    def slot_of(self, rank: int) -> int | None:
        """Where that rank's own images are; None: nothing of it was read from memory here."""
        own = (
            path
            for name, path in self.images.items()
            if name.startswith(f"__{rank}_") and name not in self._why_not_storage
        )
        return next((images.slot_of(path) for path in own), None)

    def _bad_images(self, document: Manifest, has: list[_Has]) -> dict[str, str]:
        """Those of this node that somebody here needs, shared among its ranks."""
        peers = [rank for rank, one in enumerate(has) if one.node == self._node]
        needed = frozenset[str]().union(*(has[rank].needs for rank in peers))
        names = sorted(needed & frozenset(self.images))[peers.index(self._gang.rank) :: len(peers)]
        found: dict[str, str] = {}
        with ThreadPoolExecutor(threads()) as crew:
            looked_at = crew.map(
                lambda name: images.map_verified(self.images[name], document.files[name]), names
            )
            for name, mapped in zip(names, looked_at, strict=True):
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
