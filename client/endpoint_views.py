"""What the verbs on endpoints return; see views.py."""

from collections.abc import Mapping
from dataclasses import dataclass

from ..spec.ids import JobId, Micros


@dataclass(frozen=True, slots=True)
class EndpointReplica:
    """A job that answers for a deployment."""

    job: JobId
    revision: int
    state: str
    """queued, starting, ready, failing (its probes fail), leaving (no new requests)."""
    url: str
    in_flight: int
    """Requests that it has not answered yet."""


@dataclass(frozen=True, slots=True)
class Deployment:
    """One model behind an endpoint."""

    deployment: str
    model: str
    revision: int
    """Grows with each change, also with one that is taken back."""
    state: str
    """updating, ready, failed, deleting."""
    why: str
    """Why it failed, or was taken back."""
    wanted: int
    """Replicas."""
    replicas: tuple[EndpointReplica, ...]
    requests: int
    """Of the replicas that there are, since the router started."""
    failures: int
    document: str
    """Canonical JSON."""

    @property
    def ready(self) -> int:
        """Replicas of the newest revision that answer."""
        return sum(one.state == "ready" and one.revision == self.revision for one in self.replicas)


@dataclass(frozen=True, slots=True)
class EndpointEvent:
    at_us: Micros
    text: str


@dataclass(frozen=True, slots=True)
class Endpoint:
    """A name under which models answer."""

    endpoint: str
    user: str
    made_us: Micros
    url: str
    """Empty: its router does not answer yet."""
    key: str
    """What requests carry as `Authorization: Bearer KEY`; empty: nothing."""
    router_job: JobId | None
    deployments: tuple[Deployment, ...]
    traffic: Mapping[str, int]
    """Percent of the requests, by deployment."""
    mirror: Mapping[str, int]
    """Percent of the requests that are copied to a deployment."""
    history: tuple[EndpointEvent, ...]
    deleting: bool

    def of(self, name: str) -> Deployment | None:
        """The deployment of that name."""
        return next((one for one in self.deployments if one.deployment == name), None)
