"""Puts a zygote's memory into huge pages, so that forking from it copies hundreds of page table entries and
not tens of thousands.

A process that has imported torch has 200 MB of its own: 55,000 small pages, each of which is entered again in
each fork's page table and taken out at its end. In huge pages a fork costs a fifth, and a short rank a third,
of what it did. A page that a rank writes to is split there, and a small one copied, as before. Linux 6.1
collapses pages on demand (MADV_COLLAPSE); before that the advice alone lets the kernel do it in its own time;
where huge pages are off nothing changes. Standard library only.
"""

import ctypes
import re
from typing import Final

HUGE_BYTES: Final = 2 << 20
AT_ONCE_BYTES: Final = 8 * HUGE_BYTES
"""Some tens of milliseconds: a request may be waiting."""
_MADV_HUGEPAGE: Final = 14
_MADV_COLLAPSE: Final = 25
_ANONYMOUS = re.compile(r"^([0-9a-f]+)-([0-9a-f]+) rw-p \S+ \S+ 0\s*(\[heap\]|\[anon:.*\])?$", re.MULTILINE)


class HugePages:
    """`collapse_some` until nothing is left."""

    def __init__(self) -> None:
        """Of what is mapped now, the private memory of no file."""
        libc = ctypes.CDLL(None)
        self._madvise = libc.madvise
        self._madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
        self._left: list[tuple[int, int]] = []
        with open("/proc/self/maps", encoding="utf-8", errors="surrogateescape") as file:  # noqa: PTH123
            maps = file.read()
        for low, high, _ in _ANONYMOUS.findall(maps):
            start = -(-int(low, 16) // HUGE_BYTES) * HUGE_BYTES
            size = int(high, 16) // HUGE_BYTES * HUGE_BYTES - start
            if size > 0 and self._madvise(start, size, _MADV_HUGEPAGE) == 0:
                self._left += [
                    (at, min(AT_ONCE_BYTES, start + size - at))
                    for at in range(start, start + size, AT_ONCE_BYTES)
                ]

    @property
    def left(self) -> bool:
        return bool(self._left)

    def collapse_some(self) -> None:
        """The next few. What cannot be collapsed (a kernel without it, no free huge page, untouched memory)
        stays as it is."""
        start, size = self._left.pop()
        self._madvise(start, size, _MADV_COLLAPSE)
