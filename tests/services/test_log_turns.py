"""Two streams of one node may bring the same output at once: the old one, not yet known dead, and the new."""

import asyncio
from pathlib import Path

from paceline.scheduler.logs import LogStore, Part, Stream
from paceline.spec.ids import Attempt, JobId

STREAM = Stream(JobId(1), Attempt(1), 0)
CHUNK = 64 << 10


async def test_the_same_bytes_brought_twice_at_once_are_stored_once(tmp_path: Path) -> None:
    logs = LogStore(tmp_path)
    data = bytes(range(1, 251)) * 4000
    try:

        async def bring() -> None:
            for offset in range(0, len(data), CHUNK):
                await logs.append([Part(STREAM, offset, data[offset : offset + CHUNK], 1 << 30)])

        await asyncio.gather(*(bring() for _ in range(4)))
        assert logs.size(STREAM) == len(data)
        piece = await logs.read(STREAM, 0, len(data))
        assert piece.data == data
    finally:
        logs.close()


async def test_what_a_lost_connection_left_is_told_to_the_followers(tmp_path: Path) -> None:
    """Nobody brings again what is stored, so nobody else would ring for it."""
    logs = LogStore(tmp_path)
    try:
        with logs.following(STREAM.job) as bell:
            appending = asyncio.create_task(logs.append([Part(STREAM, 0, b"words\n", 1 << 30)]))
            await asyncio.sleep(0)  # handed to the thread, and not back yet
            appending.cancel()
            await asyncio.gather(appending, return_exceptions=True)
            assert appending.cancelled()
            assert logs.size(STREAM) == 6
            assert bell.event.is_set() and bell.grown == {STREAM}
    finally:
        logs.close()
