"""Saving: all ranks write aside; rank 0 writes the manifest, publishes by rename, and tells the shim.

Whole or not at all, and one outcome for all ranks. What the storage or the agent refuses is skipped and said
loudly: training goes on, the timeline knows. What no retry could save is raised at all ranks. Collective,
with DCP's own agreements and no others.
"""

import time
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.state_dict_saver import save as save_state_dict

from . import folders, manifest
from .dcp import AgreedSavePlanner, PublishingWriter
from .environment import Environment
from .errors import NotAccepted, StorageFailed, UnsavableState
from .folders import FolderName
from .gang import Gang
from .keeper import Keeper, discard
from .link import ShimLink
from .manifest import FileEntry, Manifest
from .outcome import SaveOutcome
from .retention import Kept
from .say import say
from .state import State

_WHY_LENGTH_MAX = 500
_TELL_FAILED_S = 2.0
"""The other ranks wait meanwhile, and a shim that did not answer before may not answer now."""


@dataclass(frozen=True, slots=True)
class _Save:
    """The save under way."""

    name: FolderName
    contents: Mapping[str, str]
    metrics: Mapping[str, float]
    since_s: float

    @property
    def stall_s(self) -> float:
        return time.monotonic() - self.since_s


class Saver:
    """One rank's part in the saves of a run."""

    def __init__(
        self, environment: Environment, gang: Gang, link: ShimLink | None, root: Path, keeper: Keeper
    ) -> None:
        self._environment = environment
        self._gang = gang
        self._link = link
        self._root = root
        self._keeper = keeper
        self._last_name: FolderName | None = None
        self._readable: set[str] = set()

    def save(
        self, attempt: int, step: int, given: Mapping[str, Any], metrics: Mapping[str, float]
    ) -> SaveOutcome:
        """Publish the state after `step`. Raises UnsavableState, at all ranks, for what cannot be saved."""
        since_s = time.monotonic()
        state, contents, error = self._collect(step, given)
        save = _Save(self._next_name(attempt, step), contents, metrics, since_s)
        writer = PublishingWriter(self._root, save.name, partial(self._complete, save))
        try:
            self._write(state, writer, AgreedSavePlanner(error))
        except CheckpointException as failure:
            return self._on_failed(save, failure)
        return SaveOutcome(step=step, path=self._root / str(save.name), stall_s=save.stall_s)

    def _write(self, state: dict[str, Any], writer: PublishingWriter, planner: AgreedSavePlanner) -> None:
        if self._gang.joined:
            group = self._gang.group()
            save_state_dict(state, storage_writer=writer, planner=planner, process_group=group)
            return
        with warnings.catch_warnings():  # DCP says that no process group is there to agree over
            warnings.filterwarnings("ignore", message="torch.distributed is disabled")
            save_state_dict(state, storage_writer=writer, planner=planner, no_dist=True)

    def _next_name(self, attempt: int, step: int) -> FolderName:
        last = self._last_name
        repetition = last.repetition + 1 if last is not None and last.step == step else 0
        self._last_name = FolderName(attempt=attempt, step=step, repetition=repetition)
        return self._last_name

    def _collect(
        self, step: int, given: Mapping[str, Any]
    ) -> tuple[dict[str, Any], dict[str, str], Exception | None]:
        """What is wrong here is not raised here: the other ranks would wait for us in the collective."""
        try:
            state = State(given, self._gang.rank)
            return state.for_save(step, self._readable), state.kinds, None
        except Exception as error:  # noqa: BLE001 - handed to all ranks by the planner, raised in `_on_failed`
            return {}, {}, error

    def _complete(self, save: _Save, aside: Path, files: Mapping[str, FileEntry]) -> None:
        """At rank 0, when all ranks' files are there. Letting go comes first, so that it is told with the new
        one.
        """
        document = Manifest(
            job=self._environment.job,
            attempt=save.name.attempt,
            step=save.name.step,
            world_size=self._environment.world_size,
            files=files,
            contents=save.contents,
            metrics=save.metrics,
        )
        manifest_hash = manifest.write(aside, document)
        self._keeper.let_go(save.name.attempt)
        path = folders.publish(self._root, save.name)
        seq = self._tell(save, path, manifest_hash, document) if self._link is not None else 0
        self._keeper.add(Kept(save.name.step, path, dict(save.metrics), seq))
        if self._link is None:
            self._keeper.let_go(save.name.attempt)

    def _tell(self, save: _Save, path: Path, manifest_hash: str, document: Manifest) -> int:
        """The seq of the journal's entry about it."""
        assert self._link is not None
        answer = self._link.ask(
            {
                "op": "checkpoint",
                "step": save.name.step,
                "path": str(path),
                "manifest_hash": manifest_hash,
                "size_bytes": document.size_bytes,
                "stall_s": save.stall_s,
                "metrics": dict(save.metrics),
                "removed_steps": self._keeper.removed_steps(),
            }
        )
        if answer is None:
            raise NotAccepted("it is on disk, but the agent's shim does not answer")
        if not answer.get("ok") or "seq" not in answer:
            discard(path)  # it can never be accepted
            raise NotAccepted(f"the agent's shim refused it: {answer.get('error', answer)}")
        self._keeper.told_removed()
        return int(str(answer["seq"]))

    def _on_failed(self, save: _Save, failure: CheckpointException) -> SaveOutcome:
        """All ranks come here, with the same failures."""
        failures = sorted((rank, error) for rank, (error, _) in failure.failures.items())
        for rank, error in failures:
            if not isinstance(error, Exception):
                raise error  # KeyboardInterrupt, SystemExit
            if not isinstance(error, StorageFailed | NotAccepted):
                raise UnsavableState(f"rank {rank}: {error}", rank=rank) from error
        why = "; ".join(f"rank {rank}: {error}" for rank, error in failures)[:_WHY_LENGTH_MAX]
        if self._gang.rank == 0:
            say(f"checkpoint of step {save.name.step} FAILED, training goes on without it: {why}")
            discard(self._root / save.name.aside)
            if self._link is not None:
                message = {"op": "checkpoint_failed", "step": save.name.step, "why": why}
                self._link.ask(message, _TELL_FAILED_S)
        return SaveOutcome(step=save.name.step, path=None, stall_s=save.stall_s, error=why)
