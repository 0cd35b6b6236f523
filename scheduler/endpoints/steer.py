"""What an endpoint needs next: pure, from what it is to be, its jobs, and what its router has told.

A revision replaces another replica by replica: one more is started, and one of the old leaves only when the
router has found a new one well, so that there are never fewer that answer than are wanted. One that leaves
gets no new requests, and ends when it has answered those that it has.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from ...spec.deployment import DeploymentSpec
from ...spec.ids import Attempt, JobId, Micros
from .endpoint import Deployment, DeploymentState, Endpoint, Replica

SURGE: Final = 0.25
"""Of the replicas that are wanted, so many more may be there amid an update; at least one."""
FAILURES_MAX: Final = 2
"""Replicas of a revision that may end before it is taken back: each of them was tried three times."""
RESTART_US: Final = 5_000_000
RESTART_MOST_US: Final = 300_000_000
"""Between the end of a replica, or a router, and its successor, beyond the first in a row; then doubled up to
RESTART_MOST_US."""
LEAVE_MARGIN_US: Final = 5_000_000
REQUESTS_MIN: Final = 20
"""Of a new revision, before the share of those that failed says something."""
FAILED_SHARE: Final = 0.5
_SECOND_US: Final = 1_000_000


@dataclass(frozen=True, slots=True)
class Seen:
    """How a replica's job stands. `url`: where it answers; empty: not yet."""

    attempt: Attempt
    url: str
    stopping: bool


@dataclass(frozen=True, slots=True)
class Heard:
    """What the router says of a replica."""

    url: str
    well: bool
    leaving: bool
    """It knows that it is to send nothing new there."""
    in_flight: int
    requests: int
    failures: int
    why: str


@dataclass(frozen=True, slots=True)
class View:
    """What there is to go by."""

    jobs: Mapping[JobId, Seen]
    """Those of the endpoint that are not over."""
    heard: Mapping[JobId, Heard]
    router: bool
    """It reports."""
    now_us: Micros

    def well(self, job: JobId) -> bool:
        """It answers, and the router has found so."""
        heard = self._heard(job)
        return heard is not None and heard.well

    def ill(self, job: JobId) -> bool:
        """It does not answer, or not as it should; of what is not known, neither."""
        heard, seen = self._heard(job), self.jobs.get(job)
        return seen is None or not seen.url or (heard is not None and not heard.well)

    def _heard(self, job: JobId) -> Heard | None:
        """Of where it answers now."""
        heard, seen = self.heard.get(job), self.jobs.get(job)
        return heard if heard is not None and seen is not None and seen.url == heard.url else None


@dataclass(frozen=True, slots=True)
class NewReplica:
    deployment: str
    revision: int


@dataclass(frozen=True, slots=True)
class NewRouter:
    """There is none."""


@dataclass(frozen=True, slots=True)
class Away:
    """That replica is to leave."""

    deployment: str
    job: JobId


@dataclass(frozen=True, slots=True)
class End:
    """That job has nothing to do any more."""

    job: JobId


@dataclass(frozen=True, slots=True)
class Judge:
    """The newest revision is ready, or has failed."""

    deployment: str
    revision: int
    failed: str = ""


@dataclass(frozen=True, slots=True)
class Drop:
    """Nothing of it is left: a deployment, or (empty) the endpoint."""

    deployment: str


Move = NewReplica | NewRouter | Away | End | Judge | Drop


def next_moves(endpoint: Endpoint, specs: Mapping[str, DeploymentSpec], view: View) -> list[Move]:
    """`specs`: of each deployment's newest revision. Empty: until something changes, or `due_us`."""
    moves: list[Move] = []
    if endpoint.router is None and not endpoint.deleting and view.now_us >= _router_us(endpoint):
        moves.append(NewRouter())
    for name, deployment in endpoint.deployments.items():
        moves += _ended(deployment, specs[name], view)
        if deployment.deleting:
            moves += _deleted(name, deployment)
        else:
            moves += _updated(name, deployment, specs[name], view)
    if endpoint.deleting and not any(one.replicas for one in endpoint.deployments.values()):
        moves.append(End(endpoint.router) if endpoint.router is not None else Drop(""))
    return moves


def due_us(endpoint: Endpoint, specs: Mapping[str, DeploymentSpec], now_us: Micros) -> int | None:
    """When time alone changes what is to be done; None: never."""
    due = [] if endpoint.router is not None else [_router_us(endpoint)]
    for name, deployment in endpoint.deployments.items():
        if deployment.state is DeploymentState.UPDATING:
            due.append(deployment.newest.at_us + round(specs[name].progress_deadline_s * _SECOND_US))
        due.append(_restart_us(deployment.failed, deployment.failed_us))
        due += [
            one.leaving_us + _leave_us(specs[name]) for one in deployment.replicas.values() if one.leaving_us
        ]
    return min((at for at in due if at > now_us), default=None)


def wanted_replicas(spec: DeploymentSpec, in_flight: float) -> int:
    """By load: so many that each has `target_requests` at once, within the bounds."""
    scale = spec.scale
    needed = math.ceil(in_flight / scale.target_requests - 1e-9)
    return min(max(needed, scale.min_instances), scale.max_instances)


def _deleted(name: str, deployment: Deployment) -> list[Move]:
    if not deployment.replicas:
        return [Drop(name)]
    return [Away(name, job) for job, replica in deployment.replicas.items() if not replica.leaving_us]


def _ended(deployment: Deployment, spec: DeploymentSpec, view: View) -> list[Move]:
    """Of those that leave, who has nothing left to answer."""
    return [
        End(job)
        for job, replica in deployment.replicas.items()
        if replica.leaving_us
        and job in view.jobs
        and not view.jobs[job].stopping
        and _is_idle(job, replica, spec, view)
    ]


def _is_idle(job: JobId, replica: Replica, spec: DeploymentSpec, view: View) -> bool:
    if not view.jobs[job].url or view.now_us >= replica.leaving_us + _leave_us(spec):
        return True
    heard = view.heard.get(job)
    return view.router and heard is not None and heard.leaving and heard.in_flight == 0


def _leave_us(spec: DeploymentSpec) -> int:
    return round(spec.timeout_s * _SECOND_US) + LEAVE_MARGIN_US


def _updated(name: str, deployment: Deployment, spec: DeploymentSpec, view: View) -> list[Move]:
    newest, wanted = deployment.newest.number, deployment.wanted
    stays = {job: one for job, one in deployment.replicas.items() if not one.leaving_us}
    new = [job for job, one in stays.items() if one.revision == newest]
    failed = _failed(deployment, spec, new, view)
    if failed:
        return [Judge(name, newest, failed)]
    if deployment.state is DeploymentState.FAILED:
        return [Away(name, job) for job in stays]
    moves: list[Move] = []
    room = wanted + max(1, math.ceil(SURGE * wanted)) - len(stays)
    missing = min(wanted - len(new), room)
    if missing > 0 and view.now_us >= _restart_us(deployment.failed, deployment.failed_us):
        moves += [NewReplica(name, newest)] * missing
    if view.router:  # without its word nobody knows who is well
        settled = deployment.state is DeploymentState.READY and not deployment.failed
        if not settled and len(new) == len(stays) and sum(map(view.well, new)) >= wanted:
            moves.append(Judge(name, newest))
        old = [job for job in stays if job not in new]
        moves += [Away(name, job) for job in _surplus(new, old, wanted, view)]
    return moves


def _surplus(new: Sequence[JobId], old: Sequence[JobId], wanted: int, view: View) -> list[JobId]:
    """Who may leave, so that `wanted` of those that are well stay: the old first, the ill before the well."""
    away = [job for job in old if view.ill(job)]
    good = sum(map(view.well, (*new, *old)))
    for job in old:
        if view.well(job) and good > wanted:
            away.append(job)
            good -= 1
    extra = len(new) - wanted
    for job in sorted(new, key=lambda one: (view.well(one), -one)):
        well = view.well(job)
        if extra <= 0 or (well and good <= wanted):
            break
        away.append(job)
        extra -= 1
        good -= well
    return away


def _failed(deployment: Deployment, spec: DeploymentSpec, new: Sequence[JobId], view: View) -> str:
    """Why the newest revision is given up; empty: it is not."""
    if deployment.state is not DeploymentState.UPDATING:
        return ""
    if deployment.failed >= FAILURES_MAX:
        return deployment.first_failure
    for job in new:
        heard = view.heard.get(job)
        if heard is None or heard.requests < REQUESTS_MIN:
            continue
        if heard.failures > FAILED_SHARE * heard.requests:
            return f"replica {job} failed {heard.failures} of {heard.requests} requests"
    late_us = view.now_us - deployment.newest.at_us - round(spec.progress_deadline_s * _SECOND_US)
    if late_us < 0 or not view.router:
        return ""
    up = sum(view.well(job) for job in new)
    ill = next((view.heard[job].why for job in new if job in view.heard and view.heard[job].why), "")
    why = deployment.first_failure or ill
    return (
        f"{up} of {deployment.wanted} replicas were ready after {spec.progress_deadline_s:g} s"
        f" (progress_deadline_s){': ' + why if why else ''}"
    )


def _router_us(endpoint: Endpoint) -> int:
    """When the next router may start."""
    return _restart_us(endpoint.routers_failed, endpoint.router_failed_us)


def _restart_us(failed: int, failed_us: Micros) -> int:
    """After the first that ended at once, after each further one in a row twice as long after it."""
    if failed <= 1:
        return 0
    return failed_us + min(RESTART_US << min(failed - 2, 10), RESTART_MOST_US)
