"""This node's addresses and network interfaces on the way to others."""

import socket
from collections.abc import Mapping
from typing import Final, NamedTuple

import psutil

from ..proto.channels import is_loopback
from ..spec.errors import Unavailable

_ANY_PORT: Final = 9


class Interface(NamedTuple):
    """As the kernel calls it, and this node's address there."""

    name: str
    address: str

    def variables(self) -> dict[str, str]:
        """For the ranks' collectives: without them gloo takes the interface of whatever address the host's
        name has, which is often loopback, and NCCL the first that looks like a network."""
        return {"GLOO_SOCKET_IFNAME": self.name, "NCCL_SOCKET_IFNAME": f"={self.name}"}

    def told(self, given: Mapping[str, str]) -> str:
        """For a person; `given`: variables that stay as they were."""
        kept = (f", {name}={given[name]} as given" for name in self.variables() if name in given)
        return f"{self.name} ({self.address}){''.join(kept)}"


def interface_towards(host: str) -> Interface | None:
    """None: the address that leads there belongs to no interface of this network namespace. Raises
    Unavailable."""
    address = route_address(host, _ANY_PORT)
    for name, found in psutil.net_if_addrs().items():
        if any(one.address.partition("%")[0] == address for one in found):
            return Interface(name, address)
    return None


def route_address(host: str, port: int) -> str:
    """The address of this machine on the way to `host`: loopback for loopback. Nothing is sent. Raises
    Unavailable."""
    if is_loopback(host):
        return "::1" if ":" in host else "127.0.0.1"
    try:
        candidates = socket.getaddrinfo(host, port, type=socket.SOCK_DGRAM)
    except OSError as error:
        raise Unavailable(f"the name {host} cannot be resolved: {error}") from error
    for family, kind, protocol, _, address in candidates:
        with socket.socket(family, kind, protocol) as probe:
            try:
                probe.connect(address)
            except OSError:
                continue
            return str(probe.getsockname()[0])
    raise Unavailable(
        f"this machine has no route to {host}", hint="Name the address that peers reach with --address."
    )
