"""The shim's look at the agent's lease (`STATE/lease`, contributing/contracts.md): a stopped or dead agent
must not keep a task alive that may already run elsewhere. Standard library only.
"""

import contextlib
import os
import struct
import time

_MERCY_S = 2.0
"""The agent comes first."""


class Lease:
    """What the agent acts on, if it is not stopped or dead."""

    _FORM = struct.Struct("<ddd36s")

    def __init__(self, path: str, exclusive: bool) -> None:
        self._exclusive = exclusive
        self._fd = -1
        with contextlib.suppress(FileNotFoundError):
            self._fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)

    def ran_out(self) -> bool:
        """True when the agent should have killed the task some time ago."""
        data = os.pread(self._fd, self._FORM.size, 0) if self._fd >= 0 else b""
        if len(data) < self._FORM.size:
            return False
        renewed_s, exclusive_s, fenced_s, boot = self._FORM.unpack(data)
        if renewed_s <= 0 or boot.rstrip(b"\0") != boot_id():
            return False
        lease_s: float = exclusive_s if self._exclusive else fenced_s
        return lease_s > 0 and time.clock_gettime(time.CLOCK_BOOTTIME) > renewed_s + lease_s + _MERCY_S


def boot_id() -> bytes:
    """Names this boot of the machine."""
    with open("/proc/sys/kernel/random/boot_id", "rb") as file:  # noqa: PTH123
        return file.read().strip()
