"""PyTorch's distributed checkpoint (DCP) as our format on disk: written with hashes and published by rename,
read safely.

The files are what `torch.distributed.checkpoint.load` reads. Our share: the writer hashes what each rank
wrote, and on rank 0, inside DCP's own last agreement, writes the manifest, publishes and tells; so an error
at any rank is every rank's error, and no collective is added. The reader unpickles nothing but DCP's own
metadata classes, and values only as torch.load(weights_only=True) does.
"""

import io
import pickle
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch.distributed.checkpoint.default_planner import DefaultLoadPlanner, DefaultSavePlanner
from torch.distributed.checkpoint.filesystem import FileSystemReader, FileSystemWriter
from torch.distributed.checkpoint.metadata import Metadata, StorageMeta
from torch.distributed.checkpoint.planner import ReadItem, SavePlan, SavePlanner
from torch.futures import Future

from . import folders, manifest
from .errors import StorageFailed
from .folders import FolderName
from .manifest import FileEntry

METADATA = ".metadata"

Published = Callable[[Path, Mapping[str, FileEntry]], None]


@dataclass(frozen=True, slots=True)
class _RankFiles:
    """Rides along with a rank's write results to rank 0."""

    files: dict[str, FileEntry]


class AgreedSavePlanner(DefaultSavePlanner):
    """The stock planner; `error` is what went wrong at this rank before, raised where DCP tells all ranks of
    it.
    """

    def __init__(self, error: Exception | None) -> None:
        super().__init__()
        self._error = error

    def create_local_plan(self) -> SavePlan:
        if self._error is not None:
            raise self._error
        return super().create_local_plan()


class PublishingWriter(FileSystemWriter):
    """Writes into the folder aside. `complete` runs at rank 0 when all ranks' files are there: manifest,
    rename, tell.
    """

    def __init__(self, root: Path, name: FolderName, complete: Published) -> None:
        super().__init__(root / name.aside, sync_files=True)
        self._root = root
        self._name = name
        self._aside = root / name.aside
        self._complete = complete

    def prepare_local_plan(self, plan: SavePlan) -> SavePlan:
        return plan  # the folder is rank 0's to make, when all have come this far and none writes yet

    def prepare_global_plan(self, plans: list[SavePlan]) -> list[SavePlan]:
        try:
            folders.prepare_aside(self._root, self._name)
        except OSError as error:
            raise _storage_failed(error, self._aside) from error
        return super().prepare_global_plan(plans)

    def write_data(self, plan: SavePlan, planner: SavePlanner) -> Future[list[Any]]:
        try:
            results: list[Any] = super().write_data(plan, planner).wait()
            names = {result.storage_data.relative_path for result in results}
            files = {name: manifest.hash_file(self._aside / name) for name in sorted(names)}
        except (
            OSError,
            RuntimeError,
        ) as error:  # torch's file writer turns a failed write into a RuntimeError
            raise _storage_failed(error, self._aside) from error
        future: Future[list[Any]] = Future()
        future.set_result([*results, _RankFiles(files)])
        return future

    def finish(self, metadata: Metadata, results: list[list[Any]]) -> None:
        files: dict[str, FileEntry] = {}
        for of_rank in results:
            files |= of_rank.pop().files
        try:
            super().finish(metadata, results)
            files[METADATA] = manifest.hash_file(self._aside / METADATA)
            self._complete(self._aside, files)
        except OSError as error:
            raise _storage_failed(error, self._aside) from error

    def storage_meta(self) -> StorageMeta:
        return StorageMeta(checkpoint_id=str(self._root / str(self._name)), save_id=self.save_id)


class SafeReader(FileSystemReader):
    """Reads only files that the manifest names, and unpickles only what DCP's metadata is made of."""

    def __init__(self, folder: Path, files: Mapping[str, FileEntry]) -> None:
        super().__init__(folder)
        self._folder = folder
        self._files = files

    def read_metadata(self, *_args: Any, **_kwargs: Any) -> Metadata:
        try:
            with (self._folder / METADATA).open("rb") as file:
                metadata = _MetadataUnpickler(file).load()
        except (
            pickle.UnpicklingError,
            EOFError,
            AttributeError,
            ValueError,
            TypeError,
            IndexError,
            KeyError,
        ) as error:
            raise StorageFailed(f"{METADATA} is not a checkpoint's metadata: {error}") from error
        if not isinstance(metadata, Metadata) or not isinstance(metadata.storage_data, dict):
            raise StorageFailed(
                f"{METADATA} is not a checkpoint's metadata: it holds a {type(metadata).__name__}"
            )
        strangers = {entry.relative_path for entry in metadata.storage_data.values()} - set(self._files)
        if strangers:
            raise StorageFailed(f"{METADATA} names a file that the manifest does not: {min(strangers)!r}")
        return metadata


class SafeLoadPlanner(DefaultLoadPlanner):
    """The stock planner, but values are read with weights_only=True: no code of the checkpoint's choosing
    runs.
    """

    def load_bytes(self, read_item: ReadItem, value: io.BytesIO) -> None:
        loaded = torch.load(value, map_location="cpu", weights_only=True)
        container: Any = self.original_state_dict
        *way, last = self.mappings[read_item.dest_index.fqn]
        for key in way:
            container = container[key]
        container[last] = loaded


def load_into(state: dict[str, Any], reader: SafeReader, metadata: Metadata) -> None:
    """Fill `state` (tensors in place) with this rank's part. Needs no collective: load plans are local by
    nature.
    """
    planner = SafeLoadPlanner()
    planner.set_up_planner(state, metadata, is_coordinator=True)
    reader.set_up_storage_reader(metadata, is_coordinator=True)
    plan = reader.prepare_local_plan(planner.create_local_plan())
    reader.read_data(planner.finish_plan(plan), planner).wait()


_METADATA_CLASSES = frozenset(
    {
        ("torch.distributed.checkpoint.metadata", name)
        for name in (
            "BytesStorageMetadata",
            "ChunkStorageMetadata",
            "Metadata",
            "MetadataIndex",
            "StorageMeta",
            "TensorProperties",
            "TensorStorageMetadata",
            "_MEM_FORMAT_ENCODING",
        )
    }
    | {
        ("torch.distributed.checkpoint.filesystem", "_StorageInfo"),
        ("torch.serialization", "_get_layout"),
        ("torch", "Size"),
    }
)


class _MetadataUnpickler(pickle.Unpickler):
    def find_class(self, module_name: str, global_name: str) -> Any:
        if (module_name, global_name) in _METADATA_CLASSES:
            return super().find_class(module_name, global_name)
        if module_name == "torch" and isinstance(getattr(torch, global_name, None), torch.dtype):
            return getattr(torch, global_name)
        raise pickle.UnpicklingError(f"asks for {module_name}.{global_name}, which metadata has no need of")


def _storage_failed(error: Exception, folder: Path) -> StorageFailed:
    """The operating system's own words, wherever in the chain they are."""
    cause: BaseException | None = error
    while cause is not None and not isinstance(cause, OSError):
        cause = cause.__cause__ or cause.__context__
    text = cause.strerror or str(cause) if isinstance(cause, OSError) else str(error).splitlines()[0]
    name = f" ({Path(str(cause.filename)).name})" if isinstance(cause, OSError) and cause.filename else ""
    return StorageFailed(f"{text}{name}", folder=str(folder))
