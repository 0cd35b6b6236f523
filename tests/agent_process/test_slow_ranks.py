"""A real gang over gloo, one rank slower than its peer: told by its node, found by the scheduler."""

from pathlib import Path
from typing import Any

import pytest
from paceline.agent.launch import PRELOAD
from paceline.scheduler.core import stimuli as s
from paceline.scheduler.core.progress_events import StragglerFound
from paceline.scheduler.services.reports import Arrival, entry_of
from paceline.spec.ids import Micros
from support.paddock import Paddock, shape
from support.processes import key, of_kind, output, start_task, supervised, until

TRAIN = """
import sys, time
import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

dist.init_process_group("gloo")
model = DistributedDataParallel(torch.nn.Linear(4, 1))
optimizer = torch.optim.SGD(model.parameters(), lr=0.01)

class Slow(torch.utils.data.IterableDataset):
    def __iter__(self):
        while True:
            time.sleep(0.03)
            yield 0

batches = iter(torch.utils.data.DataLoader(Slow()))

def loads_slowly():
    next(batches)

def computes_for_long():
    end = time.monotonic() + 0.03
    while time.monotonic() < end:
        pass

while True:
    if dist.get_rank() == 1:
        globals()[sys.argv[1]]()
    optimizer.zero_grad()
    model(torch.ones(2, 4)).sum().backward()
    optimizer.step()
"""


@pytest.mark.parametrize(
    ("how", "kind", "gpus"),
    [("loads_slowly", "data", ""), ("computes_for_long", "compute", ""), ("loads_slowly", "data", "0")],
)
async def test_the_rank_that_others_wait_for_is_found(tmp_path: Path, how: str, kind: str, gpus: str) -> None:
    """`gpus`: where the ranks have some, the kernel does not show what they wait for."""
    (tmp_path / "train.py").write_text(TRAIN)
    async with supervised(tmp_path / "state", preload=PRELOAD, pace_window_s=2.0) as supervisor:
        await until(lambda: supervisor.warm_pool() == "ready", "torch is imported", 100)
        gang = start_task(
            key(1),
            f"python train.py {how}",
            tmp_path,
            processes=2,
            launcher="pytorch",
            hosts_rendezvous=True,
            master_address="127.0.0.1",
            master_port=supervisor.rendezvous_ports()[0],
            environment={"CUDA_VISIBLE_DEVICES": gpus},
        )
        await supervisor.start(gang)

        def windows() -> list[Any]:
            return of_kind(supervisor.entries(key(1), 0, 1000), "paced")

        await until(lambda: len(windows()) >= 4, "four windows", 90)
        assert not of_kind(supervisor.entries(key(1), 0, 1000), "exited"), output(supervisor, key(1), 1)
        arrival = Arrival(Micros(1))
        told = [entry_of(entry, arrival).said for entry in supervisor.entries(key(1), 0, 1000)]
    paces = [said for said in told if isinstance(said, s.Paced)][1:]  # the first has the start in it
    for window in paces:
        quick, slow = window.ranks
        assert quick.step_us >= 30_000 and slow.step_us >= 30_000, window
        assert getattr(slow, kind) > 0.5 > getattr(quick, kind), window
        assert quick.measured is slow.measured is not bool(gpus), "this kernel shows what a thread waits for"
        assert gpus or quick.peers > 0.5 > slow.peers, window
    paddock = Paddock()
    paddock.node_joins("n1")
    [job] = paddock.submit(shape(1, cpus=1, ranks=2))
    paddock.starts(job)
    for window in paces:
        paddock.says(job, 0, window)
    [found] = [event for event in paddock.history(job) if isinstance(event, StragglerFound)]
    assert found.ranks == (1,), found
