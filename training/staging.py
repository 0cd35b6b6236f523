"""Staging: the state is copied into an image in shared memory, which is the file that will be published.

What the ranks write is agreed on once (DCP's plan), and again only when names, shapes, types or shards have
changed anywhere. `prepare` and `stage` are local; `lay_out` is collective.
"""

import pickle
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch.distributed.checkpoint.metadata import Metadata, MetadataIndex
from torch.distributed.checkpoint.planner import SavePlan, SavePlanner
from torch.distributed.checkpoint.state_dict_saver import save as save_state_dict
from torch.distributed.checkpoint.storage import WriteResult

from ..spec.folder_names import FolderName
from . import engines
from .attached import Files
from .copying import Copier
from .dcp import METADATA, LayingWriter
from .errors import StorageFailed
from .flattening import FlatPlanner
from .gang import Gang
from .images import Image, Places, attached_name, remove_label, set_label
from .layout import Layout, LooseEncoder, filled, lay_out, signature_of


class Prepared:
    """A state dict that is to be saved, in DCP's form."""

    def __init__(self, state: dict[str, Any], *, first: bool) -> None:
        self.state = state
        self.planner = FlatPlanner()
        self.planner.set_up_planner(state, is_coordinator=first)
        self.signature = signature_of(self.planner.state_dict)
        self.encoded: list[list[bytes]] = []
        """Of each of this rank's files, what is serialized anew."""

    @property
    def lengths(self) -> list[list[int]]:
        return [[len(data) for data in of_file] for of_file in self.encoded]


@dataclass(slots=True)
class _Buffer:
    """An image with the layout drawn into it."""

    layout: Layout
    image: Image
    places: list[torch.Tensor]


class Stager:
    """One rank's. Images are made in `places`, in each slot one of each of its files."""

    def __init__(self, gang: Gang, places: Places) -> None:
        self._gang = gang
        self._places = places
        self._layouts: list[Layout] | None = None
        self._signature: Any = None
        self._lengths: list[list[int]] = []
        self._metadata: Metadata | None = None
        self._pickled: tuple[list[list[int]], bytes] = ([], b"")
        self._encoder = LooseEncoder()
        self._copier = Copier()
        self._buffers: dict[int, list[_Buffer]] = {}

    def prepare(self, state: dict[str, Any]) -> Prepared:
        prepared = Prepared(state, first=self._gang.rank == 0)
        if self._layouts is not None and prepared.signature == self._signature:
            self._encode(self._layouts, prepared)
        return prepared

    def fits(self, prepared: Prepared) -> bool:
        """The layout serves: only rank 0, which writes the metadata, may write items of other lengths."""
        if self._layouts is None or prepared.signature is None or prepared.signature != self._signature:
            return False
        return self._gang.rank == 0 or self._lengths == prepared.lengths

    def lay_out(self, prepared: Prepared, slot: int) -> None:
        """Agree with all ranks on who writes what. Raises DCP's CheckpointException at all of them."""

        def on_plan(plan: SavePlan, planner: SavePlanner) -> list[WriteResult]:
            layouts = lay_out(self._gang.rank, plan.items, planner)
            self._encode(layouts, prepared)
            self._layouts, self._signature, self._lengths = layouts, prepared.signature, prepared.lengths
            self._ready(layouts, slot)
            return [
                WriteResult(index, info.length, info) for index, info in _infos(layouts, prepared).items()
            ]

        self._layouts = None
        self._encoder = LooseEncoder()
        writer = LayingWriter(on_plan)
        try:
            self._agree(prepared, writer)
        except BaseException:
            self._layouts = None  # others may have none either
            raise
        self._metadata, self._pickled = writer.metadata, ([], b"")

    def _agree(self, prepared: Prepared, writer: LayingWriter) -> None:
        if self._gang.joined:
            save_state_dict(
                prepared.state,
                storage_writer=writer,
                planner=prepared.planner,
                process_group=self._gang.group(),
            )
            return
        with warnings.catch_warnings():  # DCP says that no process group is there to agree over
            warnings.filterwarnings("ignore", message="torch.distributed is disabled")
            save_state_dict(prepared.state, storage_writer=writer, planner=prepared.planner, no_dist=True)

    def stage(self, prepared: Prepared, slot: int, name: FolderName) -> dict[str, Path]:
        """Copy. File name -> image; none when this rank writes nothing. Raises StorageFailed."""
        try:
            return self._stage(prepared, slot, name)
        except OSError as error:
            raise StorageFailed(f"{error.strerror} (the image in memory)") from error

    def _stage(self, prepared: Prepared, slot: int, name: FolderName) -> dict[str, Path]:
        assert self._layouts is not None
        buffers = self._ready(self._layouts, slot)
        for buffer in buffers:
            remove_label(buffer.image.path)
        self._copy(buffers, prepared.planner)
        for buffer, encoded in zip(buffers, prepared.encoded, strict=True):
            buffer.layout.write_loose(buffer.image, encoded)
            set_label(buffer.image.path, name)
        files = {buffer.layout.name: buffer.image.path for buffer in buffers}
        if self._metadata is not None:
            folder = next(iter(files.values())).parent
            files[METADATA] = self._write_metadata(folder / METADATA, self._layouts, prepared, name)
        return files

    def attach(self, thing: Any, slot: int, name: FolderName) -> dict[str, Path]:
        """The images of what has files of its own. Collective for an engine. Raises StorageFailed."""
        rank = self._gang.rank

        def write(file: str, fill: Callable[[BinaryIO], None]) -> Path:
            return self._places.write(slot, attached_name(rank, file), fill)

        if isinstance(thing, Files):
            try:
                files = thing.copy(write)
            except OSError as error:
                raise StorageFailed(f"{error.filename or 'image'}: {error.strerror}") from error
        else:
            files = engines.stage(thing, write)
        for path in files.values():
            set_label(path, name)
        return files

    def _write_metadata(
        self, path: Path, layouts: list[Layout], prepared: Prepared, name: FolderName
    ) -> Path:
        if prepared.lengths != self._pickled[0] or not self._pickled[1]:
            metadata = filled(self._metadata, _infos(layouts, prepared))
            self._pickled = (prepared.lengths, pickle.dumps(metadata))
        remove_label(path)
        path.write_bytes(self._pickled[1])
        set_label(path, name)
        return path

    def _encode(self, layouts: list[Layout], prepared: Prepared) -> None:
        prepared.encoded = [self._encoder.encode(layout.loose, prepared.planner) for layout in layouts]

    def _ready(self, layouts: list[Layout], slot: int) -> list[_Buffer]:
        """The images of that slot, made anew where they are of another layout. Raises OSError."""
        buffers = self._buffers.get(slot, [])
        if [buffer.layout for buffer in buffers] != layouts:
            self._let_go(slot)
            for layout in layouts:
                image = self._places.make(slot, layout.name, layout.placed_bytes)
                self._buffers.setdefault(slot, []).append(_Buffer(layout, image, layout.draw(image)))
        return self._buffers.get(slot, [])

    def _let_go(self, slot: int) -> None:
        for buffer in self._buffers.pop(slot, []):
            buffer.image.close()

    def _copy(self, buffers: list[_Buffer], planner: SavePlanner) -> None:
        """The stall: each tensor into its place. Returns when all bytes are there."""
        with torch.no_grad():
            self._copier.copy(
                pair
                for buffer in buffers
                for pair in zip(buffer.places, buffer.layout.tensors(planner), strict=True)
            )
        for gpu in {gpu for buffer in buffers for gpu in buffer.layout.gpus}:
            torch.cuda.current_stream(gpu).synchronize()

    def close(self) -> None:
        self._copier.close()
        for slot in list(self._buffers):
            self._let_go(slot)


def _infos(layouts: list[Layout], prepared: Prepared) -> dict[MetadataIndex, Any]:
    """Where each item of this rank stands."""
    found: dict[MetadataIndex, Any] = {}
    for layout, lengths in zip(layouts, prepared.lengths, strict=True):
        found |= layout.infos(lengths)
    return found
