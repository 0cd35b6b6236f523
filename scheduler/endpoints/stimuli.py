"""What may be asked of endpoints: by people, and by the one that drives them. Checked at the door."""

from collections.abc import Mapping
from dataclasses import dataclass

from ...spec.ids import JobId
from ..core.stimuli import NewJob


@dataclass(frozen=True, slots=True)
class Deploy:
    """A new endpoint, deployment or revision. Answer: the endpoint's name. Raises Conflict, LimitExceeded."""

    key: str
    by: str
    endpoint: str
    deployment: str
    document: str
    """Canonical; what it names of the registry is pinned."""
    model: str
    """As it was asked for."""
    least: int
    most: int
    """Replicas."""
    listen: str
    uses: str
    """The version of the registry that `model` means, such as `model:digits:2`; empty: a folder."""
    secret: str
    """What requests are to carry, of an endpoint that is made by this, or that had none; empty: nothing."""


@dataclass(frozen=True, slots=True)
class SetTraffic:
    """Answer: None. Raises NotFound, Conflict."""

    key: str
    by: str
    endpoint: str
    traffic: Mapping[str, int]
    mirror: Mapping[str, int]


@dataclass(frozen=True, slots=True)
class Rollback:
    """To what it was before the last change by somebody. Answer: None. Raises NotFound, Conflict."""

    key: str
    by: str
    endpoint: str


@dataclass(frozen=True, slots=True)
class DeleteEndpoint:
    """All of it, or one deployment. Answer: None. Raises NotFound, Conflict."""

    by: str
    endpoint: str
    deployment: str = ""


@dataclass(frozen=True, slots=True)
class StartReplica:
    """One of the newest revision. `number`: of the endpoint's replicas, from 0. Answer: its job's number.
    Raises NotFound, Conflict, and what a submit does."""

    endpoint: str
    deployment: str
    revision: int
    number: int
    job: NewJob

    @property
    def key(self) -> str:
        """Of the submit."""
        return f"endpoint {self.endpoint} replica {self.number}"


@dataclass(frozen=True, slots=True)
class StartRouter:
    """`number`: of the endpoint's routers, from 0. Answer: its job's number."""

    endpoint: str
    number: int
    job: NewJob

    @property
    def key(self) -> str:
        return f"endpoint {self.endpoint} router {self.number}"


@dataclass(frozen=True, slots=True)
class Leave:
    """That replica gets no new requests. Answer: None."""

    endpoint: str
    deployment: str
    job: JobId


@dataclass(frozen=True, slots=True)
class Settle:
    """The newest revision is ready, or has failed: then it is taken back, where there is one that was ready.
    Answer: None. Nothing, where there is a newer one by now."""

    endpoint: str
    deployment: str
    revision: int
    failed: str = ""
    """Why; empty: it is ready."""


@dataclass(frozen=True, slots=True)
class Scale:
    """So many replicas are wanted. Answer: None."""

    endpoint: str
    deployment: str
    wanted: int
    why: str


@dataclass(frozen=True, slots=True)
class Remove:
    """Nothing runs for it any more: a deployment, or (empty) the endpoint that is to go. Answer: None."""

    endpoint: str
    deployment: str = ""


KeptWish = Deploy | SetTraffic | Rollback
"""Its key is kept, so that the same again changes nothing."""
Asked = KeptWish | DeleteEndpoint
Driven = StartReplica | StartRouter | Leave | Settle | Scale | Remove
EndpointStimulus = Asked | Driven
