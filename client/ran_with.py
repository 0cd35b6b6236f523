"""What a job ran with, as its nodes recorded it: interpreter, packages, system, driver, GPUs; and how two
jobs differ in that.

A task says which record is its own; records and their lists of packages are read from the scheduler. Nodes
write them, so their form is checked here. What is missing is said, and is no error.
"""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final, NamedTuple

from ..spec.errors import InvalidRequest, PacelineError
from . import calls, content_calls, views
from .packing import Calling

RECORDS_MAX: Final = 64
"""Of one attempt: what is read of a gang on more nodes."""
_RECORD_BYTES_MAX: Final = 1 << 20
_PACKAGES_BYTES_MAX: Final = 16 << 20
_SYSTEM: Final = ("python", "implementation", "machine", "os", "kernel", "libc", "driver", "cuda")


@dataclass(frozen=True, slots=True)
class Package:
    name: str
    version: str
    origin: str = ""
    """Where it came from, of what was not taken from an index by its name: `git+https://...@COMMIT`, a file's
    URL, `editable file:///...`."""


@dataclass(frozen=True, slots=True)
class Device:
    """A GPU or a MIG slice that a task had."""

    index: int
    name: str
    uuid: str
    serial: str
    """Of the board; empty: the driver tells none."""
    slice_of: str
    """Of a slice, the uuid of its GPU."""


@dataclass(frozen=True, slots=True)
class RanWith:
    """What tasks of one attempt on one node ran with."""

    tasks: tuple[int, ...]
    node: str
    record: str
    problem: str = ""
    """Why something is not known."""
    paceline: str = ""
    """The agent's version."""
    interpreter: str = ""
    python: str = ""
    implementation: str = ""
    machine: str = ""
    kernel: str = ""
    os: str = ""
    libc: str = ""
    driver: str = ""
    cuda: str = ""
    """The newest that the driver can run."""
    gpus: tuple[Device, ...] = ()
    packages_hash: str = ""
    """The same of equal lists."""
    packages_count: int = 0
    """Of the list; `packages_left_out`: how many there are beyond it."""
    packages_left_out: int = 0
    packages: tuple[Package, ...] = ()

    def version_of(self, package: str) -> str:
        """Empty: it is not there."""
        return next((one.version for one in self.packages if one.name == package), "")

    @property
    def gpu_models(self) -> tuple[str, ...]:
        return tuple(sorted(gpu.name for gpu in self.gpus))


class Change(NamedTuple):
    """What is another in the one job and in the other; empty: it is not there."""

    name: str
    old: str
    new: str


@dataclass(frozen=True, slots=True)
class Difference:
    """How what two jobs ran with differs; `unknown`: what cannot be compared."""

    job: int
    against: int
    system: tuple[Change, ...]
    packages: tuple[Change, ...]
    unknown: tuple[str, ...]


class _Place(NamedTuple):
    task: int
    node: str
    record: str
    gpu_indices: Sequence[int]


def ran_with(job: int | views.Job, attempt: int = 0) -> Calling[tuple[RanWith, ...]]:
    """Of the last attempt, or of that one. Raises NotFound: the job; InvalidRequest: the attempt."""
    found: views.Job = job if isinstance(job, views.Job) else (yield calls.job(job))
    if attempt in (0, found.attempt):
        places = [_Place(task.task, task.node, task.record, task.gpu_indices) for task in found.tasks]
        return (yield from _of_places(places))
    if not 0 < attempt <= found.attempt:
        raise InvalidRequest(
            f"job {found.job} has no attempt {attempt}", hint=f"it has had {found.attempt} by now"
        )
    told: views.Timeline = yield calls.timeline(found.job)
    return (yield from _of_places(list(_places_of(told.entries, attempt))))


def differences(job: int, against: int) -> Calling[Difference]:
    """From what `against` ran with to what `job` did. Raises NotFound."""
    old: tuple[RanWith, ...] = yield from ran_with(against)
    new: tuple[RanWith, ...] = yield from ran_with(job)
    system: dict[Change, None] = {}
    packages: dict[Change, None] = {}
    unknown: dict[str, None] = {}
    for number, sides in ((against, old), (job, new)):
        if not sides:
            unknown[f"what job {number} ran with is not recorded"] = None
        unknown |= {f"job {number}: {one.problem}": None for one in sides if one.problem}
    for before, after in _pairs(old, new):
        system |= dict.fromkeys(_system_changes(before, after))
        if before.packages_hash and after.packages_hash:
            packages |= dict.fromkeys(package_changes(before.packages, after.packages))
    return Difference(job, against, tuple(system), tuple(packages), tuple(unknown))


def package_changes(old: Iterable[Package], new: Iterable[Package]) -> Iterator[Change]:
    """By name."""
    before, after = ({one.name: _version_text(one) for one in side} for side in (old, new))
    for name in sorted({*before, *after}, key=str.lower):
        if before.get(name) != after.get(name):
            yield Change(name, before.get(name, ""), after.get(name, ""))


def _version_text(package: Package) -> str:
    return f"{package.version} ({package.origin})" if package.origin else package.version


def _system_changes(old: RanWith, new: RanWith) -> Iterator[Change]:
    for name in _SYSTEM:
        before, after = getattr(old, name), getattr(new, name)
        if before != after:
            yield Change(name, before, after)
    if old.gpu_models != new.gpu_models:
        yield Change("gpus", ", ".join(old.gpu_models), ", ".join(new.gpu_models))


def _pairs(old: Sequence[RanWith], new: Sequence[RanWith]) -> Iterator[tuple[RanWith, RanWith]]:
    """Of the same tasks; of a gang of another size, those that both had."""
    after = {task: one for one in new for task in one.tasks}
    for one in old:
        for task in one.tasks:
            if task in after:
                yield one, after[task]


def _places_of(entries: Iterable[views.TimelineEntry], attempt: int) -> Iterator[_Place]:
    places: list[dict[str, Any]] = []
    for entry in entries:
        if entry.attempt != attempt or entry.kind not in ("AttemptStarted", "TaskStarted"):
            continue
        said = json.loads(entry.body)
        if entry.kind == "AttemptStarted":
            places = said["places"]
        elif (task := said["task"]["task"]) < len(places):
            indices = places[task].get("gpu_indices", ())
            yield _Place(task, places[task]["node"], said.get("record", ""), indices)


def _of_places(places: Sequence[_Place]) -> Calling[tuple[RanWith, ...]]:
    together: dict[tuple[str, str], list[_Place]] = {}
    for place in places:
        if place.record:
            together.setdefault((place.node, place.record), []).append(place)
    found = []
    lists: dict[str, tuple[Package, ...]] = {}
    for (node, record), those in list(together.items())[:RECORDS_MAX]:
        tasks = tuple(place.task for place in those)
        indices = {index for place in those for index in place.gpu_indices}
        try:
            said = _parsed((yield from content_calls.read(record, _RECORD_BYTES_MAX)))
            one = _record(said, RanWith(tasks, node, record), indices)
            if one.packages_hash and one.packages_hash not in lists:
                text = yield from content_calls.read(one.packages_hash, _PACKAGES_BYTES_MAX)
                lists[one.packages_hash] = _packages(text)
            found.append(replace(one, packages=lists.get(one.packages_hash, ())))
        except (PacelineError, ValueError, KeyError, TypeError) as error:
            found.append(RanWith(tasks, node, record, f"record {record[:12]} cannot be read: {error}"))
    return tuple(found)


def _parsed(text: bytes) -> Mapping[str, Any]:
    """Raises ValueError."""
    said = json.loads(text)
    if not isinstance(said, dict) or said.get("version") != 1:
        raise ValueError("it was written by another version")
    return said


def _record(said: Mapping[str, Any], of: RanWith, gpu_indices: set[int]) -> RanWith:
    """Raises KeyError, TypeError, ValueError."""
    texts: dict[str, Any] = {
        name: str(said[name]) for name in ("problem", "paceline", "interpreter", *_SYSTEM)
    }
    return replace(
        of,
        **texts,
        gpus=tuple(_device(one) for one in said["gpus"] if one["index"] in gpu_indices),
        packages_hash=str(said["packages"]),
        packages_count=int(said["packages_count"]),
        packages_left_out=int(said["packages_left_out"]),
    )


def _device(said: Mapping[str, Any]) -> Device:
    texts = (str(said[name]) for name in ("name", "uuid", "serial", "slice_of"))
    return Device(int(said["index"]), *texts)


def _packages(text: bytes) -> tuple[Package, ...]:
    """Raises TypeError, ValueError."""
    return tuple(Package(str(name), str(version), str(origin)) for name, version, origin in json.loads(text))
