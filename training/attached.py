"""What goes into a checkpoint as whole files, under its own names: of a DeepSpeed engine, or of a trainer.

They lie beside DCP's files in the checkpoint's folder, are hashed, published and verified like them, and are
opened by whoever made them (`engine.load_checkpoint`, a trainer), never by us. One such thing a checkpoint:
the names are its own to choose.
"""

import re
import shutil
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import BinaryIO

from . import manifest
from .dcp import METADATA
from .errors import UnsavableState

Write = Callable[[str, Callable[[BinaryIO], None]], Path]
"""Of a file's name and what fills it: the image. Raises OSError."""
_CHUNK_BYTES = 4 * 1024 * 1024
_OURS = re.compile(r"__\d+_\d+\.distcp")


@dataclass(frozen=True, slots=True)
class Files:
    """Of a trainer that writes its checkpoints itself. At a save: the files `names` in `folder` are this
    rank's part; when it returns they are copied. At a restore: `folder`, which is made, holds those of all
    ranks, at each rank.
    """

    folder: Path
    names: Collection[str] = ()

    def check(self) -> None:
        """Raises UnsavableState for one that cannot be kept."""
        for name in self.names:
            path = self.folder / name
            if Path(name).name != name or is_ours(name):
                raise UnsavableState(f"{path}: files have plain names, and not those of ours", path=str(path))
            if not path.is_file() or not path.stat().st_size:
                raise UnsavableState(
                    f"{path} is not a file with something in it",
                    hint="what is sharded into folders goes by run.save(step, model=..., optimizer=...)",
                    path=str(path),
                )

    def copy(self, write: Write) -> dict[str, Path]:
        """As images. Raises OSError."""
        images = {}
        for name in self.names:
            with (self.folder / name).open("rb") as file:
                images[name] = write(name, partial(shutil.copyfileobj, file, length=_CHUNK_BYTES))
        return images


def is_ours(name: str) -> bool:
    """A name that the checkpoint's own files have."""
    return name in (METADATA, manifest.NAME) or _OURS.fullmatch(name) is not None


def names_in(files: Collection[str]) -> frozenset[str]:
    """Of a manifest's files those that are another's."""
    return frozenset(name for name in files if not is_ours(name))


def link(folder: Path, sources: Mapping[str, Path]) -> None:
    """Under their names, where each has been verified: to be read now, for images are written to again."""
    folder.mkdir(parents=True)
    for name, source in sources.items():
        (folder / name).symlink_to(source)


def copy(folder: Path, sources: Mapping[str, Path]) -> None:
    """As `link`, for a reader that may keep them open or mapped as long as it likes."""
    folder.mkdir(parents=True)
    for name, source in sources.items():
        shutil.copyfile(source, folder / name)
