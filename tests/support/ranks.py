"""Ranks for tests: real processes forked from a server that has imported torch, joined by real gloo.

`RankPool.run` gives each rank torchrun's variables and a process group, calls a function of a
module in tests/support in it, and gives back what the ranks returned. Output goes to files, so a
failing rank's story is in the error.
"""

import multiprocessing
import os
import pickle
import signal
import sys
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from paceline.training.preload import MODULES

DEADLINE_S = 60.0


class RankFailed(AssertionError):
    """A rank ended with an exit code that was not expected; its output is in the message."""


class RunningGang:
    """Ranks that run. Every one is gone after `close`."""

    def __init__(self, folder: Path, processes: Sequence[BaseProcess]) -> None:
        self.folder = folder
        self.processes = processes

    def kill(self, rank: int, number: int = signal.SIGKILL) -> None:
        pid = self.processes[rank].pid
        assert pid is not None
        os.kill(pid, number)

    def wait(self, deadline_s: float = DEADLINE_S) -> list[int]:
        """The exit codes (negative: a signal)."""
        until_s = time.monotonic() + deadline_s
        codes = []
        for rank, process in enumerate(self.processes):
            process.join(max(0.0, until_s - time.monotonic()))
            if process.exitcode is None:
                raise RankFailed(f"rank {rank} still runs after {deadline_s} s:\n{self.output(rank)}")
            codes.append(process.exitcode)
        return codes

    def results(self, deadline_s: float = DEADLINE_S) -> list[Any]:
        """What each rank returned; RankFailed if one did not."""
        for rank, code in enumerate(self.wait(deadline_s)):
            if code != 0:
                raise RankFailed(f"rank {rank} ended with {code}:\n{self.output(rank)}")
        return [
            pickle.loads((self.folder / f"result.{rank}").read_bytes()) for rank in range(len(self.processes))
        ]

    def output(self, rank: int) -> str:
        path = self.folder / f"output.{rank}"
        return path.read_text(errors="replace") if path.exists() else "(no output)"

    def close(self) -> None:
        for process in self.processes:
            if process.exitcode is None:
                process.kill()
            process.join()


class RankPool:
    """Forks ranks from one warm server; made once for a session."""

    def __init__(self) -> None:
        self._context = multiprocessing.get_context("forkserver")
        self._context.set_forkserver_preload([*MODULES, "support.ranks"])
        self._running: list[RunningGang] = []
        self._count = 0

    def start(
        self,
        function: Callable[..., Any],
        *arguments: Any,
        folder: Path,
        world_size: int = 2,
        variables: Sequence[Mapping[str, str]] | None = None,
    ) -> RunningGang:
        """`variables`: more environment variables, for each rank."""
        self._count += 1
        home = folder / f"gang-{self._count}"
        home.mkdir(parents=True)
        processes = []
        for rank in range(world_size):
            environment = {
                "RANK": str(rank),
                "LOCAL_RANK": str(rank),
                "WORLD_SIZE": str(world_size),
                "LOCAL_WORLD_SIZE": str(world_size),
                **(variables[rank] if variables else {}),
            }
            process = self._context.Process(
                target=_become_rank,
                args=(function, arguments, home, environment),
                daemon=True,
            )
            process.start()
            processes.append(process)
        gang = RunningGang(home, processes)
        self._running.append(gang)
        return gang

    def run(
        self, function: Callable[..., Any], *arguments: Any, deadline_s: float = DEADLINE_S, **options: Any
    ) -> list[Any]:
        gang = self.start(function, *arguments, **options)
        try:
            return gang.results(deadline_s)
        finally:
            gang.close()

    def close(self) -> None:
        for gang in self._running:
            gang.close()


def _become_rank(
    function: Callable[..., Any],
    arguments: tuple[Any, ...],
    home: Path,
    environment: Mapping[str, str],
) -> None:
    rank, world_size = int(environment["RANK"]), int(environment["WORLD_SIZE"])
    output = os.open(home / f"output.{rank}", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(output, 1)
    os.dup2(output, 2)
    sys.stdout = os.fdopen(1, "w", buffering=1)
    sys.stderr = os.fdopen(2, "w", buffering=1)
    os.environ.update(environment)
    import torch
    from torch import distributed

    torch.set_num_threads(1)
    try:
        if world_size > 1:
            rendezvous = f"file://{home}/rendezvous"
            distributed.init_process_group("gloo", init_method=rendezvous, rank=rank, world_size=world_size)
        result = function(*arguments)
        aside = home / f"result.{rank}.tmp"
        aside.write_bytes(pickle.dumps(result))
        aside.rename(home / f"result.{rank}")
        if distributed.is_initialized():
            distributed.destroy_process_group()
    except BaseException:  # noqa: BLE001 - it goes into the output file, the exit code says so
        traceback.print_exc()
        sys.stderr.flush()
        os._exit(1)
    sys.stdout.flush()
    os._exit(0)
