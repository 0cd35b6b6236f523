"""The run of train.py in Paceline's step loop: RECORDS STEPS SAVE_EVERY. Same model, samples and records."""

import os
import sys
import time
from pathlib import Path

import paceline
import torch
import torch.distributed as dist
from torch import nn
from train import FEATURES, SAMPLES, samples_of, write


def main() -> None:
    records, steps, save_every = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
    run = paceline.init()
    torch.manual_seed(7)
    inputs, targets = torch.randn(SAMPLES, FEATURES), torch.randn(SAMPLES, 1)
    model = nn.Sequential(nn.Linear(FEATURES, 64), nn.ReLU(), nn.Linear(64, 1))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
    with (records / f"{run.rank}.{os.getpid()}.{time.time_ns()}.jsonl").open("w", buffering=1) as record:
        write(record, kind="ready", rank=run.rank, world=run.world_size, pid=os.getpid(), start=0)

        def step(number: int, ddp: nn.Module) -> None:
            chosen = samples_of(number - 1, run.rank, run.world_size)
            optimizer.zero_grad()
            loss = nn.functional.mse_loss(ddp(inputs[chosen]), targets[chosen])
            loss.backward()
            total = loss.detach().clone()
            dist.all_reduce(total)
            optimizer.step()
            write(record, kind="step", rank=run.rank, step=number - 1, loss=total.item(), samples=chosen)
            time.sleep(float(os.environ.get("STEP_S", "0")))

        run.loop(step, steps=steps, model=model, optimizer=optimizer, save_every=save_every)
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
