"""`python -m support.without_folder FOLDER MODULE ARGS`: that module's program, on a machine that has nothing
mounted at FOLDER: an empty file system hides it, in a mount namespace of its own. Needs root."""

import ctypes
import runpy
import subprocess
import sys

_CLONE_NEWNS = 0x00020000


def main() -> None:
    _, folder, module, *args = sys.argv
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(_CLONE_NEWNS):
        raise OSError(ctypes.get_errno(), "unshare")
    subprocess.run(["mount", "--make-rprivate", "/"], check=True)
    subprocess.run(["mount", "-t", "tmpfs", "tmpfs", folder], check=True)
    sys.argv = [module, *args]
    runpy.run_module(module, run_name="__main__", alter_sys=True)


main()
