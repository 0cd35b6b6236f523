"""Nodes with networks of their own, for tests: network namespaces that meet at a bridge. They need root.

Each has `eth0`, by which it reaches the others and this machine, and a `docker0` whose address is the same
everywhere, so that nobody reaches anybody by it; its host's name leads to loopback.
"""

import contextlib
import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import pytest

needs_networks = pytest.mark.skipif(
    os.getuid() != 0 or shutil.which("ip") is None, reason="network namespaces need root and ip"
)


@dataclass(frozen=True, slots=True)
class Networks:
    """`names`: of the namespaces. This machine is `.1` there, they are from `.2` on."""

    prefix: str
    names: tuple[str, ...]

    @property
    def here(self) -> str:
        return f"{self.prefix}.1"

    def address(self, index: int) -> str:
        return f"{self.prefix}.{index + 2}"


@contextmanager
def networks(count: int) -> Iterator[Networks]:
    """Skips the test where the kernel refuses them."""
    pid = os.getpid()
    bridge, made = f"pb{pid}", Networks(f"10.{200 + pid % 50}.{pid // 50 % 250}", _names(pid, count))
    with contextlib.ExitStack() as undo:
        try:
            _ip("link", "add", bridge, "type", "bridge")
        except subprocess.CalledProcessError as error:
            pytest.skip(f"no bridge here: {error.stderr.strip()}")
        undo.callback(_ip, "link", "del", bridge)
        _ip("addr", "add", f"{made.here}/24", "dev", bridge)
        _ip("link", "set", bridge, "up")
        for index, name in enumerate(made.names):
            _ip("netns", "add", name)
            undo.callback(_ip, "netns", "del", name)
            _ip("-n", name, "link", "add", "docker0", "type", "bridge")
            _ip("-n", name, "addr", "add", "172.17.0.1/16", "dev", "docker0")
            port = f"pv{pid}.{index}"
            _ip("link", "add", port, "type", "veth", "peer", "name", "eth0", "netns", name)
            _ip("link", "set", port, "master", bridge, "up")
            _ip("-n", name, "addr", "add", f"{made.address(index)}/24", "dev", "eth0")
            for device in ("lo", "docker0", "eth0"):
                _ip("-n", name, "link", "set", device, "up")
        yield made


def _names(pid: int, count: int) -> tuple[str, ...]:
    return tuple(f"paceline-{pid}-{index}" for index in range(count))


def _ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True, text=True)
