"""A rank that trains nothing, saves when it should, and leaves when it is asked: `policy_rank.py FOLDER STEPS
[--every TEXT] [--slow-save S] [--first-save STEP] [--deaf] [--step-s S]`. Writes what it was told into
FOLDER/RANK."""

import argparse
import os
import signal
import time
from pathlib import Path

import paceline
import torch
import torch.distributed as dist

parser = argparse.ArgumentParser()
parser.add_argument("folder", type=Path)
parser.add_argument("steps", type=int)
parser.add_argument("--every", default="1000000 steps")
parser.add_argument("--slow-save", type=float, default=0.0)
parser.add_argument("--step-s", type=float, default=0.02)
parser.add_argument("--deaf", action="store_true")
parser.add_argument("--first-save", type=int, default=0)
args = parser.parse_args()


class SlowToCopy:
    """A state whose copy takes a while."""

    def state_dict(self) -> dict[str, int]:
        time.sleep(args.slow_save)
        return {}

    def load_state_dict(self, state: dict[str, int]) -> None:
        pass


def say(text: str) -> None:
    with (args.folder / str(run.rank)).open("a") as file:
        file.write(f"{run.attempt} {text}\n")


if int(os.environ.get("WORLD_SIZE", "1")) > 1:
    dist.init_process_group("gloo")
run = paceline.init()
if args.deaf:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
weights = torch.zeros(4)
restored = run.restore(weights=weights, slow=SlowToCopy())
first = restored.step + 1 if restored is not None else 1
say(f"starts at {first} with {int(weights[0])}")
for step in range(first, args.steps + 1):
    time.sleep(args.step_s)
    weights += 1
    run.report(step, loss=1 / step)
    wanted = not args.deaf and run.should_save(step, every=args.every)
    if wanted or step == args.first_save:
        outcome = run.save(step, weights=weights, slow=SlowToCopy())
        say(f"saved {step}: {outcome.error}")
    if not args.deaf and run.should_stop():
        say(f"stops after {step} with {run.stop_left_s():.1f} s left")
        break
else:
    say(f"done {args.steps} with {int(weights[0])}")
