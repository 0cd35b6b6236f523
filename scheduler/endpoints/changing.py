"""What each stimulus, and each end of a job, means for an endpoint. The job itself is submitted by the
engine, in the same step.
"""

from dataclasses import replace

from ...spec.errors import Conflict, LimitExceeded, NotFound
from ...spec.ids import JobId, Micros
from ...spec.lifecycle import JobState
from ...spec.problems import nearest
from ..core.attempt_events import AttemptEnded, AttemptStarted
from ..core.events import Event
from ..core.job import Job
from ..core.state import Touched
from ..core.task_events import TaskServes, TaskStarted
from .endpoint import REVISIONS_MAX, Deployment, DeploymentState, Endpoint, Replica, Revision
from .endpoints import ENDPOINTS_MAX, Endpoints
from .stimuli import (
    Asked,
    DeleteEndpoint,
    Deploy,
    Driven,
    Leave,
    Remove,
    Rollback,
    Scale,
    Settle,
    SetTraffic,
    StartReplica,
    StartRouter,
)

DEPLOYMENTS_MAX = 100


def deployment_of(endpoint: Endpoint, name: str) -> Deployment:
    """Raises NotFound."""
    found = endpoint.deployments.get(name)
    if found is None:
        guess = nearest(name, list(endpoint.deployments))
        meant = f"; did you mean '{guess}'?" if guess else ""
        raise NotFound(f"endpoint {endpoint.name} has no deployment {name[:255]!r}{meant}")
    return found


def asked(endpoints: Endpoints, stimulus: Asked, now_us: Micros) -> None:
    """Somebody wants it otherwise."""
    match stimulus:
        case Deploy():
            _deploy(endpoints, stimulus, now_us)
        case SetTraffic():
            _set_traffic(endpoints, stimulus, now_us)
        case Rollback():
            _rollback(endpoints, stimulus, now_us)
        case DeleteEndpoint():
            _delete(endpoints, stimulus, now_us)


def driven(endpoints: Endpoints, stimulus: Driven, now_us: Micros) -> None:
    """What the driver found: only of what is still so."""
    endpoint = endpoints.get(stimulus.endpoint)
    match stimulus:
        case Leave(_, name, job):
            replica = deployment_of(endpoint, name).replicas.get(job)
            if replica is not None and not replica.leaving_us:
                replica.leaving_us = now_us
        case Scale(_, name, wanted, why):
            deployment = deployment_of(endpoint, name)
            if deployment.wanted != wanted:
                deployment.wanted = wanted
                endpoint.tell(now_us, f"{name}: {wanted} replicas: {why}")
        case Settle():
            _settle(endpoint, stimulus, now_us)
        case Remove(_, name):
            _remove(endpoints, endpoint, name)
            return
    endpoints.note(endpoint)


def check_startable(endpoints: Endpoints, stimulus: StartReplica | StartRouter) -> Endpoint:
    """Raises Conflict where it is not the one that is to start."""
    endpoint = endpoints.get(stimulus.endpoint)
    if isinstance(stimulus, StartRouter):
        if endpoint.router is not None or endpoint.routers_made != stimulus.number:
            raise Conflict(f"endpoint {endpoint.name} has a router", endpoint=endpoint.name)
        return endpoint
    deployment = deployment_of(endpoint, stimulus.deployment)
    newest = deployment.newest.number
    if endpoint.replicas_made != stimulus.number or stimulus.revision != newest or endpoint.deleting:
        raise Conflict(f"endpoint {endpoint.name} has changed meanwhile", endpoint=endpoint.name)
    return endpoint


def started(endpoints: Endpoints, stimulus: StartReplica | StartRouter, job: JobId) -> None:
    """Its job is submitted."""
    endpoint = endpoints.get(stimulus.endpoint)
    if isinstance(stimulus, StartRouter):
        endpoint.router, endpoint.routers_made = job, endpoint.routers_made + 1
    else:
        endpoint.deployments[stimulus.deployment].replicas[job] = Replica(stimulus.revision)
        endpoint.replicas_made += 1
    endpoints.add_job(endpoint, job)


def follow(endpoints: Endpoints, event: Event, touched: Touched) -> None:
    """What has become of a job that runs for an endpoint, in the same step."""
    if not isinstance(touched, Job) or touched.number not in endpoints.by_job:
        return
    endpoint = endpoints.by_name[endpoints.by_job[touched.number]]
    if touched.over:
        _over(endpoints, endpoint, touched, event.at_us)
    elif isinstance(event, AttemptStarted | AttemptEnded | TaskStarted | TaskServes):
        endpoints.wake(endpoint.name)


def _over(endpoints: Endpoints, endpoint: Endpoint, job: Job, now_us: Micros) -> None:
    if job.number == endpoint.router:
        endpoint.router, endpoint.router_failed_us = None, now_us
        endpoint.routers_failed += 1
        if not endpoint.deleting:
            endpoint.tell(now_us, f"the router (job {job.number}) ended: {_why(job)}")
    for name, deployment in endpoint.deployments.items():
        replica = deployment.replicas.pop(job.number, None)
        if replica is None or replica.leaving_us or replica.revision != deployment.newest.number:
            continue
        why = f"replica {job.number} ended: {_why(job)}"
        deployment.failed, deployment.failed_us = deployment.failed + 1, now_us
        deployment.first_failure = deployment.first_failure or why
        endpoint.tell(now_us, f"{name}: {why}")
    endpoints.drop_job(endpoint, job.number)


def _why(job: Job) -> str:
    if job.state is JobState.SUCCEEDED:
        return "it exited with code 0, as a server does not"
    ending = job.course.ending
    return ending.text if ending is not None else str(job.state)


def _deploy(endpoints: Endpoints, new: Deploy, now_us: Micros) -> None:
    endpoint = endpoints.by_name.get(new.endpoint)
    if endpoint is None:
        if len(endpoints.by_name) >= ENDPOINTS_MAX:
            raise LimitExceeded(f"there are {len(endpoints.by_name)} endpoints", hint="delete some")
        endpoint = Endpoint(new.endpoint, new.by, now_us, new.secret, new.listen)
    else:
        _check_stays(endpoint)
        endpoint.remember()
    if not new.secret:
        endpoint.key = ""
    endpoint.key = endpoint.key or new.secret
    endpoint.listen = new.listen or endpoint.listen
    _revise(endpoint, new.deployment, Revision(1, new.document, new.model, now_us, new.by, new.uses))
    deployment = endpoint.deployments[new.deployment]
    deployment.wanted = min(max(deployment.wanted, new.least), new.most)
    if not any(endpoint.traffic.values()):
        endpoint.traffic = {new.deployment: 100}
    number = deployment.newest.number
    endpoint.tell(now_us, f"{new.deployment}: revision {number} of {new.by}: {new.model}")
    endpoints.note(endpoint)


def _revise(endpoint: Endpoint, name: str, new: Revision) -> None:
    """`new.number` is given here."""
    deployment = endpoint.deployments.get(name)
    if deployment is None:
        if len(endpoint.deployments) >= DEPLOYMENTS_MAX:
            raise LimitExceeded(
                f"endpoint {endpoint.name} has {len(endpoint.deployments)} deployments", hint="delete some"
            )
        endpoint.deployments[name] = Deployment([replace(new, number=1)], 1)
        return
    if deployment.deleting:
        raise Conflict(f"deployment {name} of endpoint {endpoint.name} is being deleted")
    same = {one.number for one in deployment.revisions if one.document == new.document}
    deployment.revisions.append(replace(new, number=deployment.newest.number + 1))
    for replica in deployment.replicas.values():
        if replica.revision in same and not replica.leaving_us:  # it is what is wanted, and goes on
            replica.revision = deployment.newest.number
    kept = deployment.revisions[-REVISIONS_MAX:]
    good = [one for one in deployment.revisions if one.number == deployment.good and one not in kept]
    deployment.revisions = [*good, *kept]
    deployment.state, deployment.why = DeploymentState.UPDATING, ""
    deployment.failed, deployment.first_failure = 0, ""


def _set_traffic(endpoints: Endpoints, new: SetTraffic, now_us: Micros) -> None:
    endpoint = endpoints.get(new.endpoint)
    _check_stays(endpoint)
    for name in (*new.traffic, *new.mirror):
        if deployment_of(endpoint, name).deleting:
            raise Conflict(f"deployment {name} of endpoint {endpoint.name} is being deleted")
    for name, percent in new.traffic.items():
        if percent and not endpoint.deployments[name].good:
            why = endpoint.deployments[name].why or "its replicas are not ready yet"
            raise Conflict(
                f"deployment {name} of endpoint {endpoint.name} has never been ready: {why}",
                hint=f"`pace endpoints {endpoint.name}` shows how far it is",
            )
    endpoint.remember()
    endpoint.traffic = {name: percent for name, percent in new.traffic.items() if percent}
    endpoint.mirror = {name: percent for name, percent in new.mirror.items() if percent}
    copied = f"; copies: {_shares(endpoint.mirror)}" if endpoint.mirror else ""
    endpoint.tell(now_us, f"traffic by {new.by}: {_shares(endpoint.traffic)}{copied}")
    endpoints.note(endpoint)


def _rollback(endpoints: Endpoints, wish: Rollback, now_us: Micros) -> None:
    endpoint = endpoints.get(wish.endpoint)
    _check_stays(endpoint)
    if not endpoint.before:
        raise Conflict(
            f"endpoint {endpoint.name} has never been otherwise", hint="there is nothing to go back to"
        )
    before = endpoint.before.pop()
    gone = [name for name in before.traffic if name not in endpoint.deployments]
    if gone:
        raise Conflict(f"deployment {gone[0]}, which had traffic then, was deleted meanwhile")
    for name, revision in before.revisions.items():
        deployment = endpoint.deployments.get(name)
        if deployment is not None and deployment.newest.document != revision.document:
            _revise(endpoint, name, replace(revision, at_us=now_us, by=wish.by))
    endpoint.traffic, endpoint.mirror = before.traffic, before.mirror
    endpoint.tell(now_us, f"rolled back by {wish.by}; traffic: {_shares(endpoint.traffic)}")
    endpoints.note(endpoint)


def _delete(endpoints: Endpoints, wish: DeleteEndpoint, now_us: Micros) -> None:
    endpoint = endpoints.get(wish.endpoint)
    if not wish.deployment:
        endpoint.deleting = True
        for deployment in endpoint.deployments.values():
            deployment.deleting = True
        endpoint.tell(now_us, f"deleted by {wish.by}")
    else:
        deployment = deployment_of(endpoint, wish.deployment)
        if endpoint.traffic.get(wish.deployment):
            raise Conflict(
                f"deployment {wish.deployment} has {endpoint.traffic[wish.deployment]} % of the traffic",
                hint=f"give it to another first: pace traffic {endpoint.name} OTHER=100",
            )
        deployment.deleting = True
        endpoint.mirror.pop(wish.deployment, None)
        endpoint.tell(now_us, f"{wish.deployment} deleted by {wish.by}")
    endpoints.note(endpoint)


def _settle(endpoint: Endpoint, found: Settle, now_us: Micros) -> None:
    deployment = deployment_of(endpoint, found.deployment)
    if deployment.newest.number != found.revision or deployment.deleting:
        return
    name = found.deployment
    if not found.failed:
        deployment.state, deployment.why = DeploymentState.READY, ""
        deployment.failed, deployment.first_failure = 0, ""
        if deployment.good != found.revision:
            endpoint.tell(now_us, f"{name}: revision {found.revision} is ready")
        deployment.good = found.revision
        endpoint.routers_failed = 0
        return
    good = deployment.good_revision
    if good is None:
        deployment.state, deployment.why = DeploymentState.FAILED, found.failed
        endpoint.tell(now_us, f"{name}: revision {found.revision} failed: {found.failed}")
        return
    _revise(endpoint, name, replace(good, at_us=now_us, by="automatic rollback"))
    deployment.why = f"revision {found.revision} was taken back: {found.failed}"
    endpoint.tell(
        now_us, f"{name}: {deployment.why}; revision {deployment.newest.number} is {good.number} again"
    )


def _remove(endpoints: Endpoints, endpoint: Endpoint, name: str) -> None:
    if not name:
        if endpoint.deleting and not endpoint.jobs:
            endpoints.remove(endpoint)
        return
    deployment = deployment_of(endpoint, name)
    if deployment.deleting and not deployment.replicas:
        del endpoint.deployments[name]
        endpoints.note(endpoint)


def _check_stays(endpoint: Endpoint) -> None:
    if endpoint.deleting:
        raise Conflict(f"endpoint {endpoint.name} is being deleted", hint="try again in a moment")


def _shares(shares: dict[str, int]) -> str:
    return ", ".join(f"{name} {percent} %" for name, percent in sorted(shares.items())) or "nobody"
