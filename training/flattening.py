"""DCP's planner for saves, which flattens a state dict at the price of reading it.

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


class FlatPlanner(DefaultSavePlanner):
    """Of what has other tensors than these, torch's does the flattening."""

    def set_up_planner(
        self, state_dict: dict[str, Any], storage_meta: Any = None, is_coordinator: bool = False
    ) -> None:
        self.state_dict: dict[str, Any] = {}
        self.mappings: dict[str, _Way] = {}
        self.is_coordinator = is_coordinator
        if not self._flatten(state_dict, "", ()):
            super().set_up_planner(state_dict, storage_meta, is_coordinator)

    def lookup_object(self, index: MetadataIndex) -> Any:
        """Without a look for shards of what has none."""
        thing = self.state_dict.get(index.fqn)
        return thing if type(thing) in PLAIN else super().lookup_object(index)

    def _flatten(self, state: Mapping[Any, Any], prefix: str, way: _Way) -> bool:
        """False: a tensor is of no known kind. Raises ValueError for two that have one name."""
        for key, value in state.items():
            name, to = f"{prefix}{key}", (*way, str(key))
            if type(value) in _KNOWN:
                self._add(name, to, value)
            elif isinstance(value, torch.Tensor):
                return False
            elif isinstance(value, dict):
                if not self._flatten(value, f"{name}.", to):
                    return False
            else:
                parts, ways = flatten_state_dict({name: value})
                for part, inner in parts.items():
                    self._add(part, (*to, *ways[part][1:]), inner)
        return True

    def _add(self, name: str, way: _Way, value: Any) -> None:
        if name in self.state_dict:
            raise ValueError(f"two values have the name {name}")
        self.state_dict[name], self.mappings[name] = value, way
