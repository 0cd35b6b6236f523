"""A rank of an elastic gang with a DeepSpeed engine: FOLDER STAGE STEPS. One checkpoint, after step SAVE_AT.
Slow until FOLDER/enough is there. Each step is a line in FOLDER/losses: attempt, rank, step, mean loss.
"""

import sys
import time
from pathlib import Path

import paceline
import torch
from support.resize_scripts import SAMPLES, make_engine
from torch import distributed, nn

SAVE_AT, PACE_S = 10, 0.05


def main() -> None:
    folder, stage, steps = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
    torch.set_num_threads(1)
    torch.manual_seed(5)
    run = paceline.init()
    distributed.init_process_group("gloo")
    engine = make_engine(nn.Sequential(nn.Linear(6, 33), nn.ReLU(), nn.Linear(33, 3)), stage)
    restored = run.restore(model=engine)
    with (folder / "losses").open("a", buffering=1) as record:
        for step in range(restored.step + 1 if restored else 1, steps + 1):
            dice = torch.Generator().manual_seed(step)
            inputs = torch.randn(SAMPLES, 6, generator=dice)[run.rank :: run.world_size]
            loss = (engine(inputs) - inputs[:, :3]).square().mean()
            engine.backward(loss)
            engine.step()
            mean = loss.detach() / run.world_size
            distributed.all_reduce(mean)
            record.write(f"{run.attempt} {run.rank} {step} {mean.item()!r}\n")
            if step == SAVE_AT:
                run.save(step, model=engine)
            if not (folder / "enough").exists():
                time.sleep(PACE_S)  # the pace of a step that has work to do
    distributed.barrier()
    distributed.destroy_process_group()


if __name__ == "__main__":
    main()
