"""What the ranks of the training tests do. Imported by name in processes of their own."""

import contextlib
import gc
import os
import random
import resource
import signal
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import paceline
import psutil
import torch
from paceline.spec.retention import Retention
from paceline.training.environment import read_environment
from paceline.training.gang import Gang
from paceline.training.run import Run
from torch import nn
from torch.nn.parallel import DistributedDataParallel


def own_run(root: Path, keep_last: int = 0) -> Run:
    return Run(read_environment(os.environ), root, Retention(keep_last=keep_last))


def saved(run: Run, step: int, **given: Any) -> paceline.training.outcome.SaveOutcome:
    """Saved, and waited for."""
    run.save(step, **given)
    outcome = run.flush()
    assert outcome is not None
    return outcome


def wrapped(net: nn.Module) -> nn.Module:
    return DistributedDataParallel(net) if torch.distributed.is_initialized() else net


def small_net() -> nn.Sequential:
    return nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Dropout(0.2), nn.Linear(16, 3))


class Training:
    """A little training whose loss depends on all that must survive: weights, momenta, schedule,
    and every rank's dice.
    """

    def __init__(self, run: Run) -> None:
        self.run = run
        torch.manual_seed(17 + run.rank)
        self.model = wrapped(small_net())
        self.optimizer = torch.optim.Adam(self.model.parameters(), lr=0.02)
        self.schedule = torch.optim.lr_scheduler.MultiStepLR(self.optimizer, [4, 8], gamma=0.5)

    def step(self) -> float:
        inputs = torch.randn(8, 6)
        loss = nn.functional.mse_loss(self.model(inputs), inputs[:, :3] ** 2)
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        self.schedule.step()
        return float(loss.item())

    def save(self, step: int, **more: Any) -> paceline.training.outcome.SaveOutcome:
        return saved(
            self.run, step, model=self.model, optimizer=self.optimizer, schedule=self.schedule, **more
        )

    def restore(self) -> paceline.training.outcome.Restored | None:
        return self.run.restore(model=self.model, optimizer=self.optimizer, schedule=self.schedule)


def loss_curve(root: Path, steps: int, save_at: int) -> tuple[int, list[float]]:
    """Go on from what is there, to `steps`; saves once. (Step it went on from, losses after it.)"""
    training = Training(paceline.init(checkpoints=root))
    restored = training.restore()
    done = restored.step if restored else 0
    losses = []
    for step in range(done + 1, steps + 1):
        losses.append(training.step())
        if step == save_at:
            assert training.save(step).published
    return done, losses


def save_forever(root: Path, elements: int) -> None:
    """Every weight is the step. `progress.RANK` holds the last step whose save had returned at that rank."""
    run = own_run(root)
    model = wrapped(nn.Linear(elements, 1, bias=False))
    step = 0
    while True:
        step += 1
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.fill_(step)
        outcome = saved(run, step, model=model, count=step)
        assert outcome.published, outcome
        (root / f"progress.{run.rank}").write_text(str(step))


def restored_weights(root: Path, elements: int) -> tuple[int, int, list[float]]:
    """(Step, value saved beside it, distinct weights.)"""
    run = own_run(root)
    model = wrapped(nn.Linear(elements, 1, bias=False))
    restored = run.restore(model=model)
    if restored is None:
        return -1, -1, []
    weights = torch.cat([parameter.detach().flatten() for parameter in model.parameters()])
    return restored.step, restored["count"], weights.unique().tolist()


def save_and_restore(root: Path, elements: int) -> list[Any]:
    """Saves steps 1 to 3, restores into a fresh model; what each call said."""
    run = own_run(root)
    model = wrapped(nn.Linear(elements, 1, bias=False))
    said: list[Any] = [saved(run, step, model=model, count=step) for step in (1, 2, 3)]
    restored = run.restore(model=wrapped(nn.Linear(elements, 1, bias=False)))
    return [*said, restored]


def save_and_close(root: Path, elements: int) -> None:
    """Every weight is the step; what is to be uploaded is, at the end."""
    run = own_run(root)
    model = wrapped(nn.Linear(elements, 1, bias=False))
    for step in (1, 2, 3):
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.fill_(step)
        assert saved(run, step, model=model, count=step).published
    run.close()


def save_with_one_rank_out_of_space(root: Path, elements: int, poor_rank: int) -> list[Any]:
    """The poor rank's persister may write no file longer than 4 KiB during the second of three saves."""
    run = own_run(root)
    model = wrapped(nn.Sequential(*(nn.Linear(elements, 1, bias=False) for _ in range(4))))
    said = [saved(run, 1, model=model)]
    [persister] = persisters_of(os.getpid())
    _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    if run.rank == poor_rank:
        resource.prlimit(persister, resource.RLIMIT_FSIZE, (4096, hard))
    said.append(saved(run, 2, model=model))
    resource.prlimit(persister, resource.RLIMIT_FSIZE, (hard, hard))
    said.append(saved(run, 3, model=model))
    return said


def scratch_of(pid: int) -> Path:
    """The folder in shared memory that a run outside Paceline has made for itself: it holds a lock on it."""
    for link in Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(OSError):
            if "/paceline-run-" in (target := os.readlink(link)):  # noqa: PTH115
                return Path(target)
    raise AssertionError(f"process {pid} has none")


def persisters_of(pid: int) -> list[int]:
    """Pids of the processes that write a rank's checkpoints."""
    children = psutil.Process(pid).children()
    return [child.pid for child in children if "paceline.training.persister" in child.cmdline()]


def save_what_one_rank_cannot(root: Path) -> str:
    """Rank 0's value cannot be saved; what error each rank sees."""
    run = own_run(root)
    model = wrapped(nn.Linear(4, 1))
    try:
        run.save(1, model=model, thing=object())
    except paceline.training.errors.UnsavableState as error:
        return error.message
    return "saved"


def restore_of_other_shape(root: Path) -> str:
    run = own_run(root)
    run.save(1, model=wrapped(nn.Linear(4, 1)))
    try:
        run.restore(model=wrapped(nn.Linear(4, 2)))
    except paceline.training.errors.CheckpointMismatch as error:
        return error.message
    return "restored"


def restore_only(root: Path, elements: int) -> Any:
    run = own_run(root)
    return run.restore(model=wrapped(nn.Linear(elements, 1, bias=False)))


def step_until_stop(step_s: float, steps_max: int, sync: bool) -> tuple[int, int, float]:
    """(Step at which `should_stop` said so, how often the ranks agreed until then, seconds until then.)"""
    run = paceline.init()
    agreements = 0
    largest = Gang.largest

    def counted(gang: Gang, *values: int) -> tuple[int, ...]:
        nonlocal agreements
        agreements += 1
        return largest(gang, *values)

    Gang.largest = counted  # type: ignore[method-assign]
    since_s = time.monotonic()
    for step in range(steps_max):
        if step_s:
            time.sleep(step_s)  # what a training step takes
        if sync:
            torch.distributed.all_reduce(torch.zeros(1))
        stop = run.should_stop()
        if step == 0:
            Path(os.environ["READY"]).touch()
        if stop:
            assert run.should_stop(), "once said, it stays said"
            return step, agreements, time.monotonic() - since_s
    return -1, agreements, time.monotonic() - since_s


def modules_imported_by_a_run(root: Path) -> list[str]:
    """What is imported from the first line of a script to its end, that the warm process had not."""
    before = set(sys.modules)
    run = paceline.init(checkpoints=root)
    training = Training(run)
    for step in (1, 2):
        training.step()
        run.report(step, loss=float("nan"))
        run.should_stop()
        training.save(step, note="text")
    training.restore()
    return sorted(set(sys.modules) - before)


def killed_at_file_operation(root: Path, number: int, victim: str) -> str:
    """Saves step 1, then the victim dies by SIGKILL right before the so-manieth file operation of saving
    step 2. A persister counts by itself.
    """
    run = own_run(root, keep_last=1)
    model = nn.Linear(100, 1, bias=False)
    nn.init.constant_(model.weight, 1.0)
    assert saved(run, 1, model=model, count=1).published
    (root.parent / "scratch").write_text(str(scratch_of(os.getpid())))
    nn.init.constant_(model.weight, 2.0)
    left = number if victim == "rank" else 0

    def on_event(event: str, arguments: tuple[Any, ...]) -> None:
        nonlocal left
        if left and event in FILE_EVENTS and "/dev/shm/paceline-" in str(arguments[0]):
            left -= 1
            if left == 0:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(on_event)
    outcome = saved(run, 2, model=model, count=2)
    left = 0
    run.close()
    if not outcome.published:
        assert outcome.error == "rank 0: the process that writes it ended with -9"
    return "survived" if outcome.published else "went on"


FILE_EVENTS = frozenset(
    {"open", "os.rename", "os.mkdir", "os.remove", "os.rmdir", "os.listdir", "os.scandir"}
)


def train_sharded(root: Path, steps: int, save_at: int) -> tuple[int, list[float], list[float]]:
    """FSDP2: parameters and optimizer state are sharded over the ranks. (Step, losses, all weights.)"""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    run = own_run(root)
    torch.manual_seed(5)
    model = nn.Sequential(nn.Linear(6, 33), nn.ReLU(), nn.Linear(33, 3))
    if run.world_size > 1:
        fully_shard(model, mesh=init_device_mesh("cpu", (run.world_size,)))
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.05)
    restored = run.restore(model=model, optimizer=optimizer)
    losses = []
    for step in range((restored.step if restored else 0) + 1, steps + 1):
        inputs = torch.linspace(-1, 1, 24).reshape(4, 6) * step
        loss = model(inputs).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.item()))
        if step == save_at:
            assert saved(run, step, model=model, optimizer=optimizer).published
    weights = []
    for parameter in model.parameters():
        whole = parameter.full_tensor() if hasattr(parameter, "full_tensor") else parameter
        weights += whole.detach().flatten().tolist()
    return (restored.step if restored else 0), losses, weights


def net_to_shard() -> nn.Sequential:
    """Its first layer cannot be shared out evenly."""
    return nn.Sequential(nn.Linear(6, 33), nn.ReLU(), nn.Linear(33, 3))


def save_sharded(root: Path) -> tuple[dict[str, torch.Tensor], dict[str, dict[str, torch.Tensor]]]:
    """FSDP2 and its optimizer, saved after three steps. (All weights and all the optimizer's state, each
    gathered from the ranks, by the parameters' names.)
    """
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard
    from torch.distributed.tensor import DTensor

    def whole(tensor: torch.Tensor) -> torch.Tensor:
        return (tensor.full_tensor() if isinstance(tensor, DTensor) else tensor).detach()

    run = own_run(root)
    model = net_to_shard()
    fully_shard(model, mesh=init_device_mesh("cpu", (run.world_size,)))
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.05)
    for step in (1, 2, 3):
        optimizer.zero_grad()
        model(torch.linspace(-1, 1, 24).reshape(4, 6) * step).square().mean().backward()
        optimizer.step()
    assert saved(run, 3, model=model, optimizer=optimizer).published
    named = dict(model.named_parameters())
    state = {
        name: {entry: whole(value) for entry, value in optimizer.state[parameter].items()}
        for name, parameter in named.items()
    }
    return {name: whole(parameter) for name, parameter in named.items()}, state


def save_and_draw(root: Path) -> list[float]:
    """What each of this rank's generators gives after the save."""
    run = own_run(root)
    _seed_all(100 + run.rank)
    saved(run, 1, model=wrapped(nn.Linear(4, 1)))
    return _draw_from_all()


def restore_and_draw_twice(root: Path) -> list[list[float]]:
    """What each of this rank's generators gives after a restore, and after another."""
    run = own_run(root)
    model, drawn = wrapped(nn.Linear(4, 1)), []
    for seed in (1, 2):
        _seed_all(seed)
        assert run.restore(model=model) is not None
        drawn.append(_draw_from_all())
    return drawn


def _seed_all(seed: int) -> None:
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)


def _draw_from_all() -> list[float]:
    return [random.random(), float(np.random.rand()), float(torch.rand(1))]


def save_with_changing_shapes(root: Path) -> tuple[list[int], int, list[float]]:
    """At the third save rank 1 alone gives something of another length. (Layouts at each save, what comes
    back.)
    """
    from paceline.training.staging import Stager

    laid_out = 0
    lay_out = Stager.lay_out

    def counted(self: Stager, prepared: Any, slot: int) -> None:
        nonlocal laid_out
        laid_out += 1
        lay_out(self, prepared, slot)

    Stager.lay_out = counted  # type: ignore[method-assign]
    run = own_run(root)
    torch.manual_seed(run.rank)
    model = wrapped(nn.Linear(50_000, 1, bias=False))
    layouts = []
    for step in range(1, 5):
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.fill_(step)
        before = laid_out
        mine = torch.full((run.rank * (step >= 3) + 1,), float(step))
        assert saved(run, step, model=model, mine=mine).published
        layouts.append(laid_out - before)
    fresh = wrapped(nn.Linear(50_000, 1, bias=False))
    restored = run.restore(model=fresh)
    assert restored is not None
    weights = torch.cat([parameter.detach().flatten() for parameter in fresh.parameters()])
    return layouts, restored.step, [float(weights.min()), float(weights.max())]


def gloo_threads_after_letting_go(agreed: bool) -> int:
    """Threads of gloo's groups that still run once the script has let go of group and model."""
    if agreed:
        Gang(read_environment(os.environ)).from_first("anything")
    model: nn.Module | None = wrapped(nn.Linear(4, 1))
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()
    del model
    gc.collect()
    names = [(thread / "comm").read_text() for thread in Path("/proc/self/task").iterdir()]
    return sum("gloo" in name for name in names)
