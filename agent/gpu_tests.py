"""Tests GPUs that are out of service, and gives back those that do well.

A test runs in a process of its own, of a GPU in MIG mode one for each of its slices, when the driver asks for
nothing and no task has the GPU: first after a wait, then after twice as long each time that it fails or that
the GPU has been out before, up to an hour.
"""

import asyncio
import contextlib
import logging
import os
import shlex
import sys
import time
from collections.abc import Callable
from typing import Final

from ..spec.gpu_health import GpuState
from .gpu import Gpu
from .gpu_health import HealthBook, Outage
from .inventory import GpuWatch
from .outside import run_to_end

log = logging.getLogger(__name__)

WAIT_S_MAX: Final = 3600.0
TEST_S: Final = 300.0
LOOK_S: Final = 1.0
"""How often it is looked whether a GPU that is due has become free; only while one is out of service."""
_WORDS_BYTES: Final = 64 << 10


class GpuTester:
    """All of it belongs to the event loop's thread; `run` until cancelled."""

    def __init__(
        self,
        watch: GpuWatch,
        book: HealthBook,
        in_use: Callable[[int], bool],
        *,
        command: str = "",
        first_wait_s: float = 60.0,
    ) -> None:
        """`command`: in a shell's words; empty: `paceline.training.gpu_test` in the agent's interpreter."""
        self._watch = watch
        self._book = book
        self._in_use = in_use
        self._command = shlex.split(command) or [sys.executable, "-P", "-m", "paceline.training.gpu_test"]
        self._first_wait_s = first_wait_s
        self._changed = asyncio.Event()
        self._due: dict[str, tuple[Outage, float]] = {}

    def on_change(self) -> None:
        """The report on the GPUs says something new."""
        self._changed.set()

    async def run(self) -> None:
        while True:
            self._changed.clear()
            out = [gpu for gpu in self._watch.report().gpus if gpu.state is not GpuState.OK]
            for gpu in out:
                if (outage := self._outage_due(gpu)) is not None:
                    await self._test(gpu, outage)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(LOOK_S if out else None):
                    await self._changed.wait()

    def _outage_due(self, gpu: Gpu) -> Outage | None:
        """What it is out for, when it is time to test it. What is heard meanwhile begins the wait anew."""
        outage = self._book.outage(gpu)
        if outage is None:
            return None
        known, due_s = self._due.get(gpu.uuid, (None, 0.0))
        if known != outage:
            due_s = time.monotonic() + self._wait_s(outage, gpu.quarantines)
            self._due[gpu.uuid] = outage, due_s
        if time.monotonic() < due_s or gpu.needs or not gpu.devices or self._in_use(gpu.index):
            return None
        return outage

    def _wait_s(self, outage: Outage, quarantines: int) -> float:
        doublings = outage.failed_tests + max(0, quarantines - 1)
        return min(self._first_wait_s * float(1 << min(doublings, 32)), WAIT_S_MAX)

    async def _test(self, gpu: Gpu, outage: Outage) -> None:
        log.info("GPU %d: testing it (it is %s: %s)", gpu.index, outage.state, outage.why)
        failure = await self._failure(gpu)
        log.info(
            "GPU %d: %s", gpu.index, f"failed its test: {failure}" if failure else "did well in its test"
        )
        self._book.on_tested(gpu, outage, failure)
        self._watch.refresh()

    async def _failure(self, gpu: Gpu) -> str:
        """What went wrong in a test of it, or of one of its slices; empty: nothing."""
        for uuid in gpu.devices.values():
            if failure := await self._failure_of(uuid):
                return failure
        return ""

    async def _failure_of(self, uuid: str) -> str:
        environment = {**os.environ, "CUDA_VISIBLE_DEVICES": uuid}
        try:
            code, said = await run_to_end(self._command, environment, TEST_S, _WORDS_BYTES)
        except TimeoutError:
            return f"it did not end within {TEST_S:g} s"
        except OSError as error:
            return f"it could not be started: {error}"
        lines = said.decode(errors="replace").split("\n")
        words = next((line.strip() for line in reversed(lines) if line.strip()), "")
        return "" if code == 0 else words or f"it ended with {code}"
