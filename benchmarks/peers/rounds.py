"""Tiresias as the authors of Pollux have run it: rounds of a minute, two queues, the users' sizes.

Gu et al., "Tiresias: A GPU Cluster Manager for Distributed Deep Learning", NSDI'19, with the discretised
two-dimensional least attained service: a job that has had 16 GPU-hours goes behind all that have not. In
each round the first in line get what their users asked for; who is passed over is stopped. A job goes where
the most is free. Written anew; the published results tell how far it is off.
"""

from dataclasses import dataclass, field
from typing import Final

from ..pollux import NODE_GPUS, NODES, START_S, Placement, PolluxJob, Profile, Progress

ROUND_S: Final = 60
DEMOTED_GPU_S: Final = 16 * 3600


@dataclass(slots=True)
class _Job:
    job: PolluxJob
    profile: Profile
    progress: Progress
    nodes: dict[int, int] = field(default_factory=dict)
    """GPUs by node; empty: it waits."""
    starts_s: float = 0.0
    """Left of its start."""
    served_gpu_s: float = 0.0
    demoted_at: int = 0
    """In which order it was; 0: not yet."""


def tiresias(jobs: list[PolluxJob], profiles: dict[str, Profile]) -> list[float]:
    """The seconds from each job's submission to its end."""
    waiting = [_Job(job, of, Progress(of)) for job in jobs if (of := profiles[job.application])]
    line: list[_Job] = []
    jct_s: dict[int, float] = {}
    now_s = demoted = 0
    while waiting or line:
        now_s += ROUND_S
        for each in line:
            if each.nodes and (spare_s := _run(each)) is not None:
                jct_s[each.job.number] = now_s - spare_s - each.job.submit_s
        line = [each for each in line if not each.progress.over]
        while waiting and waiting[0].job.submit_s <= now_s:
            line.append(waiting.pop(0))
        for each in line:
            each.served_gpu_s += ROUND_S * each.job.gpus if each.nodes else 0
            if each.served_gpu_s >= DEMOTED_GPU_S and not each.demoted_at:
                demoted += 1
                each.demoted_at = demoted
        line.sort(key=lambda each: (each.demoted_at, each.job.number))
        _share_out(line)
    return [jct_s[job.number] for job in jobs]


def _run(each: _Job) -> float | None:
    """One round; the seconds that were not needed, if it is over."""
    start_s = min(each.starts_s, ROUND_S)
    each.starts_s -= start_s
    placement: Placement = tuple(each.nodes.values())
    batch = each.profile.batch(each.job.batch_size, each.job.gpus)
    spare_s = each.progress.run(placement, batch, ROUND_S - start_s)
    return spare_s if each.progress.over else None


def _share_out(line: list[_Job]) -> None:
    left, chosen = NODES * NODE_GPUS, []
    for each in line:
        if each.job.gpus <= left:
            left -= each.job.gpus
            chosen.append(each)
        else:
            each.nodes = {}
    free = dict.fromkeys(range(NODES), NODE_GPUS)
    for each in chosen:
        for node, gpus in each.nodes.items():
            free[node] -= gpus
    for each in chosen:
        wanted = 0 if each.nodes else each.job.gpus
        each.starts_s = START_S if wanted else each.starts_s
        while wanted:
            node = max(free, key=lambda name: (free[name], -name))
            taken = min(free[node], wanted)
            each.nodes[node] = taken
            free[node] -= taken
            wanted -= taken
