"""A sweep's sampler process, from the scheduler's side: started when it is first asked, let go when it fails.

Questions are answered one after the other. The process knows nothing that is not in the store: one that died
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

_TAIL_BYTES: Final = 4096


class SamplerFailed(Unavailable):
    """The sampler cannot answer; asking again would end alike."""


class SamplerDied(Unavailable):
    """Its process is gone; another can be begun."""


class Sampler:
    """`ask` from one asyncio loop; answers come in the order of the questions."""

    def __init__(self) -> None:
        self._process: asyncio.subprocess.Process | None = None
        self._turn = asyncio.Lock()
        self._tail = b""
        self._listening: asyncio.Task[None] | None = None

    @property
    def begun(self) -> bool:
        return self._process is not None

    async def begin(self, question: Begin) -> None:
        """Start the process, and tell it of the study. Raises SamplerFailed, SamplerDied."""
        await self.close()
        self._process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-P", "-m", "paceline.scheduler.sweeps.sampler_process"),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        self._listening = asyncio.create_task(self._listen(self._process))
        await self.ask(question)

    async def ask(self, question: Question) -> Answer:
        """Raises SamplerFailed, and SamplerDied with what the process has said last."""
        async with self._turn:
            process = self._process
            if process is None:
                raise SamplerDied("the sampler's process is not there")
            try:
                answer = await _exchange(process, question)
            except (OSError, asyncio.IncompleteReadError) as error:
                await self.close()
                said = self._tail.decode(errors="replace").strip()
                raise SamplerDied(
                    f"the sampler's process ended with code {process.returncode}: {said or error}"
                ) from error
            except BaseException:
                await self.close()  # whoever asked has gone: the answer would be taken for another's
                raise
        if isinstance(answer, Failed):
            await self.close()
            raise SamplerFailed(f"the sampler failed: {answer.text}", hint=answer.hint)
        return answer

    async def close(self) -> None:
        """End the process; what it was asked is not answered."""
        process, self._process = self._process, None
        if process is None:
            return
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.wait()
        if self._listening is not None:
            await self._listening

    async def _listen(self, process: asyncio.subprocess.Process) -> None:
        assert process.stderr is not None
        while said := await process.stderr.read(_TAIL_BYTES):
            self._tail = (self._tail + said)[-_TAIL_BYTES:]


async def _exchange(process: asyncio.subprocess.Process, question: Question) -> Answer:
    assert process.stdin is not None and process.stdout is not None
    process.stdin.write(framed(question))
    await process.stdin.drain()
    size = int.from_bytes(await process.stdout.readexactly(LENGTH_BYTES), "big")
    if size > MESSAGE_BYTES_MAX:
        raise OSError(f"an answer of {size} bytes")
    answer: Answer = decode_answer(await process.stdout.readexactly(size))
    return answer
