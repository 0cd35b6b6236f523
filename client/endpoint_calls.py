"""The verbs on endpoints: each request once, and how its reply becomes a view; see calls.py."""

from collections.abc import Mapping
from typing import Any

from ..proto.generated import common_pb2, endpoints_pb2, jobs_pb2
from ..spec.ids import JobId, Micros
from .calls import PAGE
from .endpoint_views import Deployment, Endpoint, EndpointEvent, EndpointReplica
from .rpc import Call, Sent, new_key, user_name


def deploy(sent: Sent) -> Call[Endpoint]:
    document = jobs_pb2.JobDocument(document=sent.document, source=sent.source)
    request = endpoints_pb2.DeployRequest(key=new_key(), user=user_name(), deployment=document)
    return Call(lambda stubs: stubs.endpoints.Deploy, request, to_endpoint)


def set_traffic(name: str, traffic: Mapping[str, int], mirror: Mapping[str, int]) -> Call[Endpoint]:
    request = endpoints_pb2.SetTrafficRequest(
        key=new_key(), user=user_name(), endpoint=name, traffic=traffic, mirror=mirror
    )
    return Call(lambda stubs: stubs.endpoints.SetTraffic, request, to_endpoint)


def rollback(name: str) -> Call[Endpoint]:
    request = endpoints_pb2.ChangeEndpointRequest(key=new_key(), user=user_name(), endpoint=name)
    return Call(lambda stubs: stubs.endpoints.Rollback, request, to_endpoint)


def delete(name: str, deployment: str) -> Call[Endpoint]:
    request = endpoints_pb2.ChangeEndpointRequest(
        key=new_key(), user=user_name(), endpoint=name, deployment=deployment
    )
    return Call(lambda stubs: stubs.endpoints.Delete, request, to_endpoint)


def endpoint(name: str) -> Call[Endpoint]:
    request = endpoints_pb2.GetEndpointRequest(endpoint=name)
    return Call(lambda stubs: stubs.endpoints.Get, request, to_endpoint)


def page(cursor: str) -> Call[tuple[tuple[Endpoint, ...], str]]:
    request = endpoints_pb2.ListEndpointsRequest(page=common_pb2.Page(limit=PAGE, cursor=cursor))
    return Call(
        lambda stubs: stubs.endpoints.List,
        request,
        lambda reply: (tuple(map(to_endpoint, reply.endpoints)), reply.next_cursor),
    )


class EndpointCursor:
    """An endpoint as it stands, again whenever it has changed; a stream that broke is opened anew."""

    ends_by_itself = True

    def __init__(self, name: str) -> None:
        self.job = 0
        self._name = name

    def open(self, stubs: Any) -> tuple[Any, Any]:
        return stubs.endpoints.Watch, endpoints_pb2.GetEndpointRequest(endpoint=self._name)

    def accept(self, message: endpoints_pb2.EndpointView) -> Endpoint:
        return to_endpoint(message)

    def gives_all(self, job: Any) -> bool:
        return True


def to_endpoint(view: endpoints_pb2.EndpointView) -> Endpoint:
    return Endpoint(
        view.endpoint,
        view.user,
        Micros(view.made_us),
        view.url,
        view.key,
        JobId(view.router_job) if view.router_job else None,
        tuple(map(_deployment, view.deployments)),
        dict(view.traffic),
        dict(view.mirror),
        tuple(EndpointEvent(Micros(one.at_us), one.text) for one in view.history),
        view.deleting,
    )


def _deployment(view: endpoints_pb2.DeploymentView) -> Deployment:
    return Deployment(
        view.deployment,
        view.model,
        view.revision,
        view.state,
        view.why,
        view.wanted,
        tuple(
            EndpointReplica(JobId(one.job), one.revision, one.state, one.url, one.in_flight)
            for one in view.replicas
        ),
        view.requests,
        view.failures,
        view.document,
    )
