"""The registry in an engine over a store in memory, with a clock that goes on by itself."""

from itertools import count
from typing import Any

from paceline.scheduler.core.job import Shape
from paceline.scheduler.core.settings import Settings
from paceline.scheduler.core.stimuli import NewJob, Submit
from paceline.scheduler.loop_engine import Engine
from paceline.scheduler.loop_lookup import load
from paceline.scheduler.loop_step import Asked
from paceline.scheduler.registry.assets import About, Asset, Content
from paceline.scheduler.registry.ops import DeleteAsset, MoveAlias, Register
from paceline.scheduler.registry.registry import Registry
from paceline.spec.asset_names import Reference
from paceline.spec.errors import PacelineError
from paceline.spec.ids import JobId, Micros
from paceline.spec.resources import GangDemand, Resources
from support.memory_store import MemoryStore

TREE = "ab" * 32
_keys = count(1)


def fresh_key() -> str:
    return f"k{next(_keys)}"


def register(
    name: str = "digits", version: str = "", *, key: str = "", kind: str = "model", **more: Any
) -> Register:
    """What a client asks; its key is another one each time, unless it is given."""
    about = About("custom_model" if kind == "model" else "uri_folder", metrics={"accuracy": 0.97})
    content = Content(TREE, size_bytes=8, files=1)
    return Register(key or fresh_key(), kind, name, version, content, about, "job:1", "ann", **more)


def move(
    alias: str, to: str | None, *, before: str | None = None, key: str = "", by: str = "ann"
) -> MoveAlias:
    """Of model digits."""
    target = None if to is None else Reference("digits", to)
    return MoveAlias(key or fresh_key(), "model", "digits", alias, target, by, before)


def delete(version: str, name: str = "digits") -> DeleteAsset:
    return DeleteAsset("model", name, version, "ben")


class Desk:
    """Asks an engine, commits, and can begin again from the store as after a crash."""

    def __init__(self) -> None:
        self.store = MemoryStore()
        self.now_us = 1_000_000
        self.engine: Engine
        self.again()

    def again(self) -> None:
        self.engine = load(self.store, Settings())

    @property
    def registry(self) -> Registry:
        return self.engine.registry

    def ask(self, *asked: Asked) -> list[object]:
        """One step; the answers."""
        self.now_us += 10
        step = self.engine.step(asked, Micros(self.now_us), {})
        if not step.empty:
            self.store.commit(step.batch)
        return list(step.answers)

    def one(self, asked: Asked) -> Any:
        [answer] = self.ask(asked)
        if isinstance(answer, PacelineError):
            raise answer
        return answer

    def add(self, name: str = "digits", version: str = "", **more: Any) -> Asset:
        made: Asset = self.one(register(name, version, **more))
        return made

    def submit(self, *, registers: bool = False, uses: tuple[tuple[str, str], ...] = ()) -> JobId:
        shape = Shape(GangDemand(Resources(1000), 1, 1))
        new = NewJob("job", 0, shape, "{}", uses, registers)
        number: JobId = self.one(Submit(fresh_key(), "ann", (new,))).jobs[0]
        return number

    def told(self) -> tuple[object, ...]:
        """All that the registry holds, as it is now."""
        held = self.registry
        versions = {key: dict(found) for key, found in held.versions.items() if found}
        return (
            dict(held.names),
            versions,
            dict(held.by_key),
            dict(held.endpoints),
            dict(held.outputs),
            held.count,
        )
