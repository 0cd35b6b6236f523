"""The packages that a job ran with, as requirements: so that another run is given the same ones."""

import re
from collections.abc import Iterable, Iterator
from typing import Final

from ..spec.job import JobSpec
from ..spec.parts import Environment
from ..spec.requirements import REQUIREMENTS_MAX, fault_of
from .ran_with import Package, RanWith

_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_PINNED: Final = re.compile(r"[^=<>!~]+(===?[^*]+|@.+)")
_INSTALLERS: Final = frozenset(["pip", "setuptools", "wheel"])
"""That a new environment may have by itself."""


def pinned_to(spec: JobSpec, ran: RanWith) -> JobSpec:
    """The same job, whose environment is built with the recorded versions of all packages and that Python.
    Itself where it builds none, where nothing is recorded, or where its lines say as much already."""
    built = spec.environment
    if not isinstance(built, Environment) or not built.is_built or not ran.packages or ran.packages_left_out:
        return spec
    lines = tuple(map(str, built.requirements or ()))
    if any("--hash" in line for line in lines):  # then all have versions
        return spec
    pins = tuple(_pins(ran.packages, {_plain(name) for name in map(_named, lines) if name}))
    options = tuple(line for line in lines if line.startswith("-"))
    asked = tuple(line for line in lines if not line.startswith("-"))
    python = ".".join(ran.python.split(".")[:2])
    if len(pins) + len(options) > REQUIREMENTS_MAX or any(map(fault_of, pins)):
        return spec
    wanted = lines if set(pins) == set(asked) else (*options, *pins)
    changes = {"requirements": wanted, "python_version": python}
    return spec.with_environment(built.model_copy(update=changes))


def loose_lines(spec: JobSpec) -> tuple[str, ...]:
    """Requirements of its own that name no version."""
    built = spec.environment
    lines = map(str, built.requirements or ()) if isinstance(built, Environment) and built.is_built else ()
    return tuple(
        line
        for line in lines
        if not line.startswith("-") and not _PINNED.fullmatch(line.partition(";")[0].strip())
    )


def _pins(packages: Iterable[Package], asked: set[str]) -> Iterator[str]:
    for one in packages:
        if _plain(one.name) in _INSTALLERS - asked:
            continue
        yield f"{one.name} @ {one.origin}" if one.origin else f"{one.name}=={one.version}"


def _named(line: str) -> str:
    found = _NAME.match(line)
    return found[0] if found else ""


def _plain(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()
