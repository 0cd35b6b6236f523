"""A model repository for NVIDIA's Triton: NAME/config.pbtxt, and NAME/1 with the model.

TorchScript goes to Triton's own PyTorch backend. Whatever else has a signature goes to its Python backend,
whose model.py loads the folder through our engine: Triton's Python then needs Paceline and the engine's
libraries. Batches are as the signature has them (max_batch_size 0): Triton is told of no dimension that is
one, since a dimension of any size may be something else.
https://docs.nvidia.com/deeplearning/triton-inference-server/user-guide/docs/user_guide/model_repository.html
"""

import json
import shutil
from collections.abc import Iterable

from ...spec.errors import InvalidRequest
from ...spec.model_signature import SIGNATURE_FILE, Tensor
from .base import Exported, Wish

_TYPES = {"BYTES": "TYPE_STRING"}
_MODEL_PY = '''"""Triton's Python backend around a model folder, by Paceline's engine for it."""

from pathlib import Path

import numpy as np
import triton_python_backend_utils as pb_utils
from paceline.serving.engines.base import engine
from paceline.serving.folder import choose_engine, read_folder


class TritonPythonModel:
    def initialize(self, args):
        folder = read_folder(Path(args["model_repository"]) / args["model_version"] / "model")
        self.model = engine(choose_engine(folder)[0]).load(folder)

    def execute(self, requests):
        return [self.answer(request) for request in requests]

    def answer(self, request):
        try:
            made = self.model.infer({tensor.name(): plain(tensor) for tensor in request.inputs()})
        except Exception as error:
            return pb_utils.InferenceResponse(error=pb_utils.TritonError(f"{type(error).__name__}: {error}"))
        wanted = set(request.requested_output_names())
        outputs = [pb_utils.Tensor(name, array) for name, array in made.items() if name in wanted]
        return pb_utils.InferenceResponse(output_tensors=outputs)

    def finalize(self):
        self.model.close()


def plain(tensor):
    array = tensor.as_numpy()
    if array.dtype != np.object_:
        return array
    return np.array([one.decode() for one in array.reshape(-1)], dtype=object).reshape(array.shape)
'''


def export(wish: Wish) -> Exported:
    """Write the repository. Raises InvalidRequest for a model without a signature of tensors."""
    signature = wish.folder.signature
    if signature is None or not signature.inputs or not signature.outputs:
        raise InvalidRequest(
            f"{wish.folder.path}: Triton wants to know inputs and outputs; {SIGNATURE_FILE} does not say them"
        )
    model = wish.into / wish.name
    version = model / "1"
    version.mkdir(parents=True)
    if signature.framework == "torchscript":
        shutil.copyfile(wish.folder.path / signature.path, version / "model.pt")
        head = ['platform: "pytorch_libtorch"', 'backend: "pytorch"']
        inputs, outputs = _by_place(signature.inputs), _by_place(signature.outputs)
        then = f"tritonserver --model-repository={wish.into}"
    else:
        shutil.copytree(wish.folder.path, version / "model")
        (version / "model.py").write_text(_MODEL_PY)
        head = ['backend: "python"']
        inputs, outputs = signature.inputs, signature.outputs
        then = f"in an image with paceline: tritonserver --model-repository={wish.into}"
    lines = [f'name: "{wish.name}"', *head, "max_batch_size: 0", *_tensors("input", inputs)]
    (model / "config.pbtxt").write_text("\n".join([*lines, *_tensors("output", outputs)]) + "\n")
    return Exported(tuple(sorted(path for path in model.rglob("*") if path.is_file())), (then,))


def _by_place(tensors: Iterable[Tensor]) -> tuple[Tensor, ...]:
    """Named NAME__PLACE, by which the PyTorch backend finds them: TorchScript has no names of outputs."""
    return tuple(one.model_copy(update={"name": f"{one.name}__{at}"}) for at, one in enumerate(tensors))


def _tensors(kind: str, tensors: Iterable[Tensor]) -> Iterable[str]:
    for one in tensors:
        kind_of = _TYPES.get(one.datatype, f"TYPE_{one.datatype}")
        yield f"{kind} {{ name: {json.dumps(one.name)} data_type: {kind_of} dims: {list(one.shape)} }}"
