"""What the agent's two streams share: how they end, and how they begin again.

Backoff is exponential with full jitter, so that ten thousand agents that lost one scheduler do not come back
in step; a stream that lived long enough to be of use starts it anew. A scheduler that restarts is back within
a second or two: at first an agent dials as often as that scheduler said it can bear from so many.
"""

import asyncio
import random
import time
from collections.abc import Awaitable, Callable
from typing import Any, Final

import grpc

from ..proto.failures import error_of

Dial = Callable[[], grpc.aio.Channel]

BACKOFF_S: Final = 0.2
BACKOFF_MAX_S: Final = 5.0
SETTLED_S: Final = 5.0
SOON_S: Final = 5.0
"""After the loss of a settled stream: as long as a scheduler's restart may take."""


class StreamLost(Exception):
    """This stream is of no use any more; the text says why."""


class Backoff:
    """When to try again: `failed` gives the seconds to wait, `began` is called before each try."""

    def __init__(self) -> None:
        self._failures = 0
        self._began_s = 0.0
        self._soon_until_s = 0.0

    def began(self) -> None:
        self._began_s = time.monotonic()

    def failed(self, most_s: float = BACKOFF_MAX_S, redial_s: float = 0.0) -> float:
        """Full jitter: anything up to a step that is bounded. The step is `redial_s` (0: not told) soon after
        the loss of a settled stream, then exponential."""
        now_s = time.monotonic()
        if now_s - self._began_s >= SETTLED_S:
            self._failures = 0
            self._soon_until_s = now_s + SOON_S
        if redial_s > 0 and now_s < self._soon_until_s:
            return random.uniform(0, min(most_s, redial_s))
        step_s = min(most_s, BACKOFF_S * 2 ** min(self._failures, 16))
        self._failures += 1
        return random.uniform(0, step_s)


async def next_message(call: Any) -> Any:
    """What the other side said next. Raises StreamLost or AioRpcError when it said its last."""
    message = await call.read()
    if message is grpc.aio.EOF:
        raise StreamLost(await why_ended(call))
    return message


async def write_message(call: Any, message: Any, timeout_s: float) -> None:
    """Raises as `next_message` does, and TimeoutError when the other side takes nothing in."""
    try:
        async with asyncio.timeout(timeout_s):
            await call.write(message)
    except asyncio.InvalidStateError as error:  # the call is over: its status says why
        raise StreamLost(await why_ended(call)) from error


async def why_ended(call: Any) -> str:
    """Of a stream that is over: the reason, for a person. Raises AioRpcError when it ended with an error."""
    code = await call.code()
    if code is not grpc.StatusCode.OK:
        raise grpc.aio.AioRpcError(
            code, await call.initial_metadata(), await call.trailing_metadata(), await call.details()
        )
    return "the scheduler closed the stream"


def describe(error: grpc.aio.AioRpcError) -> str:
    """One line for the log."""
    return error_of(error).message


async def first_to_end(*coroutines: Awaitable[None]) -> None:
    """Run them side by side until one ends; cancel the others; raise what was raised first."""
    tasks = [asyncio.ensure_future(each) for each in coroutines]
    try:
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()
        results = await asyncio.gather(*tasks, return_exceptions=True)
    for task in [*done, *tasks]:
        result = results[tasks.index(task)]
        if isinstance(result, Exception):
            raise result
