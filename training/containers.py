"""torch.save's container around one tensor: what stands before and behind its bytes, and where these lie.

A tensor's bytes can then be replaced in place. They carry no check sum of their own (PyTorch's reader looks
at none); the manifest's hash is over the whole file.
"""

import io
import struct
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from typing import IO, Any, cast

import torch

ALIGNMENT = 64
_SKIP_BYTES_MIN = 64 * 1024
_END = b"PK\x05\x06"
_DATA = b"/data/0"
_options = threading.Lock()


@dataclass(frozen=True, slots=True)
class Container:
    """`pieces`: (offset, bytes) of all but the tensor's own bytes, which lie at `data_offset`."""

    pieces: tuple[tuple[int, bytes], ...]
    size_bytes: int
    data_offset: int
    data_bytes: int


class _Sink(io.RawIOBase):
    """Takes what torch.save writes, in one piece, or around a large tensor's bytes, which are left out."""

    def __init__(self, skip_bytes: int) -> None:
        self.pieces = [(0, bytearray())]
        self.size_bytes = 0
        self._skip_bytes = skip_bytes if skip_bytes >= _SKIP_BYTES_MIN else -1

    def write(self, data: Any) -> int:
        length = memoryview(data).nbytes
        self.size_bytes += length
        if length == self._skip_bytes:
            self.pieces.append((self.size_bytes, bytearray()))
        else:
            self.pieces[-1][1].extend(data)
        return length

    def flush(self) -> None: ...


@lru_cache(maxsize=1024)
def lay_out(shape: torch.Size, dtype: torch.dtype) -> Container:
    """The container of a contiguous CPU tensor of that form."""
    tensor = torch.empty(shape, dtype=dtype)
    sink = _Sink(tensor.nbytes)
    with _without_check_sums():
        torch.save(tensor, cast(IO[bytes], sink))
    [(_, first), *rest] = sink.pieces
    offset = len(first) if rest else _find_data(bytes(first))
    end = offset + tensor.nbytes
    tail = bytes(rest[0][1] if rest else first[end:])
    return Container(((0, bytes(first[:offset])), (end, tail)), sink.size_bytes, offset, tensor.nbytes)


def encode(thing: Any) -> bytes:
    """A whole container."""
    buffer = io.BytesIO()
    with _without_check_sums():
        torch.save(thing, buffer)
    return buffer.getvalue()


def tensor_in(container: memoryview, shape: torch.Size, dtype: torch.dtype) -> torch.Tensor:
    """The tensor of that form in there; where `lay_out` has made it, without a copy."""
    known = lay_out(shape, dtype)
    head = known.pieces[0][1]
    if known.data_bytes and container.nbytes == known.size_bytes and bytes(container[: len(head)]) == head:
        count = shape.numel()
        return torch.frombuffer(container, dtype=dtype, count=count, offset=known.data_offset).view(shape)
    loaded: torch.Tensor = torch.load(io.BytesIO(container), map_location="cpu", weights_only=True)
    return loaded


def _find_data(container: bytes) -> int:
    """Offset of the tensor's bytes in a small container: from the archive's directory."""
    end = container.rindex(_END)
    entries, _, at = struct.unpack_from("<HII", container, end + 10)
    for _ in range(entries):
        names, extras, comments = struct.unpack_from("<HHH", container, at + 28)
        if container[at + 46 : at + 46 + names].endswith(_DATA):
            [header] = struct.unpack_from("<I", container, at + 42)
            names, extras = struct.unpack_from("<HH", container, header + 26)
            return int(header + 30 + names + extras)
        at += 46 + names + extras + comments
    raise AssertionError("torch.save has written no data/0")


@contextmanager
def _without_check_sums() -> Iterator[None]:
    """What is replaced in place has another sum each time; older versions have no such option, and a reader
    of theirs looks at none either.
    """
    get = getattr(torch.serialization, "get_crc32_options", None)
    if get is None:
        yield
        return
    with _options:
        before = get()
        torch.serialization.set_crc32_options(False)
        try:
            yield
        finally:
            torch.serialization.set_crc32_options(before)
