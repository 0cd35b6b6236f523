"""Messages of proto/v1/answers.proto -> the SDK's views; see codecs.py for what holds for all."""

from ..proto.generated import answers_pb2
from ..spec.ids import JobId, Micros, NodeId
from .answer_views import (
    ClassWait,
    Decision,
    Outlook,
    Plan,
    PlannedJob,
    PlannedQuota,
    PlannedStop,
    PlannedTask,
    Point,
    SeenNode,
    Simulated,
    Start,
    Usage,
    UsageRow,
    UsageSoFar,
)
from .codecs import micros, to_reason
from .views import Warning


def to_usage(message: answers_pb2.UsageReply, by: str, since_us: int) -> UsageSoFar | Usage:
    if not message.until_us:
        return UsageSoFar(message.jobs_read, message.jobs)
    rows = (
        UsageRow(
            name=row.name,
            jobs=row.jobs,
            allocated_gpu_hours=row.allocated_gpu_s / 3600,
            productive_gpu_hours=row.productive_gpu_s / 3600,
            lost_gpu_hours=row.lost_gpu_s / 3600,
            other_gpu_hours=row.other_gpu_s / 3600,
            allocated_cpu_hours=row.allocated_cpu_s / 3600,
        )
        for row in message.rows
    )
    return Usage(by, micros(since_us), Micros(message.until_us), message.jobs, tuple(rows))


def to_plan(message: answers_pb2.PlanReply) -> Plan:
    return Plan(tuple(_planned(job) for job in message.jobs), message.cut)


def _planned(message: answers_pb2.PlannedJob) -> PlannedJob:
    start = message.start
    return PlannedJob(
        name=message.name,
        start=Start(
            at_us=Micros(start.at_us),
            early_us=Micros(start.early_us),
            late_us=micros(start.late_us),
            draws=start.draws,
            started=start.started,
        )
        if message.HasField("start")
        else None,
        tasks=tuple(PlannedTask(task.node, tuple(task.gpu_indices)) for task in message.tasks),
        reasons=tuple(to_reason(reason) for reason in message.reasons),
        never=message.never,
        stops=tuple(
            PlannedStop(JobId(stop.job), stop.name, stop.user, stop.outcome, stop.why)
            for stop in message.stops
        ),
        warnings=tuple(Warning(warning.key, warning.text) for warning in message.warnings),
        quota=tuple(_quota(one) for one in message.quota),
    )


def _quota(message: answers_pb2.PlannedQuota) -> PlannedQuota:
    return PlannedQuota(
        queue=message.queue,
        user=message.user,
        what=message.what,
        in_use=message.in_use,
        with_job=message.with_job,
        guaranteed=message.guaranteed if message.HasField("guaranteed") else None,
        at_most=message.at_most if message.HasField("at_most") else None,
    )


def to_decision(message: answers_pb2.DecisionReply) -> Decision:
    return Decision(
        seq=message.seq,
        at_us=Micros(message.at_us),
        kind=message.kind,
        job=JobId(message.job),
        text=message.text,
        reasons=tuple(to_reason(reason) for reason in message.reasons),
        nodes=tuple(
            SeenNode(NodeId(one.node_id), one.node, one.fits, one.step, one.tie, one.chosen)
            for one in message.nodes
        ),
        nodes_fit=message.nodes_fit,
        nodes_in_service=message.nodes_in_service,
        again=message.again,
        instead=message.instead,
    )


def to_simulated(message: answers_pb2.SimulateReply) -> Simulated:
    changed = to_outlook(message.changed) if message.HasField("changed") else None
    return Simulated(to_outlook(message.as_is), changed)


def to_outlook(message: answers_pb2.Outlook) -> Outlook:
    return Outlook(
        jobs=message.jobs,
        started=message.started,
        ended=message.ended,
        stops=message.stops,
        wait_mean_s=message.wait_mean_s,
        wait_median_s=message.wait_median_s,
        wait_p95_s=message.wait_p95_s,
        jct_mean_s=message.jct_mean_s,
        gpu_allocation=message.gpu_allocation,
        span_s=message.span_s,
        draws=message.draws,
        cut=message.cut,
        classes=tuple(
            ClassWait(one.name, one.jobs, one.wait_mean_s, one.wait_p95_s) for one in message.classes
        ),
        points=tuple(Point(point.at_s, point.queued, point.gpus) for point in message.points),
    )
