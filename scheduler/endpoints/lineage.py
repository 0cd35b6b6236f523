"""Endpoints as the registry keeps them: their records, which versions they use, what they are made of."""

from ..registry.assets import Edge
from ..registry.assets import Endpoint as Kept
from ..registry.registry import Registry
from .endpoint import Endpoint
from .endpoints import Endpoints


def store_endpoints(endpoints: Endpoints, registry: Registry) -> frozenset[str]:
    """What has changed goes into the registry, which writes it. Whom somebody who follows should look at."""
    changes = endpoints.take_changes()
    for name, record in changes.records.items():
        if record is None:
            registry.drop_endpoint(name)
            continue
        endpoint = endpoints.by_name[name]
        registry.put_endpoint(Kept(name, record, tuple(sorted(endpoint.uses))))
        registry.connect(edges_of(endpoint))
    return changes.touched


def edges_of(endpoint: Endpoint) -> list[Edge]:
    """From each model to the deployment that serves it, and from there to the endpoint."""
    edges = []
    for name, deployment in endpoint.deployments.items():
        here = f"deployment:{endpoint.name}/{name}"
        edges.append(Edge(here, f"endpoint:{endpoint.name}", "part"))
        edges += [Edge(one.uses, here, "serves") for one in deployment.revisions if one.uses]
    return edges
