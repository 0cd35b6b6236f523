"""Reading what the loop keeps, between commits: quick functions that keep nothing of what they are given."""

from abc import abstractmethod
from collections.abc import Callable
from typing import Any, TypeVar

from ..spec.errors import Unavailable
from .core.state import ClusterState
from .endpoints.endpoints import Endpoints
from .loop_engine import Engine
from .registry.registry import Registry
from .sweeps.ops import OpenStudy
from .sweeps.studies import Studies
from .sweeps.study import Study

T = TypeVar("T")

OPENINGS_MAX = 3


class Reads:
    """Of a loop."""

    @abstractmethod
    async def _read(self, read: Callable[[Engine], T]) -> T: ...

    @abstractmethod
    async def submit(self, stimulus: Any) -> Any: ...

    async def read(self, read: Callable[[ClusterState], T]) -> T:
        """Run `read` between commits, on committed state. It must be quick and must not keep the state."""
        return await self._read(lambda engine: read(engine.state))

    async def read_endpoints(self, read: Callable[[ClusterState, Endpoints], T]) -> T:
        """As `read`."""
        return await self._read(lambda engine: read(engine.state, engine.endpoints))

    async def read_registry(self, read: Callable[[Registry], T]) -> T:
        """As `read`."""
        return await self._read(lambda engine: read(engine.registry))

    async def read_studies(self, read: Callable[[Studies], T]) -> T:
        """As `read`; only studies that are loaded have their trials there."""
        return await self._read(lambda engine: read(engine.studies))

    async def read_study(self, number: int, read: Callable[[Study], T]) -> T:
        """As `read`, of a study with its trials. Raises NotFound."""
        return await self.read_sweep(number, lambda _, study: read(study))

    async def read_sweep(self, number: int, read: Callable[[ClusterState, Study], T]) -> T:
        """As `read_study`; the jobs of a sweep's trials are in the state."""

        def of_loaded(engine: Engine) -> T | None:
            study = engine.studies.get(number)
            engine.studies.use(study)
            return read(engine.state, study) if study.loaded else None

        for _ in range(OPENINGS_MAX):
            found = await self._read(of_loaded)
            if found is not None:
                return found
            await self.submit(OpenStudy(number))
        raise Unavailable(f"study {number} leaves memory before it can be read", hint="try again in a moment")
