"""The beat of training: every optimizer step and every report says that this rank moves, and how long it has
waited for its data.

What the script sees is unchanged but for one entry among torch's global optimizer hooks, and a wrapper around
the `__next__` of torch's data loaders. Importing this costs no torch. See proto/beats.py for the slot.
"""

import functools
import sys
import threading
from time import monotonic
from typing import Any

from ..proto.beats import BEAT
from .recorder import answer_collectives

_watched: list[Any] = []


def watch_training() -> bool:
    """From now on each step of any torch optimizer in this process is a beat, and waits for torch's data
    loaders are added up. False: torch is not imported yet (a cold start that calls `init` first, or a thread
    that is about to import it), and nothing has happened."""
    if _watched:
        return True
    compiler: Any = getattr(sys.modules.get("torch"), "compiler", None)
    optimizer: Any = sys.modules.get("torch.optim.optimizer")
    if compiler is None or optimizer is None:  # torch imports them in the other order
        return False
    is_compiling, stepped = compiler.is_dynamo_compiling, BEAT.stepped

    def on_step(_optimizer: Any, _args: Any, _kwargs: Any) -> None:
        if is_compiling():  # being traced into a graph: nothing of ours belongs there
            return
        stepped()

    _watched.append(optimizer.register_optimizer_step_post_hook(on_step))
    _watch_loaders()
    BEAT.on_open = answer_collectives
    return True


def _watch_loaders() -> None:
    """Only the main thread's waits are part of a step: others fetch ahead."""
    loaders: Any = sys.modules.get("torch.utils.data.dataloader")
    iterator: Any = getattr(loaders, "_BaseDataLoaderIter", None)
    if iterator is None or hasattr(iterator.__next__, "__wrapped__"):  # torch has moved it; it is watched
        return
    fetch, fetched, main = iterator.__next__, BEAT.fetched, threading.main_thread().ident

    @functools.wraps(fetch)
    def timed(self: Any) -> Any:
        since_s = monotonic()
        batch = fetch(self)
        if threading.get_ident() == main:
            fetched(monotonic() - since_s)
        return batch

    iterator.__next__ = timed
