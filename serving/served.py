"""The model that a server has, from before it is loaded until after its last request: turns and bounds."""

import asyncio
import logging
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import count
from typing import Any, Final, TypeVar

from ..spec.errors import NotFound, PacelineError, Unavailable
from ..spec.problems import shown
from .engines.base import Loaded

BODY_BYTES_MAX: Final = 64 << 20
WAITING_MAX: Final = 128
"""Requests that wait for the model; further ones are refused, so that somebody else can take them."""
_LOG: Final = logging.getLogger("paceline.serving")
T = TypeVar("T")


class ModelFailed(PacelineError):
    """The model raised something for a request that fits its signature."""

    code = "model-failed"


@dataclass(slots=True)
class Served:
    """One model, from before it is loaded until after its last request. Belongs to the event loop, but for
    `loaded`, which is set once."""

    name: str
    version: str = ""
    body_bytes_max: int = BODY_BYTES_MAX
    loaded: Loaded | None = None
    draining: bool = False
    waiting: int = 0
    failures: Any = field(default_factory=lambda: count(1))
    pool: ThreadPoolExecutor | None = None

    def set_loaded(self, loaded: Loaded) -> None:
        """From now on it is ready."""
        self.pool = ThreadPoolExecutor(loaded.at_once, thread_name_prefix="model")
        self.loaded = loaded

    @property
    def ready(self) -> bool:
        """Whether a request would be taken."""
        return self.loaded is not None and not self.draining

    def model(self) -> Loaded:
        """Raises Unavailable."""
        if self.loaded is None:
            raise Unavailable(f"model {self.name} is still loading")
        return self.loaded

    def check(self, name: str, version: str = "") -> None:
        """Whether this is that model, of that version where one is said. Raises NotFound."""
        if name != self.name:
            raise NotFound(f"no model {shown(name)}; this server has {self.name!r}")
        if version not in ("", self.version):
            raise NotFound(f"model {self.name} has no version {shown(version)} here; found {self.version!r}")

    def metadata(self) -> dict[str, Any]:
        """As the protocol tells of a model. Raises Unavailable."""
        loaded = self.model()
        signature = loaded.signature
        return {
            "name": self.name,
            "versions": [self.version] if self.version else [],
            "platform": loaded.platform,
            "inputs": [one.model_dump(mode="json") for one in signature.inputs] if signature else [],
            "outputs": [one.model_dump(mode="json") for one in signature.outputs] if signature else [],
        }

    async def run(self, call: Callable[[], T]) -> T:
        """In the model's turn. Raises Unavailable where too many wait already, ModelFailed."""
        loaded = self.model()
        if self.waiting >= WAITING_MAX + loaded.at_once:
            raise Unavailable(f"{self.waiting} requests wait already")
        self.waiting += 1
        try:
            return await asyncio.get_running_loop().run_in_executor(self.pool, call)
        except PacelineError:
            raise
        except Exception as error:
            number = next(self.failures)
            _LOG.exception("failure %d of model %s", number, self.name)
            kind = type(error).__name__
            raise ModelFailed(
                f"the model failed with {kind}; the server's log has it as failure {number}"
            ) from error
        finally:
            self.waiting -= 1
