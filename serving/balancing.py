"""Whom a request goes to: pure but for the futures of those that wait. Belongs to the router's event loop.

Deployments are chosen in the ratio of their shares, evenly spread (smooth weighted round robin, as nginx does
it); of a deployment's replicas that are well, the one with the fewest requests under way.
"""

import asyncio
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from ..proto.generated import endpoints_pb2


class NoReplica(Exception):
    """Nobody can take the request. `busy`: there are replicas, but all have enough to do."""

    def __init__(self, why: str, *, busy: bool) -> None:
        super().__init__(why)
        self.busy = busy


@dataclass(slots=True, eq=False)
class Replica:
    """Where requests go, and how it does."""

    job: int
    url: str
    deployment: str
    secret: str
    leaving: bool = False
    well: bool = False
    probed: bool = False
    failed_probes: int = 0
    in_flight: int = 0
    requests: int = 0
    failures: int = 0
    why: str = ""
    """What the last probe that failed said."""

    @property
    def takes(self) -> bool:
        return self.well and not self.leaving


class Shares:
    """Names in the ratio of their weights, as evenly as can be."""

    def __init__(self, weights: Mapping[str, int]) -> None:
        self._weights = {name: weight for name, weight in weights.items() if weight > 0}
        self._current = dict.fromkeys(self._weights, 0)

    def next(self, among: Sequence[str]) -> str:
        """The next of those; empty: none of them has a share."""
        names = [name for name in among if name in self._weights]
        if not names:
            return ""
        for name in names:
            self._current[name] += self._weights[name]
        chosen = max(names, key=lambda name: self._current[name])
        self._current[chosen] -= sum(self._weights[name] for name in names)
        return chosen


@dataclass(slots=True)
class Group:
    """The replicas of one deployment."""

    replicas: list[Replica] = field(default_factory=list)
    waiting: deque[asyncio.Future[None]] = field(default_factory=deque)

    def best(self, concurrent_max: int, but: Sequence[Replica]) -> Replica | None:
        """The one that is well and has least to do; None: all have enough."""
        able = [
            one
            for one in self.replicas
            if one.takes and one not in but and not 0 < concurrent_max <= one.in_flight
        ]
        return min(able, key=lambda one: one.in_flight, default=None)

    def wake(self, count: int = 1) -> None:
        """So many of those that wait may look again."""
        while self.waiting and count:
            one = self.waiting.popleft()
            if not one.done():
                one.set_result(None)
                count -= 1


class Balancer:
    """All replicas, as the scheduler last said."""

    def __init__(self) -> None:
        self.endpoint = ""
        self.key = ""
        self.groups: dict[str, Group] = {}
        self.settings: dict[str, endpoints_pb2.RequestSettings] = {}
        self._shares, self._traffic = Shares({}), dict[str, int]()
        self._mirror: dict[str, int] = {}
        self._copied: dict[str, int] = {}

    @property
    def replicas(self) -> list[Replica]:
        return [one for group in self.groups.values() for one in group.replicas]

    def take(self, routes: endpoints_pb2.Routes) -> None:
        """New routes. A replica that stays keeps what is known of it."""
        known = {(one.job, one.url): one for one in self.replicas}
        groups = {name: self.groups.get(name, Group()) for name in routes.settings}
        for group in groups.values():
            group.replicas = []
        for route in routes.routes:
            fresh = Replica(route.job, route.url, route.deployment, route.secret)
            replica = known.get((route.job, route.url), fresh)
            replica.leaving, replica.secret = route.leaving, route.secret
            groups.setdefault(route.deployment, Group()).replicas.append(replica)
        gone = [group for name, group in self.groups.items() if name not in groups]
        self.endpoint, self.key, self.groups = routes.endpoint, routes.key, groups
        self.settings = dict(routes.settings.items())
        if dict(routes.traffic) != self._traffic:
            self._traffic = dict(routes.traffic)
            self._shares = Shares(self._traffic)
        self._mirror = dict(routes.mirror)
        self._copied = {name: self._copied.get(name, 0) for name in self._mirror}
        for group in (*gone, *groups.values()):
            group.wake(len(group.waiting))

    def deployment(self, asked: str) -> str:
        """The one that a request goes to: as it asked, or by the shares of those that have a replica that is
        well; where none has, by all shares. Raises NoReplica."""
        if asked:
            if asked not in self.groups:
                known = ", ".join(sorted(self.groups)) or "none"
                raise NoReplica(f"there is no deployment {asked[:100]!r}; there are: {known}", busy=False)
            return asked
        able = [name for name, group in self.groups.items() if any(one.takes for one in group.replicas)]
        chosen = self._shares.next(able) or self._shares.next(list(self.groups))
        if not chosen:
            raise NoReplica("no deployment has traffic", busy=False)
        return chosen

    def copies(self) -> list[str]:
        """Deployments that get a copy of this request, too."""
        found = []
        for name, percent in self._mirror.items():
            self._copied[name] += percent
            if self._copied[name] >= 100:
                self._copied[name] -= 100
                found.append(name)
        return found

    async def acquire(self, deployment: str, but: Sequence[Replica] = ()) -> Replica:
        """A replica that takes a request now; give it back with `release`. Waits as long as the deployment's
        settings say. Raises NoReplica."""
        deadline: float | None = None
        loop = asyncio.get_running_loop()
        while True:
            group = self.groups.get(deployment)
            settings = self.settings.get(deployment)
            if group is None or settings is None:
                raise NoReplica(f"the deployment {deployment} is gone", busy=False)
            found = group.best(settings.concurrent_max, but)
            if found is not None:
                found.in_flight += 1
                return found
            deadline = deadline or loop.time() + settings.queue_s
            await self._wait(group, deployment, deadline, settings)

    def release(self, replica: Replica) -> None:
        """It has answered, or will not."""
        replica.in_flight -= 1
        if replica.deployment in self.groups:
            self.groups[replica.deployment].wake()

    async def _wait(
        self, group: Group, name: str, deadline: float, settings: endpoints_pb2.RequestSettings
    ) -> None:
        loop = asyncio.get_running_loop()
        turn: asyncio.Future[None] = loop.create_future()
        group.waiting.append(turn)
        try:
            await asyncio.wait_for(turn, max(0.0, deadline - loop.time()))
        except TimeoutError:
            able = [one for one in group.replicas if one.takes]
            if able:
                most = settings.concurrent_max
                raise NoReplica(
                    f"all {len(able)} replicas of {name} have {most} requests; waited {settings.queue_s:g} s",
                    busy=True,
                ) from None
            ill = "; ".join(f"job {one.job}: {one.why}" for one in group.replicas if one.why)[:500]
            raise NoReplica(
                f"none of the {len(group.replicas)} replicas of {name} is well{': ' + ill if ill else ''};"
                f" waited {settings.queue_s:g} s",
                busy=False,
            ) from None
        finally:
            if turn in group.waiting:
                group.waiting.remove(turn)
