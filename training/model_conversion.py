"""A checkpoint as a model folder: `python -m paceline.training.model_conversion`, run as a job.

The job is a fork of the one that saved, so that its first checkpoint is the one to convert, with the hash of
the manifest that the scheduler accepted. Tensors alone are read, from files that were verified; of code only
the entry's runs.
"""

import argparse
import json
import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import torch
from torch.distributed.checkpoint.metadata import TensorStorageMetadata

from ..serving.engines.entries import import_entry
from ..spec.errors import InvalidRequest
from ..spec.model_signature import FILES
from . import manifest
from .dcp import METADATA, Loading, SafeReader
from .environment import read_environment
from .errors import CheckpointMismatch, StorageFailed
from .model_saving import Example, Format, save_model
from .say import say
from .task import AcceptedCheckpoint, read_task

FORMATS: Final[dict[str, Format]] = {"safetensors": "safetensors", "torch-export": "torch.export"}


def convert(
    checkpoint: AcceptedCheckpoint, into: Path, *, form: str, of: str, entry: str, example: str
) -> None:
    """Write the model that was saved under the name `of` to the folder `into`. Raises StorageFailed,
    CheckpointMismatch, InvalidRequest."""
    tensors = tensors_of(checkpoint, of)
    if not entry:
        from safetensors.torch import save_file

        into.mkdir(parents=True, exist_ok=True)
        save_file(tensors, into / FILES["safetensors"])
        return
    module = import_entry(Path.cwd(), entry)()
    if not isinstance(module, torch.nn.Module):
        raise InvalidRequest(f"{entry} makes a {type(module).__name__}; expected a torch.nn.Module")
    try:
        module.load_state_dict(tensors)
    except RuntimeError as error:
        raise CheckpointMismatch(f"what {entry} makes is not what was saved as {of}: {error}") from error
    as_weights = form == "safetensors"
    save_model(
        module, into, example=_example(example), format=FORMATS[form], entry=entry if as_weights else ""
    )
    if as_weights:
        file = entry.partition(":")[0]
        (into / file).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(file, into / file)


def tensors_of(checkpoint: AcceptedCheckpoint, of: str) -> dict[str, torch.Tensor]:
    """Whole, however they were sharded; by their names below `of`."""
    folder = checkpoint.path
    document = manifest.read(folder, checkpoint.manifest_hash)
    if METADATA not in document.files:
        raise StorageFailed(f"{manifest.NAME} names no {METADATA}")
    manifest.check_file(folder / METADATA, document.files[METADATA])
    reader = SafeReader(folder, document.files, (folder / METADATA).read_bytes())
    metadata = reader.read_metadata()
    state: dict[str, Any] = {
        name: torch.empty(saved.size, dtype=saved.properties.dtype)
        for name, saved in metadata.state_dict_metadata.items()
        if isinstance(saved, TensorStorageMetadata) and name.startswith(f"{of}.")
    }
    if not state:
        have = ", ".join(f"{name} ({kind})" for name, kind in sorted(document.contents.items()))
        raise CheckpointMismatch(f"step {checkpoint.step} has no tensors of {of!r}; it has {have}")
    loading = Loading(state, reader, metadata)
    for name in loading.files:
        manifest.check_file(folder / name, document.files[name])
    loading.run({}, {})
    return {name.removeprefix(f"{of}."): tensor for name, tensor in state.items()}


def _example(text: str) -> Example:
    """Nested lists of numbers: one tensor; or several by the names of the module's parameters."""
    data = json.loads(text)
    if isinstance(data, dict):
        return {name: torch.tensor(value) for name, value in data.items()}
    return torch.tensor(data)


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="paceline.training.model_conversion")
    parser.add_argument("--as", dest="form", choices=list(FORMATS), required=True)
    parser.add_argument("--of", default="model")
    parser.add_argument("--entry", default="")
    parser.add_argument("--example", default="")
    parser.add_argument("into", type=Path)
    asked = parser.parse_args(argv)
    folder = read_environment(os.environ).task_folder
    if folder is None or not (checkpoints := read_task(folder).checkpoints):
        raise SystemExit("expected to run as a job that was forked from a checkpoint")
    chosen = checkpoints[0]
    try:
        convert(chosen, asked.into, form=asked.form, of=asked.of, entry=asked.entry, example=asked.example)
    except (StorageFailed, CheckpointMismatch, InvalidRequest) as error:
        raise SystemExit(f"step {chosen.step} is not converted: {error.message}") from None
    say(f"step {chosen.step} is converted to {asked.form}")


if __name__ == "__main__":
    main()
