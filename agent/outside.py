"""Programs of others that the agent waits for: for a bounded time, keeping the end of what they say."""

import asyncio
import contextlib
import os
import signal
from collections.abc import Mapping, Sequence
from typing import Final

_KILL_S: Final = 2.0
_READ_BYTES: Final = 64 << 10


async def run_to_end(
    argv: Sequence[str], environment: Mapping[str, str], limit_s: float, bytes_max: int
) -> tuple[int, bytes]:
    """Its exit code and the end of its output. Raises OSError where it cannot be started, TimeoutError when
    it has not ended in time; then, or when this is cancelled, its process group is killed."""
    child = await asyncio.create_subprocess_exec(
        *argv,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
        env=environment,
        start_new_session=True,
    )
    try:
        async with asyncio.timeout(limit_s):
            said = await _end_of_output(child, bytes_max)
            return await child.wait(), said
    finally:
        await _end(child)


async def _end_of_output(child: asyncio.subprocess.Process, bytes_max: int) -> bytes:
    assert child.stdout is not None
    kept = b""
    while chunk := await child.stdout.read(_READ_BYTES):
        kept = (kept + chunk)[-bytes_max:]
    return kept


async def _end(child: asyncio.subprocess.Process) -> None:
    """One that hangs in a driver may outlive even SIGKILL, and is not waited for."""
    if child.returncode is not None:
        return
    with contextlib.suppress(ProcessLookupError):
        os.killpg(child.pid, signal.SIGKILL)
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(_KILL_S):
            await child.wait()
