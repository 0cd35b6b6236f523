"""The step loop's process group over NCCL: formed, used, cut, left and formed anew in one process.

One GPU is one rank: what several ranks do of it is not seen here.
"""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

BEGIN = """
import os, socket, torch
from concurrent.futures import ThreadPoolExecutor
from paceline.training.peers import Peers
from torch import distributed, nn
from torch.nn.parallel import DistributedDataParallel

def meet():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        os.environ["MASTER_PORT"] = str(free.getsockname()[1])
    return Peers("cuda")

def check():
    ones, zeros = torch.ones(1000, device="cuda"), torch.zeros(3)
    distributed.all_reduce(ones)
    distributed.all_reduce(zeros)
    assert (ones.sum().item(), zeros.sum().item()) == (1000, 0)
"""
AGAIN_AND_AGAIN = """
net = nn.Linear(1000, 1000).to("cuda")
last = None
for _ in range(3):
    peers = meet()
    check()
    model = DistributedDataParallel(net)
    model(torch.ones(8, 1000, device="cuda")).sum().backward()
    torch.cuda.synchronize()
    del model, last
    peers.leave()
    last = peers
    assert not distributed.is_initialized()
print("done")
"""
CUT_AMID = """
peers = meet()
check()
torch.cuda._sleep(2_000_000_000)  # some work before it: the collective is under way when it is cut
work = distributed.all_reduce(torch.ones(1 << 20, device="cuda"), async_op=True)
with ThreadPoolExecutor() as other:
    other.submit(peers.cut).result(30)
try:
    distributed.all_reduce(torch.ones(3, device="cuda"))
    torch.cuda.synchronize()
    print("no error")
except RuntimeError as error:
    print(type(error).__name__, str(error).splitlines()[0])
del work
peers.leave()
again = meet()
check()
again.leave()
print("done")
"""


def run(path: Path) -> list[str]:
    """Its lines. What it says beside them is in the story of a failure."""
    own = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1"}
    ended = subprocess.run(
        [sys.executable, str(path)], capture_output=True, text=True, env={**os.environ, **own}, timeout=80
    )
    print(ended.stdout, ended.stderr, file=sys.stderr)
    assert ended.returncode == 0
    return ended.stdout.splitlines()


def test_formed_and_left_again_and_again(script: Callable[[str], Path]) -> None:
    assert run(script(BEGIN + AGAIN_AND_AGAIN)) == ["done"]


def test_cut_while_work_is_under_way(script: Callable[[str], Path]) -> None:
    """The group that comes after it works. What the cut one says of more work is printed and left open: a
    world of one waits for nobody.
    """
    assert run(script(BEGIN + CUT_AMID))[-1] == "done"
