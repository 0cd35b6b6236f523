"""A model folder's own code, imported as a script beside its neighbours would be."""

import importlib.util
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

from ...spec.errors import InvalidRequest


def import_file(folder: Path, file: str) -> ModuleType:
    """The module in `folder/file`; what lies beside it can be imported by it."""
    path = folder / file
    if not path.is_file():
        raise InvalidRequest(f"{folder} has no file {file}")
    if (home := str(path.parent)) not in sys.path:
        sys.path.insert(0, home)
    spec = importlib.util.spec_from_file_location(path.stem, path)
    if spec is None or spec.loader is None:
        raise InvalidRequest(f"{path} is not Python")
    module = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = module  # as any import does: pickles and dataclasses look there
    spec.loader.exec_module(module)
    return module


def import_entry(folder: Path, entry: str) -> Any:
    """What `FILE.py:NAME` names."""
    file, _, name = entry.partition(":")
    module = import_file(folder, file)
    if not hasattr(module, name):
        raise InvalidRequest(f"{folder / file} has no {name!r}")
    return getattr(module, name)
