"""gRPC ignores an option that it does not know: a misspelt one looks set and is not."""

from pathlib import Path

import pytest
from grpc._cython import cygrpc
from paceline.proto.channels import CHANNEL_OPTIONS, SERVER_OPTIONS


@pytest.mark.parametrize("name", sorted({name for name, _ in (*CHANNEL_OPTIONS, *SERVER_OPTIONS)}))
def test_grpc_knows_each_option(name: str) -> None:
    assert name.encode() in Path(cygrpc.__file__).read_bytes()


def test_a_misspelt_option_would_be_found() -> None:
    assert b"grpc.http2.min_recv_ping_interval" not in Path(cygrpc.__file__).read_bytes()


def test_the_server_bears_the_pings_of_our_clients() -> None:
    """An idle stream is pinged every keepalive time; a server that expects fewer pings cuts it off."""
    clients, server = dict(CHANNEL_OPTIONS), dict(SERVER_OPTIONS)
    assert server["grpc.http2.min_ping_interval_without_data_ms"] < clients["grpc.keepalive_time_ms"]
