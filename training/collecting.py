"""What a module and its optimizer have to save, under torch's names, at the price of reading it.

torch finds each name anew at each call, by walks through the module: of a save, that took longer than all
else but the copying. Here the names are learned once, from what torch gives and what module and optimizer
give themselves, and hold for as long as both are built the same. Where the two differ by more than names
torch is asked each time, and also of FSDP1, which gathers or shards what its modules hold.

An optimizer that has made no step has no state, and is left without. torch makes one, by a step with zero
gradients, which counts: whoever trains on would train another way than without the save.
"""

import contextlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.distributed.checkpoint.state_dict import get_model_state_dict, get_state_dict
from torch.distributed.fsdp import FullyShardedDataParallel
from torch.distributed.tensor import DTensor
from torch.optim import Optimizer

from .copying import PLAIN

Collected = tuple[dict[str, Any], dict[str, Any]]
"""The state dicts of a module and of its optimizer; that of none is empty."""


def collect(module: nn.Module, optimizer: Optimizer | None) -> Collected:
    """As torch gives them: an optimizer has a state then. `no_state_made` undoes that."""
    if optimizer is None:
        return get_model_state_dict(module), {}
    return get_state_dict(module, optimizer)


@contextlib.contextmanager
def no_state_made(things: Iterable[Any]) -> Iterator[Callable[[], None]]:
    """At its end an optimizer that had no state has none, unless the given function was called."""
    fresh = [thing for thing in things if isinstance(thing, Optimizer) and not thing.state]
    try:
        yield fresh.clear
    finally:
        for optimizer in fresh:
            optimizer.state.clear()


@dataclass(frozen=True, slots=True)
class _Names:
    """torch's, in its order."""

    tensors: dict[str, str]
    """Key in the module's own state dict -> torch's."""
    parameters: dict[Any, str]
    """Number in the optimizer's own -> torch's."""

    def apply(self, own: Collected) -> Collected | None:
        """None: there is something else than was known."""
        tensors, stepped = own
        if tensors.keys() != self.tensors.keys():
            return None
        named = {name: tensors[key] for key, name in self.tensors.items()}
        if not stepped:
            return named, {}
        if not stepped["state"].keys() <= self.parameters.keys():
            return None
        return named, {
            "state": {self.parameters[number]: entries for number, entries in stepped["state"].items()},
            "param_groups": [
                {**group, "params": [self.parameters[number] for number in group["params"]]}
                for group in stepped["param_groups"]
            ],
        }


class Collector:
    """Of one run's saves."""

    def __init__(self) -> None:
        self._known: dict[str, tuple[list[Any], _Names | None]] = {}

    def collect(self, name: str, module: nn.Module, optimizer: Optimizer | None) -> Collected:
        """As torch gives them, but for an optimizer without a state. `name`: of this pair, in all saves."""
        if optimizer is not None and not optimizer.state and not optimizer.state_dict()["state"]:
            with no_state_made([optimizer]):
                named, stepped = collect(module, optimizer)
            return named, {**stepped, "state": {}}
        built = _built(module, optimizer)
        before, names = self._known.get(name, (None, None))
        if built is None or (names is None and before == built):
            return collect(module, optimizer)
        own = _own(module, optimizer)
        collected = names.apply(own) if names is not None and before == built else None
        if collected is None:
            collected = collect(module, optimizer)
            self._known[name] = built, _learned(own, collected)
        return collected


def _built(module: nn.Module, optimizer: Optimizer | None) -> list[Any] | None:
    """Equal when the names are: they follow from the kinds of the modules, and from which parameter is where.
    None: torch is to be asked.
    """
    parts = list(module.named_modules())
    if any(isinstance(part, FullyShardedDataParallel) for _, part in parts):
        return None
    groups = [] if optimizer is None else optimizer.param_groups
    return [
        *((name, type(part), _places(part._parameters)) for name, part in parts),
        *([id(one) for one in group["params"]] for group in groups),
    ]


def _places(parameters: Mapping[str, nn.Parameter | None]) -> list[tuple[str, int]]:
    return [(key, id(one)) for key, one in parameters.items()]


@torch.no_grad()
def _own(module: nn.Module, optimizer: Optimizer | None) -> Collected:
    return module.state_dict(), {} if optimizer is None else optimizer.state_dict()


def _learned(own: Collected, told: Collected) -> _Names | None:
    """None where `told` differs by more than names."""
    groups = zip(own[1].get("param_groups", ()), told[1].get("param_groups", ()), strict=False)
    names = _Names(
        dict(_renamed(own[0], told[0])),
        {
            number: name
            for ours, its in groups
            for number, name in zip(ours["params"], its["params"], strict=False)
        },
    )
    return names if _are_same(names.apply(own), told) else None


def _renamed(own: Mapping[str, Any], told: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """torch puts what it renames behind the rest, in its order."""
    yield from ((key, key) for key in own if key in told)
    moved, new = [key for key in own if key not in told], [key for key in told if key not in own]
    yield from zip(moved, new, strict=False)


def _are_same(one: Any, other: Any) -> bool:
    """The same tensors under the same names, in the same order."""
    if type(one) is not type(other):
        return isinstance(one, dict) and isinstance(other, dict) and _are_same(dict(one), dict(other))
    if isinstance(one, dict):
        return list(one) == list(other) and all(_are_same(one[key], other[key]) for key in one)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(_are_same, one, other))
    if isinstance(one, DTensor):
        return one.placements == other.placements and _are_same(one.to_local(), other.to_local())
    if isinstance(one, torch.Tensor):
        return type(one) in PLAIN and one.layout == torch.strided and _place(one) == _place(other)
    return True


def _place(tensor: torch.Tensor) -> tuple[Any, ...]:
    return tensor.data_ptr(), tensor.shape, tensor.stride(), tensor.dtype
