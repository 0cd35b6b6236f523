"""A DeepSpeed engine's checkpoint: its own files, written by itself into shared memory, read by itself.

The engine's part (weights, fp32 masters, partitioned optimizer state, schedule) is what its `save_checkpoint`
writes, with each file as an image that the persister publishes. The published folder is a tag of DeepSpeed's:
`engine.load_checkpoint(".../checkpoints", tag="step-00000040.a2")` reads it without us. DeepSpeed is never
imported here: who has an engine has it.
"""

import contextlib
import re
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import torch

from .attached import Write
from .errors import StorageFailed

_OF_ONE_RANK = re.compile(r"pp_rank_(\d+)_")
"""Of a data-parallel rank alone; DeepSpeed calls it so."""


def is_engine(thing: object) -> bool:
    module: Any = sys.modules.get("deepspeed.runtime.engine")
    return module is not None and isinstance(thing, module.DeepSpeedEngine)


def owns(engine: Any, thing: object) -> bool:
    """The engine's optimizer, or the one inside it."""
    optimizer = engine.optimizer
    return thing is not None and (thing is optimizer or thing is getattr(optimizer, "optimizer", None))


def stage(engine: Any, write: Write) -> dict[str, Path]:
    """This rank's files as images. Collective; what storage refuses is raised at the end: StorageFailed."""
    into = _Into(engine.checkpoint_engine, write)
    with _writing(engine, into), tempfile.TemporaryDirectory(prefix="paceline-engine-") as folder:
        engine.save_checkpoint(folder, tag="paceline", save_latest=False)
    if into.error:
        raise StorageFailed(into.error)
    return into.files


def needed(engine: Any, names: frozenset[str], rank: int) -> frozenset[str]:
    """Those that this rank reads, in a gang as large as the one that wrote them."""
    if engine.mp_world_size != 1:
        return names
    others = (name for name in names if (found := _OF_ONE_RANK.search(name)) and int(found[1]) != rank)
    return names - frozenset(others)


def load(engine: Any, folder: Path) -> None:
    """Collective. `folder` has what `needed` says."""
    path, _ = engine.load_checkpoint(str(folder.parent), tag=folder.name)
    if path is None:
        raise StorageFailed(f"DeepSpeed found no checkpoint of its own in {folder}")


class _Into:
    """In place of DeepSpeed's writer. A failure must not keep this rank from the collectives that follow."""

    def __init__(self, usual: Any, write: Write) -> None:
        self._usual = usual
        self._write = write
        self.files: dict[str, Path] = {}
        self.error = ""

    def save(self, state_dict: Any, path: str) -> None:
        name = Path(path).name

        def fill(file: BinaryIO) -> None:
            try:
                torch.save(state_dict, file)
            except RuntimeError as error:  # torch's word for a write that failed, which it came from
                if isinstance(error.__context__, OSError):
                    raise error.__context__ from None
                raise

        try:
            self.files[name] = self._write(name, fill)
        except OSError as error:
            self.error = self.error or f"{name}: {error.strerror} (the image in memory)"

    def makedirs(self, path: str, exist_ok: bool = False) -> None:
        """Images have their place."""

    def create(self, info: Any) -> None:
        """Nothing is published here."""

    def commit(self, info: Any) -> bool:
        return True

    def is_decoupled(self) -> bool:
        return False

    def preserves_storage_sharing(self) -> bool:
        return True

    def is_data_parallel_writer(self, dp_rank: int) -> bool:
        return bool(self._usual.is_data_parallel_writer(dp_rank))


@contextlib.contextmanager
def _writing(engine: Any, into: _Into) -> Iterator[None]:
    """Hashes are ours: torch's check sums would cost the stall as much again."""
    usual, sums = engine.checkpoint_engine, torch.serialization.get_crc32_options()
    engine.checkpoint_engine = into
    torch.serialization.set_crc32_options(False)
    try:
        yield
    finally:
        engine.checkpoint_engine = usual
        torch.serialization.set_crc32_options(sums)
