"""The node's zygotes: a lean one for programs, and warm ones that have imported torch & co.

A zygote that does not answer is killed, never waited for again: what it may still have forked is known by
the connection that it passed on. There are never more than `zygotes_max` warm ones.
"""

import asyncio
import contextlib
import json
import logging
import os
import signal
import socket
import subprocess
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from ..spec.errors import PacelineError
from . import kernel, zygote
from .launch import WarmKey, is_sensitive

log = logging.getLogger(__name__)

IMPORT_S_MAX = 120.0
_ANSWER_BYTES_MAX = 256 * 1024
_FORKS_AT_ONCE = 32
_LEAVE_S = 2.0
_RESTART_S = 1.0
_RESTART_S_MAX = 60.0


class ZygoteFailed(PacelineError):
    """The zygote ended or did not answer; what it was asked for did not happen, unless a shim lives."""

    code = "zygote-failed"
    retryable = True


class Zygote:
    """One such process, as the agent sees it. Belongs to the event loop's thread."""

    def __init__(self, name: str, argv: list[str], environment: Mapping[str, str], log_file: Path) -> None:
        """Start it; `ready` says when its imports are done."""
        self.name = name
        self.born_s = time.monotonic()
        self.missing: dict[str, str] = {}
        self.shadowable: frozenset[str] = frozenset()
        self.has_cuda = False
        self.problem = ""
        self.on_end: Callable[[], None] = lambda: None
        self._log_file = log_file
        self._loop = asyncio.get_running_loop()
        self._ready: asyncio.Future[None] = self._loop.create_future()
        self._ready.add_done_callback(
            lambda done: done.cancelled() or done.exception()
        )  # nobody need be waiting
        self._answers: deque[asyncio.Future[int]] = deque()
        self._dead = asyncio.Event()
        self._turns = asyncio.Semaphore(_FORKS_AT_ONCE)
        self._channel, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs, log_file.open("wb") as output:
            self._process = subprocess.Popen(
                [argv[0], "-c", zygote.COMMAND, str(theirs.fileno()), *argv[1:], zygote.ARGUMENTS_ROOM],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                cwd="/",
                env={**environment, "PYTHONUNBUFFERED": "1", kernel.MARK: "-" * kernel.MARK_BYTES_MAX},
                pass_fds=[theirs.fileno()],
                start_new_session=True,
            )
        self._channel.setblocking(False)
        self._loop.add_reader(self._channel, self._on_readable)
        self._pidfd = os.pidfd_open(self._process.pid)
        self._loop.add_reader(self._pidfd, self._on_dead)
        self._late = self._loop.call_later(IMPORT_S_MAX, self._fail, f"no imports in {IMPORT_S_MAX:.0f} s")

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def is_ready(self) -> bool:
        return self._ready.done() and self._ready.exception() is None

    @property
    def alive(self) -> bool:
        return self._channel.fileno() >= 0

    async def ready(self) -> None:
        """Wait for the imports. Raises ZygoteFailed."""
        await asyncio.shield(self._ready)

    async def fork(self, folder: Path, fds: list[int], answer_s: float) -> int:
        """Fork the shim of the task in that folder; its pid. Raises ZygoteFailed."""
        return await self._fork(str(folder), "", fds, answer_s)

    async def fork_ahead(self, mark: str, fd: int, answer_s: float) -> int:
        """Fork a shim that waits for its first task, and carries that mark meanwhile; its pid. Raises
        ZygoteFailed."""
        return await self._fork("", mark, [fd], answer_s)

    async def _fork(self, folder: str, mark: str, fds: list[int], answer_s: float) -> int:
        await self.ready()
        async with self._turns:  # so that the answer's time does not count what waits before it
            return await self._ask({"folder": folder, "mark": mark}, fds, answer_s)

    async def _ask(self, message: dict[str, str], fds: list[int], answer_s: float) -> int:
        request = json.dumps(message).encode()
        answer: asyncio.Future[int] = self._loop.create_future()
        try:
            async with asyncio.timeout(answer_s):
                while not self._send(request, fds):
                    await self._writable()
                self._answers.append(answer)
                return await answer
        except TimeoutError:
            self._fail(f"no answer in {answer_s:g} s")
            raise ZygoteFailed(f"{self.name} did not answer in {answer_s:g} s and was killed") from None

    def close(self) -> None:
        """End of file: it leaves, its shims do not."""
        self._end(f"{self.name} was ended")

    def _send(self, request: bytes, fds: list[int]) -> bool:
        if not self.alive:
            raise ZygoteFailed(f"{self.name} has ended")
        try:
            socket.send_fds(self._channel, [request], fds)
        except BlockingIOError:
            return False
        except OSError as error:
            self._fail(f"channel: {error}")
            raise ZygoteFailed(f"{self.name} has ended: {error}") from error
        return True

    async def _writable(self) -> None:
        ready = self._loop.create_future()
        self._loop.add_writer(self._channel, _resolve, ready)
        try:
            await ready
        finally:
            self._loop.remove_writer(self._channel)

    def _on_readable(self) -> None:
        try:
            data = self._channel.recv(_ANSWER_BYTES_MAX)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            self._fail(self._last_words())
            return
        message = json.loads(data)
        if "ready" in message:
            self._on_ready(message)
        elif self._answers:
            answer = self._answers.popleft()
            if not answer.done():
                if "pid" in message:
                    answer.set_result(message["pid"])
                else:
                    answer.set_exception(ZygoteFailed(f"{self.name}: {message['error']}"))

    def _on_ready(self, message: dict[str, Any]) -> None:
        self._late.cancel()
        self.missing = message["missing"]
        self.shadowable = frozenset(message["shadowable"])
        self.has_cuda = message["cuda"]
        if message["threads"] > 1:
            log.debug("%s has %d threads after its imports", self.name, message["threads"])
        if not self._ready.done():
            self._ready.set_result(None)

    def _last_words(self) -> str:
        with contextlib.suppress(OSError):
            lines = self._log_file.read_bytes()[-2000:].decode("utf-8", "replace").strip().splitlines()
            if lines:
                return lines[-1][:300]
        return "it ended without a word"

    def _fail(self, why: str) -> None:
        if self.alive:
            with contextlib.suppress(ProcessLookupError):
                self._process.send_signal(signal.SIGKILL)
            self._end(f"{self.name} failed: {why}")

    def _end(self, why: str) -> None:
        if not self.alive:
            return
        self.problem = why
        self._late.cancel()
        self._loop.remove_reader(self._channel)
        self._loop.remove_writer(self._channel)
        self._channel.close()
        if not self._ready.done():
            self._ready.set_exception(ZygoteFailed(why))
        for answer in self._answers:
            if not answer.done():
                answer.set_exception(ZygoteFailed(why))
        self._answers.clear()
        self.on_end()

    def _on_dead(self) -> None:
        self._process.wait()
        self._dead.set()
        self._loop.remove_reader(self._pidfd)
        os.close(self._pidfd)
        self._fail(self._last_words())

    async def wait_dead(self, patience_s: float) -> None:
        """Until the process is gone; it is killed when it takes longer."""
        try:
            async with asyncio.timeout(patience_s):
                await self._dead.wait()
        except TimeoutError:
            self._process.kill()
            await self._dead.wait()


def _resolve(future: "asyncio.Future[None]") -> None:
    if not future.done():
        future.set_result(None)


class ZygotePool:
    """Starts zygotes when they are asked for, and the node's own ones at once; those it restarts."""

    def __init__(
        self,
        folder: Path,
        base: Mapping[str, str],
        lean_interpreter: str,
        *,
        preload: tuple[str, ...],
        warm_max: int,
        on_change: Callable[[], None],
    ) -> None:
        """`folder` gets their output files, and what the lean one makes in its rehearsal."""
        self._folder = folder
        self._base = base
        self._lean_interpreter = lean_interpreter
        self._preload = preload
        self._warm_max = warm_max
        self._on_change = on_change
        self._lean: Zygote | None = None
        self._warm: OrderedDict[WarmKey, Zygote] = OrderedDict()
        self._kept: WarmKey | None = None
        self._problem = "none asked for"
        self._ending: set[Zygote] = set()
        self._restart_s = _RESTART_S
        self._closed = False
        self._count = 0

    def key(self, interpreter: str) -> WarmKey:
        """Of that interpreter in the agent's own environment."""
        return WarmKey(interpreter, frozenset(item for item in self._base.items() if is_sensitive(item[0])))

    def begin(self, kept: WarmKey | None) -> None:
        """Start the lean zygote and, if given, a warm one that is kept up whatever happens."""
        self._kept = kept
        self.lean()
        if kept is not None:
            self._problem = ""
            self.warm(kept)

    def status(self) -> str:
        """For Inventory.warm_pool."""
        held = self._warm.get(self._kept) if self._kept is not None else None
        if held is not None and held.is_ready:
            return f"none: torch: {held.missing['torch']}" if "torch" in held.missing else "ready"
        if held is not None or (self._kept is not None and not self._problem):
            return "starting"
        return f"none: {self._problem}"

    def lean(self) -> Zygote:
        """The one without preloads."""
        if self._lean is None or not self._lean.alive:
            argv = [self._lean_interpreter, "", str(self._folder / "rehearsal")]
            self._lean = self._start("lean zygote", argv, self._base)
        return self._lean

    def warm(self, key: WarmKey) -> Zygote:
        """The one of that key, started if need be; it may still be importing."""
        held = self._warm.get(key)
        if held is None or not held.alive:
            outside = {name: value for name, value in self._base.items() if not is_sensitive(name)}
            outside.pop("OMP_NUM_THREADS", None)  # set in each rank, after the fork
            outside["PYTORCH_NVML_BASED_CUDA_CHECK"] = "1"  # an import that asks for GPUs must not start CUDA
            argv = [key.interpreter, ",".join(self._preload), ""]
            held = self._warm[key] = self._start(
                f"zygote of {key.interpreter}", argv, outside | dict(key.sensitive)
            )
            held._ready.add_done_callback(lambda _: self._on_change())
        self._warm.move_to_end(key)
        others = [each for each in self._warm if each not in (self._kept, key)]
        for oldest in others[: max(0, len(self._warm) - self._warm_max)]:
            self._warm.pop(oldest).close()
        return held

    def renew(self, interpreter: str) -> None:
        """What it has are other packages now: none of its processes that has imported those before is forked
        any more."""
        for held in [each for key, each in self._warm.items() if key.interpreter == interpreter]:
            held.close()

    async def close(self) -> None:
        """End them all, and wait for that."""
        self._closed = True
        for each in (self._lean, *self._warm.values()):
            if each is not None:
                each.close()
        self._warm.clear()
        for each in list(self._ending):
            await each.wait_dead(_LEAVE_S)

    def _start(self, name: str, argv: list[str], environment: Mapping[str, str]) -> Zygote:
        self._count += 1
        self._ending = {each for each in self._ending if each._process.returncode is None}
        started = Zygote(name, argv, environment, self._folder / f"zygote-{self._count % 8}.log")
        started.on_end = lambda: self._on_end(started)
        self._ending.add(started)
        return started

    def _on_end(self, ended: Zygote) -> None:
        if self._closed:
            return
        lived_s = time.monotonic() - ended.born_s
        kept = self._kept is not None and self._warm.get(self._kept) is ended
        for key in [key for key, each in self._warm.items() if each is ended]:
            del self._warm[key]
        if kept:
            self._problem = "" if lived_s > _RESTART_S_MAX else ended.problem
            self._on_change()
        if kept or ended is self._lean:
            self._restart_s = (
                _RESTART_S if lived_s > _RESTART_S_MAX else min(2 * self._restart_s, _RESTART_S_MAX)
            )
            asyncio.get_running_loop().call_later(self._restart_s if lived_s < 10 else 0.0, self._restart)

    def _restart(self) -> None:
        if not self._closed:
            self.lean()
            if self._kept is not None:
                self.warm(self._kept)
                self._on_change()
