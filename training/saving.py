"""Saving: all ranks agree, copy their part into memory, and go on; their persisters do the rest.

One save is under way at a time, and two images take turns, so that the last published one stays in memory
while the next is made. The agreement is one small collective; a save that finds the one before unfinished
waits for it or is skipped, as the job file says. What storage refuses is skipped and said loudly: training
goes on, the timeline knows. What no retry could save is raised at all ranks.
"""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch.distributed.checkpoint.api import CheckpointException

from ..proto.shim_line import ShimLink
from ..spec.folder_names import FolderName
from .collecting import Collector
from .environment import Environment
from .errors import StorageFailed, UnsavableState
from .gang import Gang
from .images import SLOTS
from .keeper import discard
from .orders import Answer, History, Order, Publish, Purpose
from .outcome import SaveOutcome
from .persisting import Persister
from .say import say
from .staging import Prepared, Stager
from .state import State

_TELL_S = 2.0
"""The other ranks wait meanwhile, and a shim that did not answer before may not answer now."""
_UNKNOWN, _FAILED, _PUBLISHED = 0, 1, 2


@dataclass(frozen=True, slots=True)
class _Save:
    """The save that is being made."""

    name: FolderName
    prepared: Prepared
    state: State
    metrics: dict[str, float]
    since_s: float
    waited_s: float
    """Until the one before was on disk, at the rank that waited longest."""
    purpose: Purpose

    @property
    def stall_s(self) -> float:
        return time.monotonic() - self.since_s


class Saver:
    """One rank's part in the saves of a run."""

    def __init__(
        self,
        environment: Environment,
        gang: Gang,
        link: ShimLink | None,
        root: Path,
        *,
        stager: Callable[[], Stager],
        persister: Callable[[], Persister],
        when_busy: str,
    ) -> None:
        """`stager` and `persister` are made at the first save."""
        self._environment = environment
        self._gang = gang
        self._link = link
        self._root = root
        self._make_stager = stager
        self._make_persister = persister
        self._when_busy = when_busy
        self._stager: Stager | None = None
        self._persister: Persister | None = None
        self._history = History()
        self._keep_slot = 0
        self._slot = 1
        self._last: SaveOutcome | None = None
        self._last_name: FolderName | None = None
        self._answer: Answer | None = None
        self._persist_s = 0.0
        self._readable: set[str] = set()
        self._collector = Collector()

    def go_on_from(self, history: History) -> None:
        """After a restore: the image that it came from is the one to keep."""
        self._history = history
        if history.keep_slot is not None:
            self._keep_slot = history.keep_slot

    def save(
        self,
        attempt: int,
        step: int,
        given: Mapping[str, Any],
        metrics: Mapping[str, float],
        purpose: Purpose,
    ) -> SaveOutcome:
        """Stage the state after `step`. Raises UnsavableState, at all ranks, for what cannot be saved."""
        since_s = time.monotonic()
        stager, persister = self._ready()
        prepared, state, error = self._prepare(stager, step, given)
        busy, waited_s = self._busy(persister, purpose)
        fits = prepared is not None and stager.fits(prepared)
        any_busy, any_error, any_new, any_upload, verdict, waited_us = self._gang.largest(
            int(busy),
            int(error is not None),
            int(not fits),
            int(persister.uploading),
            self._verdict(),
            round(waited_s * 1e6),
        )
        self._settle(verdict)
        if any_error:
            self._raise_agreed(error)
        assert prepared is not None
        assert state is not None
        if any_busy:
            return self._skip(persister, step, since_s, purpose)
        self._answer = None
        name = self._next_name(attempt, step)
        save = _Save(name, prepared, state, dict(metrics), since_s, waited_us / 1e6, purpose)
        self._slot = (self._keep_slot + 1) % SLOTS
        if any_new:
            try:
                stager.lay_out(prepared, self._slot)
            except CheckpointException as failure:
                return self._on_no_layout(save, failure)
        persister.begin(self._stage(stager, save, upload=not any_upload))
        self._last = SaveOutcome(step, self._root / str(save.name), save.stall_s)
        return self._last

    def cost_s(self) -> tuple[float, float] | None:
        """At rank 0: what the last save stalled, and the last one on disk took to get there. None: none was
        made."""
        if self._last is None:
            return None
        if self._persister is not None:
            self._hear(self._persister.poll())
        return self._last.stall_s, self._persist_s

    def flush(self) -> SaveOutcome | None:
        """Wait until the last save is on disk, and told of; how it went. Collective."""
        self._gang.largest(0)  # a rank that died before it gave its order would be waited for in vain
        if self._persister is not None and self._persister.under_way is not None:
            self._hear(self._persister.wait("flush"))
        verdict, error = self._gang.from_first((self._verdict(), self._answer.error if self._answer else ""))
        self._settle(verdict, error)
        return self._last

    def abandon(self) -> History:
        """End at once. What was published last is the image to keep."""
        if self._persister is not None:
            self._persister.abandon()
        if self._stager is not None:
            self._stager.close()
        return replace(self._history, keep_slot=self._keep_slot)

    def close(self) -> None:
        """Wait for what is under way: this process is about to end. Not collective."""
        if self._persister is not None:
            self._persister.finish()
            self._persister.close()
        if self._stager is not None:
            self._stager.close()

    def _ready(self) -> tuple[Stager, Persister]:
        if self._stager is None or self._persister is None:
            self._stager, self._persister = self._make_stager(), self._make_persister()
        return self._stager, self._persister

    def _next_name(self, attempt: int, step: int) -> FolderName:
        last = self._last_name
        repetition = last.repetition + 1 if last is not None and last.step == step else 0
        self._last_name = FolderName(attempt=attempt, step=step, repetition=repetition)
        return self._last_name

    def _prepare(
        self, stager: Stager, step: int, given: Mapping[str, Any]
    ) -> tuple[Prepared | None, State | None, Exception | None]:
        """What is wrong here is not raised here: the other ranks would wait for us in the collective."""
        try:
            state = State(given, self._gang.rank)
            return stager.prepare(state.for_save(step, self._readable, self._collector)), state, None
        except Exception as error:  # noqa: BLE001 - told to all ranks, and raised in `_raise_agreed`
            return None, None, error

    def _raise_agreed(self, error: Exception | None) -> None:
        told: list[str] = self._gang.gather(str(error) if error is not None else "")
        rank, text = next((rank, text) for rank, text in enumerate(told) if text)
        if isinstance(error, UnsavableState) and not self._gang.joined:
            raise error
        raise UnsavableState(f"rank {rank}: {text}", rank=rank) from error

    # The save before.

    def _busy(self, persister: Persister, purpose: Purpose) -> tuple[bool, float]:
        """True when this save is to be skipped, because the one before is still under way; how long that was
        waited for, in s."""
        if persister.under_way is None:
            persister.poll()
            return False, 0.0
        since_s = time.monotonic()
        if self._when_busy == "skip" and not purpose.must:
            self._hear(persister.poll())
        else:
            self._hear(persister.wait("when_busy: wait"))
        return persister.under_way is not None, time.monotonic() - since_s

    def _hear(self, answer: Answer | None) -> None:
        if answer is None:
            return
        self._answer = answer
        self._persist_s = answer.persist_s or self._persist_s
        if self._gang.rank == 0 and not answer.told:
            self._tell_failed(self._last.step if self._last else 0, answer.error)
            discard(self._root / f".tmp-{answer.name}")

    def _verdict(self) -> int:
        """Rank 0's knows whether the save before was published."""
        if self._gang.rank != 0 or self._answer is None:
            return _UNKNOWN
        return _FAILED if self._answer.error else _PUBLISHED

    def _settle(self, verdict: int, error: str = "") -> None:
        """The published one is the image to keep."""
        if self._last is None or self._last.published or self._last.path is None or verdict == _UNKNOWN:
            return
        if verdict == _PUBLISHED:
            self._keep_slot = self._slot
            self._last = SaveOutcome(self._last.step, self._last.path, self._last.stall_s, published=True)
        else:
            self._last = SaveOutcome(self._last.step, None, self._last.stall_s, error)

    def _skip(self, persister: Persister, step: int, since_s: float, purpose: Purpose) -> SaveOutcome:
        before = self._last.step if self._last else 0
        why = f"skipped: that of step {before} is not on disk yet, {persister.since_s:.1f} s after its save"
        why += f" (checkpoint.when_busy: {self._when_busy})"
        if self._gang.rank == 0:
            self._tell_failed(step, why, purpose.request)
        return SaveOutcome(step, None, time.monotonic() - since_s, why)

    # This save.

    def _stage(self, stager: Stager, save: _Save, *, upload: bool) -> Order:
        files: dict[str, Path] = {}
        error = ""
        try:
            if save.state.attached is not None:
                files |= stager.attach(save.state.attached, self._slot, save.name)
            files |= stager.stage(save.prepared, self._slot, save.name)
        except StorageFailed as failure:
            error = failure.message
        return Order(
            root=str(self._root),
            rank=self._gang.rank,
            attempt=save.name.attempt,
            step=save.name.step,
            repetition=save.name.repetition,
            files={file: str(image) for file, image in files.items()},
            error=error,
            upload=upload,
            publish=self._publish(save) if self._gang.rank == 0 else None,
        )

    def _publish(self, save: _Save) -> Publish:
        return Publish(
            job=self._environment.job,
            world_size=self._environment.world_size,
            stall_s=save.stall_s,
            waited_s=save.waited_s,
            code_folder=str(Path.cwd()),
            contents=save.state.kinds,
            metrics=save.metrics,
            data=save.state.data_position(),
            parents=self._history.parents,
            bad=self._history.bad,
            staged_s=time.monotonic(),
            purpose=save.purpose,
        )

    def _on_no_layout(self, save: _Save, failure: CheckpointException) -> SaveOutcome:
        """All ranks come here, with the same failures."""
        whys = []
        for rank, (error, _) in sorted(failure.failures.items()):
            if not isinstance(error, Exception):
                raise error  # KeyboardInterrupt, SystemExit
            if not isinstance(error, OSError):
                raise UnsavableState(f"rank {rank}: {error}", rank=rank) from error
            whys.append(f"rank {rank}: {error.strerror} (the image in memory)")
        why = "; ".join(whys)
        if self._gang.rank == 0:
            self._tell_failed(save.name.step, why, save.purpose.request)
        self._last = SaveOutcome(save.name.step, None, save.stall_s, why)
        return self._last

    def _tell_failed(self, step: int, why: str, request: int = 0) -> None:
        why = why[:500]
        say(f"checkpoint of step {step} FAILED, training goes on without it: {why}")
        if self._link is not None:
            self._link.ask({"op": "checkpoint_failed", "step": step, "why": why, "request": request}, _TELL_S)
