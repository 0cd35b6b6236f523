"""How many instances each of several equal elastic gangs should have.

Equal: an instance of one has room wherever one of another has, and both are of one queue and priority. Each
has its least; what is left goes, one step after another, to whoever gains most by it: the factor by which it
becomes faster, per instance (speeds.py). So the product of all speeds is the largest: to make one gang twice
as fast weighs as much as to make another half as fast, whatever they train (proportional fairness, Kelly et
al., JORS 1998; of measured speeds, as in Pollux, OSDI 2021).
"""

from collections.abc import Iterable
from functools import lru_cache
from heapq import heapify, heappop, heappush
from itertools import pairwise
from math import log
from typing import NamedTuple

from ...spec.ids import JobId
from ...spec.resources import GangDemand
from .candidates import boundless
from .job import Job, Speed
from .speeds import most_foreseen, step_us

ELASTICITY_MIN = 0.05
"""One per cent more instances must bring so many per cent more speed: else they are left to others."""


Kind = tuple[GangDemand, str, int]
"""What one of its tasks asks for, queue and priority."""


class _Rung(NamedTuple):
    """From one size up to the next that is worth it."""

    gain: float
    """Logarithm of the factor, per instance."""
    instances: int


def kind_of(job: Job) -> Kind:
    """Equal gangs have the same."""
    return boundless(job.demand), job.shape.queue, job.priority


def fair_sizes(jobs: Iterable[Job], room: int) -> dict[JobId, int]:
    """`room`: for the instances of all of them. Those that have no room for their least have 0."""
    sizes: dict[JobId, int] = {}
    heap: list[tuple[float, JobId, int]] = []
    ladders: dict[JobId, tuple[_Rung, ...]] = {}
    for job in jobs:
        least = job.demand.instance_count_min
        sizes[job.number] = least if least <= room else 0
        room -= sizes[job.number]
        ladder = _ladder(job.course.speeds, least, most_foreseen(job))
        if sizes[job.number] and ladder:
            ladders[job.number] = ladder
            heap.append((-ladder[0].gain, job.number, 0))
    heapify(heap)
    while heap and room:
        _, number, at = heappop(heap)
        ladder = ladders[number]
        taken = min(ladder[at].instances, room)
        sizes[number] += taken
        room -= taken
        if at + 1 < len(ladder):
            heappush(heap, (-ladder[at + 1].gain, number, at + 1))
    return sizes


@lru_cache(maxsize=4096)
def _ladder(speeds: tuple[Speed, ...], least: int, most: int) -> tuple[_Rung, ...]:
    """The sizes that are worth it, from the least on: each rung gains less per instance than the one before
    (the upper hull of the logarithm of the speed)."""
    hull: list[tuple[int, float]] = []
    for count in range(least, most + 1):
        point = (count, -log(step_us(speeds, count)))
        while len(hull) > 1 and _slope(hull[-2], hull[-1]) <= _slope(hull[-2], point):
            hull.pop()
        hull.append(point)
    rungs = []
    for low, high in pairwise(hull):
        if _slope(low, high) * low[0] < ELASTICITY_MIN:
            break
        rungs.append(_Rung(_slope(low, high), high[0] - low[0]))
    return tuple(rungs)


def _slope(low: tuple[int, float], high: tuple[int, float]) -> float:
    return (high[1] - low[1]) / (high[0] - low[0])
