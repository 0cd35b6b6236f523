"""The things that a script gives to `save` and `restore`, by kind, and what of them stands in a checkpoint.

    module, optimizer   through torch.distributed.checkpoint.state_dict: names without wrappers' prefixes,
    shards as DTensors stateful            state_dict() and load_state_dict(): schedulers, scalers, samplers;
    rank 0's, one value tensor              as it is value               numbers, texts, lists, dicts: rank
    0's, as JSON

Whatever could not be read back without unpickling code is refused at the save, naming it.
"""

import io
import json
import pickle
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn
from torch.distributed.checkpoint.metadata import Metadata, TensorStorageMetadata
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    set_model_state_dict,
    set_optimizer_state_dict,
)
from torch.optim import Optimizer

from . import engines, rng
from .attached import Files
from .collecting import Collected, Collector, collect
from .errors import CheckpointMismatch, UnsavableState

OWN = "paceline"
VALUES_BYTES_MAX = 16 * 1024 * 1024
_DATA_BYTES_MAX = 16 * 1024


def kind_of(thing: object) -> str:
    """Which of the kinds above."""
    if engines.is_engine(thing):
        return "engine"
    if isinstance(thing, Files):
        return "files"
    if isinstance(thing, nn.Module):
        return "module"
    if isinstance(thing, Optimizer):
        return "optimizer"
    if callable(getattr(thing, "state_dict", None)) and callable(getattr(thing, "load_state_dict", None)):
        return "stateful"
    return "tensor" if isinstance(thing, torch.Tensor) else "value"


class State:
    """What was given, by name. `for_save` makes what DCP writes; `load` puts back what was read."""

    def __init__(self, given: Mapping[str, Any], rank: int) -> None:
        self._rank = rank
        self._given = {name: thing for name, thing in given.items() if thing is not None}
        self.kinds = {name: kind_of(thing) for name, thing in self._given.items()}
        if OWN in given:
            raise UnsavableState(f"the name {OWN!r} is taken: step, values and random states are kept there")
        self.attached = _attached(self._given, [*self._of("engine"), *self._of("files")])
        """The engine, or the files, that go into the checkpoint beside DCP's."""

    def for_save(self, step: int, checked: set[str], collector: Collector) -> dict[str, Any]:
        """The state dict of this rank. `checked`: names whose form has been found readable in this run
        before.
        """
        own: dict[str, Any] = {"rng": {str(self._rank): rng.capture()}}
        state: dict[str, Any] = {OWN: own} | self._of_modules(collector.collect)
        for name in self._of("optimizer"):
            state[name]["param_groups"] = _plain(state[name]["param_groups"])
            _check_readable(name, state[name]["param_groups"], checked)
        for name in self._of("tensor"):
            state[name] = self._given[name].detach()
        if self._rank == 0:
            state |= self._of_first_rank(checked)
            own["step"] = step
            own["values"] = _encode_values({name: self._given[name] for name in self._of("value")})
        return state

    def data_position(self) -> Any:
        """Where in the data the run stands, for the manifest: the value, or the sampler's state, given as
        `data` or `sampler`. None: not said, or not in plain terms.
        """
        thing: Any = self._given.get("data", self._given.get("sampler"))
        if kind_of(thing) == "stateful":
            thing = thing.state_dict()
        try:
            text = json.dumps(_plain(thing))
        except (TypeError, ValueError, RecursionError):  # tensors and the like: in the checkpoint alone
            return None
        return json.loads(text) if len(text) <= _DATA_BYTES_MAX else None

    def check_fits(self, contents: Mapping[str, str], what: str) -> None:
        """Raise CheckpointMismatch unless the checkpoint holds each of these, as what it is here."""
        for name, kind in self.kinds.items():
            if contents.get(name) != kind:
                held = ", ".join(f"{n} ({k})" for n, k in sorted(contents.items())) or "nothing"
                raise CheckpointMismatch(
                    f"restore was given {name} ({kind}), but {what} holds {held}",
                    hint="give restore the names that save was given; plain values come back in `.values`",
                    name=name,
                )

    def template(self, metadata: Metadata, contents: Mapping[str, str]) -> dict[str, Any]:
        """What DCP fills: the live tensors themselves, empty ones for what the script did not give, places
        for values.
        """
        state: dict[str, Any] = {OWN: {"values": ""}} | self._of_modules(lambda _, *pair: collect(*pair))
        for name in self._of("module"):
            _check_keys(name, state[name], metadata)
        for name in self._of("optimizer"):
            _drop_unsaved(name, state[name], metadata)
        for name in self._of("stateful"):
            state[name] = ()
        for name, kind in contents.items():
            if kind == "tensor":
                state[name] = self._given.get(name, _empty(metadata, name))
        for rank in (self._rank, 0):
            generators = _generators(metadata, rank)
            if generators:
                state[OWN]["rng"] = {str(rank): generators}
                break
        return state

    def load(self, state: Mapping[str, Any], contents: Mapping[str, str]) -> dict[str, Any]:
        """Hand the filled template to its owners; the plain values and the tensors, by name."""
        for name in self._of("module"):
            set_model_state_dict(self._given[name], state[name])
        for name in self._of("optimizer"):
            # Not strict: `template` has sorted out parameters without a saved state, and all else is there.
            options = StateDictOptions(strict=False)
            owner = self._given[self._owner(name)]
            set_optimizer_state_dict(owner, self._given[name], state[name], options=options)
        for name in self._of("stateful"):
            self._given[name].load_state_dict(state[name][0])
        for rank, generators in state[OWN].get("rng", {}).items():
            if int(rank) == self._rank:
                rng.apply(generators)
            else:
                rng.branch(generators, self._rank)
        values: dict[str, Any] = json.loads(state[OWN]["values"])
        return values | {name: state[name] for name, kind in contents.items() if kind == "tensor"}

    def _of(self, kind: str) -> list[str]:
        return [name for name, its in self.kinds.items() if its == kind]

    def _of_modules(
        self, collected: Callable[[str, nn.Module, Optimizer | None], Collected]
    ) -> dict[str, Any]:
        """The modules' and their optimizers'. A module's and its optimizer's at once: torch goes through all
        of a module each time.
        """
        state: dict[str, Any] = {}
        for name in self._of("optimizer"):
            owner = self._owner(name)
            state[owner], state[name] = collected(name, self._given[owner], self._given[name])
        for name in self._of("module"):
            if name not in state:
                state[name], _ = collected(name, self._given[name], None)
        return state

    def _of_first_rank(self, checked: set[str]) -> dict[str, Any]:
        """In a tuple, which DCP takes as one value: of a mapping it would turn integer keys into texts."""
        state: dict[str, Any] = {}
        for name in self._of("stateful"):
            state[name] = (_plain(self._given[name].state_dict()),)
            _check_readable(name, state[name], checked)
        return state

    def _owner(self, name: str) -> str:
        """The module whose parameters this optimizer steps: its state is saved under their names."""
        stepped = {id(p) for group in self._given[name].param_groups for p in group["params"]}
        for module_name in self._of("module"):
            module: nn.Module = self._given[module_name]
            if stepped <= {id(parameter) for parameter in module.parameters()}:
                return module_name
        modules = ", ".join(self._of("module")) or "none"
        raise UnsavableState(
            f"{name} steps parameters that belong to none of the modules given ({modules})",
            hint="give the model beside its optimizer: run.save(step, model=model, optimizer=optimizer)",
            name=name,
        )


def _attached(given: Mapping[str, Any], names: list[str]) -> Any:
    if not names:
        return None
    if len(names) > 1:
        raise UnsavableState(
            f"{' and '.join(names)} each have files of their own: a checkpoint takes one such thing",
            hint="give the second engine's state as a value with state_dict()",
        )
    thing = given[names[0]]
    if isinstance(thing, Files):
        thing.check()
        return thing
    surplus = [name for name, other in given.items() if engines.owns(thing, other)]
    if surplus:
        raise UnsavableState(
            f"{surplus[0]} is part of {names[0]}, a DeepSpeed engine, which keeps its state",
            hint=f"give the engine alone: run.save(step, {names[0]}=engine)",
        )
    return thing


def _check_keys(name: str, state: Mapping[str, Any], metadata: Metadata) -> None:
    saved = {key for key in metadata.state_dict_metadata if key.startswith(f"{name}.")}
    here = {f"{name}.{key}" for key in state}
    if saved == here:
        return
    missing, surplus = sorted(here - saved), sorted(saved - here)
    parts = [f"it lacks {_some(missing)}"] * bool(missing) + [
        f"it has {_some(surplus)} that {name} lacks"
    ] * bool(surplus)
    raise CheckpointMismatch(
        f"the checkpoint does not fit {name}: {'; '.join(parts)}",
        hint="restore into the architecture that was saved, or start the job without its checkpoints",
        name=name,
    )


def _drop_unsaved(name: str, state: dict[str, Any], metadata: Metadata) -> None:
    """A parameter without a gradient before the save has no optimizer state there: then none here."""
    saved = metadata.state_dict_metadata
    for parameter, entries in list(state["state"].items()):
        if not any(f"{name}.state.{parameter}.{entry}" in saved for entry in entries):
            del state["state"][parameter]


def _empty(metadata: Metadata, key: str) -> torch.Tensor:
    entry = metadata.state_dict_metadata.get(key)
    if not isinstance(entry, TensorStorageMetadata):
        raise CheckpointMismatch(f"the checkpoint has no tensor {key}")
    return torch.empty(entry.size, dtype=entry.properties.dtype)


def _generators(metadata: Metadata, rank: int) -> dict[str, torch.Tensor]:
    prefix = f"{OWN}.rng.{rank}."
    keys = [key for key in metadata.state_dict_metadata if key.startswith(prefix)]
    return {key.removeprefix(prefix): _empty(metadata, key) for key in keys}


def _encode_values(values: dict[str, Any]) -> str:
    for name, value in values.items():
        _check_value(name, value)
    text = json.dumps(_plain(values))
    if len(text) > VALUES_BYTES_MAX:
        raise UnsavableState(
            f"the plain values are {len(text)} bytes as JSON, at most {VALUES_BYTES_MAX} are taken",
            hint="turn large ones into tensors",
        )
    return text


def _check_value(name: str, value: object) -> None:
    if isinstance(value, Mapping):
        for key, inner in value.items():
            if not isinstance(key, str):
                raise UnsavableState(
                    f"{name} has the key {key!r} ({type(key).__name__}): keys must be texts",
                    hint="use str(key)",
                    name=name,
                )
            _check_value(f"{name}.{key}", inner)
    elif isinstance(value, list | tuple):
        for index, inner in enumerate(value):
            _check_value(f"{name}[{index}]", inner)
    elif value is not None and not isinstance(_plain(value), bool | int | float | str):
        raise UnsavableState(
            f"{name} is a {type(value).__name__}: cannot be kept in a checkpoint",
            hint="numbers, texts, lists, dicts, tensors and objects with state_dict() can",
            name=name,
        )


def _check_readable(name: str, thing: object, checked: set[str]) -> None:
    """Read it back once, as the restore will: better refused at the first save than found at the restart."""
    if name in checked:
        return
    buffer = io.BytesIO()
    try:
        torch.save(thing, buffer)
        buffer.seek(0)
        torch.load(buffer, weights_only=True)
    except (pickle.PickleError, AttributeError, TypeError, RuntimeError) as error:
        raise UnsavableState(
            f"the state of {name} cannot be read back safely: {str(error).splitlines()[0]}",
            hint="its state_dict() may hold numbers, texts, lists, dicts and tensors",
            name=name,
        ) from error
    checked.add(name)


def _plain(thing: Any) -> Any:
    """The same with numpy's scalars as Python's, which can be read back without numpy's classes."""
    if type(thing) is dict:
        return {key: _plain(value) for key, value in thing.items()}
    if type(thing) in (list, tuple):
        return type(thing)(_plain(value) for value in thing)
    if type(thing).__module__ == "numpy" and not getattr(thing, "shape", None) and hasattr(thing, "item"):
        return thing.item()
    return thing


def _some(names: list[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
