"""Training at one global batch size, whatever the number of ranks: what the resize tests run in each rank."""

import os
from pathlib import Path
from typing import Any

import torch
from paceline.training.environment import read_environment
from paceline.training.run import Run
from paceline.training.task import Retention
from torch import distributed, nn

SAMPLES = 12
"""Of a step, over all ranks: each of 1, 2 and 3 ranks has as many."""


def train(root: Path, kind: str, steps: int) -> tuple[int, list[float]]:
    """Go on from what is there, to `steps`, and save there. (Step it went on from, mean losses after it.)"""
    run = Run(read_environment(os.environ), root, Retention())
    torch.manual_seed(5)
    net = nn.Sequential(nn.Linear(6, 33), nn.ReLU(), nn.BatchNorm1d(33, affine=False), nn.Linear(33, 3))
    net[2].eval()  # of its own rank's samples; here it is a buffer that must come back
    trainer = {"ddp": _Ddp, "fsdp": _Fsdp}.get(kind, _DeepSpeed)(net, kind, run.world_size)
    restored = run.restore(**trainer.state)
    done, losses = restored.step if restored else 0, []
    for step in range(done + 1, steps + 1):
        dice = torch.Generator().manual_seed(step)
        inputs = torch.randn(SAMPLES, 6, generator=dice)[run.rank :: run.world_size]
        losses.append(_mean(trainer.step(inputs), run.world_size))
        net[2].running_mean.fill_(step / 50)
    run.save(steps, **trainer.state)
    outcome = run.flush()
    assert outcome is not None and outcome.published, outcome
    run.close()
    return done, losses


def _mean(loss: torch.Tensor, world_size: int) -> float:
    mean = loss.detach() / world_size
    if world_size > 1:
        distributed.all_reduce(mean)
    return float(mean)


def _loss(net: Any, inputs: torch.Tensor) -> torch.Tensor:
    return (net(inputs) - inputs[:, :3]).square().mean()


class _Ddp:
    def __init__(self, net: nn.Module, _kind: str, world_size: int) -> None:
        self.net = (
            nn.parallel.DistributedDataParallel(net, broadcast_buffers=False) if world_size > 1 else net
        )
        self.optimizer = torch.optim.AdamW(self.net.parameters(), lr=0.05)
        self.schedule = torch.optim.lr_scheduler.MultiStepLR(self.optimizer, [5, 10], gamma=0.5)
        self.state: dict[str, Any] = {
            "model": self.net,
            "optimizer": self.optimizer,
            "schedule": self.schedule,
        }

    def step(self, inputs: torch.Tensor) -> torch.Tensor:
        loss = _loss(self.net, inputs)
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        self.schedule.step()
        return loss


class _Fsdp(_Ddp):
    def __init__(self, net: nn.Module, kind: str, world_size: int) -> None:
        if world_size > 1:
            from torch.distributed.device_mesh import init_device_mesh
            from torch.distributed.fsdp import fully_shard

            fully_shard(net, mesh=init_device_mesh("cpu", (world_size,)))
        super().__init__(net, kind, 1)


class _DeepSpeed:
    """`kind`: "zeroN"."""

    def __init__(self, net: nn.Module, kind: str, world_size: int) -> None:
        self.engine = make_engine(net, int(kind[-1]))
        self.state: dict[str, Any] = {"model": self.engine}

    def step(self, inputs: torch.Tensor) -> torch.Tensor:
        loss = _loss(self.engine, inputs)
        self.engine.backward(loss)
        self.engine.step()
        return loss


def make_engine(net: nn.Module, stage: int) -> Any:
    import deepspeed

    if not distributed.is_initialized():
        where = os.environ["PACELINE_TEST_STORE"]
        distributed.init_process_group("gloo", init_method=f"file://{where}", rank=0, world_size=1)
    deepspeed.init_distributed("gloo", verbose=False)
    config = {
        "train_batch_size": SAMPLES,
        "optimizer": {"type": "AdamW", "params": {"lr": 0.05, "torch_adam": True}},
        "scheduler": {"type": "WarmupLR", "params": {"warmup_num_steps": 6, "warmup_max_lr": 0.05}},
        "zero_optimization": {"stage": stage},
        "zero_force_ds_cpu_optimizer": False,
    }
    return deepspeed.initialize(model=net, config=config)[0]
