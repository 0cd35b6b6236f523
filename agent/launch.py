"""Makes of a StartTask what a shim is to do: warm or cold, and the environment of the ranks.

Reads the file system, changes nothing. Warm is only what a fork can do exactly as a fresh interpreter would;
for everything else the reason is part of the start mode.
"""

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from enum import Enum
from functools import lru_cache
from pathlib import Path
from typing import Any, Final

from ..proto.generated import agent_pb2
from ..proto.marks import mark_of
from ..spec.errors import PacelineError
from ..spec.slices import index_text, is_slice
from . import flight_recorder, gpu_share, torch_headers
from .commands import parse, script_folder, wrapped
from .evidence import ERROR_FILE, error_path
from .launchers import LAUNCHERS, Launcher
from .stillness import Patience

PRELOAD: Final = ("@paceline.training.preload",)
"""What warm processes import; "@" stands for the names in that module's MODULES, read by the zygote."""
DEVICES: Final = "CUDA_VISIBLE_DEVICES"

# Read when the interpreter, the C library or torch is loaded: another value needs another zygote.
_SENSITIVE: Final = re.compile(
    r"PYTHON(?!UNBUFFERED$)\w*|LD_\w+|MALLOC_\w+|GLIBC_TUNABLES|MIMALLOC_\w+|JEMALLOC_\w+|LANG|LC_\w+|HOME"
    r"|TORCH_(?!NCCL_|FR_)\w+|PYTORCH_\w+|TORCHDYNAMO_\w+|TORCHINDUCTOR_\w+|ATEN_\w+|OPENBLAS_\w+|MKL_\w+|KMP_\w+"
    r"|GOMP_\w+|OMP_(?!NUM_THREADS$)\w+|DNNL_\w+|ONEDNN_\w+|NPY_\w+|NUMPY_\w+"
)


class Refusal(PacelineError):
    """This node does not start the task. `transient`: the node's fault or a race; another try may go well."""

    code = "start-refused"

    def __init__(self, code: str, message: str, *, transient: bool, hint: str = "", **fields: object) -> None:
        super().__init__(message, hint=hint, **fields)
        self.reason_code = code
        self.transient = transient


@dataclass(frozen=True, slots=True)
class WarmKey:
    """What a zygote was made for: nothing else may be forked from it."""

    interpreter: str
    sensitive: frozenset[tuple[str, str]]


class Store(Enum):
    """Whether this task serves the gang's rendezvous."""

    NONE = "none"
    OPTIONAL = "where torch is there"
    NEEDED = "needed"


@dataclass(frozen=True, slots=True)
class Launch:
    """`document` becomes launch.json. `warm_key` names the zygote that could run it; `store`: whether the
    rendezvous is served here, for which torch is needed even when the start is cold. `script_folder` is where
    the script imports from first."""

    document: dict[str, Any]
    warm_key: WarmKey
    warm: bool
    store: Store
    script_folder: str

    def cold(self, why: str) -> "Launch":
        """The same, exec'd."""
        document = {**self.document, "mode": "exec", "start_mode": f"cold: {why}"}
        return replace(self, document=document, warm=False)

    def without_store(self) -> "Launch":
        """The same, with nobody to serve the rendezvous."""
        return replace(self, document={**self.document, "store": None}, store=Store.NONE)


def base_environment(environment: Mapping[str, str]) -> dict[str, str]:
    """What tasks inherit of the agent's own environment: all but what is Paceline's (tokens above all)."""
    return {name: value for name, value in environment.items() if not name.startswith("PACELINE_")}


def make_launch(
    request: agent_pb2.StartTask,
    folder: Path,
    interpreter: str,
    base: Mapping[str, str],
    uuids: Mapping[int, str],
    *,
    warm: bool,
) -> Launch:
    """`uuids`: of the GPUs and slices here, by index. Raises Refusal when the task cannot be started here."""
    cwd = working_folder(request, folder)
    launcher = launcher_of(request)
    environment = variables(request, folder, base, cwd, interpreter)
    path = request.environment.get("PATH") or base.get("PATH") or os.defpath
    environment |= _of_interpreter(request, interpreter, environment, path)
    if request.gpu_indices:
        devices = devices_of(request, uuids)
        environment[DEVICES] = ",".join(uuids[index] if is_slice(index) else str(index) for index in devices)
    command = parse(request.command, interpreter, environment, cwd)
    environment.update(command.assignments)
    if launcher.wrapped_by:
        command = wrapped(command, launcher.wrapped_by, interpreter)
    cold = command.cold or ("" if warm else "warm starts are turned off on this node")
    document = {
        **describe(request, folder, launcher, environment, cwd),
        "mode": "exec" if cold else "warm",
        "start_mode": f"cold: {cold}" if cold else "warm",
        "executable": command.executable,
        "argv": command.argv,
        "python": command.python,
        "shell": command.shell,
        "prepare": [interpreter, "-P", "-m", launcher.prepared_by] if launcher.prepared_by else None,
    }
    sensitive = frozenset(item for item in environment.items() if is_sensitive(item[0]))
    imports_from = script_folder(command.python, cwd) if command.python else ""
    return Launch(
        document, WarmKey(interpreter, sensitive), not cold, _store(request, launcher), imports_from
    )


def working_folder(request: agent_pb2.StartTask, folder: Path) -> str:
    """Where its command runs. Raises Refusal when that is not here."""
    if request.cwd and not os.path.isdir(request.cwd):  # noqa: PTH112
        raise Refusal(
            "no-working-folder",
            f"the working folder {request.cwd} is not on this node",
            transient=False,
            hint="The job's code must lie on a path that every node sees.",
            cwd=request.cwd,
        )
    return request.cwd or str(folder)


def launcher_of(request: agent_pb2.StartTask) -> Launcher:
    """What `distribution.type` asks for. Raises Refusal where this agent does not know it."""
    if request.launcher in LAUNCHERS:
        return LAUNCHERS[request.launcher]
    known = ", ".join(filter(None, LAUNCHERS))
    raise Refusal(
        "no-launcher",
        f"this node's agent has no launcher {request.launcher!r}; it has {known}",
        transient=True,
        hint="Bring the agent to the scheduler's version.",
        launcher=request.launcher,
    )


def describe(
    request: agent_pb2.StartTask,
    folder: Path,
    launcher: Launcher,
    environment: Mapping[str, str],
    cwd: str,
) -> dict[str, Any]:
    """What launch.json says however the ranks are started."""
    return {
        "mark": mark_of(folder),
        "client": None,
        "cwd": cwd,
        "environment": environment,
        "ranks": [
            _rank(request, folder, launcher, local_rank, environment)
            for local_rank in range(request.processes)
        ],
        "node_count": request.node_count,
        "world_size": request.world_size,
        "grace_s": request.grace_s,
        "timeout_s": request.timeout_s,
        "exclusive": request.exclusive,
        "log_bytes_max": request.log_bytes_max,
        "metric_patterns": dict(request.metric_patterns) if request.first_rank == 0 else {},
        "store": {"address": request.master_address, "port": request.master_port}
        if request.hosts_rendezvous
        else None,
        "cgroup": None,
        "leaves": launcher.leaves(request),
    }


def variables(
    request: agent_pb2.StartTask, folder: Path, base: Mapping[str, str], cwd: str, interpreter: str = ""
) -> dict[str, str]:
    """What all ranks of the task have in common: over `base` what the user has set, over that what is ours.
    `interpreter`: empty where its torch cannot be looked at."""
    user = request.environment
    mine = {
        "PWD": cwd,
        "PACELINE_JOB": str(request.task.job),
        "PACELINE_ATTEMPT": str(request.task.attempt),
        "PACELINE_TASK": str(request.task.task),
        "PACELINE_JOB_NAME": request.job_name,
        "PACELINE_TASK_FOLDER": str(folder),
        "PACELINE_JOB_FOLDER": request.job_folder,
        "PACELINE_MARK": mark_of(folder),
    }
    merged = {"PYTHONUNBUFFERED": "1", **_mlflow(request.job_folder), **base, **user, **mine}
    if request.processes > 1:
        merged.setdefault("OMP_NUM_THREADS", "1")
    if request.gpu_indices:
        merged.setdefault("CUDA_DEVICE_ORDER", "PCI_BUS_ID")  # the order in which NVML counts them
    elif DEVICES not in user:
        merged[DEVICES] = ""  # none was given: those of others are not to be seen
    if request.master_port:
        header = torch_headers.FLIGHT_RECORDER
        new = torch_headers.understands(interpreter, header, flight_recorder.SIZE)
        old = bool(request.gpu_indices) and not new  # what asks gloo goes by the new names anyway
        merged |= flight_recorder.variables(
            str(folder), request.job_folder, request.task.attempt, merged, old_names=old
        )
    return merged


def devices_of(request: agent_pb2.StartTask, uuids: Mapping[int, str]) -> Sequence[int]:
    """The task's GPUs and slices, by index: whole GPUs as NVML counts them; slices have no numbers there.
    Raises Refusal when one is gone."""
    gone = [index for index in request.gpu_indices if is_slice(index) and index not in uuids]
    if gone:
        raise Refusal(
            "no-slice",
            f"the MIG slice {index_text(gone[0])} is no longer on this node",
            transient=True,
            hint="The layout of its GPU has changed meanwhile.",
        )
    return request.gpu_indices


def patience_for(request: agent_pb2.StartTask, usual: Patience) -> Patience:
    """After each attempt that was taken for hung, the next is given twice the time: what looked like a hang
    may have been work that comes again."""
    times = 2.0 ** min(request.earlier_hangs, 10)
    trained = bool(request.checkpoints)
    return Patience(request.hang_timeout_s, usual.idle_s * times, usual.busy_s * times, trained)


@lru_cache(maxsize=4096)
def is_sensitive(name: str) -> bool:
    """True when a process must have been started with this variable for it to have its effect."""
    return _SENSITIVE.fullmatch(name) is not None


def shadowing(folder: str, shadowable: frozenset[str]) -> str:
    """Name of a file there that a fresh interpreter would import instead of what the zygote has imported."""
    try:
        entries = sorted(os.listdir(folder))  # noqa: PTH208
    except OSError:  # the script will not be found either, and the interpreter says so
        return ""
    for entry in entries:
        if entry.partition(".")[0] not in shadowable:
            continue
        if entry.endswith((".py", ".so", ".pyc")) or Path(folder, entry, "__init__.py").exists():
            return entry
    return ""


def _store(request: agent_pb2.StartTask, launcher: Launcher) -> Store:
    if not request.hosts_rendezvous:
        return Store.NONE
    return Store.OPTIONAL if launcher.store_is_optional else Store.NEEDED


def _of_interpreter(
    request: agent_pb2.StartTask, interpreter: str, environment: Mapping[str, str], path: str
) -> dict[str, str]:
    """Beside those, what ranks have that run in one of this node's."""
    home = Path(interpreter).parent
    found = {"PATH": f"{home}:{path}"}
    if (home.parent / "pyvenv.cfg").exists():
        found["VIRTUAL_ENV"] = str(home.parent)
    if request.gpu_indices:
        found |= gpu_share.variables(request, interpreter, environment)
    return found


def _mlflow(folder: str) -> dict[str, str]:
    """Where a script uses mlflow, its files are kept with the job's and not with the code. Newer versions
    take a folder only when they are told so."""
    return {"MLFLOW_TRACKING_URI": Path(folder, "mlflow").as_uri(), "MLFLOW_ALLOW_FILE_STORE": "true"}


def _rank(
    request: agent_pb2.StartTask,
    folder: Path,
    launcher: Launcher,
    local_rank: int,
    environment: Mapping[str, str],
) -> dict[str, Any]:
    """A rank's own variables: its launcher's, where it may record its error, and its slice of a GPU: of those
    that a process may see, CUDA gives it the first alone."""
    rank = request.first_rank + local_rank
    own = launcher.variables(request, local_rank, environment)
    if request.processes > 1 and any(map(is_slice, request.gpu_indices)):
        devices = environment[DEVICES].split(",")
        own = {**own, DEVICES: devices[local_rank % len(devices)]}
    return {"rank": rank, "environment": {**own, ERROR_FILE: error_path(str(folder), rank)}}
