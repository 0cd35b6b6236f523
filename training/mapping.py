"""Files in memory, mapped so that the kernel can use huge pages for them.

In small ones, a restore spends as long on page faults, and on taking the mapping down again, as on the bytes.
tmpfs gives huge pages to whoever asks for them by name, whatever it gives by itself (MADV_COLLAPSE: Linux
6.1). Where it does not, all works, and takes longer. torch is not needed here.
"""

import ctypes
import mmap
import os

_HUGE_BYTES = 2 * 1024 * 1024
_MADV_COLLAPSE = 25
_MAP_FIXED = 0x10
_MAP_FAILED = ctypes.c_void_p(-1).value

_libc = ctypes.CDLL(None, use_errno=True)
_libc.mmap.restype = ctypes.c_void_p
_libc.mmap.argtypes = [
    ctypes.c_void_p,
    ctypes.c_size_t,
    ctypes.c_int,
    ctypes.c_int,
    ctypes.c_int,
    ctypes.c_long,
]
_libc.madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]


def map_file(fd: int, size_bytes: int, flags: int = 0) -> memoryview:
    """Its first bytes, shared and writable, where huge pages fit. Unmapped with the last view of it. Raises
    OSError.
    """
    holder = _hold(size_bytes + _HUGE_BYTES)
    address = _address_of(holder)
    start = -address % _HUGE_BYTES
    access, shared = mmap.PROT_READ | mmap.PROT_WRITE, mmap.MAP_SHARED | _MAP_FIXED
    if _libc.mmap(address + start, size_bytes, access, shared | flags, fd, 0) == _MAP_FAILED:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return holder[start : start + size_bytes]


def take_huge_pages(fd: int, size_bytes: int) -> None:
    """For as much of a file as the kernel gives them; the rest is as it was. The first byte of each is
    written to. Raises OSError.
    """
    if os.fstat(fd).st_size < size_bytes:
        os.ftruncate(fd, size_bytes)
    whole_bytes = size_bytes // _HUGE_BYTES * _HUGE_BYTES
    for offset in range(0, whole_bytes, _HUGE_BYTES):  # the kernel does not collapse what is all hole
        os.pwrite(fd, b"\0", offset)
    if whole_bytes:
        view = map_file(fd, whole_bytes)
        _libc.madvise(_address_of(view), whole_bytes, _MADV_COLLAPSE)


def _hold(size_bytes: int) -> memoryview:
    """Addresses for a mapping, and their owner. Of a file without pages: it counts as memory nowhere."""
    fd = os.memfd_create("paceline")
    try:
        os.ftruncate(fd, size_bytes)
        return memoryview(mmap.mmap(fd, size_bytes))
    finally:
        os.close(fd)


def _address_of(view: memoryview) -> int:
    return ctypes.addressof(ctypes.c_char.from_buffer(view))
