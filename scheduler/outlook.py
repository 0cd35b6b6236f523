"""What courses of the future come to, in a few figures and a line of points."""

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

import msgspec

from ..spec.ids import JobId, Micros
from ..spec.resources import WHOLE_GPU_MILLI, GangDemand
from .core.predict import quantile
from .core.settings import SECOND_US
from .core.state import ClusterState
from .rehearsal import Course, Rehearsal

POINTS_MAX: Final = 500
_CLASSES: Final = ((0, "no GPU"), (1, "1 GPU"), (7, "2-7 GPUs"), (8, "8 GPUs"), (63, "9-63 GPUs"))


class ClassWait(msgspec.Struct, frozen=True):
    name: str
    jobs: int
    mean_s: float
    p95_s: float


class Point(msgspec.Struct, frozen=True):
    at_s: float
    queued: int
    gpus: float


class Outlook(msgspec.Struct, frozen=True):
    """Means over the draws. Waits are counted from the submission, of jobs that first start from now on."""

    jobs: float = 0
    started: float = 0
    ended: float = 0
    wait_mean_s: float = 0
    wait_median_s: float = 0
    wait_p95_s: float = 0
    jct_mean_s: float = 0
    gpu_allocation: float = 0
    """Of the GPUs in service, until the last start."""
    span_s: float = 0
    stops: float = 0
    classes: list[ClassWait] = []
    points: list[Point] = []


@dataclass(slots=True)
class Draw:
    """One course, and what its summary needs."""

    course: Course
    submitted_us: dict[JobId, Micros]
    sizes: dict[JobId, int]
    """GPUs of each gang, rounded up."""
    begun: frozenset[JobId]
    """Jobs that had started before."""
    begun_us: Micros
    end_us: Micros
    gpus_milli: int
    points: list[Point] = field(default_factory=list)
    cut: str = ""
    looked: int = 0
    """Events, or moments where these are more: what the bound counts."""


def mark(rehearsal: Rehearsal, draw: Draw) -> None:
    """A point where something has changed; every second one is left out when they are many."""
    state = rehearsal.engine.state
    draw.end_us = rehearsal.now_us
    at_s = (rehearsal.now_us - draw.begun_us) / SECOND_US
    point = Point(at_s, len(state.queue) + len(state.held), rehearsal.course.gpu_milli / WHOLE_GPU_MILLI)
    last = draw.points[-1] if draw.points else None
    if last is None or (last.queued, last.gpus) != (point.queued, point.gpus):
        draw.points.append(point)
    if len(draw.points) > 4 * POINTS_MAX:
        draw.points = draw.points[::2]


def outlook(draws: Sequence[Draw]) -> Outlook:
    waits_s: list[int] = []
    by_class: defaultdict[str, list[int]] = defaultdict(list)
    jcts_s: list[float] = []
    counts: Counter[str] = Counter()
    held = filled = 0.0
    for draw in draws:
        course = draw.course
        first_starts = {job: at for job, at in course.started_us.items() if job not in draw.begun}
        for job, at_us in first_starts.items():
            wait_us = at_us - draw.submitted_us[job]
            waits_s.append(wait_us)
            by_class[_class_of(draw.sizes[job])].append(wait_us)
        jcts_s += [(at_us - draw.submitted_us[job]) / SECOND_US for job, at_us in course.ended_us.items()]
        counts.update(
            jobs=len(draw.submitted_us),
            started=len(first_starts),
            ended=len(course.ended_us),
            stops=len(course.stops),
        )
        at_us, gpu_milli_us = course.filled if course.starts else (draw.end_us, course.gpu_milli_us)
        held += gpu_milli_us
        filled += draw.gpus_milli * (at_us - draw.begun_us)
    waits_s.sort()
    first, count = draws[0], len(draws)
    names = [name for _, name in _CLASSES] + [_LARGEST]
    return Outlook(
        jobs=counts["jobs"] / count,
        started=counts["started"] / count,
        ended=counts["ended"] / count,
        wait_mean_s=_mean(waits_s) / SECOND_US,
        wait_median_s=_at(waits_s, 0.5),
        wait_p95_s=_at(waits_s, 0.95),
        jct_mean_s=_mean(jcts_s),
        gpu_allocation=min(1.0, held / filled) if filled else 0.0,
        span_s=sum(draw.end_us - draw.begun_us for draw in draws) / count / SECOND_US,
        stops=counts["stops"] / count,
        classes=[_class_wait(name, by_class[name], count) for name in names if name in by_class],
        points=first.points[:: max(1, -(-len(first.points) // POINTS_MAX))],
    )


_LARGEST: Final = "64 or more GPUs"


def gang_gpus(demand: GangDemand) -> int:
    need = demand.per_task
    milli = demand.instance_count * need.gpus_milli
    return -(-milli // WHOLE_GPU_MILLI)


def gpus_in_service(state: ClusterState, without: frozenset[str] = frozenset()) -> int:
    """In thousandths."""
    nodes = (node for node in state.nodes.values() if node.in_service)
    return WHOLE_GPU_MILLI * sum(
        len(node.inventory.gpus) for node in nodes if not {node.node, node.name} & without
    )


def _class_of(gpus: int) -> str:
    return next((name for most, name in _CLASSES if gpus <= most), _LARGEST)


def _class_wait(name: str, waits_us: list[int], draws: int) -> ClassWait:
    ordered = sorted(waits_us)
    return ClassWait(name, round(len(ordered) / draws), _mean(ordered) / SECOND_US, _at(ordered, 0.95))


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else 0.0


def _at(ordered_us: Sequence[int], level: float) -> float:
    return quantile(ordered_us, level) / SECOND_US if ordered_us else 0.0
