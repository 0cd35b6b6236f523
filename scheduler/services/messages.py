"""The core's objects as messages for clients. Pure; nothing here reads a store or a clock."""

from collections.abc import Mapping
from typing import Final

from ...proto.codecs import reason_message, resources_message
from ...proto.generated import common_pb2, jobs_pb2
from ...spec.ids import NodeId
from ...spec.job import JobSpec
from ...spec.problems import Path as DocumentPath
from ..core.job import Checkpoint, Ending, Job, TaskRun

LAST_CHECKPOINTS_MAX: Final = 100


def job_message(
    job: Job, *, node_names: Mapping[NodeId, str], waits: common_pb2.Reason | None = None
) -> jobs_pb2.JobView:
    """A job for a listing: everything but its document and what follows from it."""
    course, demand = job.course, job.demand
    reason = waits if waits is not None else _ending_message(course.ending)
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
        reason=reason,
        exit_code=course.ending.exit_code if job.over and course.ending is not None else 0,
        instance_count=demand.instance_count,
        processes_per_task=demand.processes_per_task,
        per_task=resources_message(demand.per_task),
        tasks=[_task_message(job, task, node_names) for task in course.tasks],
        checkpoints=[_checkpoint_message(each) for each in course.checkpoints[:LAST_CHECKPOINTS_MAX]],
        metrics=course.metrics,
        step=course.step,
        cancel_requested=course.stop is not None,
    )


def add_document(view: jobs_pb2.JobView, document: str, spec: JobSpec, outputs: Mapping[str, str]) -> None:
    """What only the document says: itself, where the outputs are, and what in it has no effect."""
    from ...spec.compat import warnings_of

    view.document = document
    view.outputs.update(outputs)
    for path, text in warnings_of(spec):
        view.warnings.add(key=_dotted(path), text=text)


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
    )


def _checkpoint_message(checkpoint: Checkpoint) -> jobs_pb2.CheckpointView:
    return jobs_pb2.CheckpointView(
        step=checkpoint.step,
        attempt=checkpoint.attempt,
        path=checkpoint.path,
        size_bytes=checkpoint.size_bytes,
        accepted_us=checkpoint.accepted_us,
        metrics=checkpoint.metrics,
    )


def _ending_message(ending: Ending | None) -> common_pb2.Reason | None:
    if ending is None:
        return None
    fields: dict[str, object] = {"outcome": ending.outcome}
    if ending.node is not None:
        fields["node"] = ending.node
    if ending.rank is not None:
        fields["rank"] = ending.rank
    return reason_message(ending.code, ending.text, hint=ending.hint, fields=fields)


def _dotted(path: DocumentPath) -> str:
    return ".".join(str(step) for step in path)
