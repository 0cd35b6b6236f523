"""What is asked for in one turn goes to a thread together, and each gets its own outcome."""

import asyncio
import threading

import pytest
from paceline.agent.disk import Disk


async def test_works_of_one_turn_share_a_hop_and_keep_their_order() -> None:
    disk, seen = Disk(), []

    def work(number: int) -> tuple[int, int]:
        seen.append(number)
        return number, threading.get_ident()

    told = await asyncio.gather(*(disk.run(lambda number=number: work(number)) for number in range(20)))
    assert [number for number, _ in told] == seen == list(range(20))
    assert len({thread for _, thread in told}) == 1
    assert threading.get_ident() not in {thread for _, thread in told}
    disk.close()


async def test_one_that_fails_or_is_not_wanted_any_more_spares_the_others() -> None:
    disk = Disk()

    def fail() -> None:
        raise OSError(28, "No space left on device")

    unwanted = asyncio.ensure_future(disk.run(lambda: 1))
    wanted = asyncio.gather(disk.run(fail), disk.run(lambda: 2), return_exceptions=True)
    await asyncio.sleep(0)
    unwanted.cancel()
    error, two = await wanted
    assert isinstance(error, OSError) and error.errno == 28
    assert two == 2
    with pytest.raises(asyncio.CancelledError):
        await unwanted
    disk.close()


async def test_what_takes_long_holds_nobody_up() -> None:
    disk, go = Disk(), threading.Event()
    long = asyncio.ensure_future(disk.run_alone(lambda: go.wait(30)))
    assert await asyncio.wait_for(disk.run(lambda: "short"), 30) == "short"
    assert not long.done()
    go.set()
    assert await long
    disk.close()
