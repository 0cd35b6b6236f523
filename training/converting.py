"""Converting an elastic job's checkpoints for another number of ranks before anybody waits for it.

A process beside rank 0's persister does it (`python -P -m paceline.training.converting`), at the lowest
priority: it imports DeepSpeed once, takes the newest checkpoint that it has been told of, verifies its files,
and leaves `universal/` in it, as a restore would (universal.py). Nobody waits for it: what it has not done by
the end of the run, or cannot do, the restore that needs it does.
"""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

from . import manifest
from .errors import CheckpointMismatch, StorageFailed
from .say import say
from .scratch import lock

ASIDE = ".universal-"
"""How the name of a folder begins that is being made in a checkpoint, under a lock of who makes it."""
_NICENESS = 19


class Ahead:
    """The persister's hold on that process, which is started for the first checkpoint."""

    def __init__(self, root: Path) -> None:
        """`root`: of the checkpoints."""
        self._root = root
        self._process: subprocess.Popen[bytes] | None = None

    def convert(self, checkpoint: Path, manifest_hash: str) -> None:
        """Have it converted, unless a newer one comes before its turn."""
        line = json.dumps({"checkpoint": str(checkpoint), "manifest_hash": manifest_hash}).encode() + b"\n"
        try:
            self._process = self._process or _start()
            assert self._process.stdin is not None
            os.write(self._process.stdin.fileno(), line)
        except BrokenPipeError:
            return  # it has ended, and has said why
        except OSError as error:  # not started, or hundreds behind
            say(f"{checkpoint.name} is not converted ahead of a resize: {error.strerror}")

    def stop(self) -> None:
        """What is half made goes with it."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            sweep(self._root.glob(f"*/{ASIDE}*"))


def _start() -> "subprocess.Popen[bytes]":
    """It sees no device, and is one thread: what it does must not be felt."""
    process = subprocess.Popen(
        [sys.executable, "-P", "-m", "paceline.training.converting"],
        stdin=subprocess.PIPE,
        stdout=sys.stderr.fileno(),
        env={**os.environ, "DS_ACCELERATOR": "cpu", "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"},
    )
    assert process.stdin is not None
    os.set_blocking(process.stdin.fileno(), False)
    return process


def sweep(asides: Iterable[Path]) -> None:
    """What converters left that were killed."""
    for found in asides:
        if (fd := lock(found)) >= 0:
            shutil.rmtree(found, ignore_errors=True)
            os.close(fd)


def main() -> None:
    os.nice(_NICENESS)
    for line in _newest_lines(sys.stdin.fileno()):
        told = json.loads(line)
        checkpoint = Path(told["checkpoint"])
        try:
            _convert(checkpoint, told["manifest_hash"])
        except CheckpointMismatch as error:  # so will be the next one
            say(f"{checkpoint.name} cannot be made ready for a resize: {error.message}")
            return
        except (OSError, StorageFailed):  # gone meanwhile, full or damaged: the restore says which
            continue


def _newest_lines(pipe: int) -> Iterator[bytes]:
    """The last one each time, until the persister is gone."""
    received = b""
    while data := os.read(pipe, 1 << 20):
        *whole, received = (received + data).split(b"\n")
        if whole:
            yield whole[-1]


def _convert(checkpoint: Path, manifest_hash: str) -> None:
    from . import attached, universal

    files = manifest.read(checkpoint, manifest_hash).files
    names = attached.names_in(files)
    if not universal.is_needed(names) or not universal.damage_of(checkpoint):
        return
    for name in names:
        if damage := manifest.damage_of(checkpoint / name, files[name]):
            raise StorageFailed(f"{checkpoint / name}: {damage}")
    universal.convert({name: checkpoint / name for name in names}, checkpoint)


if __name__ == "__main__":
    main()
