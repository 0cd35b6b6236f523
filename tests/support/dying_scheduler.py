"""The real scheduler with a store that kills it: SIGKILL just before or just after a commit, then a new one.

    python -m support.dying_scheduler LEDGER before|after|both SCHEDULER-OPTIONS...

Every commit that says something new of a job is a place to die, once before and once after it (`both`):
LEDGER (a file) remembers the deaths, one line each of what the commit said (`before KIND:JOB KIND:JOB ...`).
So each event is met by a kill, and yet the scenario gets on. Commits that only tell of contact do not count:
each restart makes new ones.

This process has imported everything and forks the scheduler anew whenever it has died of SIGKILL, so that a
restart costs what opening the store costs. SIGTERM goes on to the scheduler, and its exit code is ours.
"""

import contextlib
import ctypes
import os
import signal
import sys
from pathlib import Path
from typing import Any

import alembic.command  # noqa: F401 - here and below: what the scheduler imports late, once for all of them
import grpc_health.v1.health  # noqa: F401
import grpc_reflection.v1alpha.reflection  # noqa: F401
from paceline.scheduler import main, opening, server  # noqa: F401
from paceline.scheduler.store import migrate, sqlite  # noqa: F401
from paceline.scheduler.store.base import Batch, Store

PR_SET_PDEATHSIG = 1
HANDLED = {signal.SIGTERM, signal.SIGINT, signal.SIGCHLD}


class DyingStore:
    """Passes everything on to the real store; `commit` may be the last thing that this process does."""

    def __init__(self, store: Store, ledger: Path, when: str) -> None:
        self._store = store
        self._ledger = ledger
        self._moments = ("before", "after") if when == "both" else (when,)
        self._met: dict[str, set[str]] = {"before": set(), "after": set()}
        for line in ledger.read_text().splitlines() if ledger.exists() else ():
            moment, *said = line.split()
            self._met[moment].update(said)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)

    def commit(self, batch: Batch) -> None:
        said = [f"{event.kind}:{event.job}" for event in batch.events if event.job is not None]
        self._die_if_due("before", said)
        self._store.commit(batch)
        self._die_if_due("after", said)

    def _die_if_due(self, moment: str, said: list[str]) -> None:
        if moment in self._moments and not self._met[moment].issuperset(said):
            with self._ledger.open("a") as file:
                file.write(f"{moment} {' '.join(said)}\n")
            os.kill(os.getpid(), signal.SIGKILL)


def run() -> None:
    ledger, when, *options = sys.argv[1:]
    real = opening.open_store
    opening.open_store = lambda location: DyingStore(real(location), Path(ledger), when)  # type: ignore[assignment]
    signal.pthread_sigmask(signal.SIG_BLOCK, HANDLED)
    while True:
        status = _wait(_fork(options))
        if not (os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL):
            sys.exit(os.waitstatus_to_exitcode(status))


def _fork(options: list[str]) -> int:
    """A scheduler that dies with us at the latest."""
    pid = os.fork()
    if pid == 0:
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, HANDLED)
        main.command(options)
    return pid


def _wait(child: int) -> int:
    """Its wait status; what we are told meanwhile, it is told."""
    while True:
        number = signal.sigwait(HANDLED)
        if number != signal.SIGCHLD:
            with contextlib.suppress(ProcessLookupError):
                os.kill(child, number)
            continue
        pid, status = os.waitpid(child, os.WNOHANG)
        if pid:
            return status


if __name__ == "__main__":
    run()
