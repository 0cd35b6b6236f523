"""PyTorch's distributed checkpoint (DCP) as our format on disk: planned by it, read safely.

The files are what `torch.distributed.checkpoint.load` reads. The writer takes DCP's plan, with its agreement
over all ranks, and leaves the writing to whoever lays the files out. The reader unpickles nothing but DCP's
own metadata classes, and values only as torch.load(weights_only=True) does.
"""

import contextlib
import dataclasses
import io
import pickle
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch.distributed._shard._utils import narrow_tensor_by_index
from torch.distributed.checkpoint import filesystem
from torch.distributed.checkpoint.default_planner import DefaultLoadPlanner, create_default_local_load_plan
from torch.distributed.checkpoint.filesystem import FileSystemReader, FileSystemWriter
from torch.distributed.checkpoint.metadata import (
    Metadata,
    MetadataIndex,
    StorageMeta,
    TensorStorageMetadata,
)
from torch.distributed.checkpoint.planner import (
    LoadItemType,
    LoadPlan,
    LoadPlanner,
    ReadItem,
    SavePlan,
    SavePlanner,
)
from torch.distributed.checkpoint.storage import WriteResult
from torch.futures import Future

from . import containers
from .copying import PLAIN, Copier
from .errors import StorageFailed
from .flattening import flatten
from .images import map_image

METADATA = ".metadata"

LayOut = Callable[[SavePlan, SavePlanner], list[WriteResult]]


class LayingWriter(FileSystemWriter):
    """Takes DCP's agreed plan and lets `lay_out` write this rank's part. Rank 0 has `metadata` in the end."""

    def __init__(self, lay_out: LayOut) -> None:
        super().__init__("unused", sync_files=False)
        self._lay_out = lay_out
        self.metadata: Metadata | None = None

    def prepare_local_plan(self, plan: SavePlan) -> SavePlan:
        return plan  # no folder is made here

    def write_data(self, plan: SavePlan, planner: SavePlanner) -> Future[list[WriteResult]]:
        future: Future[list[WriteResult]] = Future()
        future.set_result(self._lay_out(plan, planner))
        return future

    def finish(self, metadata: Metadata, results: list[list[WriteResult]]) -> None:
        metadata.storage_data = {
            result.index: result.storage_data for of_rank in results for result in of_rank
        }
        metadata.storage_meta = StorageMeta()
        if hasattr(metadata, "version"):
            metadata.version = filesystem.CURRENT_DCP_VERSION
        self.metadata = metadata

    def storage_meta(self) -> StorageMeta:
        return StorageMeta()


class SafeReader(FileSystemReader):
    """Reads only files that the manifest names, and unpickles only what DCP's metadata is made of.

    `images`: those files that are verified in this node's memory: mapped, and copied from there.
    """

    def __init__(self, folder: Path, names: Iterable[str], metadata: bytes) -> None:
        super().__init__(folder)
        self._names = frozenset(names)
        self._metadata = metadata
        self._forms: dict[tuple[str, torch.Size | None], tuple[torch.Size, torch.dtype]] = {}
        self.images: dict[str, Path] = {}
        self.mapped: dict[str, memoryview] = {}

    def read_metadata(self, *_args: Any, **_kwargs: Any) -> Metadata:
        try:
            metadata = _MetadataUnpickler(io.BytesIO(self._metadata)).load()
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
        strangers = {entry.relative_path for entry in metadata.storage_data.values()} - self._names
        if strangers:
            raise StorageFailed(f"{METADATA} names a file that the manifest does not: {min(strangers)!r}")
        return metadata

    def file_of(self, item: ReadItem) -> str:
        name: str = self.storage_data[item.storage_index].relative_path
        return name

    def set_up_storage_reader(self, metadata: Metadata, is_coordinator: bool, *_: Any, **__: Any) -> None:
        super().set_up_storage_reader(metadata, is_coordinator)
        self._forms = _forms(metadata)

    def read_data(self, plan: LoadPlan, planner: LoadPlanner) -> Future[None]:
        missing = {name: map_image(path) for name, path in self.images.items() if name not in self.mapped}
        files = {**self.mapped, **missing}
        others: list[ReadItem] = []
        filled: list[tuple[ReadItem, torch.Tensor]] = []

        def pairs() -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
            """What is no tensor is read beside: other threads copy meanwhile."""
            for item in plan.items:
                mapped = files.get(self.file_of(item))
                if mapped is None:
                    others.append(item)
                    continue
                info = self.storage_data[item.storage_index]
                container = mapped[info.offset : info.offset + info.length]
                if item.type == LoadItemType.BYTE_IO:
                    planner.load_bytes(item, io.BytesIO(container))
                else:
                    target, part = self._place_and_part(item, container, planner)
                    filled.append((item, target))
                    yield target, part

        with contextlib.closing(Copier()) as copier:
            copier.copy(pairs())
        for item, target in filled:
            planner.commit_tensor(item, target)
        return super().read_data(dataclasses.replace(plan, items=others), planner)

    def _place_and_part(
        self, item: ReadItem, container: memoryview, planner: LoadPlanner
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Where it goes, and what goes there."""
        form = self._forms[item.storage_index.fqn, item.storage_index.offset]
        part = containers.tensor_in(container, *form)
        if part.shape != item.lengths:
            part = narrow_tensor_by_index(part, item.storage_offsets, item.lengths)
        target = planner.resolve_tensor(item).detach()
        if target.size() != part.size():
            raise ValueError(f"Size mismatch: {item.dest_index.fqn} is {target.size()}, saved {part.size()}")
        return target, part


def _forms(metadata: Metadata) -> dict[tuple[str, torch.Size | None], tuple[torch.Size, torch.dtype]]:
    """Shape and type of each tensor, or part of one, that has been saved."""
    found: dict[tuple[str, torch.Size | None], tuple[torch.Size, torch.dtype]] = {}
    for name, entry in metadata.state_dict_metadata.items():
        if isinstance(entry, TensorStorageMetadata):
            for chunk in entry.chunks:
                found[name, chunk.offsets] = found[name, None] = (chunk.sizes, entry.properties.dtype)
    return found


class SafeLoadPlanner(DefaultLoadPlanner):
    """The stock planner, but values are read with weights_only=True: no code of the checkpoint's choosing
    runs.
    """

    def set_up_planner(
        self, state_dict: dict[str, Any], metadata: Metadata | None = None, is_coordinator: bool = False
    ) -> None:
        """Also DCP's; what it does not know, or has no memory yet, is torch's to prepare."""
        flat = flatten(state_dict)
        if flat is None or any(isinstance(one, torch.Tensor) and one.is_meta for one in flat[0].values()):
            super().set_up_planner(state_dict, metadata, is_coordinator)
            return
        self.original_state_dict = state_dict
        self.state_dict, self.mappings = flat
        self.metadata = metadata
        self.is_coordinator = is_coordinator

    def create_local_plan(self) -> LoadPlan:
        """Also DCP's, without its search through the parts of what was saved whole and is wanted whole."""
        assert self.metadata is not None
        whole: list[ReadItem] = []
        others: dict[str, Any] = {}
        for name, thing in self.state_dict.items():
            entry = self.metadata.state_dict_metadata.get(name)
            if type(thing) in PLAIN and isinstance(entry, TensorStorageMetadata) and _is_whole(thing, entry):
                whole.append(_read_whole(name, entry.chunks[0].offsets, entry.size))
            else:
                others[name] = thing
        return LoadPlan(whole + create_default_local_load_plan(others, self.metadata).items)

    def load_bytes(self, read_item: ReadItem, value: io.BytesIO) -> None:
        loaded = torch.load(value, map_location="cpu", weights_only=True)
        container: Any = self.original_state_dict
        *way, last = self.mappings[read_item.dest_index.fqn]
        for key in way:
            container = container[key]
        container[last] = loaded


def _is_whole(tensor: torch.Tensor, entry: TensorStorageMetadata) -> bool:
    """Of nothing, DCP reads nothing."""
    return (
        len(entry.chunks) == 1 and entry.chunks[0].sizes == entry.size == tensor.shape and tensor.numel() > 0
    )


def _read_whole(name: str, origin: torch.Size, size: torch.Size) -> ReadItem:
    index = MetadataIndex(name, origin)
    return ReadItem(LoadItemType.TENSOR, index, origin, index, origin, size)


class Loading:
    """This rank's part in filling `state` (tensors in place). Needs no collective: load plans are local by
    nature.
    """

    def __init__(self, state: dict[str, Any], reader: SafeReader, metadata: Metadata) -> None:
        self._reader = reader
        self._planner = SafeLoadPlanner()
        self._planner.set_up_planner(state, metadata, is_coordinator=True)
        reader.set_up_storage_reader(metadata, is_coordinator=True)
        self._plan = reader.prepare_local_plan(self._planner.create_local_plan())
        self.files = frozenset(map(reader.file_of, self._plan.items))
        """Names of those that will be read."""

    def run(self, images: Mapping[str, Path], mapped: Mapping[str, memoryview]) -> None:
        self._reader.images, self._reader.mapped = dict(images), dict(mapped)
        self._reader.read_data(self._planner.finish_plan(self._plan), self._planner).wait()


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
