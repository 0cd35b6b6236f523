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
