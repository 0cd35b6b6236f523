"""A rank that takes all memory when it is told to: SCRIPT FOLDER ARGUMENTS is what it runs otherwise.

FOLDER/hungry holds a number: the rank that this is, modulo the world's size, has its turn at its next step.
What it gets is bounded, so that nobody else on the machine starves, and it is refused as the kernel refuses.
"""

import os
import resource
import runpy
import sys
from pathlib import Path
from typing import Any

import torch
from torch.optim.optimizer import register_optimizer_step_pre_hook

_BOUND_BYTES = 64 << 20
_PIECE_NUMBERS = 4 << 20


def main() -> None:
    script, folder = sys.argv[1:3]
    told = Path(folder, "hungry")

    def eat_when_told(*_: Any) -> None:
        world_size = int(os.environ["WORLD_SIZE"])
        if told.exists() and int(told.read_text()) % world_size == int(os.environ["RANK"]):
            told.unlink()
            _eat()

    register_optimizer_step_pre_hook(eat_when_told)
    sys.argv = sys.argv[1:]
    runpy.run_path(script, run_name="__main__")


def _eat() -> None:
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    bound = pages * resource.getpagesize() + _BOUND_BYTES
    resource.setrlimit(resource.RLIMIT_AS, (bound, bound))
    eaten = []
    while True:
        eaten.append(torch.ones(_PIECE_NUMBERS))


if __name__ == "__main__":
    main()
