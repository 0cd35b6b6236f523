"""The protocol's messages: JSON -> checked arrays -> JSON. What does not fit the signature is refused, with
what was expected; no value is rounded, cut or wrapped to make it fit.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any, Final

import msgspec
import numpy as np

from ..spec.errors import InvalidRequest
from ..spec.model_signature import Tensor
from ..spec.problems import nearest, shown
from .engines.base import NUMPY, Array, Arrays

_DATATYPES: Final = {dtype: name for name, dtype in NUMPY.items()}
_TAKES: Final = {"b": "b", "i": "iu", "u": "iu", "f": "iuf"}
"""Kinds of numbers that a kind of data type holds exactly, or as near as it can."""
_WORDS: Final = {
    "b": "true or false",
    "i": "whole numbers",
    "u": "whole numbers",
    "f": "numbers",
    "O": "texts",
}


class GivenTensor(msgspec.Struct):
    """An input of a request, as it came."""

    name: str
    shape: list[int]
    datatype: str
    data: Any = None


class WantedOutput(msgspec.Struct):
    """An output that a request asks for."""

    name: str


class InferRequest(msgspec.Struct):
    """A request for inference, as it came."""

    inputs: list[GivenTensor]
    id: str = ""
    outputs: list[WantedOutput] | None = None


_DECODER: Final = msgspec.json.Decoder(InferRequest)


def read_request(body: bytes) -> InferRequest:
    """Raises InvalidRequest."""
    try:
        return _DECODER.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise InvalidRequest(f"expected a v2 inference request as JSON; {error}") from error


def checked_inputs(request: InferRequest, signature: Sequence[Tensor]) -> Arrays:
    """An array for each input of the signature. Raises InvalidRequest."""
    wanted = {one.name: one for one in signature}
    found: Arrays = {}
    for given in request.inputs:
        if given.name not in wanted:
            near = nearest(given.name, list(wanted))
            guess = f"; did you mean {near!r}?" if near else ""
            raise InvalidRequest(f"no input {shown(given.name)}; expected {_names(wanted)}{guess}")
        if given.name in found:
            raise InvalidRequest(f"input {shown(given.name)} is given twice")
        found[given.name] = _array(given, wanted[given.name])
    if missing := [name for name in wanted if name not in found]:
        raise InvalidRequest(f"input {missing[0]!r} is missing; expected {_names(wanted)}")
    return found


def checked_outputs(request: InferRequest, made: Sequence[str]) -> Sequence[str]:
    """The names of the outputs to answer with. Raises InvalidRequest."""
    names = [one.name for one in request.outputs or ()]
    for name in names:
        if name not in made:
            raise InvalidRequest(f"no output {shown(name)}; expected {', '.join(map(repr, made))}")
    return names or made


def write_response(name: str, version: str, request_id: str, outputs: Mapping[str, Array]) -> bytes:
    """The response's body. What is not finite becomes null, for which JSON has no numbers."""
    told: dict[str, Any] = {"model_name": name}
    if version:
        told["model_version"] = version
    if request_id:
        told["id"] = request_id
    told["outputs"] = [as_json(output, array) for output, array in outputs.items()]
    return msgspec.json.encode(told)


def as_json(name: str, array: Array) -> dict[str, Any]:
    """An array as the protocol writes it: its values flat, in row-major order."""
    datatype = datatype_of(array)
    values = array.reshape(-1).tolist()
    if datatype == "BYTES":
        values = [as_bytes(value).decode("utf-8", "replace") for value in values]
    return {"name": name, "datatype": datatype, "shape": list(array.shape), "data": values}


def datatype_of(array: Array) -> str:
    """By the protocol's name."""
    return _DATATYPES.get(array.dtype, "BYTES")


def as_bytes(value: object) -> bytes:
    """One element of BYTES."""
    return value if isinstance(value, bytes) else str(value).encode()


def _array(given: GivenTensor, want: Tensor) -> Array:
    label = f"input {given.name!r}"
    if given.datatype != want.datatype:
        raise InvalidRequest(f"{label}: expected datatype {want.datatype}; found {shown(given.datatype)}")
    if not _fits(given.shape, want.shape):
        raise InvalidRequest(f"{label}: expected shape {_shape(want.shape)}; found {given.shape}")
    size, dtype = math.prod(given.shape), NUMPY[want.datatype]
    try:
        array = np.asarray(given.data, dtype=object if dtype.kind == "O" else None)
    except (ValueError, OverflowError):
        raise InvalidRequest(f"{label}: data is nested unevenly; expected {size} values") from None
    if array.shape not in (tuple(given.shape), (size,)):
        raise InvalidRequest(
            f"{label}: expected {size} values for shape {given.shape}, flat or nested so;"
            f" found data of shape {list(array.shape)}"
        )
    if not size:
        return np.empty(given.shape, dtype)
    return _cast(label, array, dtype, want.datatype).reshape(given.shape)


def _cast(label: str, array: Array, dtype: np.dtype[Any], datatype: str) -> Array:
    expected = f"{label}: expected {_WORDS[dtype.kind]} for datatype {datatype}"
    if dtype.kind == "O":
        if not all(isinstance(value, str) for value in array.reshape(-1)):
            raise InvalidRequest(expected)
        return array
    if array.dtype == dtype:
        return array
    if array.dtype.kind not in _TAKES[dtype.kind]:
        raise InvalidRequest(expected)
    if dtype.kind in "iu":
        low, high = np.iinfo(dtype).min, np.iinfo(dtype).max
        if int(array.min()) < low or int(array.max()) > high:
            raise InvalidRequest(f"{expected} from {low} to {high}; found {array.min()} to {array.max()}")
        return array.astype(dtype)
    with np.errstate(over="ignore"):
        made = array.astype(dtype)
    if dtype.kind == "f" and not np.isfinite(made).all():
        raise InvalidRequest(f"{expected} up to {np.finfo(dtype).max:g}")
    return made


def _fits(shape: Sequence[int], want: Sequence[int]) -> bool:
    if len(shape) != len(want) or any(size < 0 for size in shape):
        return False
    return all(expected in (-1, size) for size, expected in zip(shape, want, strict=True))


def _shape(want: Sequence[int]) -> str:
    return f"{list(want)}{' (-1: any size)' if -1 in want else ''}"


def _names(wanted: Mapping[str, Tensor]) -> str:
    told = [f"{one.name!r} {one.datatype}{list(one.shape)}" for one in wanted.values()]
    return ", ".join(told) or "no inputs"
