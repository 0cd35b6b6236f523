"""The step loop on a GPU: no update is made of what a broken gang has left half reduced.

Stream, group and the shim's line are made up here; the rest is ours. What NCCL does is seen in tests/gpu.
"""

import threading
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import Mock

import pytest
import torch
from paceline.training.errors import GangLost, UnsavableState
from paceline.training.peers import Peers
from paceline.training.run import Run
from paceline.training.staying import NextAttempt
from torch import distributed, nn
from torch._C._distributed_c10d import ErrorType
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

MakeRun = Any
LR = 0.5
MEETS = ["wait", "check"]
"""What was handed on is there."""
UPDATES = ["wait", "check", "update"]


class Gpu:
    """Its stream, and NCCL's group on it. `on_wait` happens while the host waits for the stream."""

    def __init__(self) -> None:
        self.events: list[str] = []
        self.on_wait: list[Callable[[], object]] = []
        self.aborted = threading.Event()
        self.error = ErrorType.SUCCESS

    def form(self, _backend: str) -> None:
        self.aborted.clear()
        self.error = ErrorType.SUCCESS

    def synchronize(self) -> None:
        self.events.append("wait")
        if self.on_wait:
            self.on_wait.pop(0)()

    def abort(self) -> None:
        if not self.aborted.is_set():
            self.events.append("abort")
        self.aborted.set()

    def _get_backend(self, _device: torch.device) -> "Gpu":
        return self

    def get_error(self) -> ErrorType:
        self.events.append("check")
        return self.error


class Line:
    """The shim's, to a rank that gets a next attempt each time."""

    made: "Line"

    def __init__(self, _folder: Path, on_leave: Callable[[], None]) -> None:
        self.broken = False
        self._on_leave = on_leave
        Line.made = self

    def leave(self) -> None:
        self.broken = True
        self._on_leave()

    def stay(self, _rank: int) -> None:
        self.broken = False

    def wait_for_attempt(self) -> NextAttempt:
        return NextAttempt({}, Path())

    def close(self) -> None:
        pass


class Descent(torch.optim.Optimizer):
    """Tells of its updates."""

    def __init__(self, model: nn.Module, events: list[str]) -> None:
        super().__init__(model.parameters(), {})
        self._events = events

    def step(self, _closure: Any = None) -> None:  # type: ignore[override]
        self._events.append("update")
        with torch.no_grad():
            for each in self.param_groups[0]["params"]:
                each.sub_(LR * each.grad)


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> Gpu:
    made = Gpu()
    monkeypatch.setattr(distributed, "init_process_group", made.form)
    monkeypatch.setattr(distributed, "destroy_process_group", lambda: None)
    monkeypatch.setattr(distributed, "group", SimpleNamespace(WORLD=made))
    monkeypatch.setattr(torch.cuda, "current_stream", lambda _device: made)
    return made


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """Runs have a peer, and a shim that this process never meets: what it was told."""
    messages: list[dict[str, Any]] = []
    monkeypatch.setattr("paceline.training.loop.StayLine", Line)
    monkeypatch.setattr(Run, "world_size", property(lambda _: 2))
    monkeypatch.setattr(Run, "task_folder", property(lambda _: Path()))
    monkeypatch.setattr(Run, "go_on_in", lambda _self, _attempt: None)
    monkeypatch.setattr(Run, "tell", lambda _self, message, _timeout_s: messages.append(message))
    return messages


@pytest.fixture
def on_gpu(gpu: Gpu, told: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch) -> None:
    """The loop takes its model, which is on the CPU, for one on a GPU."""
    monkeypatch.setattr("paceline.training.loop.Peers", lambda _type: Peers("cuda"))


def model_of_one() -> nn.Linear:
    model = nn.Linear(1, 1, bias=False)
    model.weight.data.zero_()
    return model


def train(run: Run, model: nn.Module, optimizer: torch.optim.Optimizer, step: Callable[[int], object]) -> int:
    return run.loop(
        lambda number, _: step(number), steps=2, model=model, optimizer=optimizer, wrap=lambda net: net
    )


def a_peer_is_lost(gpu: Gpu, model: nn.Linear) -> None:
    """The shim says it, and the abort lets the reduction end with what it had."""
    threading.Thread(target=Line.made.leave).start()
    assert gpu.aborted.wait(30)
    if model.weight.grad is not None:
        model.weight.grad.fill_(1e6)


def the_watchdog_sees_it_first(gpu: Gpu, model: nn.Linear) -> None:
    gpu.error = ErrorType.COMM_ERROR
    assert model.weight.grad is not None
    model.weight.grad.fill_(1e6)


@pytest.mark.usefixtures("on_gpu")
@pytest.mark.parametrize(
    ("happens", "seen"),
    [(a_peer_is_lost, ["wait", "abort"]), (the_watchdog_sees_it_first, ["wait", "check", "abort"])],
)
def test_no_update_is_made_of_what_an_abort_left(
    make_run: MakeRun,
    gpu: Gpu,
    told: list[dict[str, Any]],
    happens: Callable[[Gpu, nn.Linear], None],
    seen: list[str],
) -> None:
    model = model_of_one()

    def step(number: int) -> None:
        gpu.events.append(f"step {number}")
        model.weight.grad = torch.ones(1, 1)
        optimizer.step()

    gpu.on_wait = [lambda: None, lambda: happens(gpu, model)]
    optimizer = Descent(model, gpu.events)
    assert train(make_run(), model, optimizer, step) == 2
    again = ["step 1", *UPDATES, "step 2", *UPDATES]
    assert gpu.events == [*MEETS, "step 1", *seen, *MEETS, *again]
    assert model.weight.item() == -2 * LR, "each step once, with its own gradient"
    assert [each["step"] for each in told] == [0], "the broken one did not count"


@pytest.mark.usefixtures("told")
def test_on_the_cpu_nothing_is_waited_for(make_run: MakeRun, gpu: Gpu) -> None:
    model = model_of_one()
    model.weight.grad = torch.ones(1, 1)
    optimizer = Descent(model, gpu.events)
    assert train(make_run(), model, optimizer, lambda _: optimizer.step()) == 2
    assert gpu.events == ["update", "update"]


@pytest.mark.usefixtures("on_gpu")
def test_a_rank_that_has_not_got_all_of_the_state_does_not_keep_it(make_run: MakeRun, gpu: Gpu) -> None:
    """A second peer is lost while state is handed on, after the first."""
    model = model_of_one()
    model.weight.grad = torch.ones(1, 1)
    optimizer = Descent(model, gpu.events)
    gpu.on_wait = [lambda: None, *[lambda: a_peer_is_lost(gpu, model)] * 2]
    with pytest.raises(GangLost, match="the gang is broken"):
        train(make_run(), model, optimizer, lambda _: optimizer.step())
    assert "update" not in gpu.events


class Scaled:
    """A training with a scaler: the weight goes down by LR in each step."""

    def __init__(self, *, fused: bool = False) -> None:
        self.model = model_of_one()
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=LR, fused=fused)
        self.scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
        self.gradient = 1.0

    def step(self, _number: int, _model: nn.Module) -> None:
        self.optimizer.zero_grad()
        self.scaler.scale(self.model.weight.sum() * self.gradient).backward()
        self.scaler.step(self.optimizer)
        self.scaler.update()

    def train(self, run: Run) -> int:
        things = {"model": self.model, "optimizer": self.optimizer, "scaler": self.scaler}
        return run.loop(self.step, steps=2, wrap=lambda net: net, **things)


@pytest.mark.usefixtures("on_gpu")
@pytest.mark.parametrize("fused", [False, True])
def test_a_scaler_unscales_the_step_that_is_made_again_once(make_run: MakeRun, gpu: Gpu, fused: bool) -> None:
    scaled = Scaled(fused=fused)
    gpu.on_wait = [lambda: None, lambda: a_peer_is_lost(gpu, scaled.model)]
    assert scaled.train(make_run()) == 2
    assert scaled.model.weight.item() == -2 * LR


@pytest.mark.usefixtures("on_gpu")
def test_a_step_that_a_scaler_skips_counts(make_run: MakeRun) -> None:
    scaled = Scaled()
    scaled.gradient = torch.inf
    assert scaled.train(make_run()) == 2
    assert (scaled.model.weight.item(), scaled.scaler.get_scale()) == (0.0, 256.0)


@pytest.mark.usefixtures("on_gpu")
def test_a_rank_whose_scaler_believed_a_broken_gang_does_not_go_on(make_run: MakeRun, gpu: Gpu) -> None:
    scaled = Scaled()
    scaled.gradient = torch.inf
    gpu.on_wait = [lambda: None, lambda: a_peer_is_lost(gpu, scaled.model)]
    with pytest.raises(GangLost, match="its last step cannot be undone"):
        scaled.train(make_run())


@pytest.fixture
def sharded() -> nn.Module:
    distributed.init_process_group("gloo", store=distributed.HashStore(), rank=0, world_size=1)
    try:
        return fully_shard(nn.Sequential(nn.Linear(2, 2)), mesh=init_device_mesh("cpu", (1,)))
    finally:
        distributed.destroy_process_group()


def test_a_sharded_model_is_refused(make_run: MakeRun, sharded: nn.Module) -> None:
    optimizer = torch.optim.SGD(sharded.parameters(), lr=LR)
    with pytest.raises(UnsavableState, match=r"whose 0\.weight is a DTensor") as refused:
        train(make_run(), sharded, optimizer, pytest.fail)
    assert "run.restore() and run.save()" in str(refused.value.hint)


def test_a_model_that_the_wrapper_shards_is_refused(
    make_run: MakeRun, sharded: nn.Module, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = model_of_one()
    optimizer = torch.optim.SGD(model.parameters(), lr=LR)
    monkeypatch.setattr(Run, "world_size", property(lambda _: 2))
    monkeypatch.setattr("paceline.training.loop.Peers", Mock())
    with pytest.raises(UnsavableState, match="is a DTensor"):
        make_run().loop(pytest.fail, steps=1, model=model, optimizer=optimizer, wrap=lambda _: sharded)
