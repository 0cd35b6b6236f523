"""An endpoint as the scheduler holds it: its deployments, whom requests go to, and the jobs that answer.

Objects change in place, only inside a step of the loop; if its batch is not committed, the engine is thrown
away with all of them.
"""

from dataclasses import dataclass, field
from enum import StrEnum
from typing import Final

from ...spec.ids import JobId, Micros
from ..core.job import NEVER

HISTORY_MAX: Final = 100
REVISIONS_MAX: Final = 20
"""Of a deployment, and of what an endpoint was before."""


class DeploymentState(StrEnum):
    """UPDATING until all replicas of the newest revision are well; FAILED: nobody goes on."""

    UPDATING = "updating"
    READY = "ready"
    FAILED = "failed"


@dataclass(slots=True)
class Revision:
    """What a deployment was told to be."""

    number: int
    document: str
    model: str
    """As it was asked for."""
    at_us: Micros
    by: str
    uses: str = ""
    """The version of the registry that it serves, such as `model:digits:2`; empty: a folder."""


@dataclass(slots=True)
class Replica:
    """A job that answers for a deployment."""

    revision: int
    leaving_us: Micros = NEVER
    """Since when it gets no new requests; 0: it does."""


@dataclass(slots=True)
class Deployment:
    """One model, in as many replicas as are wanted."""

    revisions: list[Revision]
    """The newest last."""
    wanted: int
    state: DeploymentState = DeploymentState.UPDATING
    why: str = ""
    replicas: dict[JobId, Replica] = field(default_factory=dict)
    good: int = 0
    """The last revision of which all replicas were well; 0: none yet."""
    failed: int = 0
    """Replicas of the newest revision whose jobs ended since it was last ready."""
    failed_us: Micros = NEVER
    first_failure: str = ""
    deleting: bool = False

    @property
    def newest(self) -> Revision:
        return self.revisions[-1]

    @property
    def good_revision(self) -> Revision | None:
        """One that was ready, if the newest is not it."""
        found = [one for one in self.revisions if one.number == self.good]
        return found[0] if found and self.good != self.newest.number else None


@dataclass(slots=True)
class Before:
    """What an endpoint was before somebody changed it."""

    revisions: dict[str, Revision]
    """By deployment: the newest then."""
    traffic: dict[str, int]
    mirror: dict[str, int]


@dataclass(slots=True)
class Told:
    """A line of the endpoint's story."""

    at_us: Micros
    text: str


@dataclass(slots=True)
class Endpoint:
    """All that goes by one name."""

    name: str
    user: str
    made_us: Micros
    key: str
    """What requests carry; empty: nothing."""
    listen: str = ""
    deployments: dict[str, Deployment] = field(default_factory=dict)
    traffic: dict[str, int] = field(default_factory=dict)
    """Percent, by deployment."""
    mirror: dict[str, int] = field(default_factory=dict)
    """Percent of the requests that are copied there."""
    router: JobId | None = None
    routers_made: int = 0
    routers_failed: int = 0
    """In a row, without a replica that became well in between."""
    router_failed_us: Micros = NEVER
    replicas_made: int = 0
    before: list[Before] = field(default_factory=list)
    history: list[Told] = field(default_factory=list)
    deleting: bool = False

    def tell(self, now_us: Micros, text: str) -> None:
        """In its story."""
        self.history.append(Told(now_us, text))
        del self.history[:-HISTORY_MAX]

    def remember(self) -> None:
        """What it is now, for a rollback."""
        revisions = {name: one.newest for name, one in self.deployments.items() if not one.deleting}
        self.before.append(Before(revisions, dict(self.traffic), dict(self.mirror)))
        del self.before[:-REVISIONS_MAX]

    @property
    def uses(self) -> set[str]:
        """Versions of the registry that it serves, or goes back to when the newest fails."""
        return {
            one.uses
            for deployment in self.deployments.values()
            for one in deployment.revisions
            if one.uses and (one is deployment.newest or one.number == deployment.good)
        }

    @property
    def jobs(self) -> set[JobId]:
        """All that run for it."""
        replicas = {job for one in self.deployments.values() for job in one.replicas}
        return replicas | ({self.router} if self.router is not None else set())
