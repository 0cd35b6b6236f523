"""PyTorch models: exported programs, TorchScript, and weights beside the code that makes their module.

One request at a time: the operators themselves use all cores, or the GPU. Nothing is unpickled but tensors.
"""

from collections.abc import Callable, Mapping
from typing import Any, Final

import numpy as np
import torch

from ...spec.errors import InvalidRequest
from ...spec.model_signature import SIGNATURE_FILE, ModelSignature
from .base import Arrays, Folder, Loaded
from .entries import import_entry

Call = Callable[..., Any]


def load(folder: Folder) -> Loaded:
    """Load what the signature names. Raises InvalidRequest without a signature."""
    signature = folder.signature
    if signature is None:
        raise InvalidRequest(
            f"{folder.path} has no {SIGNATURE_FILE}, which says what its model takes",
            hint="paceline.save_model writes it beside the model",
        )
    if signature.framework not in _LOADERS:
        raise InvalidRequest(f"the engine torch does not load {signature.framework}")
    path = folder.path / signature.path
    if not path.is_file():
        raise InvalidRequest(f"{folder.path} has no file {signature.path}, which {SIGNATURE_FILE} names")
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    module = _LOADERS[signature.framework](folder, signature, device)

    def infer(inputs: Arrays) -> Arrays:
        return _run(module, signature, device, inputs)

    return Loaded(f"pytorch_{signature.framework.replace('.', '_')}", signature, infer)


def _exported(folder: Folder, signature: ModelSignature, device: torch.device) -> Call:
    program = torch.export.load(folder.path / signature.path)
    if device.type != "cpu":
        from torch.export.passes import move_to_device_pass

        program = move_to_device_pass(program, device)
    module: Call = program.module()
    return module


def _scripted(folder: Folder, signature: ModelSignature, device: torch.device) -> Call:
    module: Call = torch.jit.load(str(folder.path / signature.path), map_location=device).eval()  # type: ignore[no-untyped-call]
    return module


def _safetensors(folder: Folder, signature: ModelSignature, device: torch.device) -> Call:
    from safetensors.torch import load_model

    module = _made(folder, signature)
    load_model(module, folder.path / signature.path)  # which knows of tensors that are shared
    return module.eval().to(device)


def _state_dict(folder: Folder, signature: ModelSignature, device: torch.device) -> Call:
    module = _made(folder, signature)
    module.load_state_dict(torch.load(folder.path / signature.path, map_location="cpu", weights_only=True))
    return module.eval().to(device)


def _made(folder: Folder, signature: ModelSignature) -> torch.nn.Module:
    module = import_entry(folder.path, signature.entry)()
    if not isinstance(module, torch.nn.Module):
        raise InvalidRequest(f"{signature.entry}() gave {type(module).__name__}; expected a torch.nn.Module")
    return module


_LOADERS: Final[Mapping[str, Callable[[Folder, ModelSignature, torch.device], Call]]] = {
    "torch.export": _exported,
    "torchscript": _scripted,
    "safetensors": _safetensors,
    "state_dict": _state_dict,
}


def _run(module: Call, signature: ModelSignature, device: torch.device, inputs: Arrays) -> Arrays:
    """The inputs go in by the signature's order, and the outputs come in it."""
    with torch.inference_mode():
        given = [torch.from_numpy(inputs[one.name]).to(device) for one in signature.inputs]
        made = _flat(module(*given))
        if len(made) != len(signature.outputs):
            raise RuntimeError(f"the model gave {len(made)} outputs; expected {len(signature.outputs)}")
        pairs = zip(signature.outputs, made, strict=True)
        return {one.name: _array(tensor) for one, tensor in pairs}


def _flat(made: Any) -> list[Any]:
    if isinstance(made, Mapping):
        return list(made.values())
    return list(made) if isinstance(made, tuple | list) else [made]


def _array(tensor: torch.Tensor) -> "np.ndarray[Any, np.dtype[Any]]":
    """numpy has no bfloat16."""
    tensor = tensor.float() if tensor.dtype == torch.bfloat16 else tensor
    array: np.ndarray[Any, np.dtype[Any]] = tensor.cpu().numpy()
    return array
