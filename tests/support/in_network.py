"""`python -m support.in_network NAME MODULE ARGS`: that module's program, in that network namespace. Needs
root."""

import ctypes
import runpy
import sys
from pathlib import Path

_CLONE_NEWNET = 0x40000000


def main() -> None:
    _, name, module, *args = sys.argv
    libc = ctypes.CDLL(None, use_errno=True)
    with Path("/run/netns", name).open() as space:
        if libc.setns(space.fileno(), _CLONE_NEWNET):
            raise OSError(ctypes.get_errno(), "setns")
    sys.argv = [module, *args]
    runpy.run_module(module, run_name="__main__", alter_sys=True)


main()
