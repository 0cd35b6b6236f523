"""A small DDP run that writes down each step: when, which samples, which loss. The same script for us and
every peer.

    train.py RECORDS STEPS SAVE_EVERY [CHECKPOINTS]

RECORDS is a folder: rank and process append JSON lines there. With SAVE_EVERY > 0 a run that is started
again goes on from its last checkpoint: through paceline's calls inside a Paceline job, through torch.save
elsewhere. A step takes STEP_S seconds (environment), until RECORDS/enough is there. The batch of all ranks
together follows from the step alone, so a run that was interrupted, or had other ranks on the way, must show
the same losses and samples as one that was not.
"""

import json
import os
import sys
import time
from pathlib import Path
from typing import Any, TextIO

import torch
import torch.distributed as dist
from torch import nn

BATCH = 16
"""Of all ranks together; their number divides it."""
SAMPLES = 4096
FEATURES = 32


def main() -> None:
    records, steps, save_every = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
    train(records, steps, save_every, Path(sys.argv[4]) if len(sys.argv) > 4 else None)


def train(records: Path, steps: int, save_every: int, folder: Path | None) -> None:
    moments = {"entered_at": time.time()}
    if not dist.is_initialized():  # Ray has made it already
        dist.init_process_group("gloo")
    moments["grouped_at"] = time.time()
    rank, world_size = dist.get_rank(), dist.get_world_size()
    inputs, targets, model, optimizer = problem()
    keeper = keeper_for(folder, rank) if save_every else None
    start = keeper.restore(model, optimizer) if keeper else 0
    moments["loaded_at"] = time.time()
    ddp = nn.parallel.DistributedDataParallel(model)
    with (records / f"{rank}.{os.getpid()}.{time.time_ns()}.jsonl").open("w", buffering=1) as record:
        write(record, kind="ready", rank=rank, world=world_size, pid=os.getpid(), start=start, **moments)
        for step in range(start, steps):
            chosen = samples_of(step, rank, world_size)
            optimizer.zero_grad()
            loss = nn.functional.mse_loss(ddp(inputs[chosen]), targets[chosen])
            loss.backward()
            optimizer.step()
            mean = mean_over_ranks(loss)
            write(record, kind="step", rank=rank, world=world_size, step=step, loss=mean, samples=chosen)
            if keeper and (step + 1) % save_every == 0:
                keeper.save(step + 1, model, optimizer)
            rest(records)
    # gloo's thread may still hold tensors of the last all_reduce and wait for the GIL: no reducer may be the
    # last to let go of the group, as it would wait for that thread with the GIL held (torch 2.13).
    dist.barrier()
    del ddp
    dist.destroy_process_group()


def problem() -> tuple[torch.Tensor, torch.Tensor, nn.Module, torch.optim.Optimizer]:
    """Inputs, targets, model, optimizer. In double precision: another number of ranks adds up in another
    order, and must not be seen in the losses.
    """
    torch.set_default_dtype(torch.float64)
    torch.manual_seed(7)
    inputs, targets = torch.randn(SAMPLES, FEATURES), torch.randn(SAMPLES, 1)
    model = nn.Sequential(nn.Linear(FEATURES, 64), nn.ReLU(), nn.Linear(64, 1))
    return inputs, targets, model, torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)


def samples_of(step: int, rank: int, world_size: int) -> list[int]:
    """Which samples this rank takes in this step: all different within a pass over the data."""
    share = BATCH // world_size
    first = step * BATCH + rank * share
    return [index % SAMPLES for index in range(first, first + share)]


def mean_over_ranks(loss: torch.Tensor) -> float:
    """Of each rank's mean; collective where there are several."""
    total = loss.detach().clone()
    if not dist.is_initialized():
        return total.item()
    dist.all_reduce(total)
    return total.item() / dist.get_world_size()


def write(record: TextIO, **fields: object) -> None:
    record.write(json.dumps({"at": time.time(), **fields}) + "\n")


def rest(records: Path) -> None:
    """What a step takes that has more work to do."""
    if not (records / "enough").exists():
        time.sleep(float(os.environ.get("STEP_S", "0")))


class TorchKeeper:
    """Checkpoints as torch users write them: rank 0 saves aside and renames, everyone loads."""

    def __init__(self, folder: Path, rank: int) -> None:
        self._file = folder / "checkpoint.pt"
        self._rank = rank

    def restore(self, model: nn.Module, optimizer: torch.optim.Optimizer) -> int:
        if not self._file.exists():
            return 0
        state = torch.load(self._file, weights_only=True)
        return load(state, model, optimizer)

    def save(self, step: int, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        if self._rank == 0:
            aside = self._file.with_suffix(".tmp")
            torch.save(state_of(step, model, optimizer), aside)
            with aside.open("rb") as saved:
                os.fsync(saved.fileno())
            aside.rename(self._file)


class PacelineKeeper:
    """The same through paceline's calls."""

    def __init__(self) -> None:
        import paceline

        self._run = paceline.init()

    def restore(self, model: nn.Module, optimizer: torch.optim.Optimizer) -> int:
        restored = self._run.restore(model=model, optimizer=optimizer)
        return restored.step if restored else 0

    def save(self, step: int, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        self._run.save(step, model=model, optimizer=optimizer)


def keeper_for(folder: Path | None, rank: int) -> Any:
    if "PACELINE_JOB" in os.environ:
        return PacelineKeeper()
    if folder is None:
        raise SystemExit("train.py: outside Paceline a checkpoint folder is needed")
    return TorchKeeper(folder, rank)


def state_of(step: int, model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    return {"step": step, "model": model.state_dict(), "optimizer": optimizer.state_dict()}


def load(state: dict[str, Any], model: nn.Module, optimizer: torch.optim.Optimizer) -> int:
    model.load_state_dict(state["model"])
    optimizer.load_state_dict(state["optimizer"])
    return int(state["step"])


if __name__ == "__main__":
    main()
