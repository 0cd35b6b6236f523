"""MLflow model folders, scored as `mlflow models serve` does: /invocations, /ping, /health and /version.

mlflow's own code reads the request and writes the answer, so that both are what its clients expect. The
protocol's tensors come from the signature in MLmodel: a tensor each where that has tensors, and a column
each, of any length, where it has columns. MLflow's python functions and scikit-learn models are pickles:
loading one runs what its maker wrote, here in a process of its own and nowhere else.
"""

import json
import logging
from collections.abc import Callable
from typing import Any, Final

import numpy as np
from mlflow import pyfunc
from mlflow.exceptions import MlflowException
from mlflow.pyfunc import scoring_server
from mlflow.version import VERSION

from ...spec.errors import InvalidRequest
from ...spec.model_signature import Datatype, ModelSignature, Tensor
from .base import NUMPY, Answer, Array, Arrays, Folder, Loaded

_COLUMNS: Final[dict[str, Datatype]] = {
    "boolean": "BOOL", "integer": "INT32", "long": "INT64", "float": "FP32", "double": "FP64",
    "string": "BYTES",
}  # fmt: skip
_DATATYPES: Final[dict[Any, Datatype]] = {dtype: name for name, dtype in NUMPY.items()}  # type: ignore[misc]
_TEXT_KINDS: Final = "OSU"
_LOG: Final = logging.getLogger("paceline.serving")


def load(folder: Folder) -> Loaded:
    """Load the model by its python function. Raises InvalidRequest where it has none."""
    try:
        model = pyfunc.load_model(str(folder.path))
    except MlflowException as error:
        raise InvalidRequest(f"{folder.path}: mlflow says: {error.message}") from error
    schema = model.metadata.get_input_schema()
    signature = _signature(model.metadata)
    return Loaded(
        platform="mlflow",
        signature=signature,
        infer=_by_tensors(model, signature) if signature else None,
        posts={"/invocations": lambda body, kind: _invocations(model, schema, body, kind)},
        gets={"/ping": "\n", "/health": "\n", "/version": VERSION},
    )


def _invocations(model: Any, schema: Any, body: bytes, kind: str) -> Answer:
    """mlflow's answer, without the traceback that it puts into its errors: the log has that."""
    try:
        made = scoring_server.invocations(body, kind, model, schema)
    except MlflowException as error:
        _LOG.warning("/invocations: %s", error.message, exc_info=error.__context__)
        told = {"error_code": error.error_code, "message": error.message, "error": error.message}
        return Answer(json.dumps(told).encode(), error.get_http_status_code())
    return Answer(made.response.encode(), made.status, made.mimetype)


def _signature(metadata: Any) -> ModelSignature | None:
    """None where MLmodel has no signature, or one that tensors do not cover."""
    inputs, outputs = metadata.get_input_schema(), metadata.get_output_schema()
    if inputs is None:
        return None
    try:
        taken = _tensors(inputs, "input")
        return ModelSignature(
            framework="mlflow", inputs=taken, outputs=_tensors(outputs, "output") if outputs else ()
        )
    except KeyError:
        return None


def _tensors(schema: Any, label: str) -> tuple[Tensor, ...]:
    """Raises KeyError for types that are no tensors."""
    found = []
    for at, one in enumerate(schema.inputs):
        name = one.name or (label if len(schema.inputs) == 1 else f"{label}_{at}")
        if schema.is_tensor_spec():
            datatype = "BYTES" if one.type.kind in _TEXT_KINDS else _DATATYPES[one.type]
            found.append(Tensor(name=name, datatype=datatype, shape=tuple(one.shape)))
        else:
            found.append(Tensor(name=name, datatype=_COLUMNS[one.type.name], shape=(-1,)))
    return tuple(found)


def _by_tensors(model: Any, signature: ModelSignature) -> Callable[[Arrays], Arrays]:
    """The protocol's inference through the python function."""
    schema = model.metadata.get_input_schema()
    names = [one.name for one in schema.inputs]

    def infer(inputs: Arrays) -> Arrays:
        given: Any = inputs
        if not schema.is_tensor_spec():
            given = _frame(inputs, names)
        elif len(inputs) == 1 and not names[0]:
            given = next(iter(inputs.values()))
        try:
            return _outputs(model.predict(given), signature)
        except MlflowException as error:  # what it took does not fit its schema
            raise InvalidRequest(error.message) from error

    return infer


def _frame(inputs: Arrays, names: list[str | None]) -> Any:
    import pandas as pd

    lengths = {name: len(array) for name, array in inputs.items()}
    if len(set(lengths.values())) > 1:
        raise InvalidRequest(f"expected columns of one length; found {lengths}")
    frame = pd.DataFrame(inputs)
    return frame if all(names) else frame.to_numpy()


def _outputs(made: Any, signature: ModelSignature) -> Arrays:
    """A prediction as named arrays: a table has its columns, anything else is one array."""
    if hasattr(made, "to_dict") and hasattr(made, "columns"):
        made = {str(name): made[name].to_numpy() for name in made.columns}
    if not isinstance(made, dict):
        name = signature.outputs[0].name if signature.outputs else "output"
        made = {name: made}
    return {name: _array(value) for name, value in made.items()}


def _array(value: Any) -> Array:
    array = np.asarray(value)
    return array.astype(object) if array.dtype.kind in _TEXT_KINDS else array
