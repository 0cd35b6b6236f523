"""How a rank that was forked from a warm interpreter ends: as the interpreter would, but for taking apart
what dies with the process anyway.

Finalizing an interpreter that has imported torch takes 0.2 to 0.4 s of a processor: thousands of modules and
C++ tables are freed one by one. What a script can see of its end is little of that: threads are waited for,
exit functions run, streams are flushed, and the objects of its own modules are finalized, so that files are
written and `__del__` runs. That is done here, in CPython's order (Python/pylifecycle.c, Py_FinalizeEx). A
process that has loaded libraries since the fork (CUDA is one) may have ends that only C knows of: there, and
wherever anything is out of the ordinary, the interpreter does it all. Where a process group of torch is still
there, objects are not taken apart: files are flushed, and no `__del__` runs. Standard library only.
"""

import atexit
import contextlib
import ctypes
import gc
import io
import os
import sys
import threading
import weakref
from types import ModuleType
from typing import Final

_DYNLOAD: Final = (
    f"{sys.base_exec_prefix}/{sys.platlibdir}/python{sys.version_info[0]}.{sys.version_info[1]}/"
)
"""Python's own extension modules: they have no end of their own."""
_GROUPS: Final = ("pt_gloo", "pt_nccl", "gloo")
"""How the names of their threads begin."""


class Beginning:
    """What the interpreter had loaded before the script; made in the zygote."""

    def __init__(self) -> None:
        self._loads = _Loads()
        self._loads_before = self._loads.count()
        self._libraries = _libraries()
        self._modules = frozenset(sys.modules)
        self._last = next(reversed(sys.modules.items()))
        self._finalizers = tuple(weakref.finalize._registry)  # type: ignore[attr-defined]

    def finish(self, code: int) -> None:
        """End the process with that code. Returns where the interpreter is to do it."""
        if self._loads.count() != self._loads_before and not _libraries() <= self._libraries:
            return
        try:
            threading._shutdown()  # type: ignore[attr-defined]
            for finalizer in self._finalizers:  # torch has hundreds, which take its operators apart
                finalizer.atexit = False
            atexit._run_exitfuncs()
            _flush()
            if _in_a_group():  # its end joins threads that may want the interpreter: it dies with the process
                _flush_files()
            else:
                self._clear_modules()
            _flush()
            ctypes.CDLL(None).fflush(None)
        except BaseException:  # noqa: BLE001 - what has run by now does not run again; the rest says what is wrong
            return
        os._exit(code & 0xFF)

    def _clear_modules(self) -> None:
        """First those that nothing else holds go; of the others, the names, the last module first."""
        names = [*(["__main__"] if "__main__" in sys.modules else []), *self._imported()]
        alive = [weakref.ref(sys.modules.pop(name)) for name in names]
        gc.collect()
        for reference in reversed(alive):
            module = reference()
            if module is not None:
                _clear(module)
        gc.collect()

    def _imported(self) -> list[str]:
        """Names of what was imported since, the first first. They stand behind those that were there, which
        are not looked at: each look counts a reference, and so copies a page."""
        found: list[str] = []
        for name, module in reversed(sys.modules.items()):
            if (name, module) == self._last:
                break
            if name not in self._modules:
                found.append(name)
        return found[::-1]


def _clear(module: ModuleType) -> None:
    """As CPython does: first the names with one underscore, then the others; builtins stay."""
    names = vars(module)
    for private in (True, False):
        for name in list(names):
            if (name.startswith("_") and not name.startswith("__")) is private and name != "__builtins__":
                names[name] = None


def _flush() -> None:
    for stream in (sys.stdout, sys.stderr):
        if stream is not None and not stream.closed:
            stream.flush()


def _flush_files() -> None:
    """Those that the script has left open."""
    for one in gc.get_objects():
        if isinstance(one, io.IOBase) and not one.closed:
            with contextlib.suppress(OSError, ValueError):  # as their own end has it: nobody hears of it
                one.flush()


def _in_a_group() -> bool:
    """Threads of a process group of torch's live here: pt_gloo_runloop and their like."""
    for thread in os.scandir("/proc/self/task"):
        try:
            with open(f"{thread.path}/comm", encoding="ascii", errors="replace") as file:  # noqa: PTH123
                if file.read().startswith(_GROUPS):
                    return True
        except FileNotFoundError:  # it has just ended
            continue
    return False


class _Object(ctypes.Structure):
    """The beginning of dl_phdr_info, see dl_iterate_phdr(3)."""

    _fields_ = (
        ("address", ctypes.c_size_t),
        ("name", ctypes.c_char_p),
        ("headers", ctypes.c_void_p),
        ("headers_count", ctypes.c_uint16),
        ("loads", ctypes.c_ulonglong),
    )


class _Loads:
    """How many libraries this process has ever loaded: where that has not changed, nobody need look which
    they are, for which the kernel lists thousands of mappings."""

    def __init__(self) -> None:
        self._found = 0
        self._iterate = ctypes.CDLL(None).dl_iterate_phdr
        self._look = ctypes.CFUNCTYPE(
            ctypes.c_int, ctypes.POINTER(_Object), ctypes.c_size_t, ctypes.c_void_p
        )(self._note)

    def count(self) -> int:
        self._iterate(self._look, None)
        return self._found

    def _note(self, found: "ctypes._Pointer[_Object]", _size: int, _data: int) -> int:
        self._found = found.contents.loads
        return 1  # the same in all of them


def _libraries() -> set[str]:
    """Files that are mapped to be executed, but for Python's own modules."""
    with open("/proc/self/maps", encoding="utf-8", errors="surrogateescape") as file:  # noqa: PTH123
        lines = (line.split(None, 5) for line in file)
        mapped = {line[5].rstrip("\n") for line in lines if len(line) == 6 and "x" in line[1]}
    return {path for path in mapped if not path.startswith(_DYNLOAD)}
