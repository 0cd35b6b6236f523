"""Makes of a StartTask what a shim is to do where the ranks run in containers, one each.

Reads the file system, changes nothing. Inside are the same paths as outside: the working folder, the task's
and the job's, what inputs and checkpoints are named by, what variables of ours name; and `paceline` itself,
from the agent. A rank's variables come by a file that only this user can read; of the agent's own there is
none.
"""

import os
import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

from ..proto.generated import agent_pb2
from ..spec.ids import Attempt, JobId, TaskKey
from . import gpu_share
from .commands import plain_words
from .containers import Container, Engine, Mount, container_name, fault_in_path
from .evidence import began_path
from .kernel import CONTAINER, MARK
from .launch import (
    DEVICES,
    Launch,
    Refusal,
    Store,
    WarmKey,
    describe,
    devices_of,
    launcher_of,
    variables,
    working_folder,
)

OURS: Final = "/opt/paceline"
"""Where the package is inside; on PYTHONPATH."""
_SCRIPT: Final = """: > "$1"; shift
. "$0"
case "$(command -v "$2")" in */*) shift; exec "$@" ;; esac
command -v bash >/dev/null && exec bash -c "$1"
exec sh -c "$1"
"""
"""Given the variables' file, one that says that it has come so far, the command as it was written, and its
words where no shell need read it: a program takes this shell's place. Else bash reads it, as on the node
itself, where the image has bash."""
_VARIABLE: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_OF_THE_NODE: Final = ("PATH", "VIRTUAL_ENV", "TORCH_EXTENSIONS_DIR")
"""What a launcher or the node's interpreter would say; inside it is the image's."""
_STORE: Final = "TORCHELASTIC_USE_AGENT_STORE"


@dataclass(frozen=True, slots=True)
class Box:
    """What this node runs the ranks in: an image that is here."""

    engine: Engine
    image: str
    paths: tuple[str, ...] = ()
    """Further ones that are to be the same inside, where they are here."""
    limited: bool = False
    """This node limits tasks to what they ask for; containers are not in the task's own group."""


@dataclass(frozen=True, slots=True)
class Contained:
    """`files`: name -> text, for the task's folder; `folders`: to be made, for they are mounted."""

    launch: Launch
    files: Mapping[str, str]
    folders: tuple[str, ...]


def make_contained(
    request: agent_pb2.StartTask,
    folder: Path,
    box: Box,
    uuids: Mapping[int, str],
    *,
    base: Mapping[str, str],
    added: Mapping[str, str],
) -> Contained:
    """`base`: the environment in which the engine itself runs; `added`: variables beside those that every
    task has. Raises Refusal when the task cannot be started here."""
    cwd = working_folder(request, folder)
    launcher = launcher_of(request)
    if launcher.wrapped_by:
        raise Refusal(
            "no-container",
            f"distribution {request.launcher!r} starts its own cluster and does not run in a container",
            transient=False,
            hint="Name an environment that nodes map to an interpreter, or requirements.",
        )
    devices = _devices(request, uuids)
    environment = _variables(request, folder, cwd, devices) | dict(added)
    plain = plain_words(request.command)
    if plain is not None:
        environment.update(plain[0])
    document = {
        **describe(request, folder, launcher, environment, cwd),
        "client": {**base, MARK: environment[MARK]},
        "mode": "exec",
        "start_mode": f"cold: in a container of {box.engine.name}",
        "executable": box.engine.path,
        "argv": [box.engine.path],
        "python": None,
        "shell": plain is None,
        "prepare": None,
        "store": None,
    }
    words = [request.command, *(plain[1] if plain is not None else ())]
    common = Container(
        name="",
        image=box.image,
        cwd=cwd,
        mounts=_mounts(request, folder, cwd, box),
        gpus=devices,
        variables={MARK: environment[MARK]},
        shell_words=words,
        cpu_milli=request.resources.cpu_milli if box.limited else 0,
        memory_bytes=request.resources.memory_bytes if box.limited else 0,
    )
    files = {}
    for rank in document["ranks"]:
        rank["environment"] = _inside(rank["environment"])
        rank["container"] = container_name(folder.parent, key_of(request), rank["rank"])
        rank["argv"] = box.engine.run(_of_rank(common, rank, folder))
        files[_env_name(rank["rank"])] = _exports({**environment, **rank["environment"]})
    launch = Launch(document, WarmKey("", frozenset()), False, Store.NONE, "")
    return Contained(launch, files, (request.job_folder,))


def names_of(request: agent_pb2.StartTask, tasks: Path) -> list[str]:
    """Of the containers that its ranks have had."""
    ranks = range(request.first_rank, request.first_rank + request.processes)
    return [container_name(tasks, key_of(request), rank) for rank in ranks]


def key_of(request: agent_pb2.StartTask) -> TaskKey:
    return TaskKey(JobId(request.task.job), Attempt(request.task.attempt), request.task.task)


def _devices(request: agent_pb2.StartTask, uuids: Mapping[int, str]) -> list[str]:
    """The task's GPUs and slices by their uuids: inside they may have other numbers."""
    indices = devices_of(request, uuids)
    if unknown := [index for index in indices if index not in uuids]:
        text = f"the driver does not name GPU {unknown[0]}"
        raise Refusal("no-gpu", text, transient=True, hint="See `pace nodes`.")
    return [uuids[index] for index in indices]


def _variables(
    request: agent_pb2.StartTask, folder: Path, cwd: str, devices: Sequence[str]
) -> dict[str, str]:
    found = {
        name: text for name, text in variables(request, folder, {}, cwd).items() if _VARIABLE.fullmatch(name)
    }
    ours = [OURS, *filter(None, [found.get("PYTHONPATH", "")])]
    found["PYTHONPATH"] = os.pathsep.join(ours)
    if os.getuid():  # the image knows no home of this user
        found.setdefault("HOME", str(folder))
    if devices:
        found[DEVICES] = ",".join(devices)
        found |= gpu_share.variables(request, "", found)
    return found


def _of_rank(common: Container, rank: Mapping[str, Any], folder: Path) -> Container:
    number, slices = rank["rank"], rank["environment"].get(DEVICES)
    begins = ["-c", _SCRIPT, str(folder / _env_name(number)), began_path(str(folder), number)]
    return replace(
        common,
        name=rank["container"],
        gpus=[slices] if slices else common.gpus,
        variables={**common.variables, CONTAINER: rank["container"]},
        shell_words=[*begins, *common.shell_words],
    )


def _env_name(rank: int) -> str:
    return f"rank-{rank}.env"


def _inside(own: Mapping[str, str]) -> dict[str, str]:
    """A rank's own: in a container rank 0 serves the rendezvous itself, with the image's torch; the node may
    have another version, or none."""
    kept = {name: text for name, text in own.items() if name not in _OF_THE_NODE}
    return {**kept, **({_STORE: "False"} if _STORE in kept else {})}


def _exports(environment: Mapping[str, str]) -> str:
    return "".join(f"export {name}={shlex.quote(text)}\n" for name, text in environment.items())


def _mounts(request: agent_pb2.StartTask, folder: Path, cwd: str, box: Box) -> list[Mount]:
    """Those of the outermost first. Raises Refusal where a path cannot be one."""
    writable = dict.fromkeys((cwd, str(folder), request.job_folder), True)
    for path in _further(request, box):
        if not any(_is_below(path, other) for other in writable):
            writable[path] = False
    if fault := next(filter(None, map(fault_in_path, writable)), ""):
        raise Refusal("no-container", f"container: {fault}", transient=False)
    mounts = [Mount(path, path, may) for path, may in writable.items()]
    package = Mount(str(Path(__file__).parents[1]), f"{OURS}/paceline", False)
    return sorted([*mounts, package], key=lambda mount: (len(mount.target.split("/")), mount.target))


def _further(request: agent_pb2.StartTask, box: Box) -> Iterator[str]:
    """To be read. What a path does not lead to here, the command does not find inside either."""
    for path in (*box.paths, *(checkpoint.path for checkpoint in request.checkpoints)):
        if os.path.isabs(path) and os.path.exists(path):  # noqa: PTH110, PTH117
            yield os.path.normpath(path)


def _is_below(path: str, folder: str) -> bool:
    return os.path.commonpath((path, folder)) == os.path.normpath(folder)
