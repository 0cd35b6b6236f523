"""From where each file of a checkpoint is read: this node's memory where it is and verifies, else that of
another node of the gang, else storage, else where it was uploaded.

Only files that some rank will read are looked at, each by one rank: an image by one of its node's, a file in
storage by one of all. A slower tier is not touched for what every node that needs it has in a faster one.
"""

from collections.abc import Collection, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from . import images, manifest
from .candidates import Candidate
from .copying import threads
from .environment import Environment
from .errors import Damaged, StorageFailed
from .gang import Gang
from .manifest import Manifest
from .neighbours import Neighbours
from .remote import Remote

_READERS_MAX = 4
"""Nodes that get a file from one that has it; more of them are faster at storage."""


@dataclass(frozen=True, slots=True)
class _Has:
    """What a rank needs, and what its node's memory has. Sent to all."""

    node: int
    needs: frozenset[str]
    images: frozenset[str]

    @property
    def lacks(self) -> frozenset[str]:
        return self.needs - self.images


class Tiers:
    """Of one checkpoint. Collective. `neighbours` None: no node keeps anything for another."""

    def __init__(
        self, gang: Gang, environment: Environment, neighbours: Neighbours | None, remote: Remote | None
    ) -> None:
        self._gang = gang
        self._neighbours = neighbours
        self._remote = remote
        self._task_folder = environment.task_folder
        self._memory_folder = environment.memory_folder
        self._fetched: dict[str, Path] = {}
        """Brought here by this rank."""
        self._peers: dict[str, str] = {}
        """Of the files that this node has from the memory of another: which."""
        self._why_not_peers: dict[str, str] = {}
        self._why_not_storage: dict[str, str] = {}
        """Of the files that this node reads from where they were uploaded."""
        self._node = environment.node_rank
        self._local_rank = environment.local_rank
        self._needs: frozenset[str] = frozenset()
        self._why: dict[str, str] = {}
        self.images: dict[str, Path] = {}
        """Verified, and wanted here."""
        self.damage = ""
        """Of what it has in storage, as far as that was looked at; the same at all ranks."""
        self.mapped: dict[str, memoryview] = {}
        """Those of them that this rank has looked at."""

    def verify(
        self, candidate: Candidate, document: Manifest, needs: Collection[str], found: Mapping[str, Path]
    ) -> str:
        """What is wrong with the first file that no tier has whole; empty when all can be read."""
        self._needs = frozenset(needs)
        self.images = {name: path for name, path in found.items() if name in document.files}
        if self._neighbours is not None and self._local_rank == 0:
            images.drop(self._place_from_peers())  # of a restore that was cut short
        has: list[_Has] = self._gang.gather(_Has(self._node, self._needs, frozenset(self.images)))
        if any(one.needs & one.images for one in has):
            has = self._without_bad_images(document, has)
        self.images = {name: path for name, path in self.images.items() if name in self._needs}
        if self._neighbours is not None and (plan := _plan(has)):
            has = self._ask_peers(self._neighbours, candidate, document, has, plan)
        missing = sorted({name for one in has for name in one.lacks})
        if not missing:
            return ""
        share = missing[self._gang.rank :: len(has)]
        bad = self._bad_in_storage(candidate, document, share)
        if bad and self._remote is not None:
            bad = self._fetch(self._remote, candidate, document, has, bad)
        return next((f"{name}: {why}" for name, why in bad.items()), "")

    def _bad_in_storage(
        self, candidate: Candidate, document: Manifest, share: Collection[str]
    ) -> dict[str, str]:
        """File -> why; each rank looks at its share of them."""

        def look(name: str) -> StorageFailed | None:
            try:
                manifest.check_file(candidate.path / name, document.files[name])
            except StorageFailed as failure:
                return failure
            return None

        with ThreadPoolExecutor(threads()) as crew:
            found = list(zip(share, crew.map(look, share), strict=True))
        mine = [(name, one.message, isinstance(one, Damaged)) for name, one in found if one is not None]
        said = [of_file for of_rank in self._gang.gather(mine) for of_file in of_rank]
        self.damage = next((f"{name}: {why}" for name, why, is_damage in said if is_damage), "")
        return {name: why for name, why, _ in said}

    def _ask_peers(
        self,
        neighbours: Neighbours,
        candidate: Candidate,
        document: Manifest,
        has: list[_Has],
        plan: Mapping[tuple[int, str], list[int]],
    ) -> list[_Has]:
        """Each node brings what its ranks lack from the nodes that have it, shared among them. What no peer
        gives in time is left to the next tier.
        """
        mates = self._mates(has)
        wanted = sorted(name for node, name in plan if node == self._node)
        got: dict[str, tuple[Path, str]] = {}
        problems: dict[str, str] = {}
        for name in wanted[mates.index(self._gang.rank) :: len(mates)]:
            target, whys = self._place_from_peers() / name, list[str]()
            for caller in filter(None, map(neighbours.caller, plan[self._node, name])):
                if not (why := caller.fetch(candidate.name, name, document.files[name], target)):
                    got[name] = (target, caller.door.node)
                    self._fetched[name] = target
                    break
                whys.append(why)
            problems[name] = "; ".join(whys)
        said: list[tuple[int, dict[str, tuple[Path, str]], dict[str, str]]] = self._gang.gather(
            (self._node, got, problems)
        )
        brought: dict[int, set[str]] = {}
        for node, files, whys_of in said:
            brought.setdefault(node, set()).update(files)
            if node == self._node:
                self._why_not_peers |= whys_of
                mine = {name: file for name, file in files.items() if name in self._needs}
                self.images |= {name: path for name, (path, _) in mine.items()}
                self._peers |= {name: peer for name, (_, peer) in mine.items()}
        return [_Has(one.node, one.needs, one.images | brought[one.node]) for one in has]

    def _fetch(
        self, remote: Remote, candidate: Candidate, document: Manifest, has: list[_Has], bad: dict[str, str]
    ) -> dict[str, str]:
        """Each node brings what its ranks need of it, shared among them; what is still bad, and why."""
        mates = self._mates(has)
        wanted = sorted({name for rank in mates for name in has[rank].lacks} & bad.keys())
        problems: dict[str, str] = {}
        for name in wanted[mates.index(self._gang.rank) :: len(mates)]:
            target = self._place_for(candidate, name)
            if problem := remote.fetch(candidate.name, name, document.files[name], target):
                problems[name] = f"{bad[name]}; {problem}"
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

    def _mates(self, has: list[_Has]) -> list[int]:
        """The ranks of this node."""
        return [rank for rank, one in enumerate(has) if one.node == self._node]

    def _place_for(self, candidate: Candidate, name: str) -> Path:
        """On this node's own disk; gone after the reading."""
        assert self._task_folder is not None  # there is no URL outside Paceline
        return self._task_folder / "fetched" / str(candidate.name) / name

    def _place_from_peers(self) -> Path:
        """In this node's memory where it has any; gone after the reading. A node may have several tasks."""
        place = self._memory_folder or self._task_folder
        assert place is not None  # nor a peer
        return place / f"fetched-{self._node}"

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
        """For people: the tiers, and for each why not a faster one."""
        (first, _, why), *others = self._parts()
        total = len(self._needs)
        rest = [f"{place} for {len(names)} of {total} files ({reason})" for place, names, reason in others]
        return ", and ".join([f"{first} ({why})" if why else first, *rest])

    def places(self) -> tuple[str, ...]:
        return tuple(place for place, _, _ in self._parts())

    def _parts(self) -> list[tuple[str, list[str], str]]:
        """Tier, files, why none of them is in a faster one. The fastest tier first."""
        parts: dict[str, list[str]] = {}
        for name in sorted(self._needs, key=lambda name: (self._tier_of(name), name)):
            parts.setdefault(self._place_of(name), []).append(name)
        told = [
            (place, names, "; ".join(_by_reason({name: self._why_not_faster(name) for name in names})))
            for place, names in parts.items()
        ]
        return told or [("storage", [], "")]

    def _tier_of(self, name: str) -> int:
        """0: this node's memory; 1: another's; 2: storage; 3: where it was uploaded."""
        if name in self._why_not_storage:
            return 3
        return 1 if name in self._peers else 0 if name in self.images else 2

    def _place_of(self, name: str) -> str:
        if name in self._why_not_storage:
            assert self._remote is not None
            return self._remote.url
        if name in self._peers:
            return f"the memory of {self._peers[name]}"
        return "memory" if name in self.images else "storage"

    def _why_not_faster(self, name: str) -> str:
        if self._tier_of(name) == 0:
            return ""
        if self._memory_folder is None:
            memory = "this run has no folder in memory"
        else:
            memory = self._why.get(name, "not in memory here")
        reasons = [memory, self._why_not_peers.get(name, ""), self._why_not_storage.get(name, "")]
        if reasons[2]:
            reasons[2] += " in storage"
        return ", ".join(filter(None, reasons))

    def slot_of(self, rank: int) -> int | None:
        """Where that rank's own images are; None: nothing of it was read from memory here."""
        own = (images.slot_of(path) for name, path in self.images.items() if name.startswith(f"__{rank}_"))
        return next((slot for slot in own if slot is not None), None)

    def _bad_images(self, document: Manifest, has: list[_Has]) -> dict[str, str]:
        """Those of this node that somebody here needs, shared among its ranks."""
        mates = self._mates(has)
        needed = frozenset[str]().union(*(has[rank].needs for rank in mates))
        names = sorted(needed & frozenset(self.images))[mates.index(self._gang.rank) :: len(mates)]
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


def _plan(has: list[_Has]) -> dict[tuple[int, str], list[int]]:
    """(node, file that it lacks) -> a rank at each node that may have it, the first to be asked first. The
    same at all ranks: those that are asked take turns, and nobody is asked by more than so many.
    """
    holders: dict[str, dict[int, int]] = {}
    lacking: dict[str, set[int]] = {}
    for rank, one in enumerate(has):
        for name in one.images:
            holders.setdefault(name, {}).setdefault(one.node, rank)
        for name in one.lacks:
            lacking.setdefault(name, set()).add(one.node)
    plan: dict[tuple[int, str], list[int]] = {}
    for name, nodes in lacking.items():
        asked = list(holders.get(name, {}).values())
        for turn, node in enumerate(sorted(nodes)[: _READERS_MAX * len(asked)]):
            plan[node, name] = asked[turn % len(asked) :] + asked[: turn % len(asked)]
    return plan


def _by_reason(whys: Mapping[str, str]) -> list[str]:
    """The same told once, with the first of those it holds for."""
    names: dict[str, list[str]] = {}
    for name, why in whys.items():
        names.setdefault(why, []).append(name)
    return [
        f"{first}{f' and {len(others)} more' if others else ''}: {why}"
        for why, (first, *others) in names.items()
        if why
    ]
