"""Files that say what an environment holds: requirements.txt, and what is such lines in a conda file."""

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Final

from .document import Document, parse
from .problems import InvalidDocument, Problem, escaped, shown
from .requirements import REQUIREMENTS_MAX, bare, fault_of

_DEPTH_MAX: Final = 8
_INCLUDES: Final = re.compile(r"(?:-r|--requirement)[ =]*(.+)")
_PYTHON: Final = re.compile(r"python\s*(?:={1,2}\s*(3\.\d{1,3})(?:\.[\d*]+)*)?")

Read = Callable[[str], str]
"""The text of a file that a document names. Raises InvalidRequest."""


@dataclass(frozen=True, slots=True)
class Wanted:
    """What is to be installed, for which Python; an empty version: the node's own."""

    lines: tuple[str, ...]
    python_version: str = ""


def read_requirements(path: str, read: Read) -> tuple[str, ...]:
    """The lines of a requirements file, those of files that it includes in their place. Raises
    InvalidDocument and what `read` raises."""
    lines = tuple(dict.fromkeys(_lines(path, read, 0)))
    if len(lines) > REQUIREMENTS_MAX:
        text = f"expected at most {REQUIREMENTS_MAX} requirements; found {len(lines)}"
        raise InvalidDocument([Problem(escaped(path), 0, 0, "requirements", text)])
    return lines


def read_conda(data: Any, read: Read) -> Wanted:
    """Python's version and the pip section of a conda file, or of what stands there in its stead. Raises
    InvalidDocument and what `read` raises."""
    document = parse(read(data), data) if isinstance(data, str) else Document(data, "conda_file")
    problems = list(_conda_problems(document))
    if problems:
        raise InvalidDocument(problems)
    lines: list[str] = []
    version = ""
    for one in document.data.get("dependencies") or ():
        if isinstance(one, dict):
            lines += filter(None, map(bare, one["pip"] or ()))
        elif (found := _PYTHON.fullmatch(one.strip())) and found[1]:
            version = found[1]
    return Wanted(tuple(dict.fromkeys(lines)), version)


def _conda_problems(document: Document) -> Iterator[Problem]:
    data = document.data
    if not isinstance(data, dict) or not isinstance(data.get("dependencies") or [], list):
        yield document.problem((), "expected a conda environment: a mapping with a list of dependencies")
        return
    for place, one in enumerate(data.get("dependencies") or ()):
        path = ("dependencies", place)
        if isinstance(one, dict) and set(one) == {"pip"} and isinstance(one["pip"] or [], list):
            for row, line in enumerate(one["pip"] or ()):
                fault = (
                    fault_of(bare(line)) if isinstance(line, str) else f"expected a text; found {shown(line)}"
                )
                if fault:
                    yield document.problem((*path, "pip", row), fault)
        elif not isinstance(one, str) or not (_PYTHON.fullmatch(one.strip()) or _is_pip(one)):
            text = f"{shown(one)}: conda installs nothing here; expected python=3.N, pip or a pip section"
            yield document.problem(path, text)


def _is_pip(text: str) -> bool:
    return re.fullmatch(r"pip\s*([=<>!~ ].*)?", text.strip()) is not None


def _lines(path: str, read: Read, depth: int) -> Iterator[str]:
    if depth > _DEPTH_MAX:
        raise InvalidDocument([Problem(escaped(path), 0, 0, "", "requirements that include each other")])
    number, begun = 0, ""
    for number, raw in enumerate(read(path).splitlines(), 1):
        if raw.rstrip().endswith("\\"):
            begun += raw.rstrip()[:-1] + " "
            continue
        line, begun = bare(begun + raw), ""
        if not line:
            continue
        if included := _INCLUDES.fullmatch(line):
            yield from _lines(_beside(path, included[1].strip()), read, depth + 1)
        elif fault := fault_of(line):
            raise InvalidDocument([Problem(escaped(path), number, 1, "", fault)])
        else:
            yield line


def _beside(path: str, other: str) -> str:
    return other if other.startswith("/") else path.rpartition("/")[0] + "/" + other
