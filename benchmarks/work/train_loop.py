"""The run of train.py in Paceline's step loop: RECORDS STEPS SAVE_EVERY. Same model, samples and records."""

import os
import sys
import time
from pathlib import Path

import paceline
import torch.distributed as dist
from torch import nn
from train import mean_over_ranks, problem, rest, samples_of, write


def main() -> None:
    records, steps, save_every = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
    run = paceline.init()
    inputs, targets, model, optimizer = problem()
    with (records / f"{run.rank}.{os.getpid()}.{time.time_ns()}.jsonl").open("w", buffering=1) as record:
        write(record, kind="ready", rank=run.rank, world=run.world_size, pid=os.getpid(), start=0)

        def step(number: int, ddp: nn.Module) -> None:
            chosen = samples_of(number - 1, run.rank, run.world_size)
            optimizer.zero_grad()
            loss = nn.functional.mse_loss(ddp(inputs[chosen]), targets[chosen])
            loss.backward()
            mean = mean_over_ranks(loss)
            optimizer.step()
            place = {"rank": run.rank, "world": run.world_size, "step": number - 1}
            write(record, kind="step", **place, loss=mean, samples=chosen)
            rest(records)

        run.loop(step, steps=steps, model=model, optimizer=optimizer, save_every=save_every)
    if dist.is_initialized():
        dist.barrier()
        dist.destroy_process_group()


if __name__ == "__main__":
    main()
