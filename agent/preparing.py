"""What a task needs on its node before it starts: its code in a working folder, data where it can be read.

StartTask.needs says what. Each is provided before the launch is made; where it is then stands in the place of
the need's marker, in command, environment and cwd. A task without needs pays nothing. What is kept for other
tasks is made once, however many ask for it, and never goes while a task uses it.

    STATE/content/                 what is kept: tree_cache.py; what was at URLs: url_cache.py
    STATE/environments/            virtual environments that are kept: environments.py
    STATE/images/                  images, where the container engine keeps none of its own: images.py
    STATE/work/JOB.ATTEMPT.TASK    the folder in which a task's command runs
"""

import asyncio
import contextlib
import time
from collections import Counter
from collections.abc import Callable, Collection, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Final, TypeVar

from ..content.errors import Damaged, NoContent
from ..content.store import ContentStore
from ..content.writing import remove_tree
from ..proto.generated import agent_pb2, common_pb2
from ..spec.errors import InvalidRequest, LimitExceeded
from ..spec.stores import shown_url
from .contained import Box, key_of
from .environments import EnvironmentCache, Found, interpreter_at
from .images import Images
from .launch import Refusal
from .tree_cache import CacheFull, Provided, Source, Stopped, TreeCache
from .url_cache import UrlCache, url_key

T = TypeVar("T")

CODE: Final = "code"
ENVIRONMENT: Final = "environment"
IMAGE: Final = "image"
_THREADS: Final = 4
_BUILDS: Final = 2
"""At once; installing takes a core or two."""
_FETCHES: Final = 2
"""At once; each of them fetches several files."""
_LOOK_S: Final = 0.5
Stop = Callable[[], str]
"""Why the task is to stop; empty: it is not."""


@dataclass(frozen=True, slots=True)
class Prepared:
    """What was provided: marker -> where it is, and a line for the timeline."""

    places: dict[str, str] = field(default_factory=dict)
    told: str = ""
    interpreter: str = ""
    """The task's own; empty: one that the node has."""
    build_log: bytes = b""
    """Of an environment that was built, or an image that was pulled, for this task."""
    box: Box | None = None
    """The ranks run in containers."""

    def applied(self, request: agent_pb2.StartTask) -> agent_pb2.StartTask:
        """The request with the places in the markers' stead."""
        if not self.places:
            return request
        made = agent_pb2.StartTask()
        made.CopyFrom(request)
        made.command, made.cwd = self._put(request.command), self._put(request.cwd)
        for name, value in request.environment.items():
            made.environment[name] = self._put(value)
        return made

    def _put(self, text: str) -> str:
        for marker, place in self.places.items():
            text = text.replace(marker, place)
        return text


class Preparing:
    """Belongs to the event loop's thread."""

    def __init__(
        self,
        state: Path,
        cache_bytes: int,
        interpreter: str,
        mapped: Collection[str] = (),
        on_change: Callable[[], None] = lambda: None,
    ) -> None:
        """`interpreter`: the node's own; `mapped`: names of others; `cache_bytes`: of trees, and of
        environments and images as many again; `on_change()` when `images.status` says something new."""
        self._work = state / "work"
        self._mapped = mapped
        self.images = Images(state, cache_bytes, on_change=on_change)
        self._environments = EnvironmentCache(state / "environments", cache_bytes, interpreter)
        self._builds = ThreadPoolExecutor(_BUILDS, "building")
        self._cache = TreeCache(state / "content", cache_bytes)
        self._urls = UrlCache(state / "content", self._cache)
        self._fetches = ThreadPoolExecutor(_FETCHES, "fetching")
        self._fetch_turns = asyncio.Semaphore(_FETCHES)
        self._threads = ThreadPoolExecutor(_THREADS, "preparing")
        self._closed = ""
        self._pins: Counter[str] = Counter()
        self._under_way: dict[str, asyncio.Future[Provided]] = {}
        self._building: dict[str, asyncio.Future[Found]] = {}
        self._keys: dict[str, str] = {}
        """What tasks ask for -> what is kept for it here."""
        self._wanted: Counter[str] = Counter()
        """How many tasks wait for what is built."""

    async def begin(self, living: Sequence[agent_pb2.StartTask]) -> None:
        """Once, before anything else, with all tasks that are on this node."""
        for request in living:
            self._pins.update(_pinned(request))
            for need in filter(_is_built, request.needs):
                with contextlib.suppress(Refusal):
                    self._keys[_asked(need)] = await self._in_thread(partial(self._environments.key, need))
        jobs = {str(request.task.job) for request in living}
        await self._in_thread(lambda: self._begin(jobs))
        self.images.begin({key_of(request) for request in living})
        for need in (need for request in living for need in request.needs if _is_url(need)):
            self._keys[url_key(need)] = await self._in_thread(partial(self._urls.tree_of, url_key(need)))

    async def prepare(self, request: agent_pb2.StartTask, stop: Stop) -> Prepared:
        """Provide what it needs. Raises Refusal, OSError."""
        if not request.needs:
            return Prepared()
        self._pins.update(_pinned(request))
        stop = partial(self._why_stop, stop)
        places: dict[str, str] = {}
        told: list[str] = []
        interpreter, build_log, box = "", b"", None
        for need in request.needs:
            begun = time.monotonic()
            try:
                if need.name == ENVIRONMENT:
                    found = await self._environment(need, stop)
                    interpreter, what, build_log = found.interpreter, found.told, found.log
                elif need.name == IMAGE:
                    if self._is_mapped(request):
                        continue
                    box, what, build_log = await self.images.provide(need, stop)
                else:
                    places[need.marker], what = await self._provide(need, request, stop)
            except Stopped:
                raise Refusal("stopped", f"{stop()} before it had started", transient=True) from None
            except NoContent as error:
                raise Refusal(
                    "no-content",
                    f"{need.name}: {error.message} (looked in {request.content_folder})",
                    transient=True,
                    hint="the scheduler's --storage folder must have the same path on every node",
                ) from error
            except CacheFull as error:
                raise Refusal(
                    "cache-full",
                    f"{need.name}: {error}",
                    transient=True,
                    hint="give the agent more: --cache SIZE",
                ) from error
            except (Damaged, InvalidRequest, LimitExceeded) as error:
                raise Refusal("bad-content", f"{need.name}: {error.message}", transient=False) from error
            told.append(f"{need.name} ({what}) in {_duration(time.monotonic() - begun)}")
        return Prepared(places, "; ".join(told), interpreter, build_log, box)

    async def release(self, request: agent_pb2.StartTask, *, last: bool, kept: bool) -> None:
        """The task's folder here is dropped. `last`: no task of its job is left here; `kept`: its ranks went
        on in another attempt, and their working folder stays until then."""
        if not request.needs:
            return
        self._pins.subtract(_pinned(request))
        self._pins += Counter()  # only what is left
        self._keys = {asked: kept for asked, kept in self._keys.items() if asked in self._pins}
        if any(need.name == IMAGE for need in request.needs) and not self._is_mapped(request):
            await self.images.remove(request)
        key = request.task
        if last or not kept:
            pattern = f"{key.job}.*" if last else f"{key.job}.{key.attempt}.{key.task}"
            await self._in_thread(lambda: self._drop(pattern))

    async def close(self) -> None:
        """Wait for what is under way; builds go on by themselves, and what is being fetched is given up."""
        self._closed = "the agent stops"
        self._environments.close()
        await self.images.close()
        self._threads.shutdown()
        self._builds.shutdown(cancel_futures=True)
        self._fetches.shutdown(cancel_futures=True)

    def _why_stop(self, stop: Stop) -> str:
        return stop() or self._closed

    def _is_mapped(self, request: agent_pb2.StartTask) -> bool:
        return request.interpreter_environment in self._mapped

    async def _provide(
        self, need: agent_pb2.Need, request: agent_pb2.StartTask, stop: Stop
    ) -> tuple[str, str]:
        """Where it is, and what was done."""
        if _is_url(need):
            found = await self._url(need, stop)
            return str(found.folder), found.told(f" from {shown_url(need.url)}")
        if not need.tree:
            raise Refusal(
                "unknown-need",
                f"this agent cannot provide {need.name}: it is older than the scheduler",
                transient=True,
            )
        source = ContentStore(Path(request.content_folder))
        if need.name == CODE:
            return await self._working_folder(source, need.tree, request.task, stop)
        found = await self._tree(source, need.tree, stop)
        return str(found.folder), found.told()

    async def _environment(self, need: agent_pb2.Need, stop: Stop) -> Found:
        if need.url:
            interpreter = await self._in_thread(lambda: interpreter_at(need.url))
            return Found(interpreter, f"at {need.url}")
        key = self._keys[_asked(need)] = await self._in_thread(lambda: self._environments.key(need))
        self._wanted[key] += 1
        try:
            found = await self._built(need, key, stop)
        except Exception:  # a cancellation is none: the agent leaves, and the next one may want it
            self._wanted.subtract([key])
            raise
        self._wanted.subtract([key])
        return found

    async def _built(self, need: agent_pb2.Need, key: str, stop: Stop) -> Found:
        """By one thread, while all who want it wait for it; when none does any more, it ends."""
        while (found := await self._in_thread(lambda: self._environments.find(key))) is None:
            mine = key not in self._building
            building = self._build(need, key) if mine else self._building[key]
            while not building.done():
                if stop():
                    raise Stopped
                await asyncio.wait([building], timeout=_LOOK_S)
            if mine:
                return building.result()
        return found

    def _build(self, need: agent_pb2.Need, key: str) -> "asyncio.Future[Found]":
        pinned = self._pinned_here()
        building = asyncio.get_running_loop().run_in_executor(
            self._builds,
            lambda: self._environments.build(need, key, pinned, lambda: not self._wanted[key]),
        )

        def over(done: "asyncio.Future[Found]") -> None:
            del self._building[key]
            if not done.cancelled():
                done.exception()  # told to whoever still waits

        self._building[key] = building
        building.add_done_callback(over)
        return building

    async def _url(self, need: agent_pb2.Need, stop: Stop) -> Provided:
        """Fetched by one, while others wait for it."""
        key = url_key(need)
        while (found := await self._in_thread(lambda: self._urls.find(key))) is None:
            if stop():
                raise Stopped
            if (other := self._under_way.get(key)) is None:
                break
            await asyncio.wait([other], timeout=_LOOK_S)
        if found is None:
            mine = self._under_way[key] = asyncio.ensure_future(self._fetch(need, key, stop))
            try:
                found = await mine
            finally:
                del self._under_way[key]
        self._keys[key] = found.folder.name
        return found

    async def _fetch(self, need: agent_pb2.Need, key: str, stop: Stop) -> Provided:
        await self._take_turn(stop)
        try:
            pinned = self._pinned_here()
            fetched = await asyncio.get_running_loop().run_in_executor(
                self._fetches, lambda: self._urls.fetch(need, pinned, stop)
            )
        finally:
            self._fetch_turns.release()
        try:
            self._keys[key] = fetched.tree
            found = await self._tree(fetched, fetched.tree, stop)
            await self._in_thread(lambda: self._urls.remember(key, fetched.tree))
        finally:
            await self._in_thread(fetched.drop)
        return replace(found, fetched_bytes=found.manifest.size)

    async def _take_turn(self, stop: Stop) -> None:
        """To fetch. Raises Stopped where the task is to stop before."""
        taking = asyncio.ensure_future(self._fetch_turns.acquire())
        while not taking.done():
            await asyncio.wait([taking], timeout=_LOOK_S)
            if stop() and taking.cancel():
                raise Stopped

    def _pinned_here(self) -> frozenset[str]:
        """What tasks use, as it is kept here."""
        pinned = +self._pins
        return frozenset(pinned) | {self._keys[asked] for asked in pinned if asked in self._keys}

    async def _working_folder(
        self, source: ContentStore, tree: str, task: common_pb2.TaskKey, stop: Stop
    ) -> tuple[str, str]:
        into = self._work / f"{task.job}.{task.attempt}.{task.task}"
        self._pins[tree] += 1
        try:
            found = await self._tree(source, tree, stop)
            try:
                await self._copy(found, into, stop)
            except Damaged:  # on this node: once more from the source
                await self._in_thread(lambda: self._cache.distrust(tree))
                found = await self._tree(source, tree, stop)
                await self._copy(found, into, stop)
        finally:
            self._pins[tree] -= 1
        return str(into), found.told()

    async def _copy(self, found: Provided, into: Path, stop: Stop) -> None:
        def copy() -> None:
            remove_tree(into)
            self._cache.copy(found, str(into), stop)

        await self._in_thread(copy)

    async def _tree(self, source: Source, tree: str, stop: Stop) -> Provided:
        """Fetched by one, while others wait for it."""
        while (other := self._under_way.get(tree)) is not None:
            await asyncio.wait([other])
        pinned = self._pinned_here()
        mine: asyncio.Future[Provided] = asyncio.ensure_future(
            self._in_thread(lambda: self._cache.provide(source, tree, pinned, stop))
        )
        self._under_way[tree] = mine
        try:
            return await mine
        finally:
            del self._under_way[tree]

    def _drop(self, pattern: str) -> None:
        for folder in self._work.glob(pattern):
            remove_tree(folder)

    def _begin(self, jobs: set[str]) -> None:
        self._work.mkdir(mode=0o700, parents=True, exist_ok=True)
        for folder in self._work.iterdir():
            if folder.name.partition(".")[0] not in jobs:
                remove_tree(folder)
        self._cache.begin()
        self._urls.begin()
        self._environments.begin()

    async def _in_thread(self, work: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._threads, work)


def _pinned(request: agent_pb2.StartTask) -> list[str]:
    """Trees that the task reads where they are kept, and what it asks to have built or fetched."""
    trees = [need.tree for need in request.needs if need.tree and need.name != CODE]
    urls = [url_key(need) for need in request.needs if _is_url(need)]
    return trees + urls + [_asked(need) for need in request.needs if _is_built(need)]


def _is_built(need: agent_pb2.Need) -> bool:
    return need.name == ENVIRONMENT and not need.url


def _is_url(need: agent_pb2.Need) -> bool:
    return bool(need.url) and need.name.startswith("inputs.")


def _asked(need: agent_pb2.Need) -> str:
    return "\n".join((need.python_version, *need.requirements))


def _duration(seconds: float) -> str:
    return f"{seconds * 1000:.0f} ms" if seconds < 1 else f"{seconds:.1f} s"
