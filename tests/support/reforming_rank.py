"""What ranks of the tests do when their gang is formed anew in the same processes."""

import os
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from paceline.training.errors import GangLost
from paceline.training.handing import hand
from paceline.training.peers import CALLBACK_FAILED, Peers, _connections
from torch import distributed, nn
from torch.nn.parallel import DistributedDataParallel


def _meet(port: int) -> Peers:
    """Each attempt has a store of its own: torch puts an attempt's keys under no prefix."""
    os.environ |= {
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "TORCHELASTIC_USE_AGENT_STORE": "True",
    }
    return Peers("cpu")


def _leave_the_pool() -> None:
    """The pool made a group; this rank makes its own."""
    distributed.barrier()
    distributed.destroy_process_group()


def reforms(ports: Sequence[int]) -> list[tuple[int, int]]:
    """Form, train a step, leave, again and again: (threads, connections) after each step."""
    _leave_the_pool()
    net = nn.Sequential(nn.Linear(4, 2), nn.BatchNorm1d(2))
    found = []
    last = None
    for port in ports:
        peers = _meet(port)
        model = DistributedDataParallel(net)
        peers.watch(model)
        model(torch.ones(2, 4)).sum().backward()
        distributed.barrier()
        if last is not None:
            last.drop()
        last = None
        found.append((sum(1 for _ in Path("/proc/self/task").iterdir()), len(_connections())))
        distributed.barrier()
        del model
        peers.leave()
        last = peers
    assert last is not None
    return found


def is_cut(port: int) -> str:
    """Rank 1 never comes to the collective in which rank 0 waits; rank 0 cuts, from another thread."""
    _leave_the_pool()
    peers = _meet(port)
    if distributed.get_rank() == 1:
        return _error_of(lambda: distributed.recv(torch.zeros(1), src=0))
    waits = threading.Event()

    def cut() -> None:
        waits.wait()
        time.sleep(0.2)  # so that it is in the collective; if not, it fails at its beginning
        peers.cut()

    threading.Thread(target=cut).start()
    waits.set()
    return _error_of(lambda: distributed.all_reduce(torch.ones(1)))


def hears(port: int) -> str:
    """Rank 1 leaves; rank 0, which waits for it, nobody cuts."""
    _leave_the_pool()
    peers = _meet(port)
    distributed.barrier()
    if distributed.get_rank() == 1:
        peers.leave()
        return ""
    return _error_of(lambda: peers.wait(distributed.all_reduce(torch.ones(1), async_op=True)))


def is_freed(port: int, what: str) -> tuple[str, bool]:
    """As gloo's lost waits are: nothing tells it that the gang is broken, for what is cut here is no
    connection. Rank 0's error, and whether it has left and dropped the group while that waits."""
    _leave_the_pool()
    peers = _meet(port)
    model = DistributedDataParallel(nn.Linear(4, 1))
    peers.watch(model)
    store = distributed.distributed_c10d._get_default_store()
    if distributed.get_rank() == 1:
        store.wait(["left"])
        return "", True
    peers._connections.clear()
    waits: dict[str, Callable[[], Any]] = {
        "gradients": model(torch.ones(2, 4)).sum().backward,
        "agreement": lambda: peers.wait(distributed.all_reduce(torch.ones(1), async_op=True)),
    }
    threading.Timer(0.2, peers.cut).start()
    error = _error_of(waits[what])
    peers.leave()
    peers.drop()
    [forgotten] = peers._given_up
    del model, waits
    store.set("left", "")
    return error.removeprefix(CALLBACK_FAILED).partition("\n")[0], not forgotten.is_completed()


def _error_of(call: Callable[[], Any]) -> str:
    try:
        call()
    except (RuntimeError, GangLost) as error:
        return str(error)
    return ""


def takes(source: int, takers: tuple[int, ...]) -> tuple[Any, Any]:
    """A model and its Adam, from `source` to those who take; theirs is afterwards (weights, steps made)."""
    rank = distributed.get_rank()
    torch.manual_seed(rank)
    model = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3)).to(torch.bfloat16)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.1 * (rank + 1))
    for _ in range(rank):
        model(torch.randn(5, 4, dtype=torch.bfloat16)).sum().backward()
        optimizer.step()
    hand(
        {"model": model, "optimizer": optimizer},
        source,
        gives=rank == source,
        takes=rank in takers,
        group=None,
        device=torch.device("cpu"),
    )
    steps = [int(state["step"]) for state in optimizer.state.values()]
    values = {name: value.tolist() for name, value in model.state_dict().items()}
    return values, (steps, optimizer.param_groups[0]["lr"])
