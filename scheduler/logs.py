"""The streams as shipped: logs/JOB/ATTEMPT.RANK.log, and who waits for more of them.

Open files are bounded; a file in use is never closed. Arrivals wake the followers of their job at once.
All calls come from the scheduler's asyncio thread; only appends, syncs and cold reads run in threads. All
appends share one thread, many at a time: it gives them their order, and the disk's syncs never hold it up.
"""

import asyncio
import re
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, NamedTuple, TypeVar

from ..proto.logfile import LogFile, Piece
from ..spec.ids import Attempt, JobId, TaskKey

T = TypeVar("T")

OPEN_MAX: Final = 512
THREADS: Final = 4
_NAME: Final = re.compile(r"(\d+)\.(\d+)\.log")


class Stream(NamedTuple):
    """One rank's output in one attempt."""

    job: JobId
    attempt: Attempt
    rank: int


class Part(NamedTuple):
    """Bytes that have come of one stream, and how many of the stream's are kept."""

    stream: Stream
    offset: int
    data: bytes | memoryview
    bytes_max: int


@dataclass(slots=True, eq=False)
class Bell:
    """A follower's: which of its job's streams have grown since it last looked, or that more is new."""

    grown: set[Stream] = field(default_factory=set)
    event: asyncio.Event = field(default_factory=asyncio.Event)

    def ring(self, stream: Stream | None = None) -> None:
        if stream is not None:
            self.grown.add(stream)
        self.event.set()


@dataclass(slots=True)
class _Open:
    file: LogFile
    users: int = 0


class LogStore:
    """Streams by job, attempt and rank. Raises OSError where the disk does."""

    def __init__(self, folder: Path, *, open_max: int = OPEN_MAX) -> None:
        self._folder = folder
        self._open_max = open_max
        self._open: OrderedDict[Stream, _Open] = OrderedDict()
        self._bells: dict[JobId, set[Bell]] = {}
        self.ending = False
        self._threads = ThreadPoolExecutor(THREADS, thread_name_prefix="logs")
        # One: two connections of one node may bring the same bytes at once.
        self._writer = ThreadPoolExecutor(1, thread_name_prefix="logs-writer")

    def streams(self, job: JobId, attempt: Attempt) -> list[Stream]:
        """What there is of one attempt, by rank."""
        try:
            names = [path.name for path in (self._folder / str(job)).iterdir()]
        except FileNotFoundError:
            return []
        found = (_NAME.fullmatch(name) for name in names)
        ranks = sorted(int(match[2]) for match in found if match and int(match[1]) == attempt)
        return [Stream(job, attempt, rank) for rank in ranks]

    def size(self, stream: Stream) -> int:
        """Where the stream ends; 0 for one that is not there."""
        if stream not in self._open and not self._path(stream).exists():
            return 0
        with self._using(stream) as file:
            return file.size

    async def append(self, parts: Sequence[Part]) -> list[int]:
        """Add bytes in the order given; wakes the followers. Returns the streams' new sizes.

        They are not yet safe from a power cut. When the disk fails, those before the failed one are there.
        """
        with ExitStack() as used:
            files = [used.enter_context(self._using(part.stream, part.bytes_max)) for part in parts]
            try:
                return await self._in_thread(self._writer, lambda: _append_all(files, parts))
            finally:  # also when it was cut off: nobody will bring again what is there
                for part in parts:
                    for bell in self._bells.get(part.stream.job, ()):
                        bell.ring(part.stream)

    async def note_sizes(self, task: TaskKey, sizes: Sequence[int]) -> None:
        """How long the streams of a task's ranks are in the end, where no event of the job says it."""
        path = self._folder / str(task.job) / f"{task.attempt}.sizes"
        first = task.task * len(sizes)
        text = "".join(f"{first + local} {size}\n" for local, size in enumerate(sizes))
        await self._in_thread(self._threads, lambda: _append_text(path, text))
        for bell in self._bells.get(task.job, ()):
            bell.ring()

    def noted_sizes(self, job: JobId, attempt: Attempt) -> dict[int, int]:
        """By rank; of those that were noted."""
        try:
            lines = (self._folder / str(job) / f"{attempt}.sizes").read_text().splitlines()
        except FileNotFoundError:
            return {}
        pairs = (line.split() for line in lines)
        return {int(pair[0]): int(pair[1]) for pair in pairs if len(pair) == 2}

    async def sync(self, streams: Sequence[Stream]) -> list[int]:
        """Return their sizes that survive a power cut."""
        with ExitStack() as used:
            files = [used.enter_context(self._using(stream)) for stream in streams]
            sizes = [file.size for file in files]
            await self._in_thread(self._threads, lambda: _sync_all(files))
        return sizes

    async def read(self, stream: Stream, offset: int, count: int) -> Piece:
        """From memory at once where the system has it there, else in a thread."""
        with self._using(stream) as file:
            piece = file.read_cached(offset, count)
            if piece is None:
                piece = await self._in_thread(self._threads, lambda: file.read(offset, count))
            return piece

    @contextmanager
    def following(self, job: JobId) -> Iterator[Bell]:
        """A bell that rings when streams of the job grow."""
        bell = Bell()
        bells = self._bells.setdefault(job, set())
        bells.add(bell)
        try:
            yield bell
        finally:
            bells.discard(bell)
            if not bells and self._bells.get(job) is bells:
                del self._bells[job]

    def end_all(self) -> None:
        """Every follower ends with Unavailable."""
        self.ending = True
        for bells in self._bells.values():
            for bell in bells:
                bell.ring()

    def close(self) -> None:
        self._writer.shutdown()
        self._threads.shutdown()
        for each in self._open.values():
            each.file.close()
        self._open.clear()

    async def _in_thread(self, threads: ThreadPoolExecutor, call: Callable[[], T]) -> T:
        """Not to be abandoned half-way: the file stays in use until the thread is done with it."""
        future = asyncio.get_running_loop().run_in_executor(threads, call)
        try:
            return await asyncio.shield(future)
        except asyncio.CancelledError:
            await asyncio.wait([future])
            raise

    @contextmanager
    def _using(self, stream: Stream, bytes_max: int = 1 << 40) -> Iterator[LogFile]:
        opened = self._open.get(stream)
        if opened is None:
            path = self._path(stream)
            path.parent.mkdir(parents=True, exist_ok=True)
            opened = self._open[stream] = _Open(LogFile(path, bytes_max=bytes_max))
        opened.file.bytes_max = min(opened.file.bytes_max, bytes_max)
        self._open.move_to_end(stream)
        opened.users += 1
        try:
            self._close_idle()
            yield opened.file
        finally:
            opened.users -= 1

    def _close_idle(self) -> None:
        if len(self._open) <= self._open_max:
            return
        idle = [stream for stream, each in self._open.items() if not each.users]
        for stream in idle[: len(self._open) - self._open_max]:
            self._open.pop(stream).file.close()

    def _path(self, stream: Stream) -> Path:
        return self._folder / str(stream.job) / f"{stream.attempt}.{stream.rank}.log"


def _append_all(files: Sequence[LogFile], parts: Sequence[Part]) -> list[int]:
    return [file.append(part.offset, part.data) for file, part in zip(files, parts, strict=True)]


def _sync_all(files: Sequence[LogFile]) -> None:
    for file in files:
        file.sync()


def _append_text(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as file:
        file.write(text)
