"""What is collected is what torch gives, and names that no longer hold are noticed."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from paceline.training import collecting
from paceline.training.collecting import Collector, collect
from paceline.training.flattening import FlatPlanner
from torch import distributed, nn
from torch.distributed.checkpoint.default_planner import DefaultSavePlanner
from torch.distributed.fsdp import FullyShardedDataParallel, fully_shard
from torch.nn.parallel import DistributedDataParallel

Asked = list[None]


class Net(nn.Module):
    """Of blocks, with a weight that two share, a buffer that is kept and one that is not."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(4, 4)
        self.module = nn.Sequential(nn.BatchNorm1d(4), nn.Linear(4, 4, bias=False))
        self.last = nn.Linear(4, 4)
        self.last.weight = self.first.weight
        self.register_buffer("kept", torch.ones(3))
        self.register_buffer("not_kept", torch.ones(3), persistent=False)

    def forward(self, given: torch.Tensor) -> torch.Tensor:
        return self.last(self.module(self.first(given)))


def partly_compiled(net: Net) -> nn.Module:
    net.first = torch.compile(net.first, backend="eager")  # type: ignore[assignment]
    return net


def partly_frozen(net: Net) -> nn.Module:
    net.last.bias.requires_grad_(False)
    return net


@pytest.fixture
def alone(tmp_path: Any) -> Iterator[None]:
    """A process group of one."""
    distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    yield
    distributed.destroy_process_group()


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> Asked:
    """One for each time that torch was asked."""
    times: Asked = []

    def counting(*given: Any) -> Any:
        times.append(None)
        return collect(*given)

    monkeypatch.setattr(collecting, "collect", counting)
    return times


def step(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    optimizer.zero_grad()
    model(torch.randn(8, 4)).square().mean().backward()
    optimizer.step()


def made(wrap: Callable[[Net], nn.Module] = lambda net: net) -> tuple[nn.Module, torch.optim.Optimizer]:
    model = wrap(Net())
    optimizer = torch.optim.AdamW(
        [
            {"params": [each]} if each.dim() == 1 else {"params": [each], "lr": 0.1}
            for each in model.parameters()
        ]
    )
    step(model, optimizer)
    return model, optimizer


def assert_as_torch(collector: Collector, model: nn.Module, optimizer: Any) -> None:
    found = collector.collect("optimizer", model, optimizer)
    assert collecting._are_same(found, collect(model, optimizer))
    assert found[1].get("param_groups") == collect(model, optimizer)[1].get("param_groups")


@pytest.mark.parametrize(
    "wrap",
    [
        lambda net: net,
        DistributedDataParallel,
        lambda net: torch.compile(net, backend="eager"),
        partly_compiled,
        fully_shard,
    ],
    ids=["plain", "ddp", "compiled", "partly compiled", "fsdp2"],
)
def test_torch_is_asked_once(alone: None, asked: Asked, wrap: Any) -> None:
    model, optimizer = made(wrap)
    collector = Collector()
    for _ in range(3):
        step(model, optimizer)
        assert_as_torch(collector, model, optimizer)
    assert len(asked) == 1


def test_a_module_alone(asked: Asked) -> None:
    collector, net = Collector(), Net()
    for _ in range(3):
        assert_as_torch(collector, net, None)
    assert len(asked) == 1


def test_fsdp1_is_left_to_torch(alone: None, asked: Asked) -> None:
    model, optimizer = made(
        lambda net: FullyShardedDataParallel(net, use_orig_params=True, device_id=torch.device("cpu"))
    )
    collector = Collector()
    for _ in range(2):
        collector.collect("optimizer", model, optimizer)
    assert len(asked) == 2


def replaced(model: Any, optimizer: Any) -> None:
    model.module[1] = nn.Linear(4, 4, bias=False)


def longer(model: Any, optimizer: Any) -> None:
    model.module.append(nn.Linear(4, 4))


def grouped_anew(model: Any, optimizer: Any) -> None:
    optimizer.param_groups.reverse()


def added(model: Any, optimizer: Any) -> None:
    model.head = nn.Linear(4, 4)
    optimizer.add_param_group({"params": list(model.head.parameters())})


def untied(model: Any, optimizer: Any) -> None:
    model.last.weight = nn.Parameter(torch.ones(4, 4))


def buffered(model: Any, optimizer: Any) -> None:
    model.register_buffer("more", torch.ones(2))


def swapped(model: Any, optimizer: Any) -> None:
    """Two parameters change their places."""
    model.first.bias, model.last.bias = model.last.bias, model.first.bias


def shaped(model: Any, optimizer: Any) -> None:
    model.kept = torch.ones(7)


@pytest.mark.parametrize(
    "change",
    [replaced, longer, grouped_anew, added, untied, buffered, swapped, shaped],
    ids=lambda one: one.__name__,
)
def test_a_change_is_noticed(asked: Asked, change: Any) -> None:
    model, optimizer = made()
    collector = Collector()
    assert_as_torch(collector, model, optimizer)
    change(model, optimizer)
    if change is replaced or change is longer or change is untied:  # the optimizer steps what is there
        optimizer = torch.optim.AdamW(model.parameters())
    step(model, optimizer)
    for _ in range(2):
        assert_as_torch(collector, model, optimizer)
    assert len(asked) <= 2


def test_a_state_that_comes_late_is_collected(asked: Asked) -> None:
    """Of a parameter that had no gradient before."""
    model, optimizer = made(partly_frozen)
    collector = Collector()
    assert_as_torch(collector, model, optimizer)
    model.last.bias.requires_grad_(True)
    step(model, optimizer)
    assert_as_torch(collector, model, optimizer)
    assert "last.bias" in collector.collect("optimizer", model, optimizer)[1]["state"]
    assert len(asked) == 1


def test_flat_as_torch_does_it() -> None:
    model, optimizer = made()
    state = dict(zip(("model", "optimizer"), collect(model, optimizer), strict=True))
    state |= {
        "own": {"rng": {"0": {"cpu": torch.ones(2)}}, 1: (torch.ones(1), {"a": 2}), "none": {}, "empty": []}
    }
    state |= {"lists": [torch.ones(1), [{"deep": [torch.ones(1), 3]}], 4], "plain": [1, [2, 3]], "text": "x"}
    ours, stock = FlatPlanner(), DefaultSavePlanner()
    ours.set_up_planner(state, is_coordinator=True)
    stock.set_up_planner(state, is_coordinator=True)
    assert list(ours.state_dict) == list(stock.state_dict)
    assert all(ours.state_dict[name] is stock.state_dict[name] for name in ours.state_dict)
    assert ours.mappings == stock.mappings
    assert ours.is_coordinator


def test_other_tensors_are_flattened_by_torch() -> None:
    class Odd(torch.Tensor):
        pass

    planner = FlatPlanner()
    planner.set_up_planner({"first": torch.ones(1), "odd": {"one": torch.ones(2).as_subclass(Odd)}})
    assert list(planner.state_dict) == ["first", "odd.one"]


def test_one_name_for_two_is_refused() -> None:
    with pytest.raises(ValueError, match=r"a\.b"):
        FlatPlanner().set_up_planner({"a": {"b": torch.ones(1)}, "a.b": torch.ones(1)})
