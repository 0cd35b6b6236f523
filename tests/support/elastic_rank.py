"""A rank of an elastic gang: DDP or FSDP2, loader workers that fetch ahead, uneven shares, gradients summed.

`elastic_rank.py FOLDER STEPS [STEP_S] [ddp|fsdp2]`: until STEPS are done, or FOLDER/enough is there and an
epoch's end. Each step is a line in FOLDER/ATTEMPT.RANK.jsonl: the loss over all ranks, and this rank's
samples.
"""

import contextlib
import json
import sys
import time
from contextlib import AbstractContextManager
from pathlib import Path
from typing import cast

import paceline
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, Dataset

SAMPLES, BATCH, SAVE_EVERY = 50, 9, 5


class Rows(Dataset[tuple[torch.Tensor, torch.Tensor]]):
    def __init__(self) -> None:
        dice = torch.Generator().manual_seed(1)
        self.x = torch.rand(SAMPLES, 6, generator=dice, dtype=torch.float64)
        self.y = self.x.square().sum(1, keepdim=True)

    def __len__(self) -> int:
        return SAMPLES

    def __getitem__(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        return self.x[index], self.y[index]


def main() -> None:
    folder, steps = Path(sys.argv[1]), int(sys.argv[2])
    step_s = float(sys.argv[3]) if len(sys.argv) > 3 else 0.0
    sharded = sys.argv[4:] == ["fsdp2"]
    run = paceline.init(checkpoints=folder / "checkpoints")
    torch.set_num_threads(1)
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 1)).double()
    model: nn.Module = net
    if run.world_size > 1:
        dist.init_process_group("gloo")
        model = cast("nn.Module", fully_shard(net)) if sharded else DistributedDataParallel(net)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    sampler = run.sampler(SAMPLES, global_batch_size=BATCH, micro_batch_size_max=3, seed=5)
    loader = DataLoader(
        Rows(), batch_sampler=sampler, num_workers=1, prefetch_factor=4, persistent_workers=True
    )
    restored = run.restore(model=model, optimizer=optimizer, sampler=sampler)
    step, leaves = restored.step if restored else 0, False
    with (folder / f"{run.attempt}.{run.rank}.jsonl").open("a", buffering=1) as record:
        while not leaves:
            mean, mine = torch.zeros(1, dtype=torch.float64), []
            for share, (x, y) in sampler.over(loader):
                with exchanging(model, share.last):
                    loss = nn.functional.mse_loss(model(x), y) * share.weight
                    loss.backward()
                mean += loss.detach()
                mine += share.indices if share.weight else ()
                if not share.last:
                    continue
                optimizer.step()
                optimizer.zero_grad()
                step += 1
                time.sleep(step_s)  # what a larger model takes
                said = {"step": step, "epoch": sampler.epoch, "loss": over_ranks(mean, run), "samples": mine}
                record.write(json.dumps(said) + "\n")
                mean, mine = torch.zeros(1, dtype=torch.float64), []
                leaves = run.should_stop() or step == steps
                if leaves or step % SAVE_EVERY == 0:
                    run.save(step, model=model, optimizer=optimizer, sampler=sampler)
                if leaves:
                    break
            enough = torch.tensor([float((folder / "enough").exists())], dtype=torch.float64)
            leaves = leaves or over_ranks(enough, run) > 0
    if dist.is_initialized():
        dist.barrier()
        dist.destroy_process_group()


def exchanging(model: nn.Module, last: bool) -> AbstractContextManager[None]:
    """Until the last micro-batch, gradients are added up here and not yet exchanged."""
    if isinstance(model, FSDPModule):
        model.set_requires_gradient_sync(last)
    elif isinstance(model, DistributedDataParallel) and not last:
        return model.no_sync()
    return contextlib.nullcontext()


def over_ranks(value: torch.Tensor, run: paceline.Run) -> float:
    if run.world_size > 1:
        dist.all_reduce(value)
    return value.item() / run.world_size


if __name__ == "__main__":
    main()
