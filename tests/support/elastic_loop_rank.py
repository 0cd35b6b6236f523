"""A rank of an elastic gang in the step loop: FOLDER STEPS SAVE_EVERY. It goes slowly until FOLDER/enough is
there. Each step is two lines in FOLDER/PID.jsonl: one with the loss of each sample that this rank had, before
the ranks' gradients are summed, and one when the step is made. A rank that is killed between them has given
its part to a step that the others have made.
"""

import json
import os
import sys
import time
from pathlib import Path

import paceline
import torch
from torch import nn

SAMPLES, BATCH, PACE_S = 48, 10, 0.02


def batch_of(number: int) -> list[int]:
    return [index % SAMPLES for index in range(number * BATCH, (number + 1) * BATCH)]


def main() -> None:
    folder, steps, save_every = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
    torch.set_num_threads(1)
    dice = torch.Generator().manual_seed(1)
    x = torch.rand(SAMPLES, 6, generator=dice, dtype=torch.float64)
    y = x.square().sum(1, keepdim=True)
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 1)).double()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    run = paceline.init(checkpoints=folder / "checkpoints")
    with (folder / f"{os.getpid()}.jsonl").open("a", buffering=1) as record:

        def step(number: int, wrapped: nn.Module) -> None:
            mine = batch_of(number)[run.rank :: run.world_size]
            losses = (wrapped(x[mine]) - y[mine]).square().sum(1)
            place = {"attempt": run.attempt, "rank": run.rank, "world_size": run.world_size, "step": number}
            begun = {**place, "losses": dict(zip(mine, losses.tolist(), strict=True))}
            record.write(json.dumps(begun) + "\n")
            optimizer.zero_grad()
            (losses.sum() * run.world_size / BATCH).backward()
            optimizer.step()
            record.write(json.dumps(place) + "\n")
            if not (folder / "enough").exists():
                time.sleep(PACE_S)  # the pace of a step that has work to do

        run.loop(step, steps=steps, model=model, optimizer=optimizer, save_every=save_every)


if __name__ == "__main__":
    main()
