"""How fast an elastic gang is at each size: measured where it has run, predicted elsewhere.

Measured is the mean time of a step, from the first step that an attempt reports to each of its checkpoints.
What a step is, the script says: where the global batch follows the number of ranks, it should count samples.

A size not yet seen: without any measurement, or from one size, twice the instances do twice the work. From
more by Amdahl's law: of a step one part does not shrink and one is shared out, a + b / n, as fits best what
was measured. Nothing is said of more than twice the largest size that was measured: a gang doubles, is
measured, and doubles again.
"""

from collections.abc import Iterable
from functools import lru_cache

from ...spec.ids import Micros
from .job import Job, Speed

Speeds = tuple[Speed, ...]


def measured_us(job: Job, step: int, now_us: Micros) -> float:
    """The mean time of a step in this attempt, up to this one; 0: it cannot be said yet."""
    first = job.course.first
    if first is None or step <= first.step or now_us <= first.at_us:
        return 0.0
    return (now_us - first.at_us) / (step - first.step)


def with_speed(speeds: Iterable[Speed], instances: int, step_us: float) -> Speeds:
    """Of each size the newest measurement counts."""
    others = (speed for speed in speeds if speed.instances != instances)
    return tuple(sorted((*others, Speed(instances, step_us)), key=lambda one: one.instances))


def most_foreseen(job: Job) -> int:
    """The most instances of which something can be said."""
    speeds = job.course.speeds
    seen = speeds[-1].instances if speeds else max(job.demand.instance_count, len(job.tasks))
    return min(job.demand.instance_count_max, 2 * seen)


def step_us(speeds: Speeds, instances: int) -> float:
    """Of a gang of so many; in unknown units where nothing is measured."""
    if not speeds:
        return 1e6 / instances
    for speed in speeds:
        if speed.instances == instances:
            return speed.step_us
    fixed, shared = _amdahl(speeds)
    return fixed + shared / instances


def gain(job: Job, instances: int, to: int) -> float:
    """How many times as fast it is with `to`."""
    return step_us(job.course.speeds, instances) / step_us(job.course.speeds, to)


@lru_cache(maxsize=4096)
def _amdahl(speeds: Speeds) -> tuple[float, float]:
    """The part that does not shrink and the one that is shared out, neither below 0: least squares of what
    they are off, relative to what was measured."""
    points = [(1 / speed.step_us, 1 / (speed.step_us * speed.instances)) for speed in speeds]
    x, y = (sum(point[at] for point in points) for at in (0, 1))
    xx, xy, yy = (sum(point[i] * point[j] for point in points) for i, j in ((0, 0), (0, 1), (1, 1)))
    if len(speeds) == 1 or x * yy <= y * xy:  # at least twice as fast with twice as many
        return 0.0, y / yy
    if xx * y <= xy * x:  # more instances were no faster
        return x / xx, 0.0
    det = xx * yy - xy * xy
    return (x * yy - y * xy) / det, (xx * y - xy * x) / det
