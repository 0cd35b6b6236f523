"""A rank that trains on a GPU, saves and tells its losses: FOLDER STEPS SAVE_EVERY KIND.

KIND: `plain` with a GradScaler and a fused AdamW, `ddp` and `fsdp` over NCCL, `gloo` for several ranks on one
GPU, `loop` in the step loop. What it draws, inputs and dropout, comes from the GPU's generator.
FOLDER/losses has a line "ATTEMPT RANK STEP LOSS" for each step; it goes slowly until FOLDER/enough is there.
"""

import os
import sys
import time
from pathlib import Path
from typing import Any

os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # sums in one order

import paceline
import torch
from torch import distributed, nn
from torch.nn.parallel import DistributedDataParallel

DEVICE = "cuda"
PACE_S = 0.02


class Training:
    def __init__(self, kind: str) -> None:
        self.kind = kind
        net = nn.Sequential(nn.Linear(64, 2000), nn.ReLU(), nn.Dropout(0.3), nn.Linear(2000, 1)).to(DEVICE)
        self.model = self.wrapped(net)
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=1e-3, fused=kind == "plain")
        self.schedule = torch.optim.lr_scheduler.StepLR(self.optimizer, 7, 0.9)
        self.scaler = torch.amp.GradScaler(DEVICE, enabled=kind == "plain", growth_interval=4)

    def wrapped(self, net: nn.Module) -> nn.Module:
        if self.kind == "fsdp":
            from torch.distributed.device_mesh import init_device_mesh
            from torch.distributed.fsdp import fully_shard

            fully_shard(net, mesh=init_device_mesh(DEVICE, (distributed.get_world_size(),)))
        return DistributedDataParallel(net) if self.kind in ("ddp", "gloo") else net

    @property
    def things(self) -> dict[str, Any]:
        scaler = {"scaler": self.scaler} if self.kind == "plain" else {}
        return {"model": self.model, "optimizer": self.optimizer, "schedule": self.schedule, **scaler}

    def step(self, model: nn.Module) -> float:
        inputs = torch.randn(32, 64, device=DEVICE)
        with torch.autocast(DEVICE, enabled=self.kind == "plain"):
            loss = (model(inputs) - inputs.sum(1, keepdim=True)).square().mean()
        self.optimizer.zero_grad()
        self.scaler.scale(loss).backward()
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.schedule.step()
        return loss.item()

    def check_device(self) -> None:
        """After a restore, all is where it was."""
        moments = [
            state[name] for state in self.optimizer.state.values() for name in ("exp_avg", "exp_avg_sq")
        ]
        assert len(moments) == 8
        assert {each.device.type for each in (*self.model.parameters(), *moments)} == {DEVICE}


def main() -> None:
    folder, steps, save_every, kind = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), sys.argv[4]
    torch.use_deterministic_algorithms(True)
    run = paceline.init()
    if kind in ("ddp", "fsdp"):
        distributed.init_process_group(f"cpu:gloo,{DEVICE}:nccl")
    elif kind == "gloo":
        distributed.init_process_group("gloo")
    torch.manual_seed(5 + run.rank)
    training = Training(kind)
    with (folder / "losses").open("a", buffering=1) as losses:

        def step(number: int, model: nn.Module) -> None:
            loss = training.step(model)
            losses.write(f"{run.attempt} {run.rank} {number} {loss!r}\n")
            if not (folder / "enough").exists():
                time.sleep(PACE_S)  # the pace of a step that has work to do

        if kind == "loop":
            run.loop(step, steps=steps, save_every=save_every, **training.things)
        else:
            restored = run.restore(**training.things)
            if restored is not None:
                training.check_device()
            for number in range((restored.step if restored else 0) + 1, steps + 1):
                step(number, training.model)
                if number % save_every == 0:
                    run.save(number, **training.things)
                run.should_stop()
    if distributed.is_initialized():
        distributed.barrier()
        distributed.destroy_process_group()


if __name__ == "__main__":
    main()
