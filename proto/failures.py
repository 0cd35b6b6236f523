"""Errors over the wire: a PacelineError leaves as a gRPC status and comes out as the same class.

The status says what the gRPC world needs (retry or not); a Reason message in the trailing metadata carries
code, hint and fields. What is no PacelineError leaves as INTERNAL with an incident number and nothing else.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final

import grpc
from google.protobuf.message import DecodeError

from ..spec import errors
from .auth import WrongRole
from .generated.common_pb2 import Reason
from .limits import ERROR_DETAILS_BYTES_MAX, ERROR_TEXT_BYTES_MAX

DETAILS_KEY: Final = "paceline-error-bin"

_STATUS: Final[dict[type[errors.PacelineError], grpc.StatusCode]] = {
    errors.InvalidRequest: grpc.StatusCode.INVALID_ARGUMENT,
    errors.NotFound: grpc.StatusCode.NOT_FOUND,
    errors.Conflict: grpc.StatusCode.FAILED_PRECONDITION,
    errors.StaleAttempt: grpc.StatusCode.ABORTED,
    errors.LimitExceeded: grpc.StatusCode.RESOURCE_EXHAUSTED,
    WrongRole: grpc.StatusCode.PERMISSION_DENIED,
    errors.Unauthenticated: grpc.StatusCode.UNAUTHENTICATED,
    errors.Unavailable: grpc.StatusCode.UNAVAILABLE,
    errors.StoreFailure: grpc.StatusCode.UNAVAILABLE,
}

_BY_STATUS: Final[dict[grpc.StatusCode, type[errors.PacelineError]]] = {
    grpc.StatusCode.INVALID_ARGUMENT: errors.InvalidRequest,
    grpc.StatusCode.NOT_FOUND: errors.NotFound,
    grpc.StatusCode.FAILED_PRECONDITION: errors.Conflict,
    grpc.StatusCode.ABORTED: errors.StaleAttempt,
    grpc.StatusCode.RESOURCE_EXHAUSTED: errors.LimitExceeded,
    grpc.StatusCode.PERMISSION_DENIED: errors.Unauthenticated,
    grpc.StatusCode.UNAUTHENTICATED: errors.Unauthenticated,
    grpc.StatusCode.UNAVAILABLE: errors.Unavailable,
    grpc.StatusCode.DEADLINE_EXCEEDED: errors.Unavailable,
}


def status_of(error: errors.PacelineError) -> grpc.StatusCode:
    """The gRPC status of an error's nearest class."""
    for kind in type(error).__mro__:
        if kind in _STATUS:
            return _STATUS[kind]
    return grpc.StatusCode.UNKNOWN


def details_of(error: errors.PacelineError) -> bytes:
    """Code, hint and fields as a serialised Reason, within the bound of the metadata."""
    reason = Reason(code=error.code, hint=_cut(error.hint, ERROR_DETAILS_BYTES_MAX // 2))
    size = reason.ByteSize()
    for name, value in error.fields.items():
        text = str(value)
        size += len(name.encode()) + len(text.encode("utf-8", "replace")) + 16
        if size > ERROR_DETAILS_BYTES_MAX:
            break
        reason.fields[name] = text
    return reason.SerializeToString()


def text_of(error: errors.PacelineError) -> str:
    """The message, within its bound."""
    return _cut(error.message, ERROR_TEXT_BYTES_MAX)


def error_of(failed: grpc.RpcError) -> errors.PacelineError:
    """The error that the other side raised, or what the broken connection means."""
    call: Any = failed
    status = call.code()
    text = str(call.details() or status.name.lower().replace("_", " "))
    reason = _reason_in(call.trailing_metadata() or ())
    if reason is not None:
        kind = _class_of(reason.code) or _BY_STATUS.get(status, errors.PacelineError)
        fields = {name: value for name, value in reason.fields.items() if name not in ("message", "hint")}
        return kind(text, hint=reason.hint, **fields)
    if status is grpc.StatusCode.UNAVAILABLE:
        return errors.Unavailable(
            f"the scheduler cannot be reached: {text}",
            hint="is it running, and is the address right? `pace up` starts a local one",
        )
    if status is grpc.StatusCode.DEADLINE_EXCEEDED:
        return errors.Unavailable(
            "the scheduler did not answer in time", hint="try again; see the scheduler's log"
        )
    if status is grpc.StatusCode.CANCELLED:  # by the other side: a server that stops cuts calls off so
        return errors.Unavailable(
            "the scheduler ended the call: it is stopping", hint="it may be restarting; try again"
        )
    kind = _BY_STATUS.get(status, errors.PacelineError)
    return kind(text, hint="", status=status.name)


@contextmanager
def translated() -> Iterator[None]:
    """Calls made inside, plain or awaited, raise PacelineError instead of grpc.RpcError."""
    try:
        yield
    except grpc.RpcError as failed:
        raise error_of(failed) from failed


def _cut(text: str, bytes_max: int) -> str:
    data = text.encode("utf-8", "replace")
    if len(data) <= bytes_max:
        return text
    return data[: bytes_max - 3].decode("utf-8", "ignore") + "..."


def _reason_in(metadata: Any) -> Reason | None:
    for name, value in metadata:
        if name == DETAILS_KEY and isinstance(value, bytes) and len(value) <= 2 * ERROR_DETAILS_BYTES_MAX:
            try:
                return Reason.FromString(value)
            except DecodeError:
                return None
    return None


def _class_of(code: str) -> type[errors.PacelineError] | None:
    kinds: tuple[type[errors.PacelineError], ...] = (errors.PacelineError, *_STATUS)
    return next((kind for kind in kinds if kind.code == code and kind is not WrongRole), None)
