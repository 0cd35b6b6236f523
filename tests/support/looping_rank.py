"""A rank of the tests in the step loop: FOLDER STEPS SAVE_EVERY [PACE_S]. It writes down every step that it
makes, and goes slowly until FOLDER/enough is there."""

import os
import sys
import time
from pathlib import Path

import paceline
import torch
from torch import nn

GLOBAL_BATCH = 24
PACE_S = 0.01


def main() -> None:
    folder, steps, save_every = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
    pace_s = float(sys.argv[4]) if len(sys.argv) > 4 else PACE_S
    torch.set_num_threads(1)
    torch.manual_seed(0)
    run = paceline.init()
    model = nn.Sequential(nn.Linear(8, 16), nn.BatchNorm1d(16), nn.Tanh(), nn.Linear(16, 1))
    for layer in (model[0], model[3]):
        layer.weight.data.normal_(generator=torch.Generator().manual_seed(1))
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    schedule = torch.optim.lr_scheduler.StepLR(optimizer, 50, 0.9)
    with (folder / "steps").open("a", buffering=1) as log:

        def step(number: int, wrapped: nn.Module) -> None:
            data = torch.Generator().manual_seed(number)
            inputs = torch.randn(GLOBAL_BATCH, 8, generator=data)
            mine = inputs[run.rank :: run.world_size]
            loss = (wrapped(mine) - mine.sum(1, keepdim=True)).square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            log.write(f"{run.attempt} {run.rank} {number} {os.getpid()} {loss.item()!r}\n")
            run.report(number, loss=loss)
            if not (folder / "enough").exists():
                time.sleep(pace_s)  # the pace of a step that has work to do

        done = run.loop(
            step,
            steps=steps,
            model=model,
            optimizer=optimizer,
            schedule=schedule,
            save_every=save_every,
        )
    print(f"rank {run.rank} of {run.world_size} did {done} steps, attempt {run.attempt}", flush=True)


if __name__ == "__main__":
    main()
