"""All endpoints, and what a step has changed of them.

Held by loop_engine.Engine, as studies are; `take_changes` gives what the step's batch writes.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

import msgspec

from ...spec.errors import NotFound
from ...spec.ids import JobId
from ...spec.problems import nearest
from .endpoint import Endpoint

ENDPOINTS_MAX: Final = 1_000

_endpoint_of: Final = msgspec.json.Decoder(Endpoint).decode
_encode: Final = msgspec.json.Encoder().encode


@dataclass(frozen=True, slots=True)
class EndpointChanges:
    """Of one step."""

    records: Mapping[str, str | None]
    """Of those that changed; None: it is gone."""
    touched: frozenset[str]
    """What somebody who follows them should look at."""


class Endpoints:
    """By name."""

    def __init__(self, rows: Mapping[str, str] | None = None) -> None:
        """`rows`: as `take_changes` gave them. Raises msgspec.ValidationError on one that is damaged."""
        self.by_name: dict[str, Endpoint] = {
            name: _endpoint_of(record) for name, record in (rows or {}).items()
        }
        self.by_job: dict[JobId, str] = {job: one.name for one in self.by_name.values() for job in one.jobs}
        self._changed: set[str] = set()
        self._touched: set[str] = set()

    def get(self, name: str) -> Endpoint:
        """Raises NotFound."""
        found = self.by_name.get(name)
        if found is None:
            guess = nearest(name, list(self.by_name))
            meant = f"; did you mean '{guess}'?" if guess else ""
            raise NotFound(
                f"there is no endpoint named {name[:255]!r}{meant}",
                hint="`pace endpoints` lists them",
                endpoint=name[:255],
            )
        return found

    def note(self, endpoint: Endpoint) -> None:
        """It has changed."""
        self.by_name[endpoint.name] = endpoint
        self._changed.add(endpoint.name)

    def wake(self, name: str) -> None:
        """Nothing of it has changed that is written, but something of its jobs."""
        self._touched.add(name)

    def add_job(self, endpoint: Endpoint, job: JobId) -> None:
        """It runs for that endpoint from now on."""
        self.by_job[job] = endpoint.name
        self.note(endpoint)

    def drop_job(self, endpoint: Endpoint, job: JobId) -> None:
        """It is over."""
        del self.by_job[job]
        self.note(endpoint)

    def remove(self, endpoint: Endpoint) -> None:
        del self.by_name[endpoint.name]
        self._changed.add(endpoint.name)

    def take_changes(self) -> EndpointChanges:
        """Since the last call."""
        changed, touched = self._changed, self._touched
        self._changed, self._touched = set(), set()
        rows = {
            name: _encode(self.by_name[name]).decode() if name in self.by_name else None for name in changed
        }
        return EndpointChanges(rows, frozenset(changed | touched))
