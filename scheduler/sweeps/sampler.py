"""Sampler processes, from the scheduler's side: one for each sweep that needs one. One whose sweep is over is
kept for a while: the next sweep need not wait until Optuna is imported.

Questions are answered one after the other. A process knows nothing that is not in the store: one that died
is begun anew, from there.
"""

import asyncio
import contextlib
import sys
from typing import Final

from ...spec.errors import Unavailable
from .talk import (
    LENGTH_BYTES,
    MESSAGE_BYTES_MAX,
    Answer,
    Begin,
    Failed,
    Question,
    decode_answer,
    framed,
)

IDLE_S: Final = 300.0
"""After which a process that no sweep uses is let go."""
_TAIL_BYTES: Final = 4096


class SamplerFailed(Unavailable):
    """The sampler cannot answer; asking again would end alike."""


class SamplerDied(Unavailable):
    """Its process is gone; another can be begun."""


class SamplerProcess:
    """One process. Whoever asks waits for the answer before the next question."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process
        self._tail = b""
        self._listening = asyncio.create_task(self._listen())

    @classmethod
    async def start(cls) -> "SamplerProcess":
        return cls(
            await asyncio.create_subprocess_exec(
                *(sys.executable, "-P", "-m", "paceline.scheduler.sweeps.sampler_process"),
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.PIPE,
            )
        )

    @property
    def alive(self) -> bool:
        return self._process.returncode is None

    async def ask(self, question: Question) -> Answer:
        """Raises OSError, IncompleteReadError."""
        process = self._process
        assert process.stdin is not None and process.stdout is not None
        process.stdin.write(framed(question))
        await process.stdin.drain()
        size = int.from_bytes(await process.stdout.readexactly(LENGTH_BYTES), "big")
        if size > MESSAGE_BYTES_MAX:
            raise OSError(f"an answer of {size} bytes")
        answer: Answer = decode_answer(await process.stdout.readexactly(size))
        return answer

    async def kill(self) -> str:
        """What it has said last."""
        with contextlib.suppress(ProcessLookupError):
            self._process.kill()
        code = await self._process.wait()
        await self._listening
        return f"code {code}: {self._tail.decode(errors='replace').strip()}"

    async def _listen(self) -> None:
        assert self._process.stderr is not None
        while said := await self._process.stderr.read(_TAIL_BYTES):
            self._tail = (self._tail + said)[-_TAIL_BYTES:]


class SpareSampler:
    """At most one process, that waits for its next sweep."""

    def __init__(self) -> None:
        self._process: SamplerProcess | None = None
        self._idle: asyncio.Task[None] | None = None

    async def take(self) -> SamplerProcess:
        """The spare one, or a new one."""
        process, self._process = self._process, None
        self._stop_waiting()
        if process is not None and process.alive:
            return process
        if process is not None:
            await process.kill()
        return await SamplerProcess.start()

    async def keep(self, process: SamplerProcess) -> None:
        """It has answered all that it was asked."""
        if self._process is not None or not process.alive:
            await process.kill()
            return
        self._process = process
        self._idle = asyncio.create_task(self._let_go_idle())

    async def close(self) -> None:
        process, self._process = self._process, None
        self._stop_waiting()
        if process is not None:
            await process.kill()

    def _stop_waiting(self) -> None:
        if self._idle is not None:
            self._idle.cancel()
            self._idle = None

    async def _let_go_idle(self) -> None:
        await asyncio.sleep(IDLE_S)
        process, self._process, self._idle = self._process, None, None
        if process is not None:
            await process.kill()


class Sampler:
    """A sweep's. `ask` from one asyncio loop; answers come in the order of the questions."""

    def __init__(self, spare: SpareSampler) -> None:
        self._spare = spare
        self._process: SamplerProcess | None = None
        self._turn = asyncio.Lock()

    @property
    def begun(self) -> bool:
        return self._process is not None

    async def begin(self, question: Begin) -> None:
        """Tell a process of the study, whatever it was told before. Raises SamplerFailed, SamplerDied."""
        if self._process is None:
            self._process = await self._spare.take()
        await self.ask(question)

    async def ask(self, question: Question) -> Answer:
        """Raises SamplerFailed, and SamplerDied with what the process has said last."""
        async with self._turn:
            process = self._process
            if process is None:
                raise SamplerDied("the sampler's process is not there")
            try:
                answer = await process.ask(question)
            except (OSError, asyncio.IncompleteReadError) as error:
                self._process = None
                raise SamplerDied(f"the sampler's process ended with {await process.kill()}") from error
            except BaseException:  # whoever asked has gone: the answer would be taken for another's
                self._process = None
                await process.kill()
                raise
            if isinstance(answer, Failed):
                self._process = None
                await process.kill()
                raise SamplerFailed(f"the sampler failed: {answer.text}", hint=answer.hint)
        return answer

    async def close(self) -> None:
        """No more questions: another sweep may have the process."""
        async with self._turn:
            process, self._process = self._process, None
        if process is not None:
            await self._spare.keep(process)
