"""Work that blocks, in threads: what is asked for in one turn of the event loop goes there in one hop.

A hop to a thread and back costs more than most of what is done there. So what is short goes together; what
may take long goes alone, and holds nobody up.
"""

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

Result = TypeVar("Result")

_THREADS = 4


class Disk:
    """Belongs to the event loop's thread."""

    def __init__(self) -> None:
        self._threads = ThreadPoolExecutor(_THREADS, "disk")
        self._waiting: list[tuple[Callable[[], Any], asyncio.Future[Any]]] = []

    async def run(self, work: Callable[[], Result]) -> Result:
        """Short work, after what was asked for before it in this turn. Raises what it raises."""
        loop = asyncio.get_running_loop()
        done: asyncio.Future[Result] = loop.create_future()
        self._waiting.append((work, done))
        if len(self._waiting) == 1:
            loop.call_soon(self._send, loop)
        return await done

    async def run_alone(self, work: Callable[[], Result]) -> Result:
        """Work that may take long."""
        return await asyncio.get_running_loop().run_in_executor(self._threads, work)

    def close(self) -> None:
        """Wait for what is under way."""
        self._threads.shutdown()

    def _send(self, loop: asyncio.AbstractEventLoop) -> None:
        batch, self._waiting = self._waiting, []

        def do_all() -> None:
            told = [(done, _outcome(work)) for work, done in batch]
            loop.call_soon_threadsafe(_tell, told)

        self._threads.submit(do_all)


def _outcome(work: Callable[[], Any]) -> tuple[Any, BaseException | None]:
    try:
        return work(), None
    except BaseException as error:  # noqa: BLE001 - raised where the work was asked for
        return None, error


def _tell(told: list[tuple[asyncio.Future[Any], tuple[Any, BaseException | None]]]) -> None:
    for done, (result, error) in told:
        if done.done():  # whoever asked was cancelled
            continue
        if error is not None:
            done.set_exception(error)
        else:
            done.set_result(result)
