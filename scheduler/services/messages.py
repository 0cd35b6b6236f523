"""The core's objects as messages for clients. Pure; nothing here reads a store or a clock."""

from collections.abc import Iterable, Mapping
from typing import Final

from ...proto.codecs import resources_message
from ...proto.generated import common_pb2, jobs_pb2
from ...spec.ids import NodeId
from ...spec.job import JobSpec
from ...spec.lifecycle import AttemptOutcome
from ...spec.problems import Path as DocumentPath
from ..core.copies import is_good
from ..core.events import Event
from ..core.job import Checkpoint, Ending, Job, TaskRun
from ..core.reason import Reason
from ..core.reasons import ending_reason
from ..core.timeline import attempt_of, describe
from ..store.base import EventRow

LAST_CHECKPOINTS_MAX: Final = 100


def job_message(
    job: Job,
    *,
    node_names: Mapping[NodeId, str],
    why: Reason | None = None,
    pace: Iterable[str] = (),
    size: str = "",
) -> jobs_pb2.JobView:
    """A job for a listing: everything but its document and what follows from it, and what is long."""
    course, demand = job.course, job.demand
    if why is None and course.ending is not None:
        why = ending_reason(job)
    return jobs_pb2.JobView(
        job=job.number,
        name=job.name,
        user=job.user,
        state=course.state,
        attempt=course.attempt,
        priority=job.priority,
        submitted_us=job.submitted_us,
        started_us=course.started_us,
        finished_us=course.finished_us,
        reason=None if why is None else reason_message(why),
        exit_code=course.ending.exit_code if job.over and course.ending is not None else 0,
        instance_count=demand.instance_count,
        min_instance_count=demand.instance_count_min,
        max_instance_count=demand.instance_count_max,
        size=size,
        queue=job.shape.queue,
        pool=demand.pool,
        processes_per_task=demand.processes_per_task,
        per_task=resources_message(demand.per_task),
        gpu_models=demand.gpu_models,
        gpu_memory_bytes=demand.gpu_memory_bytes,
        tasks=[_task_message(job, task, node_names) for task in course.tasks],
        checkpoints=[checkpoint_message(each) for each in course.checkpoints[:LAST_CHECKPOINTS_MAX]],
        metrics=course.metrics,
        step=course.step,
        cancel_requested=course.stop is not None and course.stop.outcome is not AttemptOutcome.PREEMPTED,
        pace=pace,
        parent_job=course.parent.job if course.parent is not None else 0,
        parent_step=course.parent.step if course.parent is not None else 0,
        failure=_failure_message(course.ending, node_names),
    )


def _failure_message(ending: Ending | None, node_names: Mapping[NodeId, str]) -> jobs_pb2.Failure | None:
    failure = ending.failure if ending is not None else None
    if failure is None:
        return None
    node = failure.node or NodeId("")
    return jobs_pb2.Failure(
        kind=failure.kind,
        attempt=failure.attempt,
        hint=failure.hint,
        node_id=node,
        node=node_names.get(node, node),
        rank=failure.rank,
        exit_code=failure.exit_code,
        at_us=failure.died_us or 0,
        error_type=failure.error_type,
        message=failure.message,
    )


def add_output(view: jobs_pb2.JobView, job: Job) -> None:
    """What the rank that failed first said at its end."""
    failure = job.course.ending.failure if job.course.ending is not None else None
    if failure is not None:
        view.failure.traceback = failure.traceback
        view.failure.last_lines = failure.last_lines


def add_document(view: jobs_pb2.JobView, document: str, spec: JobSpec, outputs: Mapping[str, str]) -> None:
    """What only the document says: itself, where the outputs are, and what in it has no effect."""
    from ...spec.compat import warnings_of

    view.document = document
    view.outputs.update(outputs)
    for path, text in warnings_of(spec):
        view.warnings.add(key=dotted(path), text=text)


def _task_message(job: Job, task: TaskRun, node_names: Mapping[NodeId, str]) -> jobs_pb2.TaskView:
    return jobs_pb2.TaskView(
        task=task.task,
        node_id=task.node,
        node=node_names.get(task.node, task.node),
        state=task.state,
        start_mode=task.start_mode,
        first_rank=job.first_rank(task.task),
        pids=task.pids,
        exit_codes=task.exit_codes,
        gpu_indices=task.gpu_indices,
        record=task.record,
    )


def checkpoint_message(checkpoint: Checkpoint) -> jobs_pb2.CheckpointView:
    return jobs_pb2.CheckpointView(
        step=checkpoint.step,
        attempt=checkpoint.attempt,
        path=checkpoint.path,
        size_bytes=checkpoint.size_bytes,
        accepted_us=checkpoint.accepted_us,
        metrics=checkpoint.metrics,
        url=checkpoint.url,
        damaged=checkpoint.damaged,
        good=is_good(checkpoint),
        job=checkpoint.job or 0,
        stall_s=checkpoint.stall_us / 1e6,
        persist_s=checkpoint.persist_us / 1e6,
        why=checkpoint.why,
    )


def reason_message(reason: Reason) -> common_pb2.Reason:
    fields = {name: str(value) for name, value in reason.fields.items()}
    return common_pb2.Reason(code=reason.code, text=reason.text, hint=reason.hint, fields=fields)


def entry_message(row: EventRow, event: Event, names: Mapping[NodeId, str]) -> jobs_pb2.TimelineEntry:
    """`row.body` is the event as JSON."""
    return jobs_pb2.TimelineEntry(
        seq=row.seq,
        at_us=row.at_us,
        attempt=attempt_of(event),
        kind=row.kind,
        text=describe(event, names),
        body=row.body,
    )


def dotted(path: DocumentPath) -> str:
    return ".".join(str(step) for step in path)
