"""Restoring: the newest checkpoint that is whole, ours and accepted, at all ranks the same one.

What will be read is checked against the manifest first, each file in the fastest tier that has it, the work
shared; all agree on the verdict, and again on the reading. One that fails is passed over by name, and the one
before it is tried. One that is good but does not fit what the script gave is the script's error, raised at
all ranks: an older one would not fit either. Collective; costs nothing when there is none.
"""

import pickle
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from ..proto.shim_line import ShimLink
from . import attached, manifest
from .attaching import Attaching
from .candidates import Candidate, SmallFiles, check
from .collecting import no_state_made
from .dcp import METADATA, Loading, SafeReader
from .environment import Environment
from .errors import CheckpointMismatch, Damaged, RestoreFailed, StorageFailed
from .gang import Gang
from .images import find
from .manifest import Manifest, Parent
from .neighbours import Neighbours
from .orders import History
from .outcome import Restored
from .remote import Remote
from .say import say
from .scrub import STORAGE
from .state import State
from .tiers import Tiers

_TIERS_TOLD_MAX = 4


@dataclass(frozen=True, slots=True)
class _Verdict:
    """What one rank says of a candidate, or of its reading. Sent to all."""

    problem: str = ""
    """Why it must be passed over."""
    damage: str = ""
    """The same, where that is damage to what it has in storage."""
    mismatch: str = ""
    """Why it does not fit the script."""
    failure: str = ""
    """What else went wrong: a bug, ours or the script's."""
    touched: bool = False
    """The script's state has been written to."""


@dataclass(slots=True)
class _Search:
    """The restore under way."""

    neighbours: Neighbours | None
    since_s: float = field(default_factory=time.monotonic)
    rejected: list[str] = field(default_factory=list)
    damaged: list[tuple[Candidate, str]] = field(default_factory=list)
    """What was seen of it in storage; a faster or a farther tier may have had it whole."""
    touched: bool = False

    @property
    def seconds(self) -> float:
        return time.monotonic() - self.since_s

    def note_damage(self, candidate: Candidate, why: str) -> None:
        if why:
            self.damaged.append((candidate, why))


class Restorer:
    """One rank's part in a restore. `history`: what the saves after it must know."""

    def __init__(
        self, environment: Environment, gang: Gang, link: ShimLink | None, remote: Remote | None
    ) -> None:
        self._environment = environment
        self._remote = remote
        self._gang = gang
        self._link = link
        self.history = History()

    def restore(
        self, candidates: Sequence[Candidate], given: Mapping[str, Any], neighbours: Neighbours | None
    ) -> Restored | None:
        """Load the first good one of `candidates`. Raises, at all ranks, CheckpointMismatch if it does not
        fit, and RestoreFailed if none is good of a job that was to begin from another's.
        """
        search = _Search(neighbours)
        for candidate in candidates:
            with no_state_made(given.values()) as keep:
                document, values, tiers, why = self._try(search, candidate, given)
                if document is not None and not why:
                    keep()
                    return self._on_restored(search, candidate, document, values, tiers)
            search.rejected.append(f"{candidate}: {why}")
            self.history = History(bad=(*self.history.bad, str(candidate.path)))
        self._on_none(search, candidates)
        return None

    def _try(
        self, search: _Search, candidate: Candidate, given: Mapping[str, Any]
    ) -> tuple[Manifest | None, dict[str, Any], Tiers, str]:
        """Why it must be passed over, last; empty: the state is put back."""
        tiers = Tiers(self._gang, self._environment, search.neighbours, self._remote)
        reading: _Reading | None = None
        error: Exception | None = None
        try:
            farther = [one for one in (search.neighbours, self._remote) if one is not None]
            reading = _Reading(candidate, self._environment, farther)
            reading.prepare(given)
            mine = _Verdict()
        except Exception as any_error:  # noqa: BLE001 - said to all ranks before it is raised, else they wait for us
            error, mine = any_error, _judge(any_error, touched=False)
        verdicts: list[_Verdict] = self._gang.gather(mine)
        _raise_agreed(verdicts, error)
        problem = _first_said(verdict.problem for verdict in verdicts)
        if problem:
            search.note_damage(candidate, _first_said(verdict.damage for verdict in verdicts))
            return None, {}, tiers, problem
        assert reading is not None
        assert reading.document is not None
        values: dict[str, Any] = {}
        try:
            problem = tiers.verify(candidate, reading.document, reading.files, reading.images)
            search.note_damage(candidate, tiers.damage)
            for part in reading.parts():
                if not problem:
                    values, problem = self._load(search, reading, part, tiers)
        finally:
            tiers.drop()
        return reading.document, values, tiers, problem

    def _load(
        self,
        search: _Search,
        reading: "_Reading",
        part: Callable[[Tiers], dict[str, Any]],
        tiers: Tiers,
    ) -> tuple[dict[str, Any], str]:
        values: dict[str, Any] = {}
        error: Exception | None = None
        try:
            values = part(tiers)
        except Exception as any_error:  # noqa: BLE001 - as above
            error = any_error
        verdicts: list[_Verdict] = self._gang.gather(_judge(error, touched=reading.touched))
        search.touched = search.touched or any(verdict.touched for verdict in verdicts)
        _raise_agreed(verdicts, error)
        return values, _first_said(verdict.problem for verdict in verdicts)

    def _on_restored(
        self,
        search: _Search,
        candidate: Candidate,
        document: Manifest,
        values: dict[str, Any],
        tiers: Tiers,
    ) -> Restored:
        tier = tiers.describe()
        self.history = History(
            parents=(Parent(candidate.step, candidate.attempt, str(candidate.path)),),
            bad=self.history.bad,
            keep_slot=tiers.slot_of(self._gang.rank),
        )
        self._tell(search, candidate.step, str(candidate.path), self._agreed_tier(tiers))
        return Restored(
            step=candidate.step,
            path=candidate.path,
            attempt=candidate.attempt,
            values=values,
            metrics=document.metrics,
            rejected=tuple(search.rejected),
            seconds=search.seconds,
            tier=tier,
        )

    def _agreed_tier(self, tiers: Tiers) -> str:
        """As all ranks say it; where they have read from other places, each with its ranks."""
        said: dict[tuple[str, ...], tuple[str, list[str]]] = {}
        for rank, (places, text) in enumerate(self._gang.gather((tiers.places(), tiers.describe()))):
            said.setdefault(places, (text, []))[1].append(str(rank))
        if len(said) == 1:
            return tiers.describe()
        told = [f"{text} at rank {', '.join(at[:8])}{' ...' * (len(at) > 8)}" for text, at in said.values()]
        return "; ".join(told[:_TIERS_TOLD_MAX]) + (" ..." if len(told) > _TIERS_TOLD_MAX else "")

    def _on_none(self, search: _Search, candidates: Sequence[Candidate]) -> None:
        origin = next((one for one in candidates if one.job), None)
        if origin is not None:
            self._tell_passed_over(search)
            raise RestoreFailed(
                f"this job begins from step {origin.step} of job {origin.job}, and no checkpoint of it is"
                f" good: {'; '.join(search.rejected)}",
                hint=f"`pace checkpoints {origin.job}` lists the others: fork from one of them",
            )
        if search.rejected or self._environment.attempt > 1:
            self._tell(search, -1, "", "")
        if search.touched:
            raise RestoreFailed(
                f"no checkpoint could be read, and the state is half written: {search.rejected}",
                hint="start the job anew, or bring the storage back and let it start again",
            )

    def _tell_passed_over(self, search: _Search) -> None:
        if self._gang.rank != 0:
            return
        for one in search.rejected:
            say(f"checkpoint passed over: {one}")
        if self._link is not None:
            for candidate, why in search.damaged:
                place = {"step": candidate.step, "path": str(candidate.path), "copy": STORAGE}
                self._link.ask({"op": "damaged", **place, "why": why})

    def _tell(self, search: _Search, step: int, path: str, tier: str) -> None:
        self._tell_passed_over(search)
        if self._gang.rank != 0:
            return
        if search.rejected:
            say(f"going on from step {step}" if step >= 0 else "no checkpoint is good: the run starts anew")
        if tier:
            say(f"restored step {step} from {tier} in {search.seconds:.3f} s")
        if self._link is not None:
            message = {"op": "restored", "step": step, "path": path, "seconds": search.seconds, "tier": tier}
            answer = self._link.ask({**message, "rejected": search.rejected})
            if answer is None or not answer.get("ok"):
                say(f"the agent's shim took no note of the restore: {answer or 'no answer'}")


class _Reading:
    """Reading one checkpoint into what the script gave. `prepare` touches nothing."""

    def __init__(self, candidate: Candidate, environment: Environment, farther: Sequence[SmallFiles]) -> None:
        self._candidate = candidate
        self._farther = farther
        self._environment = environment
        self.images = find(environment.memory_folder, candidate.name)
        self.document: Manifest | None = None
        self.touched = False

    def prepare(self, given: Mapping[str, Any]) -> None:
        """Manifest and metadata are checked, and what must be read is known."""
        copy = self.images.get(manifest.NAME)
        self.document = check(self._candidate, self._environment, copy, self._farther)
        self._state = State(given, self._environment.rank)
        self._state.check_fits(self.document.contents, str(self._candidate))
        reader = SafeReader(self._candidate.path, self.document.files, self._metadata(self.document))
        metadata = reader.read_metadata()
        self._filled = self._state.template(metadata, self.document.contents)
        self._loading = Loading(self._filled, reader, metadata)
        self._attaching = Attaching(
            self._state.attached,
            self._candidate.path,
            attached.names_in(self.document.files),
            rank=self._environment.rank,
            resized=self.document.world_size != self._environment.world_size,
        )
        self.files = self._loading.files | self._attaching.needs

    def parts(self) -> list[Callable[[Tiers], dict[str, Any]]]:
        """One after the other, each agreed upon by all ranks. The generators are set by the last."""
        if self._state.attached is None:
            return [self._run]
        return [self._convert, self._attach, self._run]

    def _convert(self, tiers: Tiers) -> dict[str, Any]:
        self._attaching.convert(tiers.images)
        return {}

    def _attach(self, tiers: Tiers) -> dict[str, Any]:
        self.touched = True
        self._attaching.load(tiers.images)
        return {}

    def _run(self, tiers: Tiers) -> dict[str, Any]:
        assert self.document is not None
        self.touched = True
        self._loading.run(tiers.images, tiers.mapped)
        return self._state.load(self._filled, self.document.contents)

    def _metadata(self, document: Manifest) -> bytes:
        """Small, and read by every rank: from memory if it is there and good, else as files are. Raises
        StorageFailed.
        """
        entry, problems = document.files[METADATA], []
        for read in self._metadata_sources(document):
            try:
                data = read()
            except StorageFailed as failure:
                problems.append(failure.message)
                continue
            if len(data) == entry.size_bytes and manifest.hash_bytes(data) == entry.xxh3:
                return data
            differs = "hash differs" if len(data) == entry.size_bytes else f"expected {entry.size_bytes}"
            problems.append(f"{METADATA}: {len(data)} bytes, {differs}")
        try:
            manifest.check_file(self._candidate.path / METADATA, entry)
        except StorageFailed as failure:
            raise type(failure)("; ".join(problems)) from failure
        raise StorageFailed("; ".join(problems))

    def _metadata_sources(self, document: Manifest) -> Iterator[Callable[[], bytes]]:
        image, name = self.images.get(METADATA), self._candidate.name
        if image is not None:
            yield lambda: manifest.read_bytes(image)
        yield lambda: manifest.read_bytes(self._candidate.path / METADATA)
        for one in self._farther:
            yield partial(one.read_small, name, METADATA, document.files[METADATA])


def _judge(error: Exception | None, *, touched: bool) -> _Verdict:
    if error is None:
        return _Verdict(touched=touched)
    if isinstance(error, CheckpointMismatch):
        return _Verdict(mismatch=error.message, touched=touched)
    if isinstance(error, StorageFailed | OSError | EOFError | pickle.UnpicklingError):
        text = error.message if isinstance(error, StorageFailed) else f"{type(error).__name__}: {error}"
        damage = text if isinstance(error, Damaged) else ""
        return _Verdict(problem=text, damage=damage, touched=touched)
    if isinstance(error, ValueError | RuntimeError):  # DCP's words for sizes and keys that differ
        return _Verdict(mismatch=f"the checkpoint does not fit: {error}", touched=touched)
    return _Verdict(failure=f"{type(error).__name__}: {error}", touched=touched)


def _raise_agreed(verdicts: Sequence[_Verdict], error: Exception | None) -> None:
    failure = _first_said(verdict.failure for verdict in verdicts)
    if failure:
        raise RestoreFailed(f"the checkpoint could not be put back: {failure}") from error
    mismatch = _first_said(verdict.mismatch for verdict in verdicts)
    if mismatch:
        raise CheckpointMismatch(
            mismatch,
            hint="give restore what save was given, in the same shapes, or start a new job",
        ) from error


def _first_said(texts: Any) -> str:
    """The first that is not empty, with its rank where there are several."""
    said = [(rank, text) for rank, text in enumerate(texts)]
    for rank, text in said:
        if text:
            return text if len({t for _, t in said}) == 1 or len(said) == 1 else f"rank {rank}: {text}"
    return ""
