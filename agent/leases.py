"""The leases under which tasks run here (DESIGN, law 4).

A lease counts from when the last acknowledged renewal was SENT, on CLOCK_BOOTTIME: it runs on while the
node is suspended, so a node that wakes up kills at once what was placed elsewhere meanwhile. The renewal
lives in a small mapped file, so that an agent that restarts takes over the old lease, never a fresh one.
"""

import asyncio
import logging
import mmap
import os
import struct
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

log = logging.getLogger(__name__)

EXCLUSIVE_S: Final = 20.0
FENCED_S: Final = 600.0
WATCH_S: Final = 0.5

# Renewed at (CLOCK_BOOTTIME), exclusive lease, fenced lease, in seconds; then the boot they belong to.
_FORM: Final = struct.Struct("<ddd36s")


def boottime_s() -> float:
    """Seconds since boot, suspended time included. The clock of heartbeats and leases."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


@dataclass(frozen=True, slots=True)
class Lease:
    """As last renewed. `remaining_s` is what is left of it, negative when it has run out."""

    renewed_s: float
    exclusive_s: float = EXCLUSIVE_S
    fenced_s: float = FENCED_S

    def remaining_s(self, exclusive: bool, now_s: float) -> float:
        return self.renewed_s + (self.exclusive_s if exclusive else self.fenced_s) - now_s


class LeaseFile:
    """`STATE/lease`: what was last renewed, readable by whoever must act on it when the agent cannot.

    Written through a mapping: no system call, no space needed on a full disk, and it survives kill -9.
    """

    def __init__(self, path: Path, boot_id: str, now_s: float) -> None:
        self._boot = boot_id.encode()[:36]
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            os.posix_fallocate(descriptor, 0, mmap.PAGESIZE)
            self._map = mmap.mmap(descriptor, mmap.PAGESIZE)
        finally:
            os.close(descriptor)
        self.lease = self._load(now_s)

    def _load(self, now_s: float) -> Lease:
        """What an earlier agent left on this boot. Without it nothing was ever promised: count from now."""
        renewed_s, exclusive_s, fenced_s, boot = _FORM.unpack_from(self._map)
        if boot.rstrip(b"\0") != self._boot or not 0 < renewed_s <= now_s:
            return Lease(now_s)
        return Lease(renewed_s, exclusive_s, fenced_s)

    def write(self, lease: Lease) -> None:
        self.lease = lease
        _FORM.pack_into(self._map, 0, lease.renewed_s, lease.exclusive_s, lease.fenced_s, self._boot)

    def close(self) -> None:
        self._map.close()


class LeaseKeeper:
    """Renews on what the scheduler acknowledges; says when a lease has run out, network or not."""

    def __init__(self, file: LeaseFile, on_expired: Callable[[bool], None]) -> None:
        """`on_expired(exclusive)` is called at every look while that kind has run out: make it idempotent."""
        self._file = file
        self._on_expired = on_expired

    @property
    def lease(self) -> Lease:
        return self._file.lease

    def on_terms(self, exclusive_s: float, fenced_s: float, sent_s: float) -> None:
        """Welcome names the terms and acknowledges the Hello that was sent at `sent_s`."""
        lease = self.lease
        exclusive_s = exclusive_s if exclusive_s > 0 else EXCLUSIVE_S
        fenced_s = fenced_s if fenced_s > 0 else FENCED_S
        self._file.write(Lease(max(lease.renewed_s, sent_s), exclusive_s, fenced_s))

    def on_renewed(self, sent_s: float, now_s: float) -> None:
        """A reply to the heartbeat sent at `sent_s`; late, repeated and future ones change nothing."""
        lease = self.lease
        if lease.renewed_s < sent_s <= now_s:
            self._file.write(Lease(sent_s, lease.exclusive_s, lease.fenced_s))

    def look(self, now_s: float) -> None:
        for exclusive in (True, False):
            if self.lease.remaining_s(exclusive, now_s) <= 0:
                self._on_expired(exclusive)

    async def watch(self) -> None:
        """Look, until cancelled, so often that a suspend hides an expiry for at most WATCH_S."""
        while True:
            now_s = boottime_s()
            self.look(now_s)
            left = [self.lease.remaining_s(exclusive, now_s) for exclusive in (True, False)]
            soonest = min((each for each in left if each > 0), default=WATCH_S)
            await asyncio.sleep(min(WATCH_S, soonest + 0.001))
