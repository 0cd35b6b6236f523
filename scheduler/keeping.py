"""Files of jobs and users as trees of the content store: copied, hashed, and what they say of themselves.

In threads beside the loop, a few at a time; nothing is unpickled: of a model folder only its MLmodel is read.
"""

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from ..content.manifest import Manifest
from ..content.store import ContentStore
from ..spec.document import DOCUMENT_BYTES_MAX, parse
from ..spec.errors import InvalidRequest, StoreFailure
from ..spec.problems import InvalidDocument
from ..spec.submission import canonical
from .registry.assets import Content

AT_ONCE: Final = 2
MLMODEL: Final = "MLmodel"
_SIGNATURE_KEYS: Final = ("inputs", "outputs", "params")


@dataclass(frozen=True, slots=True)
class Kept:
    """A tree, and what its files say of it."""

    content: Content
    framework: str = ""
    signature: str = ""
    """JSON."""
    mlflow: bool = False
    """It is a model folder as MLflow writes them."""


class Keeper:
    """Used from the scheduler's event loop."""

    def __init__(self, store: ContentStore) -> None:
        self.store = store
        self._slots = asyncio.Semaphore(AT_ONCE)

    async def keep(self, path: Path) -> Kept:
        """Copy a folder or a file into the store. Raises InvalidRequest, LimitExceeded, StoreFailure."""
        async with self._slots:
            return await asyncio.to_thread(self._keep, path)

    async def look(self, tree: str) -> Kept:
        """What is kept already. Raises NotFound, InvalidRequest, StoreFailure."""
        return await asyncio.to_thread(self._look, tree)

    async def damage(self, tree: str) -> str:
        """What is wrong with its files; empty: each is there, and of its size."""
        return await asyncio.to_thread(self._damage, tree)

    def _keep(self, path: Path) -> Kept:
        if not path.exists():
            raise InvalidRequest(f"{path} is not there", hint="has the job written it?")
        try:
            return self._look(self.store.put_tree(path))
        except OSError as error:
            raise StoreFailure(f"cannot keep {path}: {error.strerror or error}") from error

    def _look(self, tree: str) -> Kept:
        self.store.has_tree(tree)  # it stays until it is registered
        manifest = self.store.manifest(tree)
        if not manifest.files:
            raise InvalidRequest("there are no files in it", hint="an asset has one file at least")
        alone = manifest.files[0].path if len(manifest.files) == 1 and not manifest.links else ""
        content = Content(
            tree, alone if "/" not in alone else "", size_bytes=manifest.size, files=len(manifest.files)
        )
        said = self._mlmodel(manifest)
        if said is None:
            return Kept(content)
        return Kept(content, _flavors(said), _signature(said), mlflow=True)

    def _mlmodel(self, manifest: Manifest) -> Mapping[str, Any] | None:
        """What its MLmodel says; nothing where it has none, or one that cannot be read."""
        found = next((entry for entry in manifest.files if entry.path == MLMODEL), None)
        if found is None or found.size > DOCUMENT_BYTES_MAX:
            return None
        with self.store.open(found.hash) as file:
            text = file.read()
        try:
            data = parse(text, MLMODEL).data
        except InvalidDocument:
            return None
        return data if isinstance(data, dict) else None

    def _damage(self, tree: str) -> str:
        try:
            manifest = self.store.manifest(tree)
        except (InvalidRequest, StoreFailure) as error:
            return error.message
        wrong = [entry.path for entry in manifest.files if not self._there(entry.hash, entry.size)]
        more = f" and {len(wrong) - 3} more" if len(wrong) > 3 else ""
        return f"not there any more, or cut short: {', '.join(wrong[:3])}{more}" if wrong else ""

    def _there(self, hash_: str, size: int) -> bool:
        try:
            return self.store.blob_path(hash_).stat().st_size == size
        except OSError:
            return False


def _flavors(said: Mapping[str, Any]) -> str:
    """The library that made it: its flavor that is not python_function, with the version where it says so."""
    flavors = said.get("flavors")
    if not isinstance(flavors, dict):
        return ""
    names = [name for name in flavors if name != "python_function"] or list(flavors)
    if not names:
        return ""
    about = flavors[names[0]]
    version = about.get(f"{names[0]}_version", "") if isinstance(about, dict) else ""
    return f"{names[0]} {version}".strip()[:200]


def _signature(said: Mapping[str, Any]) -> str:
    signature = said.get("signature")
    if not isinstance(signature, dict):
        return ""
    kept = {key: signature[key] for key in _SIGNATURE_KEYS if signature.get(key)}
    return canonical(kept) if kept else ""
