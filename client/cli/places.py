"""Where a job stands in line and on which nodes it may be, as `pace show` tells it: what was asked for."""

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from .. import views
from . import output as out


def place_lines(job: views.Job) -> Iterator[tuple[str, str]]:
    """Label and text of each line; clean."""
    if job.queue:
        yield "queue", out.clean(job.queue)
    if job.pool:
        yield "pool", out.clean(job.pool)
    if job.priority:
        yield "priority", str(job.priority)
    said = json.loads(job.document or "{}")
    if models := said.get("resources", {}).get("gpus", {}).get("model"):
        yield "GPU model", out.clean(" or ".join(models))
    yield from _nodes(said.get("placement") or {})
    topology = said.get("topology") or {}
    if (within := topology.get("within")) and job.max_instance_count > 1:
        wish = ", if there is room" if topology.get("mode") == "preferred" else ""
        yield "topology", out.clean(f"all of it in one {within}{wish}")


def _nodes(placement: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    if labels := placement.get("labels"):
        yield "nodes", out.clean(f"with {_labels(labels)}")
    if prefer := placement.get("prefer"):
        yield "prefers", out.clean(f"nodes with {_labels(prefer)}")
    if tolerate := placement.get("tolerate"):
        yield "tolerates", out.clean(", ".join(tolerate))


def _labels(labels: Mapping[str, Sequence[str]]) -> str:
    return " and ".join(f"{key}={' or '.join(values)}" for key, values in labels.items())
