"""A rank of two whose state is so many MB, half of it in either's file: `peer_rank.py OUT MB SECONDS`.

In the first attempt it saves and trains for SECONDS: OUT/rate has rank 0's steps a second. It ends when
OUT/enough is there.
"""

import sys
import time
from pathlib import Path

import paceline
import torch
from torch import distributed, nn

WIDTH = 1024


def main() -> None:
    out, megabytes, seconds = Path(sys.argv[1]), float(sys.argv[2]), float(sys.argv[3])
    run = paceline.init()
    distributed.init_process_group("gloo")
    torch.set_num_threads(1)
    torch.manual_seed(1)
    layers = max(2, round(megabytes * 1e6 / 4 / WIDTH / (WIDTH + 1)))
    model = nn.Sequential(*(nn.Linear(WIDTH, WIDTH) for _ in range(layers)))
    run.restore(model=model)
    if run.attempt == 1:
        run.save(1, model=model)  # makes the images, and agrees on the layout
        run.flush()
        run.save(2, model=model)
        rate = train(model[0], seconds)
        if run.rank == 0:
            (out / "rate").write_text(str(rate))
        run.flush()
    while not (out / "enough").exists():
        time.sleep(0.02)
    distributed.barrier()
    distributed.destroy_process_group()


def train(layer: nn.Module, seconds: float) -> float:
    """Steps a second, in which the ranks wait for each other."""
    steps, began, goes_on = 0, time.perf_counter(), torch.ones(1)
    while goes_on.item() > 0:
        layer(torch.ones(64, WIDTH)).sum().backward()
        goes_on.fill_(float(time.perf_counter() - began < seconds))
        distributed.all_reduce(goes_on, op=distributed.ReduceOp.MIN)
        steps += 1
    return steps / (time.perf_counter() - began)


if __name__ == "__main__":
    main()
