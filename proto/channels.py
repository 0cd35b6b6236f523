"""Channels: TLS, tokens, deadlines, message bounds, keepalive and retries, the same for all callers.

A token leaves this machine only under TLS, and a listener beyond loopback needs TLS, unless `insecure` says
otherwise. Only calls that may be repeated are retried by gRPC: all unary calls of clients (a submit carries
its idempotency key); streams never.
"""

import ipaddress
import json
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

# gRPC reads this when it is first imported; unless told otherwise it speaks on standard error at every fork.
# Gone again at once: jobs inherit the agent's environment.
_QUIET: Final = {} if "GRPC_VERBOSITY" in os.environ else {"GRPC_VERBOSITY": "ERROR"}
os.environ.update(_QUIET)

import grpc  # noqa: E402
import grpc.aio  # noqa: E402

for _name in _QUIET:
    del os.environ[_name]

from ..spec.errors import InvalidRequest  # noqa: E402
from .auth import bearer  # noqa: E402
from .limits import MESSAGE_BYTES_MAX, METADATA_BYTES_MAX, UNARY_DEADLINE_S  # noqa: E402

_REPEATABLE: Final = {
    "paceline.v1.Jobs": ("Submit", "List", "Get", "Cancel", "Why", "Timeline"),
    "paceline.v1.Nodes": ("List",),
}
_SERVICE_CONFIG: Final = json.dumps(
    {
        "methodConfig": [
            {
                "name": [
                    {"service": service, "method": method}
                    for service, methods in _REPEATABLE.items()
                    for method in methods
                ],
                "retryPolicy": {
                    "maxAttempts": 5,
                    "initialBackoff": "0.1s",
                    "maxBackoff": "2s",
                    "backoffMultiplier": 2,
                    "retryableStatusCodes": ["UNAVAILABLE"],
                },
            }
        ]
    }
)

Options = Sequence[tuple[str, str | int]]

_BOUNDS: Final[Options] = (
    ("grpc.max_receive_message_length", MESSAGE_BYTES_MAX),
    ("grpc.max_send_message_length", MESSAGE_BYTES_MAX),
    ("grpc.max_metadata_size", METADATA_BYTES_MAX),
    ("grpc.absolute_max_metadata_size", METADATA_BYTES_MAX),
)

CHANNEL_OPTIONS: Final[Options] = (
    *_BOUNDS,
    ("grpc.keepalive_time_ms", 10_000),
    ("grpc.keepalive_timeout_ms", 5_000),
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 1_000),
    ("grpc.max_reconnect_backoff_ms", 2_000),
    # Nodes and schedulers talk directly; a proxy in the environment is for the web.
    ("grpc.enable_http_proxy", 0),
    # A channel of its own connection: two clients in one process do not wait for each other.
    ("grpc.use_local_subchannel_pool", 1),
    ("grpc.service_config", _SERVICE_CONFIG),
)

SERVER_OPTIONS: Final[Options] = (
    *_BOUNDS,
    ("grpc.keepalive_time_ms", 10_000),
    ("grpc.keepalive_timeout_ms", 5_000),
    ("grpc.http2.min_ping_interval_without_data_ms", 5_000),
    ("grpc.keepalive_permit_without_calls", 1),
    # Two schedulers on one port would share the calls between them without anyone noticing.
    ("grpc.so_reuseport", 0),
)


@dataclass(frozen=True, slots=True)
class Target:
    """Where to call and with what. `ca_pem` None and `tls` True: the system's own authorities."""

    address: str
    token: str
    ca_pem: bytes | None = None
    tls: bool = False
    insecure: bool = False
    deadline_s: float = UNARY_DEADLINE_S

    @property
    def encrypted(self) -> bool:
        return self.tls or self.ca_pem is not None


def target(
    address: str,
    token: str,
    *,
    ca_file: Path | None = None,
    insecure: bool = False,
    deadline_s: float = UNARY_DEADLINE_S,
) -> Target:
    """A checked Target: TLS when a CA is given or the address says `https://`. Raises InvalidRequest."""
    tls = address.startswith("https://")
    bare = address.removeprefix("https://").removeprefix("http://").rstrip("/")
    split_address(bare)
    try:
        ca_pem = ca_file.read_bytes() if ca_file is not None else None
    except OSError as error:
        raise InvalidRequest(
            f"cannot read the certificate {ca_file}: {error.strerror}",
            hint="copy tls/cert.pem from the scheduler's state folder and name it with --ca",
        ) from error
    made = Target(bare, token, ca_pem, tls, insecure, deadline_s)
    if not made.encrypted and not insecure and not is_loopback(split_address(bare)[0]):
        raise InvalidRequest(
            f"{bare} is beyond this machine and no certificate is given: the token would travel in the clear",
            hint="name the scheduler's certificate with --ca, or say --insecure on a network that you trust",
            address=bare,
        )
    return made


def open_channel(where: Target) -> grpc.Channel:
    """A channel for plain code; each call carries the token and has a deadline. Close it."""
    if where.encrypted:
        inner = grpc.secure_channel(where.address, _credentials(where), options=CHANNEL_OPTIONS)
    else:
        inner = grpc.insecure_channel(where.address, options=CHANNEL_OPTIONS)
    return _Channel(inner, where)


def open_aio_channel(where: Target) -> grpc.aio.Channel:
    """A channel for asyncio; each call carries the token and has a deadline. Close it."""
    if where.encrypted:
        inner = grpc.aio.secure_channel(where.address, _credentials(where), options=CHANNEL_OPTIONS)
    else:
        inner = grpc.aio.insecure_channel(where.address, options=CHANNEL_OPTIONS)
    return _AioChannel(inner, where)


def split_address(address: str) -> tuple[str, int]:
    """HOST and PORT of `HOST:PORT` or `[V6]:PORT`. Raises InvalidRequest."""
    host, colon, port = address.rpartition(":")
    bracketed = host.startswith("[") and host.endswith("]")
    if not colon or not host or not port.isascii() or not port.isdigit() or int(port[:6]) > 65535:
        raise InvalidRequest(f"{address!r} is not HOST:PORT", hint="for example 127.0.0.1:7223 or [::1]:7223")
    if ":" in host and not bracketed:
        raise InvalidRequest(
            f"{address!r}: an IPv6 address stands in brackets", hint="for example [::1]:7223"
        )
    return (host[1:-1] if bracketed else host), int(port)


def is_loopback(host: str) -> bool:
    """True for addresses that never leave this machine. A name counts only if it is `localhost`."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.partition("%")[0]).is_loopback
    except ValueError:
        return False


def _credentials(where: Target) -> grpc.ChannelCredentials:
    return grpc.ssl_channel_credentials(root_certificates=where.ca_pem)


class _Calls:
    """Adds the token to every call, and a deadline to those that need one and name none."""

    _inner: Any

    def __init__(self, inner: Any, where: Target) -> None:
        self._inner = inner
        self._metadata = (bearer(where.token),)
        self._deadline_s = where.deadline_s

    def unary_unary(self, *args: Any, **kwargs: Any) -> Any:
        return self._with_token(self._inner.unary_unary(*args, **kwargs), self._deadline_s)

    def unary_stream(self, *args: Any, **kwargs: Any) -> Any:
        return self._with_token(self._inner.unary_stream(*args, **kwargs), None)

    def stream_unary(self, *args: Any, **kwargs: Any) -> Any:
        return self._with_token(self._inner.stream_unary(*args, **kwargs), None)

    def stream_stream(self, *args: Any, **kwargs: Any) -> Any:
        return self._with_token(self._inner.stream_stream(*args, **kwargs), None)

    def _with_token(self, call: Any, deadline_s: float | None) -> Callable[..., Any]:
        token = self._metadata

        def invoke(
            request: Any = None, timeout: float | None = None, metadata: Any = None, **kwargs: Any
        ) -> Any:
            given = token if metadata is None else (*token, *metadata)
            return call(request, timeout=deadline_s if timeout is None else timeout, metadata=given, **kwargs)

        return invoke


class _Channel(_Calls, grpc.Channel):
    def subscribe(self, callback: Any, try_to_connect: bool | None = False) -> None:
        self._inner.subscribe(callback, try_to_connect)

    def unsubscribe(self, callback: Any) -> None:
        self._inner.unsubscribe(callback)

    def close(self) -> None:
        self._inner.close()

    def __enter__(self) -> "_Channel":
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


class _AioChannel(_Calls, grpc.aio.Channel):
    async def __aenter__(self) -> "_AioChannel":
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.close()

    async def close(self, grace: float | None = None) -> None:
        await self._inner.close(grace)

    def get_state(self, try_to_connect: bool = False) -> grpc.ChannelConnectivity:
        state: grpc.ChannelConnectivity = self._inner.get_state(try_to_connect)
        return state

    async def wait_for_state_change(self, last_observed_state: grpc.ChannelConnectivity) -> None:
        await self._inner.wait_for_state_change(last_observed_state)

    async def channel_ready(self) -> None:
        await self._inner.channel_ready()
