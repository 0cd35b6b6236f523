"""The beat of training: every optimizer step and every report says that this rank moves.

What the script sees is unchanged but for one entry among torch's global optimizer hooks. Importing this costs
no torch. See proto/beats.py for the slot.
"""

import sys
from typing import Any

from ..proto.beats import BEAT

_watched: list[Any] = []


def watch_optimizers() -> None:
    """From now on each step of any torch optimizer in this process is a beat. Where torch is not imported yet
    (a cold start that calls `init` first) nothing happens: reports are beats too."""
    optimizer: Any = sys.modules.get("torch.optim.optimizer")
    if optimizer is None or _watched:
        return
    compiler: Any = sys.modules["torch"].compiler
    is_compiling, stepped = compiler.is_dynamo_compiling, BEAT.stepped

    def on_step(_optimizer: Any, _args: Any, _kwargs: Any) -> None:
        if is_compiling():  # being traced into a graph: nothing of ours belongs there
            return
        stepped()

    _watched.append(optimizer.register_optimizer_step_post_hook(on_step))
