"""Schedulers for code that blocks: one in a thread of this process, and one that may be killed."""

import asyncio
import json
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self, TypeVar

from .ports import lasting_port
from .wire import Wire, wire

T = TypeVar("T")


class Served:
    """A scheduler that serves in a thread."""

    def __init__(self, wired: Wire) -> None:
        self.wired = wired
        self.state = wired.config.state
        self._loop = asyncio.get_running_loop()
        self.over = asyncio.Event()

    def run(self, asked: Coroutine[Any, Any, T]) -> T:
        """In the scheduler's thread."""
        return asyncio.run_coroutine_threadsafe(asked, self._loop).result(60)

    def end(self) -> None:
        self._loop.call_soon_threadsafe(self.over.set)


@contextmanager
def served(state: Path) -> Iterator[Served]:
    """Until the context ends."""
    made: list[Served] = []
    up = threading.Event()

    async def serve() -> None:
        async with wire(state) as wired:
            made.append(Served(wired))
            up.set()
            await made[0].over.wait()

    def run() -> None:
        try:
            asyncio.run(serve())
        finally:
            up.set()

    thread = threading.Thread(target=run, name="scheduler")
    thread.start()
    up.wait()
    assert made, "the scheduler did not start: see the thread's traceback"
    try:
        yield made[0]
    finally:
        made[0].end()
        thread.join()


class SchedulerProcess:
    """A scheduler on a state folder that comes back at the same address after a kill. A context manager."""

    def __init__(self, state: Path) -> None:
        self.state = state
        self.address = ""
        self._log = state.with_name(f"{state.name}.log")

    def __enter__(self) -> Self:
        self._start(f"127.0.0.1:{lasting_port()}")
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.wait()

    def kill_and_start(self) -> None:
        """SIGKILL, then another one."""
        self._process.send_signal(signal.SIGKILL)
        self._process.wait()
        self._start(self.address)

    def wait(self, true: Callable[[], bool], deadline_s: float = 60.0) -> None:
        end_s = time.monotonic() + deadline_s
        while not true():
            assert time.monotonic() < end_s, f"not within {deadline_s} s"
            assert self._process.poll() is None, f"the scheduler has ended:\n{self._log.read_text()[-2000:]}"
            time.sleep(0.01)

    def _start(self, listen: str) -> None:
        line = [sys.executable, "-m", "paceline.scheduler.main", "--state", str(self.state)]
        with self._log.open("a") as log:
            self._process = subprocess.Popen([*line, "--listen", listen], stderr=log)
        self.wait(lambda: self._record().get("pid") == self._process.pid)
        self.address = str(self._record()["address"])

    def _record(self) -> dict[str, Any]:
        path = self.state / "scheduler.json"
        return dict(json.loads(path.read_text())) if path.exists() else {}
