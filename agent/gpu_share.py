"""What the ranks of a task are told that has a share of one GPU.

torch is asked to keep within that share of the GPU's memory, where it can be asked so by the environment: an
older one stops at words that it does not know (pytorch/pytorch#161035 taught it these).
"""

from collections.abc import Mapping
from typing import Final

from ..proto.generated import agent_pb2
from ..spec.resources import WHOLE_GPU_MILLI
from . import torch_headers

ALLOC_CONF: Final = "PYTORCH_ALLOC_CONF"
_OTHER_NAMES: Final = ("PYTORCH_CUDA_ALLOC_CONF", "PYTORCH_HIP_ALLOC_CONF")
_FRACTION: Final = "per_process_memory_fraction"


def variables(
    request: agent_pb2.StartTask, interpreter: str, environment: Mapping[str, str]
) -> dict[str, str]:
    """`environment`: what the user or the agent has said already, which stands; `interpreter`: empty where
    its torch cannot be looked at."""
    share = request.resources.gpu_milli / WHOLE_GPU_MILLI
    if not share:
        return {}
    told = {"PACELINE_GPU_SHARE": f"{share:g}"}
    said = any(name in environment for name in (ALLOC_CONF, *_OTHER_NAMES))
    if not said and torch_headers.understands(interpreter, torch_headers.ALLOCATOR, _FRACTION):
        told[ALLOC_CONF] = f"{_FRACTION}:{share / max(1, request.processes):.4g}"
    return told
