"""Restoring: the newest checkpoint that is whole, ours and accepted, at all ranks the same one.

Each rank checks its share of the files against the manifest before anything is read; all agree on the
verdict, and again on the reading. One that fails is passed over by name, and the one before it is tried. One
that is good but does not fit what the script gave is the script's error, raised at all ranks: an older one
would not fit either. Collective; costs nothing when there is none.
"""

import pickle
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from . import manifest
from .candidates import Candidate, check
from .dcp import SafeReader, load_into
from .environment import Environment
from .errors import CheckpointMismatch, RestoreFailed, StorageFailed
from .gang import Gang
from .link import ShimLink
from .manifest import Manifest
from .outcome import Restored
from .say import say
from .state import State


@dataclass(frozen=True, slots=True)
class _Verdict:
    """What one rank says of a candidate, or of its reading. Sent to all."""

    problem: str = ""
    """Why it must be passed over."""
    mismatch: str = ""
    """Why it does not fit the script."""
    failure: str = ""
    """What else went wrong: a bug, ours or the script's."""
    touched: bool = False
    """The script's state has been written to."""


@dataclass(slots=True)
class _Search:
    """The restore under way."""

    since_s: float = field(default_factory=time.monotonic)
    rejected: list[str] = field(default_factory=list)
    touched: bool = False

    @property
    def seconds(self) -> float:
        return time.monotonic() - self.since_s


class Restorer:
    """One rank's part in a restore. `on_bad` hears of each that was passed over."""

    def __init__(
        self, environment: Environment, gang: Gang, link: ShimLink | None, on_bad: Callable[[Path], None]
    ) -> None:
        self._environment = environment
        self._gang = gang
        self._link = link
        self._on_bad = on_bad

    def restore(self, candidates: Sequence[Candidate], given: Mapping[str, Any]) -> Restored | None:
        """Load the first good one of `candidates`. Raises CheckpointMismatch, at all ranks, if it does not
        fit.
        """
        search = _Search()
        for candidate in candidates:
            document, why = self._verify(candidate)
            if document is not None:
                values, why = self._load(search, candidate, document, given)
                if not why:
                    return self._on_restored(search, candidate, document, values)
            search.rejected.append(f"{candidate}: {why}")
            self._on_bad(candidate.path)
        self._on_none(search)
        return None

    def _verify(self, candidate: Candidate) -> tuple[Manifest | None, str]:
        document: Manifest | None = None
        try:
            document = check(candidate, self._environment)
            share = sorted(document.files)[self._gang.rank :: self._environment.world_size]
            mine = _Verdict(problem=manifest.find_damage(candidate.path, document, share))
        except StorageFailed as error:
            mine = _Verdict(problem=error.message)
        verdicts: list[_Verdict] = self._gang.gather(mine)
        problem = _first_said(verdict.problem for verdict in verdicts)
        return (None, problem) if problem else (document, "")

    def _load(
        self, search: _Search, candidate: Candidate, document: Manifest, given: Mapping[str, Any]
    ) -> tuple[dict[str, Any], str]:
        values: dict[str, Any] = {}
        error: Exception | None = None
        reading = _Reading(candidate, document, self._gang.rank)
        try:
            values = reading.run(given)
        except Exception as any_error:  # noqa: BLE001 - said to all ranks before it is raised, else they wait for us
            error = any_error
        verdicts: list[_Verdict] = self._gang.gather(_judge(error, touched=reading.touched))
        search.touched = search.touched or any(verdict.touched for verdict in verdicts)
        _raise_agreed(verdicts, error)
        return values, _first_said(verdict.problem for verdict in verdicts)

    def _on_restored(
        self, search: _Search, candidate: Candidate, document: Manifest, values: dict[str, Any]
    ) -> Restored:
        self._tell(search, candidate.step, str(candidate.path))
        return Restored(
            step=candidate.step,
            path=candidate.path,
            attempt=candidate.attempt,
            values=values,
            metrics=document.metrics,
            rejected=tuple(search.rejected),
            seconds=search.seconds,
        )

    def _on_none(self, search: _Search) -> None:
        if search.rejected or self._environment.attempt > 1:
            self._tell(search, -1, "")
        if search.touched:
            raise RestoreFailed(
                f"no checkpoint could be read, and the state is half written: {search.rejected}",
                hint="start the job anew, or bring the storage back and let it start again",
            )

    def _tell(self, search: _Search, step: int, path: str) -> None:
        if self._gang.rank != 0:
            return
        for one in search.rejected:
            say(f"checkpoint passed over: {one}")
        if search.rejected:
            say(f"going on from step {step}" if step >= 0 else "no checkpoint is good: the run starts anew")
        if self._link is not None:
            message = {"op": "restored", "step": step, "path": path, "seconds": search.seconds}
            answer = self._link.ask({**message, "rejected": search.rejected})
            if answer is None or not answer.get("ok"):
                say(f"the agent's shim took no note of the restore: {answer or 'no answer'}")


class _Reading:
    """Reading one verified checkpoint into what the script gave."""

    def __init__(self, candidate: Candidate, document: Manifest, rank: int) -> None:
        self._candidate = candidate
        self._document = document
        self._rank = rank
        self.touched = False

    def run(self, given: Mapping[str, Any]) -> dict[str, Any]:
        contents = self._document.contents
        state = State(given, self._rank)
        state.check_fits(contents, str(self._candidate))
        reader = SafeReader(self._candidate.path, self._document.files)
        metadata = reader.read_metadata()
        filled = state.template(metadata, contents)
        self.touched = True
        load_into(filled, reader, metadata)
        return state.load(filled, contents)


def _judge(error: Exception | None, *, touched: bool) -> _Verdict:
    if error is None:
        return _Verdict(touched=touched)
    if isinstance(error, CheckpointMismatch):
        return _Verdict(mismatch=error.message, touched=touched)
    if isinstance(error, StorageFailed | OSError | EOFError | pickle.UnpicklingError):
        text = error.message if isinstance(error, StorageFailed) else f"{type(error).__name__}: {error}"
        return _Verdict(problem=text, touched=touched)
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
