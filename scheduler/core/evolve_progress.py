"""What is known of a gang's progress: see progress_events."""

from typing import Final

from msgspec.structs import replace

from .evolve_tasks import with_task
from .hang import Suspicion, with_look
from .indexes import put_job, put_node
from .job import with_course
from .pace import GangPaces
from .paces import recent_reports
from .progress_events import (
    GangHung,
    PacesReported,
    RanksInspected,
    StragglerFound,
    SuspicionCleared,
    TaskStalled,
)
from .state import ClusterState, Handlers, Touched


def _task_stalled(state: ClusterState, event: TaskStalled) -> Touched:
    """The first suspicion stands until it is settled."""
    job = state.jobs[event.task.job]
    course = job.course
    suspicion = course.suspicion or Suspicion(
        event.at_us, event.task.task, event.since_us, event.limit_us, event.step
    )
    new = with_course(with_task(job, event), suspicion=None if course.stop is not None else suspicion)
    return put_job(state, job, new)


def _ranks_inspected(state: ClusterState, event: RanksInspected) -> Touched:
    job = state.jobs[event.task.job]
    new = with_course(with_task(job, event), suspicion=with_look(job.course.suspicion, event))
    return put_job(state, job, new)


def _suspicion_cleared(state: ClusterState, event: SuspicionCleared) -> Touched:
    job = state.jobs[event.job]
    return put_job(state, job, with_course(job, suspicion=None))


def _gang_hung(state: ClusterState, event: GangHung) -> Touched:
    job = state.jobs[event.job]
    return put_job(state, job, with_course(job, suspicion=None, hangs=job.course.hangs + 1))


def _straggler_found(state: ClusterState, event: StragglerFound) -> Touched:
    node, most = state.nodes[event.node], state.settings.straggler_reports_max
    slow_us = (*recent_reports(state, node, event.at_us), event.at_us) if most else ()
    return put_node(state, node, replace(node, slow_us=slow_us[-most:]))


def _paces_reported(state: ClusterState, event: PacesReported) -> Touched:
    job = state.jobs[event.task.job]
    known = state.paces.setdefault(job.number, GangPaces())
    known.ranks.update((pace.rank, pace) for pace in event.ranks)
    known.slow.update(event.slow)
    return put_job(state, job, with_task(job, event))


HANDLERS: Final[Handlers] = {
    TaskStalled: _task_stalled,
    RanksInspected: _ranks_inspected,
    SuspicionCleared: _suspicion_cleared,
    GangHung: _gang_hung,
    StragglerFound: _straggler_found,
    PacesReported: _paces_reported,
}
