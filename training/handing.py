"""A rank's state for others of its gang: what has state_dict() goes from one rank to all, by broadcast.

First what it looks like, then its tensors, joined by kind into pieces of bounded size. It is between ranks of
one job, as torch's own object collectives are.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import distributed

_PIECE_BYTES_MAX = 256 << 20


@dataclass(frozen=True, slots=True)
class _Tensor:
    """Stands where a tensor was."""

    index: int


@dataclass(frozen=True, slots=True)
class _Form:
    shape: tuple[int, ...]
    dtype: torch.dtype
    device_type: str


def hand(
    things: Mapping[str, Any], source: int, *, gives: bool, takes: bool, group: Any, device: torch.device
) -> None:
    """Collective. `group`: for CPU tensors; others go over the default one. `device`: of tensors that are not
    on the CPU. Those who neither give nor take are there because a broadcast has all ranks in it.
    """
    tensors: list[torch.Tensor] = []
    told: list[Any] = [None]
    if gives:
        parts = {name: _take_apart(thing.state_dict(), tensors) for name, thing in things.items()}
        told = [(parts, [_Form(tuple(each.shape), each.dtype, each.device.type) for each in tensors])]
    distributed.broadcast_object_list(told, src=source, group=group)
    parts, forms = told[0]
    if not gives:
        tensors = [_empty(form, device) for form in forms]
    for piece in _pieces(tensors):
        joined = torch.cat([each.detach().reshape(-1) for each in piece])
        distributed.broadcast(joined, src=source, group=group if joined.device.type == "cpu" else None)
        if takes:
            for each, part in zip(piece, torch.split(joined, [each.numel() for each in piece]), strict=True):
                each.copy_(part.view(each.shape))
    if takes:
        for name, thing in things.items():
            thing.load_state_dict(_put_together(parts[name], tensors))


def _take_apart(value: Any, tensors: list[torch.Tensor]) -> Any:
    if isinstance(value, torch.Tensor):
        tensors.append(value)
        return _Tensor(len(tensors) - 1)
    if isinstance(value, Mapping):
        return {key: _take_apart(each, tensors) for key, each in value.items()}
    if type(value) in (list, tuple):
        return type(value)(_take_apart(each, tensors) for each in value)
    return value


def _put_together(value: Any, tensors: list[torch.Tensor]) -> Any:
    if isinstance(value, _Tensor):
        return tensors[value.index]
    if isinstance(value, dict):
        return {key: _put_together(each, tensors) for key, each in value.items()}
    if type(value) in (list, tuple):
        return type(value)(_put_together(each, tensors) for each in value)
    return value


def _empty(form: _Form, device: torch.device) -> torch.Tensor:
    where = torch.device("cpu") if form.device_type == "cpu" else device
    return torch.empty(form.shape, dtype=form.dtype, device=where)


def _pieces(tensors: list[torch.Tensor]) -> Iterator[list[torch.Tensor]]:
    """Of one type and device each, in an order that is the same at all ranks."""
    kinds: dict[tuple[torch.dtype, str], list[torch.Tensor]] = {}
    for each in tensors:
        kinds.setdefault((each.dtype, each.device.type), []).append(each)
    for same in kinds.values():
        piece: list[torch.Tensor] = []
        size_bytes = 0
        for each in same:
            if piece and size_bytes + each.nbytes > _PIECE_BYTES_MAX:
                yield piece
                piece, size_bytes = [], 0
            piece.append(each)
            size_bytes += each.nbytes
        yield piece
