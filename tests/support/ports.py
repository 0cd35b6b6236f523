"""Ports for servers that go and come back."""

import contextlib
import random
import socket
from pathlib import Path


def lasting_port() -> int:
    """Free now, and not one of those that the system gives to connections: nobody else's, nor a client's own
    that dials meanwhile, takes it while its server is away."""
    first_given = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    while True:
        port = random.randrange(first_given // 2, first_given)
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port
