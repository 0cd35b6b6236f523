"""What comes back is what was saved: every kind of thing, in PyTorch's own format, by one process."""

import math
import random
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from paceline.training.errors import CheckpointMismatch, UnsavableState
from paceline.training.run import Run
from support import rank_scripts
from support.ranks import RankPool
from torch import nn
from torch.distributed.checkpoint.filesystem import FileSystemReader
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict
from torch.distributed.checkpoint.state_dict_loader import load as load_state_dict

MakeRun = Any


class Trained:
    """A net with momenta in its optimizer and a schedule under way."""

    def __init__(self, width: int = 8, seed: int = 0) -> None:
        torch.manual_seed(seed)
        self.model = nn.Sequential(nn.Linear(4, width), nn.BatchNorm1d(width), nn.ReLU(), nn.Linear(width, 2))
        self.optimizer = torch.optim.Adam(self.model.parameters(), lr=0.1)
        self.schedule = torch.optim.lr_scheduler.MultiStepLR(self.optimizer, [2, 30])

    def train(self, steps: int = 3) -> "Trained":
        for _ in range(steps):
            self.optimizer.zero_grad()
            self.model(torch.randn(16, 4)).square().mean().backward()
            self.optimizer.step()
            self.schedule.step()
        return self

    def parts(self) -> dict[str, Any]:
        return {"model": self.model, "optimizer": self.optimizer, "schedule": self.schedule}


def assert_same(a: Any, b: Any) -> None:
    if isinstance(a, torch.Tensor):
        assert torch.equal(a, b)
    elif isinstance(a, dict):
        assert a.keys() == b.keys()
        for key in a:
            assert_same(a[key], b[key])
    elif isinstance(a, list | tuple):
        assert len(a) == len(b)
        for one, other in zip(a, b, strict=True):
            assert_same(one, other)
    else:
        assert a == b


def test_model_optimizer_and_schedule_come_back(make_run: MakeRun) -> None:
    run, saved, fresh = make_run(), Trained().train(), Trained(seed=9)
    outcome = run.save(3, **saved.parts())
    restored = run.restore(**fresh.parts())

    assert not outcome.published, "it comes back before it is on disk"
    assert run.flush().published
    assert restored is not None
    assert (restored.step, restored.path, restored.rejected) == (3, outcome.path, ())
    for name, part in saved.parts().items():
        assert_same(part.state_dict(), fresh.parts()[name].state_dict())
    assert fresh.schedule.milestones == saved.schedule.milestones


def test_training_goes_on_as_if_never_stopped(make_run: MakeRun) -> None:
    saved, fresh = Trained().train(), Trained(seed=9)
    first = make_run()
    first.save(3, **saved.parts())
    saved.train(4)
    first.flush()
    make_run().restore(**fresh.parts())
    fresh.train(4)
    assert_same(saved.model.state_dict(), fresh.model.state_dict())


def test_a_scaler_of_gradients_comes_back(make_run: MakeRun) -> None:
    """With its scale, and with its count of steps until that grows."""

    def make(init_scale: float) -> torch.amp.GradScaler:
        return torch.amp.GradScaler("cpu", init_scale, growth_factor=4.0, growth_interval=2)

    def step(scaler: torch.amp.GradScaler, *, overflows: bool = False) -> None:
        loss = model(torch.ones(1, 4)).square().sum() * (math.inf if overflows else 1.0)
        optimizer.zero_grad()
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()

    model = nn.Linear(4, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    run, scaler, fresh = make_run(), make(1024.0), make(8.0)
    step(fresh)
    step(scaler, overflows=True)
    step(scaler)
    run.save(2, model=model, scaler=scaler)
    run.restore(model=model, scaler=fresh)

    assert scaler.state_dict().items() >= {"scale": 512.0, "_growth_tracker": 1}.items()
    assert fresh.state_dict() == scaler.state_dict()
    step(fresh)
    assert fresh.get_scale() == 2048.0


def test_values_and_tensors_come_back_by_name(make_run: MakeRun) -> None:
    values = {"epoch": 4, "best": float("inf"), "note": "grün", "history": [1, 2.5, None, {"a": True}]}
    run, saved = make_run(), Trained()
    run.save(3, model=saved.model, average=torch.arange(5.0), scale=np.float64(0.5), **values)
    restored = run.restore(model=Trained().model)

    assert restored is not None
    assert {name: restored[name] for name in values} == values
    assert torch.equal(restored["average"], torch.arange(5.0))
    assert restored["scale"] == 0.5
    assert restored.get("missing", 7) == 7


def test_random_generators_come_back(make_run: MakeRun) -> None:
    run, saved = make_run(), Trained()
    random.seed(1)
    np.random.seed(2)
    torch.manual_seed(3)
    random.gauss(0, 1)
    np.random.standard_normal()

    def draw() -> list[Any]:
        return [
            random.random(),
            random.gauss(0, 1),
            np.random.rand(),
            np.random.standard_normal(),
            torch.rand(2).tolist(),
        ]

    run.save(1, model=saved.model)
    first = draw()
    assert draw() != first
    run.restore(model=saved.model)
    assert draw() == first


def test_saving_draws_nothing(make_run: MakeRun) -> None:
    torch.manual_seed(3)
    random.seed(3)
    expected = torch.rand(1).item(), random.random()
    torch.manual_seed(3)
    random.seed(3)
    make_run().save(1, **Trained().parts() | {"model": nn.Linear(2, 2), "optimizer": None, "schedule": None})
    torch.manual_seed(3)
    assert torch.rand(1).item() == expected[0]
    assert random.random() == expected[1]


def test_stock_dcp_reads_it(make_run: MakeRun) -> None:
    saved, fresh = Trained().train(), Trained(seed=9)
    run = make_run()
    outcome = run.save(3, **saved.parts(), epoch=1)
    run.flush()
    state: dict[str, Any] = {"model": fresh.model.state_dict(), "paceline": {"step": 0}}
    load_state_dict(state, storage_reader=FileSystemReader(outcome.path))

    assert_same(state["model"], dict(saved.model.state_dict()))
    assert state["paceline"]["step"] == 3


def test_stock_dcp_reads_what_ranks_sharded_in_one_process(
    ranks: RankPool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """FSDP2 on two ranks, and its optimizer. Nothing of Paceline can be imported at the load."""
    root = tmp_path / "c"
    (weights, optimizer_state), _ = ranks.run(rank_scripts.save_sharded, root, folder=tmp_path)
    model = rank_scripts.net_to_shard()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.7)
    state: dict[str, Any] = {}
    state["model"], state["optimizer"] = get_state_dict(model, optimizer)
    with monkeypatch.context() as without:
        for name in [name for name in sys.modules if name.partition(".")[0] == "paceline"]:
            without.setitem(sys.modules, name, None)
        load_state_dict(state, storage_reader=FileSystemReader(root / "step-00000003.a1"))
    set_state_dict(model, optimizer, model_state_dict=state["model"], optim_state_dict=state["optimizer"])
    named = dict(model.named_parameters())
    assert_same(named, weights)
    assert_same({name: optimizer.state[named[name]] for name in named}, optimizer_state)
    assert optimizer.param_groups[0]["lr"] == 0.05


def test_two_models_each_with_its_optimizer(make_run: MakeRun) -> None:
    run, (a, b) = make_run(), (Trained(seed=1).train(), Trained(seed=2).train())
    fresh_a, fresh_b = Trained(seed=3), Trained(seed=4)
    run.save(
        3, generator=a.model, critic=b.model, generator_optimizer=a.optimizer, critic_optimizer=b.optimizer
    )
    run.restore(
        generator=fresh_a.model,
        critic=fresh_b.model,
        generator_optimizer=fresh_a.optimizer,
        critic_optimizer=fresh_b.optimizer,
    )
    assert_same(a.model.state_dict(), fresh_a.model.state_dict())
    assert_same(b.optimizer.state_dict(), fresh_b.optimizer.state_dict())


def test_a_part_that_never_had_a_gradient(make_run: MakeRun) -> None:
    def make(seed: int) -> tuple[nn.ModuleDict, torch.optim.Optimizer]:
        torch.manual_seed(seed)
        model = nn.ModuleDict({"used": nn.Linear(2, 2), "unused": nn.Linear(2, 2)})
        return model, torch.optim.Adam(model.parameters())

    run, (model, optimizer), (fresh, fresh_optimizer) = make_run(), make(1), make(2)
    model["used"](torch.ones(1, 2)).sum().backward()
    optimizer.step()
    run.save(1, model=model, optimizer=optimizer)
    run.restore(model=fresh, optimizer=fresh_optimizer)
    assert_same(optimizer.state_dict(), fresh_optimizer.state_dict())


def test_an_optimizer_that_made_no_step_is_left_without_state(make_run: MakeRun) -> None:
    """torch would make a step to have one, which counts: the losses after it would be other ones."""
    saved, never_saved = Trained(), Trained()
    run = make_run()
    saved_outcome = run.save(0, **saved.parts())
    assert not saved.optimizer.state
    run.flush()
    for net in (saved, never_saved):
        torch.manual_seed(5)
        net.train()
    assert_same(saved.optimizer.state_dict(), never_saved.optimizer.state_dict())
    assert_same(saved.model.state_dict(), never_saved.model.state_dict())
    fresh = Trained(seed=9)
    assert make_run().restore(**fresh.parts()).path == saved_outcome.path
    assert not fresh.optimizer.state
    torch.manual_seed(5)
    assert_same(fresh.train().model.state_dict(), never_saved.model.state_dict())


def test_a_restore_that_finds_nothing_good_leaves_all_as_it_was(make_run: MakeRun, tmp_path: Path) -> None:
    run = make_run()
    saved = run.save(3, **Trained().train().parts())
    run.flush()
    for path in saved.path.glob("*.distcp"):
        path.write_bytes(path.read_bytes()[:-1] + b"?")
    fresh, untouched = Trained(seed=9), Trained(seed=9)
    assert make_run().restore(**fresh.parts()) is None
    for name, part in untouched.parts().items():
        assert_same(fresh.parts()[name].state_dict(), part.state_dict())


@pytest.mark.parametrize("make_optimizer", [
    lambda parameters: torch.optim.SGD(parameters, lr=0.1),
    lambda parameters: torch.optim.SGD(parameters, lr=0.1, momentum=0.9),
    lambda parameters: torch.optim.AdamW(parameters, lr=torch.tensor(0.1)),
    lambda parameters: torch.optim.Adagrad(parameters, lr=np.float64(0.1)),
    lambda parameters: torch.optim.RMSprop(parameters, lr=0.1, centered=True),
])  # fmt: skip
def test_optimizers_of_many_kinds(make_run: MakeRun, make_optimizer: Any) -> None:
    run, model, fresh = make_run(), nn.Linear(3, 3), nn.Linear(3, 3)
    optimizer, fresh_optimizer = make_optimizer(model.parameters()), make_optimizer(fresh.parameters())
    model(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    run.save(1, model=model, optimizer=optimizer)
    run.restore(model=fresh, optimizer=fresh_optimizer)
    assert_same(optimizer.state_dict(), fresh_optimizer.state_dict())


def test_what_could_not_be_read_back_is_refused_by_name(make_run: MakeRun) -> None:
    run, trained = make_run(), Trained()

    class Odd:
        def state_dict(self) -> dict[str, Any]:
            return {"when": Path("x")}

        def load_state_dict(self, state: dict[str, Any]) -> None: ...

    for thing, words in (
        ({"thing": object()}, "thing is a object"),
        ({"thing": {1: 2}}, "has the key 1"),
        ({"thing": [b"x"]}, r"thing\[0\] is a bytes"),
        ({"thing": Odd()}, "state of thing cannot be read back safely"),
        ({"paceline": 1}, "is taken"),
        ({"other": torch.optim.SGD(nn.Linear(1, 1).parameters())}, "none of the modules given"),
    ):
        with pytest.raises(UnsavableState, match=words):
            run.save(1, model=trained.model, **thing)
    with pytest.raises(UnsavableState, match="nothing to save"):
        run.save(1)
    assert run.restore(model=trained.model) is None


def test_the_step_loop_refuses_what_has_no_state_and_samplers(make_run: MakeRun) -> None:
    run, trained = make_run(), Trained()
    for thing, words in (
        (object(), "a object without state_dict"),
        (run.sampler(8, global_batch_size=4), "a sampler, which goes on when a step is made again"),
    ):
        with pytest.raises(UnsavableState, match=f"run.loop\\(\\) was given thing, {words}"):
            run.loop(pytest.fail, steps=1, model=trained.model, optimizer=trained.optimizer, thing=thing)


@pytest.mark.parametrize(("given", "words"), [
    ({"model": nn.Linear(4, 8)}, "it lacks model.bias, model.weight"),
    ({"model": nn.Sequential(nn.Linear(4, 8))}, "it has model"),
    ({"model": Trained(width=9).model}, "Size mismatch"),
    ({"net": nn.Linear(4, 8)}, r"net \(module\), but step 3 \(attempt 1\) holds model \(module\)"),
    ({"schedule": Trained().schedule}, "schedule"),
])  # fmt: skip
def test_what_does_not_fit_is_said_and_nothing_older_is_tried(
    make_run: MakeRun, given: Any, words: str
) -> None:
    run = make_run()
    run.save(2, model=Trained().model)
    run.save(3, model=Trained().model)
    with pytest.raises(CheckpointMismatch, match=words):
        run.restore(**given)


def test_each_run_outside_is_an_attempt_of_its_own(make_run: MakeRun, tmp_path: Path) -> None:
    model = nn.Linear(1, 1)
    first, second = make_run(), make_run()
    first.save(10, model=model)
    first.flush()
    second.save(5, model=model)
    second.save(5, model=model)
    second.flush()

    names = sorted(path.name for path in (tmp_path / "checkpoints").iterdir())
    assert names == ["step-00000005.a2", "step-00000005.a2.1", "step-00000010.a1"]
    restored = make_run().restore(model=model)
    assert restored is not None
    assert restored.path.name == "step-00000005.a2.1"


def test_a_run_outside_keeps_the_last_and_leaves_what_it_did_not_go_on_from(
    make_run: MakeRun, tmp_path: Path
) -> None:
    def names() -> list[str]:
        return sorted(path.name for path in (tmp_path / "checkpoints").iterdir())

    def save(run: Run, steps: range) -> None:
        for step in steps:
            run.save(step, model=model)
        run.flush()

    model = nn.Linear(1, 1)
    save(make_run(keep_last=2), range(1, 5))
    assert names() == ["step-00000003.a1", "step-00000004.a1"]
    save(make_run(keep_last=2), range(1, 4))
    assert names() == ["step-00000002.a2", "step-00000003.a1", "step-00000003.a2", "step-00000004.a1"]
    third = make_run(keep_last=2)
    third.restore(model=model)
    save(third, range(7, 9))
    assert names() == ["step-00000007.a3", "step-00000008.a3"]
