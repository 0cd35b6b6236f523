"""`paceline.save_model`: a module as a folder that can be served, with what it takes and gives.

The shapes are found by running the module on the example, and once more on twice as much of it: what grows
then is the batch.
"""

import inspect
import json
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, Literal

import torch

from ..spec.model_signature import FILES, SIGNATURE_FILE, ModelSignature, Tensor
from .errors import UnsavableState

Format = Literal["torch.export", "torchscript", "safetensors"]
Example = torch.Tensor | Sequence[torch.Tensor] | Mapping[str, torch.Tensor]
EXAMPLE_FILE: Final = "example.json"
EXAMPLE_VALUES_MAX: Final = 100_000
_DATATYPES: Final = {
    torch.bool: "BOOL", torch.uint8: "UINT8", torch.int8: "INT8", torch.int16: "INT16", torch.int32: "INT32",
    torch.int64: "INT64", torch.float16: "FP16", torch.float32: "FP32", torch.float64: "FP64",
    torch.bfloat16: "FP32",
}  # fmt: skip


def save_model(
    module: torch.nn.Module,
    folder: str | os.PathLike[str],
    *,
    example: Example,
    format: Format = "torch.export",
    entry: str = "",
    outputs: Sequence[str] = (),
    batched: bool = True,
) -> Path:
    """Write `module` and its signature to `folder`, and return the folder. One rank of a run calls it.

    `example` is what `module` takes: a tensor, several in order, or by the names of its parameters.
    `batched`: the first dimension of each input may have any size. `outputs` names what the module gives.
    `entry` ("net.py:make_net") is for safetensors, which hold weights alone: a function without arguments,
    in a file that you put into the folder, that makes the module. Raises UnsavableState.
    """
    inputs = _named(module, example)
    training = module.training
    module.eval()
    try:
        signature = _signature(module, inputs, format=format, entry=entry, outputs=outputs, batched=batched)
        target = Path(folder)
        target.mkdir(parents=True, exist_ok=True)
        _WRITERS[format](module, tuple(inputs.values()), target / FILES[format], batched)
    finally:
        module.train(training)
    if sum(tensor.numel() for tensor in inputs.values()) <= EXAMPLE_VALUES_MAX:
        signature = signature.model_copy(update={"example": EXAMPLE_FILE})
        (target / EXAMPLE_FILE).write_text(json.dumps(_request(signature, inputs)) + "\n")
    (target / SIGNATURE_FILE).write_text(signature.to_json())
    return target


def _named(module: torch.nn.Module, example: Example) -> dict[str, torch.Tensor]:
    """The inputs by the names of the parameters of `forward`, in its order."""
    parameters = [
        name
        for name, one in inspect.signature(module.forward).parameters.items()
        if one.kind in (one.POSITIONAL_ONLY, one.POSITIONAL_OR_KEYWORD)
    ]
    if isinstance(example, Mapping):
        if unknown := [name for name in example if name not in parameters]:
            raise UnsavableState(f"example: the module takes no {unknown[0]!r}; expected {parameters}")
        given = {name: example[name] for name in parameters if name in example}
        if list(given) != parameters[: len(given)]:
            raise UnsavableState(f"example: one is left out before others; expected {parameters}")
    else:
        tensors = [example] if isinstance(example, torch.Tensor) else list(example)
        names = parameters[: len(tensors)]
        names += [f"input_{at}" for at in range(len(names), len(tensors))]
        given = dict(zip(names, tensors, strict=True))
    for name, tensor in given.items():
        if not isinstance(tensor, torch.Tensor) or tensor.dtype not in _DATATYPES:
            raise UnsavableState(f"example: {name} is {getattr(tensor, 'dtype', type(tensor).__name__)}")
    return given


def _signature(
    module: torch.nn.Module,
    inputs: Mapping[str, torch.Tensor],
    *,
    format: Format,
    entry: str,
    outputs: Sequence[str],
    batched: bool,
) -> ModelSignature:
    made = _run(module, inputs.values())
    grown = _run(module, [_twice(one) for one in inputs.values()]) if batched else made
    names = list(outputs) or [key if isinstance(key, str) else f"output_{key}" for key, _ in made]
    if len(made) == 1 and not outputs and not isinstance(made[0][0], str):
        names = ["output"]
    if len(names) != len(made):
        raise UnsavableState(f"outputs: {len(names)} names; the module gives {len(made)}")
    told = [
        Tensor(name=name, datatype=_DATATYPES[one.dtype], shape=_free(one.shape, more.shape))  # type: ignore[arg-type]
        for name, (_, one), (_, more) in zip(names, made, grown, strict=True)
    ]
    taken = [
        Tensor(name=name, datatype=_DATATYPES[one.dtype], shape=_batch(one.shape, batched))  # type: ignore[arg-type]
        for name, one in inputs.items()
    ]
    return ModelSignature(framework=format, inputs=tuple(taken), outputs=tuple(told), entry=entry)


def _run(module: torch.nn.Module, inputs: Any) -> list[tuple[str | int, torch.Tensor]]:
    with torch.inference_mode():
        made = module(*inputs)
    pairs: list[tuple[str | int, Any]] = (
        list(made.items())
        if isinstance(made, Mapping)
        else list(enumerate(made if isinstance(made, tuple | list) else [made]))
    )
    for key, tensor in pairs:
        if not isinstance(tensor, torch.Tensor) or tensor.dtype not in _DATATYPES:
            raise UnsavableState(f"output {key} is {getattr(tensor, 'dtype', type(tensor).__name__)}")
    return pairs


def _twice(tensor: torch.Tensor) -> torch.Tensor:
    return torch.cat([tensor, tensor])


def _free(shape: Sequence[int], grown: Sequence[int]) -> tuple[int, ...]:
    return tuple(size if size == more else -1 for size, more in zip(shape, grown, strict=True))


def _batch(shape: Sequence[int], batched: bool) -> tuple[int, ...]:
    return (-1, *shape[1:]) if batched else tuple(shape)


def _request(signature: ModelSignature, inputs: Mapping[str, torch.Tensor]) -> dict[str, Any]:
    return {
        "inputs": [
            {
                "name": one.name,
                "datatype": one.datatype,
                "shape": list(inputs[one.name].shape),
                "data": inputs[one.name].flatten().tolist(),
            }
            for one in signature.inputs
        ]
    }


def _write_exported(
    module: torch.nn.Module, inputs: tuple[torch.Tensor, ...], path: Path, batched: bool
) -> None:
    """A size of 1 would be taken for one that is always so: the example is doubled."""
    shapes = None
    if batched:
        inputs = tuple(map(_twice, inputs))
        shapes = tuple({0: torch.export.Dim.DYNAMIC} for _ in inputs)
    with torch.no_grad():
        program = torch.export.export(module, inputs, dynamic_shapes=shapes)
    torch.export.save(program, path)


def _write_scripted(
    module: torch.nn.Module, inputs: tuple[torch.Tensor, ...], path: Path, _batched: bool
) -> None:
    """A module that was scripted stays so; any other is traced."""
    if not isinstance(module, torch.jit.ScriptModule):
        with torch.no_grad():
            module = torch.jit.trace(module, inputs)  # type: ignore[no-untyped-call]
    torch.jit.save(module, str(path))


def _write_safetensors(
    module: torch.nn.Module, _inputs: tuple[torch.Tensor, ...], path: Path, _batched: bool
) -> None:
    from safetensors.torch import save_model as save

    save(module, str(path))


_WRITERS: Final[dict[str, Callable[..., None]]] = {
    "torch.export": _write_exported,
    "torchscript": _write_scripted,
    "safetensors": _write_safetensors,
}
