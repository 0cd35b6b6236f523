"""The seam: an exporter is a module with `export(Wish) -> Exported`. It writes files and runs nothing."""

import re
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, Final, Protocol

from ...spec.errors import Conflict, InvalidRequest
from ...spec.problems import shown
from ..folder import Folder

EXPORTERS: Final = ("triton", "kserve", "vllm")
_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,254}\Z")


@dataclass(frozen=True, slots=True)
class Wish:
    """What to export, and to where."""

    folder: Folder
    name: str
    """Of the model, for its clients."""
    into: Path
    storage_uri: str = ""
    """Where the platform finds the model, for those that fetch it."""
    image: str = ""
    """A container image with Paceline, for models that only our own server serves."""

    def check(self) -> None:
        """Raises InvalidRequest, Conflict."""
        if not _NAME.match(self.name):
            raise InvalidRequest(
                f"expected a name of letters, digits, '.', '_' and '-'; found {shown(self.name)}"
            )
        if self.into.exists() and (not self.into.is_dir() or any(self.into.iterdir())):
            raise Conflict(f"{self.into} exists and is not an empty folder")


@dataclass(frozen=True, slots=True)
class Exported:
    """What was written, and what is left to do."""

    files: tuple[Path, ...]
    next: tuple[str, ...]


class Exporter(Protocol):
    """A module of this folder."""

    def export(self, wish: Wish) -> Exported:
        """Raises InvalidRequest for a model that the platform does not take."""


def export(to: str, wish: Wish) -> Exported:
    """Write for one of EXPORTERS. Raises InvalidRequest, Conflict."""
    wish.check()
    module: Any = import_module(f".{to}", __package__)
    exporter: Exporter = module
    return exporter.export(wish)
