"""Where peers from PyPI are kept: a virtual environment each, in the user's cache folder."""

import os
import sys
from pathlib import Path

from .processes import run


def folder(name: str) -> Path:
    base = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return Path(base) / "paceline-benchmarks" / name


def interpreter(name: str) -> Path:
    return folder(name) / "bin" / "python"


def install(name: str, *packages: str) -> None:
    """Make the peer's environment anew, or bring it up to date."""
    run([sys.executable, "-m", "venv", str(folder(name))])
    run([str(interpreter(name)), "-m", "pip", "install", "-q", *packages], timeout_s=1800)
