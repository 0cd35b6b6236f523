"""How a rank that was forked from a warm interpreter ends: as the interpreter would, but for taking apart
what dies with the process anyway.

Finalizing an interpreter that has imported torch takes 0.2 to 0.4 s of a processor: thousands of modules and
C++ tables are freed one by one. What a script can see of its end is little of that: threads are waited for,
exit functions run, streams are flushed, and the objects of its own modules are finalized, so that files are
written and `__del__` runs. That is done here, in CPython's order (Python/pylifecycle.c, Py_FinalizeEx). A
process that has loaded libraries since the fork (CUDA is one) may have ends that only C knows of: there, and
wherever anything is out of the ordinary, the interpreter does it all. Standard library only.
"""

import atexit
import ctypes
import gc
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


class Beginning:
    """What the interpreter had loaded before the script; made in the zygote."""

    def __init__(self) -> None:
        self._libraries = _libraries()
        self._modules = frozenset(sys.modules)
        self._finalizers = tuple(weakref.finalize._registry)  # type: ignore[attr-defined]

    def finish(self, code: int) -> None:
        """End the process with that code. Returns where the interpreter is to do it."""
        if not _libraries() <= self._libraries:
            return
        try:
            threading._shutdown()  # type: ignore[attr-defined]
            for finalizer in self._finalizers:  # torch has hundreds, which take its operators apart
                finalizer.atexit = False
            atexit._run_exitfuncs()
            _flush()
            self._clear_modules()
            _flush()
            ctypes.CDLL(None).fflush(None)
        except BaseException:  # noqa: BLE001 - what has run by now does not run again; the rest says what is wrong
            return
        os._exit(code & 0xFF)

    def _clear_modules(self) -> None:
        """First those that nothing else holds go; of the others, the names, the last module first."""
        names = [name for name in sys.modules if name not in self._modules or name == "__main__"]
        alive = [weakref.ref(sys.modules.pop(name)) for name in names]
        gc.collect()
        for reference in reversed(alive):
            module = reference()
            if module is not None:
                _clear(module)
        gc.collect()


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


def _libraries() -> set[str]:
    """Files that are mapped to be executed, but for Python's own modules."""
    with open("/proc/self/maps", encoding="utf-8", errors="surrogateescape") as file:  # noqa: PTH123
        lines = (line.split(None, 5) for line in file)
        mapped = {line[5].rstrip("\n") for line in lines if len(line) == 6 and "x" in line[1]}
    return {path for path in mapped if not path.startswith(_DYNLOAD)}
