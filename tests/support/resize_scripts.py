"""Training at one global batch size, whatever the number of ranks: what the resize tests run in each rank."""

import os
from pathlib import Path
from typing import Any

import torch
from paceline.training.environment import read_environment
from paceline.training.errors import UnsavableState
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


def weights_by_both_ways(root: Path, stage: int) -> tuple[str, list[float], list[float]]:
    """The newest checkpoint through `restore`, and its folder as a tag through DeepSpeed alone. (The tier of
    the former, the masters by either.)
    """
    run = Run(read_environment(os.environ), root, Retention())
    ours, theirs = (make_engine(nn.Sequential(nn.Linear(6, 33), nn.ReLU()), stage) for _ in range(2))
    for step in (1, 2):
        loss = ours(torch.full((4, 6), float(step))).square().mean()
        ours.backward(loss)
        ours.step()
    run.save(2, model=ours)
    outcome = run.flush()
    assert outcome is not None and outcome.path is not None
    fresh = make_engine(nn.Sequential(nn.Linear(6, 33), nn.ReLU()), stage)
    restored = run.restore(model=fresh)
    assert restored is not None
    theirs.load_checkpoint(str(root), tag=outcome.path.name)
    run.close()
    assert _masters(fresh) == _masters(ours)
    return restored.tier, _masters(fresh), _masters(theirs)


def _masters(engine: Any) -> list[float]:
    from deepspeed.utils import safe_get_full_fp32_param

    masters: list[float] = []
    for parameter in engine.module.parameters():
        masters += safe_get_full_fp32_param(parameter).flatten().tolist()
    return masters


def save_engine_twice(root: Path) -> list[Any]:
    """How each save went, with a step of training after each."""
    run = Run(read_environment(os.environ), root, Retention())
    engine = make_engine(nn.Sequential(nn.Linear(6, 40_000), nn.ReLU()), 2)
    outcomes = []
    for step in (1, 2):
        loss = engine(torch.ones(4, 6)).square().mean()
        engine.backward(loss)
        engine.step()
        run.save(step, model=engine)
        outcomes.append(run.flush())
    run.close()
    return outcomes


def die_converting(root: Path) -> None:
    """Rank 0 is killed while DeepSpeed's converter is at work."""
    from deepspeed.checkpoint import ds_to_universal

    def die(*_: Any) -> None:
        os.kill(os.getpid(), 9)

    ds_to_universal._save_optimizer_state = die
    train(root, "zero2", 6)


def give_optimizer_too(root: Path) -> str:
    run = Run(read_environment(os.environ), root, Retention())
    engine = make_engine(nn.Sequential(nn.Linear(6, 3)), 1)
    try:
        run.save(1, model=engine, optimizer=engine.optimizer)
    except UnsavableState as error:
        return error.message
    return "saved"
