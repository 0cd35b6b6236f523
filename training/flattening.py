"""State dicts flattened at the price of reading them, as DCP does it, and its planner for saves that does so.

torch's asks of each value which kind of container it is, and then goes through all again for shards of a kind
of its own. Nearly all values are in dicts, and tensors that are known to be no such shards.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch.distributed.checkpoint._nested_dict import flatten_state_dict
from torch.distributed.checkpoint.default_planner import DefaultSavePlanner
from torch.distributed.checkpoint.metadata import MetadataIndex
from torch.distributed.tensor import DTensor

from .copying import PLAIN

_KNOWN = (*PLAIN, DTensor)
_Way = tuple[str | int, ...]


def flatten(state: Mapping[Any, Any]) -> tuple[dict[str, Any], dict[str, _Way]] | None:
    """What is in it by name, and the way to each; None: a tensor is of no known kind. Raises ValueError for
    two that have one name.
    """
    flat: dict[str, Any] = {}
    ways: dict[str, _Way] = {}

    def add(name: str, way: _Way, value: Any) -> None:
        if name in flat:
            raise ValueError(f"two values have the name {name}")
        flat[name], ways[name] = value, way

    def walk(state: Mapping[Any, Any], prefix: str, way: _Way) -> bool:
        for key, value in state.items():
            name, to = f"{prefix}{key}", (*way, str(key))
            if type(value) in _KNOWN:
                add(name, to, value)
            elif isinstance(value, torch.Tensor):
                return False
            elif isinstance(value, dict):
                if not walk(value, f"{name}.", to):
                    return False
            else:
                parts, inner = flatten_state_dict({name: value})
                for part, one in parts.items():
                    add(part, (*to, *inner[part][1:]), one)
        return True

    return (flat, ways) if walk(state, "", ()) else None


class FlatPlanner(DefaultSavePlanner):
    """Of what has other tensors than these, torch's does the flattening."""

    def set_up_planner(
        self, state_dict: dict[str, Any], storage_meta: Any = None, is_coordinator: bool = False
    ) -> None:
        self.state_dict: dict[str, Any] = {}
        self.mappings: dict[str, _Way] = {}
        self.is_coordinator = is_coordinator
        flat = flatten(state_dict)
        if flat is None:
            super().set_up_planner(state_dict, storage_meta, is_coordinator)
        else:
            self.state_dict, self.mappings = flat

    def lookup_object(self, index: MetadataIndex) -> Any:
        """Without a look for shards of what has none."""
        thing = self.state_dict.get(index.fqn)
        return thing if type(thing) in PLAIN else super().lookup_object(index)
