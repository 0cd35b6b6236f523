"""What no scheduler can beat on this machine: the raw cost of each part of the work."""

import os
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

from .peers.work.driver import Driver

FORK_SERVER = Path(__file__).parent / "work" / "fork_server.py"


def fork_server(folder: Path) -> Driver:
    """A process with torch in it; operations `launch(ranks)` and `restart(ranks)`, by records.PARTS."""
    environment = {"OMP_NUM_THREADS": "1"}
    return Driver("floor", [sys.executable, str(FORK_SERVER), str(folder)], folder, environment)


def spawns_per_s(count: int, threads: int = 2) -> float:
    """posix_spawn and wait of `true`, from as many threads as there are cores."""

    def spawn() -> None:
        for _ in range(count // threads):
            os.waitpid(os.posix_spawn("/bin/true", ["true"], {}), 0)

    return count / timed_threads(spawn, threads)


def timed_threads(work: Callable[[], None], threads: int) -> float:
    crew = [threading.Thread(target=work) for _ in range(threads)]
    began = time.monotonic()
    for thread in crew:
        thread.start()
    for thread in crew:
        thread.join()
    return time.monotonic() - began


def commits_per_s(folder: Path, rows: int, group: int = 100) -> float:
    """Rows made durable a second by SQLite (WAL, synchronous=FULL), `group` to a commit."""
    file = folder / f"floor-{time.monotonic_ns()}.db"
    with sqlite3.connect(file, isolation_level=None) as store:
        store.execute("PRAGMA journal_mode=WAL")
        store.execute("PRAGMA synchronous=FULL")
        store.execute("CREATE TABLE job (id INTEGER PRIMARY KEY, body TEXT)")
        began = time.monotonic()
        for first in range(0, rows, group):
            store.execute("BEGIN")
            store.executemany("INSERT INTO job VALUES (?, ?)", [(first + n, "x" * 400) for n in range(group)])
            store.execute("COMMIT")
        took = time.monotonic() - began
    store.close()
    return rows / took


def calls_per_s(count: int, in_flight: int = 64) -> float:
    """gRPC unary calls a second to a server in another process that does nothing."""
    command = [sys.executable, "-m", "benchmarks.work.grpc_echo", str(count), str(in_flight)]
    return float(subprocess.run(command, capture_output=True, text=True, check=True, timeout=120).stdout)
