"""Images that jobs run in: pulled here once, kept by this node's container engine, and what is left of
containers removed.

Which engine there is, is found out in the background: some take seconds to answer, and one that does not
answer yet (its daemon starts later) is asked again. Belongs to the event loop's thread.
"""

import asyncio
import contextlib
import logging
import os
import re
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Final

from ..proto.generated import agent_pb2
from ..spec.ids import TaskKey
from .contained import Box, names_of
from .containers import Engine, fault_in_image, installed, key_of_name, name_prefix
from .environments import NO_NETWORK, trouble_of
from .launch import Refusal, base_environment
from .outside import run_to_end
from .tree_cache import Stopped

log = logging.getLogger(__name__)

_ASK_S: Final = 20.0
ASK_AGAIN_S: Final = 60.0
_PULL_S_MAX: Final = 3600.0
_REMOVE_S_MAX: Final = 60.0
_LOOK_S: Final = 0.5
_CALLS: Final = 4
_PULLS: Final = 2
"""At once, of different images."""
_SAID_BYTES: Final = 64 << 10
PATIENCE_S: Final = 300.0
"""So long a registry may be out of reach before its images are given up."""
_FAILING_MAX: Final = 100
"""Images out of reach that are remembered."""
_LATER: Final = re.compile(r"toomanyrequests|too many requests|\b(429|50[0234])\b", re.IGNORECASE)
_NOT_THERE: Final = "no such container"


class Images:
    """`on_change()` when `status` says something new."""

    def __init__(
        self,
        state: Path,
        bytes_max: int,
        *,
        on_change: Callable[[], None] = lambda: None,
        patience_s: float = PATIENCE_S,
        ask_again_s: float = ASK_AGAIN_S,
    ) -> None:
        """`state`: the agent's folder; `bytes_max`: of images, where the engine keeps none of its own."""
        self._folder = state / "images"
        self._tasks = state / "tasks"
        self._bytes_max = bytes_max
        self._on_change = on_change
        self._patience_s = patience_s
        self._ask_again_s = ask_again_s
        self._environment: Mapping[str, str] = base_environment(os.environ)
        self._engine: Engine | None = None
        self._status = "none: not looked for yet"
        self._looking: asyncio.Task[None] | None = None
        self._known = asyncio.Event()
        self._calls_at_once, self._pulls_at_once = asyncio.Semaphore(_CALLS), asyncio.Semaphore(_PULLS)
        self._pulls: dict[str, asyncio.Future[tuple[int, bytes]]] = {}
        self._failing_since: dict[str, float] = {}
        """Images that this node has not reached; time.monotonic()."""

    @property
    def status(self) -> str:
        """For Inventory.container_engine."""
        return self._status

    def begin(self, living: Collection[TaskKey]) -> None:
        """Once. Containers of tasks that are not `living` are removed, when it is known how."""
        found = installed(self._folder)
        if not found:
            self._status = "none: no podman, docker, apptainer or singularity on the agent's PATH"
            self._known.set()
        else:
            self._status = "none: it is being looked for"
            self._looking = asyncio.ensure_future(self._look(found, frozenset(living)))

    async def wait_known(self, timeout_s: float) -> None:
        """Until all have been asked; at most so long."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                await self._known.wait()

    async def provide(self, need: agent_pb2.Need, stop: Callable[[], str]) -> tuple[Box, str, bytes]:
        """What the ranks run in, what was done, and what a pull said. Raises Refusal, OSError, Stopped."""
        if fault := fault_in_image(need.image):
            raise Refusal("no-image", fault, transient=False)
        engine, said = await self._answering(), None
        while not (name := await self._kept(engine, need.image)):
            if said is not None:
                text = f"image {need.image}: it was removed from {engine} by somebody"
                raise Refusal("no-image", text, transient=True)
            said = await self._pull_or_wait(engine, need.image, stop)
        box = Box(engine, name, tuple(need.paths))
        return box, f"pulled with {engine}" if said else "kept", said or b""

    async def remove(self, request: agent_pb2.StartTask) -> None:
        """Whatever there still is of the task's containers: those that ended by themselves are gone."""
        if self._engine is not None:
            await self._remove(self._engine, names_of(request, self._tasks))

    async def close(self) -> None:
        """Whoever is pulling goes on with its job, or stops with it."""
        if self._looking is not None:
            self._looking.cancel()
            await asyncio.wait([self._looking])

    # Which engine.

    async def _look(self, found: Sequence[tuple[str, type[Engine]]], living: frozenset[TaskKey]) -> None:
        while (engine := await self._ask(found)) is None:
            self._known.set()
            await asyncio.sleep(self._ask_again_s)
        self._engine = engine
        self._known.set()
        await self._sweep(engine, living)

    async def _ask(self, found: Sequence[tuple[str, type[Engine]]]) -> Engine | None:
        """The first that answers."""
        engine, problems = None, list[str]()
        for path, kind in found:
            code, said = await self._call(kind.ask(path), _ASK_S)
            if code == 0:
                engine = kind.answered(path, said, self._folder)
                break
            problems.append(f"{Path(path).name} does not answer: {_last_line(said) or f'exit code {code}'}")
        before, self._status = self._status, str(engine) if engine else f"none: {'; '.join(problems)}"
        if self._status != before:
            self._on_change()
        return engine

    async def _answering(self) -> Engine:
        await self.wait_known(_ASK_S)
        if self._engine is None:
            raise Refusal(
                "no-container-engine",
                f"this node has no container engine: {self._status.removeprefix('none: ')}",
                transient=True,
                hint="Install podman, docker or apptainer there and restart its agent.",
            )
        return self._engine

    async def _sweep(self, engine: Engine, living: frozenset[TaskKey]) -> None:
        """What an agent before this one has left."""
        prefix = name_prefix(self._tasks)
        if argv := engine.ours(prefix):
            _, said = await self._call(argv, _REMOVE_S_MAX)
            names = [name for name in said.split() if name.startswith(prefix)]
            left = [name for name in names if key_of_name(name, prefix) not in living]
            if left:
                log.info("removing %d containers of tasks that are over", len(left))
                await self._remove(engine, left)

    # Images.

    async def _kept(self, engine: Engine, image: str) -> str:
        """By which name it is here; empty: it is not."""
        for name in engine.names_of(image):
            code, _ = await self._call(engine.has(name), _ASK_S)
            if code == 0:
                self._failing_since.pop(image, None)
                return name
        return ""

    async def _pull_or_wait(self, engine: Engine, image: str, stop: Callable[[], str]) -> bytes | None:
        """What it said; None: somebody else was pulling, and has come to an end."""
        mine = (pulling := self._pulls.get(image)) is None
        if pulling is None:
            self._make_room()
            pulling = asyncio.ensure_future(self._pull(engine.pull(engine.names_of(image)[-1])))
            self._pulls[image] = pulling
        try:
            while not pulling.done():
                await asyncio.wait([pulling], timeout=_LOOK_S)
                if stop() and not pulling.done():
                    raise Stopped
            return self._pulled(engine, image, pulling) if mine else None
        finally:
            if mine:
                del self._pulls[image]
                pulling.cancel()

    async def _pull(self, argv: Sequence[str]) -> tuple[int, bytes]:
        async with self._pulls_at_once:
            return await run_to_end(argv, self._environment, _PULL_S_MAX, _SAID_BYTES)

    def _pulled(self, engine: Engine, image: str, pulling: "asyncio.Future[tuple[int, bytes]]") -> bytes:
        try:
            code, said = pulling.result()
        except TimeoutError:
            text = f"image {image}: {engine} did not end the pull within {_PULL_S_MAX / 60:g} min"
            raise Refusal("no-image", text, transient=True) from None
        if code == 0:
            return said or b"\n"
        raise self._refusal(engine, image, code, said.decode("utf-8", "replace"))

    def _refusal(self, engine: Engine, image: str, code: int, said: str) -> Refusal:
        """A registry that says no is believed; one that cannot be reached has some minutes."""
        now = time.monotonic()
        trouble = trouble_of(said, code) or ("the registry asks to come again" if _LATER.search(said) else "")
        since = self._failing_since.setdefault(image, now) if trouble == NO_NETWORK else now
        if len(self._failing_since) > _FAILING_MAX:
            del self._failing_since[next(iter(self._failing_since))]
        given_up = trouble == NO_NETWORK and now - since >= self._patience_s
        why = trouble or "the registry has no such image, or gives it to others only"
        if given_up:
            why += f" for {(now - since) / 60:.1f} min"
        return Refusal(
            "no-image",
            f"image {image}: {engine} could not pull it: {why}: {_last_line(said)}",
            transient=bool(trouble) and not given_up,
            hint=f"Try `{engine.name} pull` on the node; log in there if the registry asks for that.",
            image=image,
        )

    def _make_room(self) -> None:
        """The least recently used go; whoever has one open keeps it."""
        kept = sorted((file.stat().st_mtime, file) for file in self._folder.glob("*.sif"))
        size = sum(file.stat().st_size for _, file in kept)
        for _, file in kept:
            if size > self._bytes_max:
                size -= file.stat().st_size
                file.unlink()

    # Calls.

    async def _remove(self, engine: Engine, names: Sequence[str]) -> None:
        if argv := engine.remove(names):
            code, said = await self._call(argv, _REMOVE_S_MAX)
            if code and not all(_NOT_THERE in line.lower() for line in said.splitlines()):
                log.error("%s could not remove %s: %s", engine, ", ".join(names[:10]), _last_line(said))

    async def _call(self, argv: Sequence[str], limit_s: float) -> tuple[int, str]:
        """The exit code and what it said; what cannot be started, or does not end, has failed."""
        try:
            async with self._calls_at_once:
                code, said = await run_to_end(argv, self._environment, limit_s, _SAID_BYTES)
        except TimeoutError:
            return -1, f"it did not end within {limit_s:g} s"
        except OSError as error:
            return -1, f"it could not be started: {error.strerror}"
        return code, said.decode("utf-8", "replace")


def _last_line(said: str) -> str:
    return next((line.strip() for line in reversed(said.splitlines()) if line.strip()), "")
