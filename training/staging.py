"""Staging: the state is copied into an image in shared memory, which is the file that will be published.

What the ranks write is agreed on once (DCP's plan), and again only when names, shapes, types or shards have
changed anywhere. `prepare` and `stage` are local; `lay_out` is collective.
"""

import pickle
import warnings
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch.distributed.checkpoint.default_planner import DefaultSavePlanner
from torch.distributed.checkpoint.metadata import Metadata
from torch.distributed.checkpoint.planner import SavePlan, SavePlanner
from torch.distributed.checkpoint.state_dict_saver import save as save_state_dict
from torch.distributed.checkpoint.storage import WriteResult

from .dcp import METADATA, LayingWriter
from .errors import StorageFailed
from .folders import FolderName
from .gang import Gang
from .images import Image, Places, remove_label, set_label
from .layout import Layout, LooseEncoder, filled, signature_of


class Prepared:
    """A state dict that is to be saved, in DCP's form."""

    def __init__(self, state: dict[str, Any], *, first: bool) -> None:
        self.state = state
        self.planner = DefaultSavePlanner()
        self.planner.set_up_planner(state, is_coordinator=first)
        self.signature = signature_of(self.planner.state_dict)
        self.encoded: list[bytes] = []


@dataclass(slots=True)
class _Buffer:
    """An image with the layout drawn into it."""

    layout: Layout
    image: Image
    places: list[torch.Tensor] = field(default_factory=list)


class Stager:
    """One rank's. Images are made in `places`, of each slot one."""

    def __init__(self, gang: Gang, places: Places) -> None:
        self._gang = gang
        self._places = places
        self._name = f"__{gang.rank}_0.distcp"
        self._layout: Layout | None = None
        self._lengths: list[int] = []
        self._metadata: Metadata | None = None
        self._pickled: tuple[tuple[int, ...], bytes] = ((), b"")
        self._encoder = LooseEncoder()
        self._buffers: dict[int, _Buffer] = {}

    def prepare(self, state: dict[str, Any]) -> Prepared:
        prepared = Prepared(state, first=self._gang.rank == 0)
        if self._layout is not None and prepared.signature == self._layout.signature:
            prepared.encoded = self._encoder.encode(self._layout.loose, prepared.planner)
        return prepared

    def fits(self, prepared: Prepared) -> bool:
        """The layout serves: only rank 0, which writes the metadata, may write items of other lengths."""
        if self._layout is None or prepared.signature is None:
            return False
        if prepared.signature != self._layout.signature:
            return False
        return self._gang.rank == 0 or self._lengths == [len(data) for data in prepared.encoded]

    def lay_out(self, prepared: Prepared, slot: int) -> None:
        """Agree with all ranks on who writes what. Raises DCP's CheckpointException at all of them."""

        def on_plan(plan: SavePlan, planner: SavePlanner) -> list[WriteResult]:
            layout = Layout(self._name, plan.items, planner, prepared.signature)
            prepared.encoded = self._encoder.encode(layout.loose, planner)
            self._layout, self._lengths = layout, [len(data) for data in prepared.encoded]
            self._buffer(slot)
            return layout.results(self._lengths)

        self._layout = None
        self._encoder = LooseEncoder()
        writer = LayingWriter(on_plan)
        try:
            self._agree(prepared, writer)
        except BaseException:
            self._layout = None  # others may have none either
            raise
        self._metadata, self._pickled = writer.metadata, ((), b"")

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
        buffer = self._buffer(slot)
        layout, path = buffer.layout, buffer.image.path
        remove_label(path)
        layout.copy(prepared.planner, buffer.places)
        size_bytes = layout.write_loose(buffer.image, prepared.encoded)
        set_label(path, name)
        files = {layout.name: path} if size_bytes else {}
        if self._metadata is not None:
            files[METADATA] = self._write_metadata(path.with_name(METADATA), prepared, name)
        return files

    def _write_metadata(self, path: Path, prepared: Prepared, name: FolderName) -> Path:
        assert self._layout is not None
        lengths = tuple(len(data) for data in prepared.encoded)
        if lengths != self._pickled[0] or not self._pickled[1]:
            self._pickled = (lengths, pickle.dumps(filled(self._metadata, self._layout.infos(lengths))))
        remove_label(path)
        path.write_bytes(self._pickled[1])
        set_label(path, name)
        return path

    def _buffer(self, slot: int) -> _Buffer:
        assert self._layout is not None
        buffer = self._buffers.get(slot)
        if buffer is None or buffer.layout is not self._layout:
            if buffer is not None:
                del self._buffers[slot]
                buffer.image.close()
            image = self._places.make(slot, self._name, self._layout.placed_bytes)
            buffer = self._buffers[slot] = _Buffer(self._layout, image)
            buffer.places = self._layout.draw(image)
        return buffer

    def close(self) -> None:
        for buffer in self._buffers.values():
            buffer.image.close()
        self._buffers.clear()
