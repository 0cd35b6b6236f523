"""Core is pure: no clock, randomness, I/O, threads or logging; the pure parts of the library and spec.

A decision that looks at the world cannot be replayed, simulated or trusted: `now`, ids, seeds are arguments.
"""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest
from paceline.scheduler import core

ALLOWED = {
    "__future__",
    "bisect",
    "collections",
    "contextlib",
    "dataclasses",
    "enum",
    "fnmatch",
    "functools",
    "heapq",
    "itertools",
    "math",
    "msgspec",
    "numpy",
    "operator",
    "re",
    "statistics",
    "signal",  # names of signals only; see FORBIDDEN_NAMES
    "types",
    "typing",
}
FORBIDDEN_NAMES = {
    "open",
    "print",
    "input",
    "exec",
    "eval",
    "compile",
    "__import__",
    "breakpoint",
    "id",
    "hash",
}
FILES = sorted(Path(core.__file__).parent.glob("*.py"))


def offences(source: str) -> Iterator[str]:
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name.split(".")[0] not in ALLOWED)
        elif isinstance(node, ast.ImportFrom):
            yield from _offending_from(node)
        elif isinstance(node, ast.Name) and node.id in FORBIDDEN_NAMES:
            yield f"{node.id}() in line {node.lineno}"
        elif isinstance(node, ast.Global | ast.AsyncFunctionDef | ast.Await):
            yield f"{type(node).__name__} in line {node.lineno}"
        elif isinstance(node, ast.Attribute) and node.attr == "random":
            yield f".random in line {node.lineno}"


def _offending_from(node: ast.ImportFrom) -> Iterator[str]:
    module = node.module or ""
    if node.level == 0 and (module.split(".")[0] not in ALLOWED or (module == "signal" and _not_names(node))):
        yield f"from {module}"
    if node.level == 2:
        yield f"from ..{module}: core imports nothing else of the scheduler"
    if node.level == 3 and not module.startswith("spec."):
        yield f"from ...{module}: core imports spec only"


def _not_names(node: ast.ImportFrom) -> bool:
    return [alias.name for alias in node.names] != ["Signals"]


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_core_looks_at_nothing_but_its_arguments(path: Path) -> None:
    found = list(offences(path.read_text()))
    assert not found, (
        f"{path.name}: decisions must be replayable; `now`, ids and seeds are arguments: {found}"
    )


@pytest.mark.parametrize(
    "source",
    [
        "import time",
        "import random",
        "from datetime import datetime",
        "import logging",
        "from os import environ",
        "from signal import signal",
        "from ..store.base import Store",
        "from ...proto import v1",
        "open('x')",
        "print(1)",
        "import numpy as np\nnp.random.rand()",
        "async def f(): ...",
    ],
)
def test_the_ban_sees_what_it_must_see(source: str) -> None:
    assert list(offences(source))
