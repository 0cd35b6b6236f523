"""Messages that carry output, made and read without protobuf's copies of it.

On the wire they are what proto/v1 says: fields may come in any order there. `data` is written first, as it
is, and the others after it, as protobuf makes them; what begins so is read in place. Whatever comes in
another order is read as protobuf reads it.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import grpc
import grpc.aio

from .generated import logs_pb2

M = TypeVar("M", logs_pb2.LogChunk, logs_pb2.ShipRequest)


@dataclass(frozen=True, slots=True)
class Payload(Generic[M]):
    """A message as it came. `data` may be a view of all of it; that in `head` says nothing."""

    head: M
    data: memoryview


def encode(head: M, *data: bytes | memoryview) -> bytes:
    """The message `head`, which has no data, with these bytes as its data."""
    size = sum(map(len, data))
    return b"".join((_tag(type(head)), _varint(size), *data, head.SerializeToString()))


def decoder(kind: type[M]) -> Callable[[bytes], Payload[M]]:
    """Reads one kind of message. Raises DecodeError as protobuf does."""
    tag = _tag(kind)

    def decode(raw: bytes) -> Payload[M]:
        if raw.startswith(tag):
            size, start = _varint_at(raw, len(tag))
            if start + size <= len(raw):
                return Payload(kind.FromString(raw[start + size :]), memoryview(raw)[start : start + size])
        head = kind.FromString(raw)
        return Payload(head, memoryview(head.data))

    return decode


class LogsStub:
    """As the generated one; what comes is a Payload."""

    def __init__(self, channel: Any) -> None:
        self.Follow: Any = channel.unary_stream(
            "/paceline.v1.Logs/Follow", logs_pb2.FollowRequest.SerializeToString, decoder(logs_pb2.LogChunk)
        )


class LogShippingStub:
    """As the generated one; what is sent is made by `encode`."""

    def __init__(self, channel: Any) -> None:
        self.Ship: Any = channel.stream_stream(
            "/paceline.v1.LogShipping/Ship", None, logs_pb2.ShipReply.FromString
        )


def add_logs(servicer: Any, server: grpc.aio.Server) -> None:
    """As add_LogsServicer_to_server; `Follow` yields what `encode` makes."""
    follow: Any = grpc.unary_stream_rpc_method_handler(servicer.Follow, logs_pb2.FollowRequest.FromString)
    _add(server, "paceline.v1.Logs", {"Follow": follow})


def add_log_shipping(servicer: Any, server: grpc.aio.Server) -> None:
    """As add_LogShippingServicer_to_server; `Ship` is given payloads."""
    ship = grpc.stream_stream_rpc_method_handler(
        servicer.Ship, decoder(logs_pb2.ShipRequest), logs_pb2.ShipReply.SerializeToString
    )
    _add(server, "paceline.v1.LogShipping", {"Ship": ship})


def _add(server: grpc.aio.Server, service: str, handlers: Any) -> None:
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(service, handlers),))


def _tag(kind: type[M]) -> bytes:
    """What stands before the length of `data`: its number and that it has a length."""
    return bytes([kind.DATA_FIELD_NUMBER << 3 | 2])


def _varint(number: int) -> bytes:
    made = bytearray()
    while number > 0x7F:
        made.append(number & 0x7F | 0x80)
        number >>= 7
    made.append(number)
    return bytes(made)


def _varint_at(raw: bytes, at: int) -> tuple[int, int]:
    """The number, and where it ends; more than the message has if it is cut off."""
    number = shift = 0
    while at < len(raw):
        number |= (raw[at] & 0x7F) << shift
        shift += 7
        at += 1
        if raw[at - 1] < 0x80:
            return number, at
    return len(raw), at
