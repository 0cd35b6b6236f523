"""What each `distribution.type` adds to a task: variables of its ranks, files in its folder, what is run
before or around its command. All from StartTask alone; nothing else in this room knows one launcher from
another.

Code that must run inside the job is in training/ and is named here, never imported.
"""

import os
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import PurePath
from typing import Final

from ..proto.generated import agent_pb2

HOSTFILE: Final = "hostfile"

Variables = Callable[[agent_pb2.StartTask, int, Mapping[str, str]], dict[str, str]]
Files = Callable[[agent_pb2.StartTask], dict[str, str]]
Left = Callable[[agent_pb2.StartTask], list[str]]


def _no_variables(
    _request: agent_pb2.StartTask, _local_rank: int, _common: Mapping[str, str]
) -> dict[str, str]:
    return {}


def _no_files(_request: agent_pb2.StartTask) -> dict[str, str]:
    return {}


def _nothing(_request: agent_pb2.StartTask) -> list[str]:
    return []


@dataclass(frozen=True, slots=True)
class Launcher:
    """`variables(request, local rank, what all ranks of the task have)`: those of one rank."""

    variables: Variables = _no_variables
    files: Files = _no_files
    """Name -> text, written into the task's folder before the ranks start."""
    leaves: Left = _nothing
    """Paths of what its ranks leave elsewhere: removed when the last of them has ended."""
    prepared_by: str = ""
    """Module that each rank runs to its end before its command; it must exit with 0."""
    wrapped_by: str = ""
    """Module that is run in the command's place and is given its words."""
    store_is_optional: bool = False
    """Without torch in the environment the task runs all the same, and nothing serves the rendezvous."""


def _torchrun(request: agent_pb2.StartTask, local_rank: int, common: Mapping[str, str]) -> dict[str, str]:
    rank, restarts = str(request.first_rank + local_rank), str(max(0, request.task.attempt - 1))
    return {
        **_meeting_place(request),
        "RANK": rank,
        "LOCAL_RANK": str(local_rank),
        "WORLD_SIZE": str(request.world_size),
        "LOCAL_WORLD_SIZE": str(request.processes),
        "GROUP_RANK": str(request.node_rank),
        "GROUP_WORLD_SIZE": str(request.node_count),
        "ROLE_RANK": rank,
        "ROLE_WORLD_SIZE": str(request.world_size),
        "ROLE_NAME": "default",
        "TORCHELASTIC_RESTART_COUNT": restarts,
        "TORCHELASTIC_MAX_RESTARTS": restarts,
        "TORCHELASTIC_RUN_ID": str(request.task.job),
        "TORCH_NCCL_ASYNC_ERROR_HANDLING": common.get("TORCH_NCCL_ASYNC_ERROR_HANDLING", "1"),
    }


def _meeting_place(request: agent_pb2.StartTask) -> dict[str, str]:
    """Where rank 0's node serves a store: whoever asks torch for a group becomes a client of it."""
    return {
        "MASTER_ADDR": request.master_address,
        "MASTER_PORT": str(request.master_port),
        "TORCHELASTIC_USE_AGENT_STORE": "True",
    }


def _mpirun(request: agent_pb2.StartTask, local_rank: int, common: Mapping[str, str]) -> dict[str, str]:
    """Open MPI's, MPICH's (Hydra's) and the one that Azure adds. NODE_RANK is the rank among all processes on
    the node, as in Open MPI: the same as LOCAL_RANK with one job."""
    rank, size = str(request.first_rank + local_rank), str(request.world_size)
    local, local_size = str(local_rank), str(request.processes)
    return {
        **_meeting_place(request),
        "OMPI_COMM_WORLD_RANK": rank,
        "OMPI_COMM_WORLD_SIZE": size,
        "OMPI_COMM_WORLD_LOCAL_RANK": local,
        "OMPI_COMM_WORLD_LOCAL_SIZE": local_size,
        "OMPI_COMM_WORLD_NODE_RANK": local,
        "OMPI_UNIVERSE_SIZE": size,
        "PMI_RANK": rank,
        "PMI_SIZE": size,
        "MPI_LOCALRANKID": local,
        "MPI_LOCALNRANKS": local_size,
        "AZ_BATCH_MASTER_NODE": f"{request.master_address}:{request.master_port}",
    }


def _deepspeed(request: agent_pb2.StartTask, local_rank: int, common: Mapping[str, str]) -> dict[str, str]:
    """torchrun's, those of DeepSpeed's own launcher beyond them, and what it reads of this node. The hosts
    are for scripts that look them up; nothing here needs them."""
    folder = PurePath(common["PACELINE_TASK_FOLDER"])
    return {
        **_torchrun(request, local_rank, common),
        "CROSS_RANK": str(request.node_rank),
        "CROSS_SIZE": str(request.node_count),
        "LOCAL_SIZE": str(request.processes),
        "TORCH_EXTENSIONS_DIR": str(folder.parents[1] / "ops" / "tasks" / folder.name),
        **({} if request.gpu_indices or "DS_ACCELERATOR" in common else {"DS_ACCELERATOR": "cpu"}),
        **({"PACELINE_HOSTFILE": str(folder / HOSTFILE)} if request.hosts else {}),
    }


def _hostfile(request: agent_pb2.StartTask) -> dict[str, str]:
    """As DeepSpeed's launcher reads it: a node that has several tasks is named once."""
    counts = Counter(request.hosts)
    lines = (f"{host} slots={count * request.processes}\n" for host, count in counts.items())
    return {HOSTFILE: "".join(lines)} if request.hosts else {}


def _buffers(request: agent_pb2.StartTask) -> list[str]:
    """DeepSpeed's ranks on CPUs reduce through shared memory, 66 MiB each, which it names so and never
    removes (csrc/cpu/comm/shm.cpp); it may be used under torchrun's variables, too."""
    place = f"{os.getuid()}_{request.master_address}_{request.master_port}"
    ranks = range(request.first_rank, request.first_rank + request.processes)
    return [f"/dev/shm/deepspeed_allreduce_buffer_{place}_{rank}" for rank in ranks]


LAUNCHERS: Final = {
    "": Launcher(),
    "pytorch": Launcher(_torchrun, leaves=_buffers),
    "deepspeed": Launcher(
        _deepspeed, _hostfile, leaves=_buffers, prepared_by="paceline.training.deepspeed_ops"
    ),
    "mpi": Launcher(_mpirun, store_is_optional=True),
    "ray": Launcher(wrapped_by="paceline.training.ray_node"),
}
