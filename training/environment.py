"""Where this process stands: its rank in the gang, its job, its folders.

Parsed once, in `read_environment`; nothing else in the room reads variables. The ranks' variables are
torchrun's, so that the same script runs under Paceline, `torchrun` and plain `python`; PACELINE_* say
whether there is an agent. Laws of contributing/contracts.md, "What a rank sees".
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType

from .errors import InvalidEnvironment

Param = str | int | float | bool | None


@dataclass(frozen=True, slots=True)
class Environment:
    """A process's place. Outside Paceline `job` is 0 and both folders are None."""

    rank: int = 0
    local_rank: int = 0
    world_size: int = 1
    local_world_size: int = 1
    node_rank: int = 0
    node_count: int = 1
    job: int = 0
    attempt: int = 0
    job_name: str = ""
    task_folder: Path | None = None
    job_folder: Path | None = None
    memory_folder: Path | None = None
    """In shared memory, of this job on this node; the agent removes it when the job has left. Outside
    Paceline a user may name one, which then is theirs to remove.
    """

    params: Mapping[str, Param] = field(default_factory=lambda: MappingProxyType({}))
    """The values of a sweep's trial, by name."""

    @property
    def managed(self) -> bool:
        """True inside Paceline: a shim listens in the task's folder."""
        return self.task_folder is not None

    def checkpoints(self) -> Path:
        """Inside Paceline: the folder of the job's. Raises InvalidEnvironment."""
        if self.job_folder is None:
            raise InvalidEnvironment(
                "PACELINE_TASK_FOLDER is set, but PACELINE_JOB_FOLDER is not",
                hint="both are set by the agent; a script that cleans its environment must keep them",
            )
        return self.job_folder / "checkpoints"


def read_environment(variables: Mapping[str, str]) -> Environment:
    """Read torchrun's variables and Paceline's; without them, this is the one process of its run.

    Raises InvalidEnvironment when a variable is there but is not what it must be.
    """
    task = _integer(variables, "PACELINE_TASK", 0)
    world_size = _integer(variables, "WORLD_SIZE", 1) if "RANK" in variables else 1
    rank = _integer(variables, "RANK", 0)
    if not 0 <= rank < world_size:
        raise InvalidEnvironment(
            f"RANK is {rank} and WORLD_SIZE is {world_size}: a rank lies between 0 and WORLD_SIZE - 1",
            hint="unset both for a single process, or start with torchrun or `pace submit`, which set them",
            rank=rank,
            world_size=world_size,
        )
    local_world_size = _integer(variables, "LOCAL_WORLD_SIZE", 1)
    return Environment(
        rank=rank,
        local_rank=_integer(variables, "LOCAL_RANK", 0),
        world_size=world_size,
        local_world_size=local_world_size,
        node_rank=_integer(variables, "GROUP_RANK", task),
        node_count=_integer(variables, "GROUP_WORLD_SIZE", max(1, world_size // max(1, local_world_size))),
        job=_integer(variables, "PACELINE_JOB", 0),
        attempt=_integer(variables, "PACELINE_ATTEMPT", 0),
        job_name=variables.get("PACELINE_JOB_NAME", ""),
        task_folder=_folder(variables, "PACELINE_TASK_FOLDER"),
        job_folder=_folder(variables, "PACELINE_JOB_FOLDER"),
        memory_folder=_folder(variables, "PACELINE_MEMORY_FOLDER"),
        params=_params(variables.get("PACELINE_PARAMS", "")),
    )


def _integer(variables: Mapping[str, str], name: str, default: int) -> int:
    text = variables.get(name, "")
    if not text:
        return default
    try:
        return int(text)
    except ValueError:
        raise InvalidEnvironment(
            f"{name} is {text!r}, expected a whole number",
            hint=f"{name} is set by the launcher (torchrun, Paceline); do not set it to anything else",
            name=name,
        ) from None


def _params(text: str) -> Mapping[str, Param]:
    try:
        found = json.loads(text) if text else {}
    except ValueError:
        found = None
    if not isinstance(found, dict):
        raise InvalidEnvironment(
            f"PACELINE_PARAMS is {text[:60]!r}, expected a JSON object of names and values",
            hint='set it to such as {"lr": 0.01}, or leave it unset',
            name="PACELINE_PARAMS",
        )
    return MappingProxyType(found)


def _folder(variables: Mapping[str, str], name: str) -> Path | None:
    text = variables.get(name, "")
    return Path(text) if text else None
