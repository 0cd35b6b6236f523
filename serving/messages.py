"""The protocol's gRPC messages <-> the same requests and arrays that JSON is read to."""

import struct
from collections.abc import Mapping
from typing import Any, Final

import numpy as np

from ..proto.generated import inference_pb2 as pb
from ..spec.errors import InvalidRequest
from ..spec.problems import shown
from .engines.base import NUMPY, Array
from .tensors import GivenTensor, InferRequest, WantedOutput, as_bytes, datatype_of

_FIELDS: Final = {
    "BOOL": ("bool_contents", np.bool_),
    "INT8": ("int_contents", np.int32),
    "INT16": ("int_contents", np.int32),
    "INT32": ("int_contents", np.int32),
    "INT64": ("int64_contents", np.int64),
    "UINT8": ("uint_contents", np.uint32),
    "UINT16": ("uint_contents", np.uint32),
    "UINT32": ("uint_contents", np.uint32),
    "UINT64": ("uint64_contents", np.uint64),
    "FP32": ("fp32_contents", np.float32),
    "FP64": ("fp64_contents", np.float64),
    "BYTES": ("bytes_contents", np.object_),
}
_LENGTH: Final = struct.Struct("<I")


def from_message(message: pb.ModelInferRequest) -> InferRequest:
    """Raises InvalidRequest."""
    raws = message.raw_input_contents
    if raws and len(raws) != len(message.inputs):
        raise InvalidRequest(f"expected raw contents for {len(message.inputs)} inputs; found {len(raws)}")
    inputs = []
    for at, one in enumerate(message.inputs):
        if one.datatype not in NUMPY:
            raise InvalidRequest(f"input {shown(one.name)}: no datatype {shown(one.datatype)}")
        data = _from_raw(one.name, one.datatype, raws[at]) if raws else _from_contents(one)
        inputs.append(GivenTensor(one.name, list(one.shape), one.datatype, data))
    return InferRequest(inputs, message.id, [WantedOutput(one.name) for one in message.outputs])


def to_message(
    message: pb.ModelInferRequest, version: str, outputs: Mapping[str, Array]
) -> pb.ModelInferResponse:
    """The answer, raw where the request was."""
    told = pb.ModelInferResponse(model_name=message.model_name, model_version=version, id=message.id)
    datatypes = {name: datatype_of(array) for name, array in outputs.items()}
    raw = bool(message.raw_input_contents) or "FP16" in datatypes.values()
    for name, array in outputs.items():
        datatype, flat = datatypes[name], array.reshape(-1)
        output = told.outputs.add(name=name, datatype=datatype, shape=array.shape)
        if raw:
            told.raw_output_contents.append(_to_raw(datatype, flat))
            continue
        values: Any = map(as_bytes, flat.tolist()) if datatype == "BYTES" else flat.tolist()
        getattr(output.contents, _FIELDS[datatype][0]).extend(values)
    return told


def _from_contents(one: pb.ModelInferRequest.InferInputTensor) -> Array:
    if one.datatype not in _FIELDS:
        raise InvalidRequest(f"input {shown(one.name)}: {one.datatype} goes as raw contents only")
    field, dtype = _FIELDS[one.datatype]
    values = getattr(one.contents, field)
    if one.datatype == "BYTES":
        return _texts(one.name, values)
    return np.array(values, dtype=dtype)


def _from_raw(name: str, datatype: str, raw: bytes) -> Array:
    if datatype == "BYTES":
        return _texts(name, list(_pieces(name, raw)))
    dtype = NUMPY[datatype]
    if len(raw) % dtype.itemsize:
        raise InvalidRequest(
            f"input {shown(name)}: {len(raw)} raw bytes; {datatype} has {dtype.itemsize} a value"
        )
    return np.frombuffer(raw, dtype.newbyteorder("<")).astype(dtype)


def _pieces(name: str, raw: bytes) -> Any:
    at = 0
    while at < len(raw):
        start = at + _LENGTH.size
        at = start + _LENGTH.unpack_from(raw, at)[0] if start <= len(raw) else len(raw) + 1
        if at > len(raw):
            raise InvalidRequest(f"input {shown(name)}: raw BYTES end amid a value")
        yield raw[start:at]


def _texts(name: str, values: Any) -> Array:
    try:
        texts = [value.decode() for value in values]
    except UnicodeDecodeError as error:
        raise InvalidRequest(f"input {shown(name)}: expected texts in UTF-8; {error}") from error
    array = np.empty(len(texts), dtype=object)
    array[:] = texts
    return array


def _to_raw(datatype: str, flat: Array) -> bytes:
    if datatype == "BYTES":
        pieces = [as_bytes(value) for value in flat.tolist()]
        return b"".join(_LENGTH.pack(len(piece)) + piece for piece in pieces)
    return flat.astype(flat.dtype.newbyteorder("<")).tobytes()
