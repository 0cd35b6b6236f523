"""ZeRO's state for a gang of another size: DeepSpeed's universal checkpoint, made once per checkpoint.

DeepSpeed refuses a state that was partitioned for another number of ranks, but reads one that its own
converter has taken apart by parameter. Made from verified files, ahead where the job is elastic
(converting.py), else by rank 0 when a restore first needs it:

    step-00000040.a2/universal/            as converted, with `converted.json`: sizes and hashes of all in it
    step-00000040.a2/.universal-XXXX/      being converted, under a lock of the kernel's; removed by the next
                                           converter when its owner is gone. Nobody waits for anybody.

It goes with the checkpoint. What is damaged is converted again.
"""

import argparse
import contextlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch

from . import attached, folders, manifest
from .converting import ASIDE, sweep
from .errors import CheckpointMismatch
from .manifest import FileEntry
from .scratch import lock

NAME = "universal"
_LISTED = "converted.json"


def is_needed(names: frozenset[str]) -> bool:
    """At another world size: some of these hold a rank's partition."""
    return any(name.endswith("_optim_states.pt") for name in names)


def damage_of(checkpoint: Path) -> str:
    """What is wrong with what has been converted; empty: it can be loaded."""
    folder = checkpoint / NAME
    try:
        listed = json.loads((folder / _LISTED).read_bytes())
    except (OSError, ValueError) as error:
        return f"{NAME}/{_LISTED}: {error}"
    for name, (size_bytes, xxh3) in listed.items():
        damage = manifest.damage_of(folder / name, FileEntry(size_bytes, xxh3))
        if damage:
            return f"{NAME}/{name}: {damage}"
    return ""


def convert(sources: Mapping[str, Path], checkpoint: Path) -> None:
    """From its verified files, by name. Raises OSError, and CheckpointMismatch."""
    sweep(checkpoint.glob(f"{ASIDE}*"))
    aside = Path(tempfile.mkdtemp(prefix=ASIDE, dir=checkpoint))
    fd = lock(aside)
    try:
        attached.link(aside / "source", sources)
        try:
            _run_converter(aside / "source", aside / "tag")
        except (AssertionError, LookupError, NotImplementedError, RuntimeError, ValueError) as error:
            raise CheckpointMismatch(
                "DeepSpeed cannot convert the checkpoint for another world size: "
                f"{type(error).__name__}: {error}",
                hint="start as many ranks as saved it; its converter knows optimizers of Adam's kind",
            ) from error
        _list(aside / "tag")
        shutil.rmtree(checkpoint / NAME, ignore_errors=True)
        with contextlib.suppress(OSError):  # another attempt's is there just now, as good as this one
            (aside / "tag").rename(checkpoint / NAME)
        folders.sync_folder(checkpoint)
    finally:
        shutil.rmtree(aside, ignore_errors=True)
        os.close(fd)


def load(engine: Any, checkpoint: Path) -> None:
    """Collective. DeepSpeed's loader leaves out what the optimizer does not step: that is put back here."""
    if engine.zero_optimization_partition_weights() and _frozen(engine):
        raise CheckpointMismatch(
            "ZeRO-3 with frozen parameters cannot be restored at another world size: DeepSpeed's universal "
            "checkpoint does not have them",
            hint="start as many ranks as saved it, or use ZeRO-2",
        )
    with _universal(engine):
        engine.load_checkpoint(str(checkpoint), tag=NAME)
    [model_states, *_] = sorted((checkpoint / NAME).glob("*_model_states.pt"))
    saved = torch.load(model_states, map_location="cpu", weights_only=False)["module"]
    with torch.no_grad():
        for name, tensor in [*engine.module.named_buffers(), *_frozen(engine)]:
            if name in saved:
                tensor.copy_(saved[name])


def _frozen(engine: Any) -> list[tuple[str, torch.Tensor]]:
    return [(name, one) for name, one in engine.module.named_parameters() if not one.requires_grad]


def _run_converter(source: Path, target: Path) -> None:
    """In this process, which has imported all of it; its workers would be forked beside gloo and CUDA."""
    from deepspeed.checkpoint import ds_to_universal

    with (
        Path(os.devnull).open("w") as nowhere,
        contextlib.redirect_stdout(nowhere),
        contextlib.redirect_stderr(nowhere),
    ):
        ds_to_universal.main(
            argparse.Namespace(
                input_folder=str(source),
                output_folder=str(target),
                num_extract_workers=1,
                num_merge_workers=1,
                keep_temp_folder=False,
                strict=True,
                inject_missing_state=True,
            )
        )


def _list(folder: Path) -> None:
    """All of it is on disk before it has its name."""
    entries = {}
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            entry = manifest.hash_file(path)
            entries[str(path.relative_to(folder))] = (entry.size_bytes, entry.xxh3)
            manifest.sync_file(path)
    (folder / _LISTED).write_text(json.dumps(entries))
    manifest.sync_file(folder / _LISTED)


@contextlib.contextmanager
def _universal(engine: Any) -> Iterator[None]:
    """As with `"checkpoint": {"load_universal": true}` in its configuration."""
    usual = engine._config.load_universal_checkpoint
    engine._config.load_universal_checkpoint = True
    try:
        yield
    finally:
        engine._config.load_universal_checkpoint = usual
