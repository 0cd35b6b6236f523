"""How one rank's files of a checkpoint are laid out, so that saving again is only copying.

Tensors stand first, each where it stays; behind them what is serialized anew each time (step, values, a
schedule's state), whose length may change. What DCP reads is a file like any other. A layout holds as long
as names, shapes, types and the placement of shards do.

What is large is in several files of about the same size, so that several threads hash, write and check them.
What is small and not a shard (values, counts of steps) has a file of its own: every rank needs it at a
restore, and on another node must read it from storage, and check it as a whole.
"""

import contextlib
import dataclasses
import pickle
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch.distributed.checkpoint.filesystem import _StorageInfo
from torch.distributed.checkpoint.metadata import MetadataIndex
from torch.distributed.checkpoint.planner import SavePlanner, WriteItem, WriteItemType
from torch.distributed.tensor import DTensor

from . import containers
from .copying import PLAIN
from .images import Image

_SMALL_BYTES_MAX = 64 * 1024
_PART_BYTES_MIN = 24 * 1024 * 1024
_PARTS_MAX = 8


@dataclass(frozen=True, slots=True)
class _Placed:
    """A tensor that is copied into its place."""

    item: WriteItem
    shape: torch.Size
    dtype: torch.dtype
    info: _StorageInfo
    data_offset: int


def lay_out(rank: int, items: Sequence[WriteItem], planner: SavePlanner) -> list["Layout"]:
    """The files of a rank that writes these; none when it writes nothing."""
    large = _parts([item for item in items if _is_large(item)])
    small = [item for item in items if not _is_large(item)]
    return [
        Layout(f"__{rank}_{number}.distcp", some, planner)
        for number, some in enumerate((*large, small))
        if some
    ]


def _parts(items: Sequence[WriteItem]) -> list[list[WriteItem]]:
    """In their order, of about the same size."""
    part_bytes = max(_PART_BYTES_MIN, sum(map(_item_bytes, items)) / _PARTS_MAX)
    parts: list[list[WriteItem]] = [[]]
    filled = 0
    for item in items:
        if filled >= part_bytes:
            parts.append([])
            filled = 0
        parts[-1].append(item)
        filled += _item_bytes(item)
    return parts


class Layout:
    """Of the file `name`, for these items."""

    def __init__(self, name: str, items: Sequence[WriteItem], planner: SavePlanner) -> None:
        self.name = name
        self.frame: list[tuple[int, bytes]] = []
        self.loose: list[WriteItem] = []
        self._placed: list[_Placed] = []
        self.gpus: set[torch.device] = set()
        """On which tensors are."""
        end = 0
        for item in items:
            tensor = _placeable(item, planner)
            if tensor is None:
                self.loose.append(item)
            else:
                end = self._place(item, tensor, end)
                if tensor.is_cuda:
                    self.gpus.add(tensor.device)
        self.placed_bytes = end

    def _place(self, item: WriteItem, tensor: torch.Tensor, end: int) -> int:
        offset = _aligned(end)
        container = containers.lay_out(tensor.shape, tensor.dtype)
        self.frame += [(offset + at, data) for at, data in container.pieces]
        info = _StorageInfo(self.name, offset, container.size_bytes)
        placed = _Placed(item, tensor.shape, tensor.dtype, info, offset + container.data_offset)
        self._placed.append(placed)
        return offset + container.size_bytes

    def draw(self, image: Image) -> list[torch.Tensor]:
        """Write all but the tensors' bytes; the places where these go."""
        for offset, data in self.frame:
            image.write(offset, data)
        whole = torch.frombuffer(image.map, dtype=torch.uint8)
        if self.gpus:
            image.on_close = _pin(whole)
        return [
            whole[one.data_offset : one.data_offset + _bytes_of(one)].view(one.dtype).view(one.shape)
            for one in self._placed
        ]

    def tensors(self, planner: SavePlanner) -> Iterator[torch.Tensor]:
        """What goes into the places."""
        for one in self._placed:
            yield cast(torch.Tensor, planner.resolve_data(one.item))

    def infos(self, lengths: Sequence[int]) -> dict[MetadataIndex, _StorageInfo]:
        """Where each item stands, when the loose ones are so long."""
        found = {one.item.index: one.info for one in self._placed}
        end = self.placed_bytes
        for item, length in zip(self.loose, lengths, strict=True):
            found[item.index] = _StorageInfo(self.name, _aligned(end), length)
            end = _aligned(end) + length
        return found

    def write_loose(self, image: Image, encoded: Sequence[bytes]) -> None:
        """Behind the tensors, up to the file's end."""
        end = self.placed_bytes
        for data in encoded:
            image.write(_aligned(end), data)
            end = _aligned(end) + len(data)
        image.end_at(end)


class LooseEncoder:
    """Serializes what has no place of its own; what has not changed is not serialized again."""

    def __init__(self) -> None:
        self._known: dict[MetadataIndex, tuple[bytes, bytes]] = {}

    def encode(self, items: Sequence[WriteItem], planner: Any) -> list[bytes]:
        return [self._encode(item.index, planner.lookup_object(item.index)) for item in items]

    def _encode(self, index: MetadataIndex, thing: Any) -> bytes:
        thing = thing.detach().cpu() if isinstance(thing, torch.Tensor) else thing
        pickled = pickle.dumps(thing)
        known = self._known.get(index)
        if known is None or known[0] != pickled:
            known = self._known[index] = (pickled, containers.encode(thing))
        return known[1]


def signature_of(flat: Mapping[str, Any]) -> Any:
    """Equal for states that one layout serves. None: it cannot be told, and none does."""
    parts: list[Any] = []
    for key, value in flat.items():
        if isinstance(value, DTensor):
            local = value.to_local()
            parts.append((key, value.shape, value.dtype, local.shape, value.device_mesh, value.placements))
        elif type(value) in PLAIN:
            parts.append((key, value.shape, value.dtype, value.layout))
        elif isinstance(value, torch.Tensor):
            return None
        else:
            parts.append((key, None))
    return parts


def filled(metadata: Any, infos: Mapping[MetadataIndex, _StorageInfo]) -> Any:
    """The checkpoint's metadata with these items where they are now."""
    return dataclasses.replace(metadata, storage_data={**metadata.storage_data, **infos})


def _item_bytes(item: WriteItem) -> int:
    data = item.tensor_data
    return 0 if data is None else data.chunk.sizes.numel() * data.properties.dtype.itemsize


def _is_large(item: WriteItem) -> bool:
    if item.type == WriteItemType.SHARD:
        return True
    return _item_bytes(item) > _SMALL_BYTES_MAX


def _placeable(item: WriteItem, planner: SavePlanner) -> torch.Tensor | None:
    if item.type == WriteItemType.BYTE_IO:
        return None
    tensor = planner.resolve_data(item)
    if not isinstance(tensor, torch.Tensor) or type(tensor) not in PLAIN:
        return None
    return tensor if tensor.layout == torch.strided and not tensor.is_quantized else None


def _pin(whole: torch.Tensor) -> Callable[[], None]:
    """Let GPUs copy straight into these pages. Where the driver refuses, copies are slower, that is all. What
    undoes it.
    """
    cuda: Any = torch.cuda
    runtime = cuda.cudart()
    address = whole.data_ptr()
    if int(runtime.cudaHostRegister(address, whole.nbytes, 0)) != 0:
        with contextlib.suppress(RuntimeError):  # else the script's next kernel is taken to have failed of it
            torch.zeros(1, device="cuda")
        return lambda: None
    return lambda: runtime.cudaHostUnregister(address)


def _bytes_of(placed: _Placed) -> int:
    return placed.shape.numel() * placed.dtype.itemsize


def _aligned(offset: int) -> int:
    return -(-offset // containers.ALIGNMENT) * containers.ALIGNMENT
