"""A rank that trains, saves every few steps and tells its losses.

SAVING FOLDER STEPS SAVE_EVERY [STEP_S [early]]: FOLDER/losses has a line "ATTEMPT RANK STEP LOSS" for each
step; after STEPS it waits for FOLDER/enough. With `early` it goes at the first save that finds this.
"""

import os
import sys
import time
from pathlib import Path

import paceline
import torch
from torch import distributed, nn
from torch.nn.parallel import DistributedDataParallel


def main() -> None:
    folder, steps, save_every = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
    step_s = float(sys.argv[4]) if len(sys.argv) > 4 else 0.0
    early = sys.argv[5:] == ["early"]
    run = paceline.init()
    distributed.init_process_group("gloo")
    torch.manual_seed(5 + run.rank)
    model = DistributedDataParallel(nn.Sequential(nn.Linear(32, 2000), nn.ReLU(), nn.Linear(2000, 1)))
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    restored = run.restore(model=model, optimizer=optimizer)
    with (folder / "losses").open("a", buffering=1) as losses:
        for step in range((restored.step if restored else 0) + 1, steps + 1):
            inputs = torch.randn(8, 32)
            loss = (model(inputs) - inputs.sum(1, keepdim=True)).square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            time.sleep(step_s)  # what a larger model takes
            losses.write(f"{run.attempt} {run.rank} {step} {loss.item():.9g}\n")
            if step % save_every == 0:
                run.save(step, model=model, optimizer=optimizer, data={"step": step})
                if early and all_see(folder / "enough"):
                    break
            run.should_stop()
    while not (folder / "enough").exists():
        time.sleep(0.02)
    distributed.barrier()  # leave together: a gloo thread that is still busy may hold up a rank's end
    distributed.destroy_process_group()


def all_see(path: Path) -> bool:
    """Or one rank would wait for another that has gone."""
    seen = torch.tensor([path.exists()], dtype=torch.int)
    distributed.all_reduce(seen, distributed.ReduceOp.MIN)
    return bool(seen)


if __name__ == "__main__":
    print(os.environ["PACELINE_MEMORY_FOLDER"], flush=True)
    main()
