"""Messages of proto/v1 -> the SDK's views. Pure; the only file of the client that reads messages.

An enum value that this version does not know (a newer scheduler's) raises with both versions' words,
rather than being shown as something it is not.
"""

from enum import StrEnum
from typing import TypeVar

from ..proto.generated import common_pb2, jobs_pb2, logs_pb2, nodes_pb2, policy_pb2
from ..proto.payload import Payload
from ..spec.errors import InvalidRequest
from ..spec.failures import FailureClass
from ..spec.gpu_health import GpuState
from ..spec.ids import Attempt, JobId, Micros, NodeId, TaskKey
from ..spec.lifecycle import JobState, NodeContact
from ..spec.resources import Resources
from ..spec.slices import slice_index
from . import policy_views, views

E = TypeVar("E", bound=StrEnum)


def to_job(message: jobs_pb2.JobView) -> views.Job:
    state = _enum(JobState, message.state)
    finished_us = micros(message.finished_us)
    return views.Job(
        job=JobId(message.job),
        name=message.name,
        user=message.user,
        state=state,
        attempt=Attempt(message.attempt),
        priority=message.priority,
        submitted_us=Micros(message.submitted_us),
        started_us=micros(message.started_us),
        finished_us=finished_us,
        reason=_reason_or_none(message.HasField("reason"), message.reason),
        exit_code=None if finished_us is None else message.exit_code,
        instance_count=message.instance_count,
        processes_per_task=message.processes_per_task,
        per_task=to_resources(message.per_task),
        tasks=tuple(to_task(task) for task in message.tasks),
        checkpoints=tuple(to_checkpoint(checkpoint) for checkpoint in message.checkpoints),
        outputs=dict(message.outputs),
        metrics=dict(message.metrics),
        step=message.step if message.step >= 0 else None,
        cancel_requested=message.cancel_requested,
        warnings=tuple(views.Warning(warning.key, warning.text) for warning in message.warnings),
        document=message.document,
        pace=tuple(message.pace),
        instances=len(message.tasks),
        min_instance_count=message.min_instance_count,
        max_instance_count=message.max_instance_count,
        size=message.size,
        queue=message.queue,
        pool=message.pool,
        gpu_models=tuple(message.gpu_models),
        gpu_memory_bytes=message.gpu_memory_bytes,
        failure=to_failure(message.failure) if message.HasField("failure") else None,
        parent_job=JobId(message.parent_job) if message.parent_job else None,
        parent_step=message.parent_step if message.parent_job else None,
    )


def to_failure(message: jobs_pb2.Failure) -> views.Failure:
    return views.Failure(
        kind=_enum(FailureClass, message.kind),
        attempt=Attempt(message.attempt),
        hint=message.hint,
        node_id=NodeId(message.node_id) if message.node_id else None,
        node=message.node,
        rank=message.rank if message.HasField("rank") else None,
        exit_code=message.exit_code if message.HasField("exit_code") else None,
        at_us=micros(message.at_us),
        error_type=message.error_type,
        message=message.message,
        traceback=message.traceback,
        last_lines=message.last_lines,
    )


def to_task(message: jobs_pb2.TaskView) -> views.Task:
    return views.Task(
        task=message.task,
        node_id=NodeId(message.node_id),
        node=message.node,
        state=message.state,
        start_mode=message.start_mode,
        first_rank=message.first_rank,
        pids=tuple(message.pids),
        exit_codes=tuple(message.exit_codes),
        gpu_indices=tuple(message.gpu_indices),
        record=message.record,
    )


def to_checkpoint(message: jobs_pb2.CheckpointView) -> views.Checkpoint:
    return views.Checkpoint(
        step=message.step,
        attempt=Attempt(message.attempt),
        path=message.path,
        size_bytes=message.size_bytes,
        accepted_us=Micros(message.accepted_us),
        metrics=dict(message.metrics),
        url=message.url,
        damaged=dict(message.damaged),
        good=message.good,
        stall_s=message.stall_s,
        persist_s=message.persist_s,
        why=message.why,
        job=JobId(message.job) if message.job else None,
        kept=message.kept,
        state=message.state,
        tiers=message.tiers,
    )


def to_save_asked(message: jobs_pb2.CheckpointReply) -> views.SaveAsked:
    return views.SaveAsked(message.request, Attempt(message.attempt))


def to_why(message: jobs_pb2.WhyReply) -> views.Why:
    return views.Why(
        job=to_job(message.job),
        reasons=tuple(to_reason(reason) for reason in message.reasons),
        never=message.never,
    )


def to_entry(message: jobs_pb2.TimelineEntry) -> views.TimelineEntry:
    return views.TimelineEntry(
        seq=message.seq,
        at_us=Micros(message.at_us),
        attempt=Attempt(message.attempt),
        kind=message.kind,
        text=message.text,
        body=message.body,
    )


def to_timeline(message: jobs_pb2.TimelineReply) -> views.Timeline:
    ledger = message.ledger
    return views.Timeline(
        job=to_job(message.job),
        entries=tuple(to_entry(entry) for entry in message.entries),
        ledger=views.Ledger(
            wall_us=ledger.wall_us,
            queued_us=ledger.queued_us,
            starting_us=ledger.starting_us,
            productive_us=ledger.productive_us,
            checkpoint_us=ledger.checkpoint_us,
            lost_us=ledger.lost_us,
            restarting_us=ledger.restarting_us,
            hung_us=ledger.hung_us,
        ),
    )


def to_change(message: jobs_pb2.WatchReply) -> views.Change:
    return views.Change(entry=to_entry(message.entry), job=to_job(message.job))


def to_chunk(message: Payload[logs_pb2.LogChunk]) -> views.LogChunk:
    head = message.head
    return views.LogChunk(
        job=JobId(head.job),
        attempt=Attempt(head.attempt),
        rank=head.rank,
        offset=head.offset,
        data=bytes(message.data),
        dropped_bytes=head.dropped_bytes,
    )


def to_node(message: nodes_pb2.NodeView) -> views.Node:
    inventory = message.inventory
    return views.Node(
        node_id=NodeId(message.node_id),
        name=inventory.name,
        address=inventory.address,
        contact=_enum(NodeContact, message.contact),
        last_heard_us=Micros(message.last_heard_us),
        capacity=to_resources(inventory.capacity),
        free=to_resources(message.free),
        gpus=tuple(to_gpu(gpu) for gpu in inventory.gpus),
        gpu_status=inventory.gpu_status,
        containment=inventory.containment,
        warm_pool=inventory.warm_pool,
        labels=dict(inventory.labels),
        taints=dict(inventory.taints),
        environments=dict(inventory.environments),
        container_engine=inventory.container_engine,
        version=inventory.version,
        driver_version=inventory.driver_version,
        tasks=tuple(TaskKey(JobId(key.job), Attempt(key.attempt), key.task) for key in message.tasks),
        reason=_reason_or_none(message.HasField("reason"), message.reason),
        cordon=to_cordon(message.cordon) if message.HasField("cordon") else None,
    )


def to_cordon(message: nodes_pb2.CordonView) -> views.Cordon:
    return views.Cordon(message.by, message.why, Micros(message.since_us), message.drains, message.tasks_left)


def to_cordoned(message: nodes_pb2.CordonReply) -> views.Cordoned:
    return views.Cordoned(
        tuple(to_node(node) for node in message.nodes), tuple(JobId(job) for job in message.jobs)
    )


def to_policy(message: policy_pb2.PolicyView) -> policy_views.Policy:
    return policy_views.Policy(message.document, message.by, micros(message.changed_us))


def to_queue(message: policy_pb2.QueueView) -> policy_views.Queue:
    return policy_views.Queue(
        path=message.path,
        declared=message.declared,
        weight=message.weight,
        share=message.share,
        guaranteed=to_quota(message.guaranteed),
        max=to_quota(message.max),
        max_per_user=to_quota(message.max_per_user),
        users=None if message.open else tuple(message.users),
        in_use=to_quota(message.in_use),
        waiting=message.waiting,
        used_gpu_hours=message.used_gpu_hours,
        rank=message.rank or None,
        user_in_use=to_quota(message.user_in_use),
    )


def to_quota(message: policy_pb2.QuotaAmount) -> policy_views.Quota:
    return policy_views.Quota(
        gpu_milli=message.gpu_milli if message.HasField("gpu_milli") else None,
        cpu_milli=message.cpu_milli if message.HasField("cpu_milli") else None,
        jobs=message.jobs if message.HasField("jobs") else None,
    )


def to_pool(message: policy_pb2.PoolView) -> policy_views.Pool:
    return policy_views.Pool(
        name=message.name,
        node_names=tuple(message.node_names),
        labels=dict(message.labels),
        users=None if message.all_users else tuple(message.users),
        queues=None if message.all_queues else tuple(message.queues),
        max_gpu_milli_per_job=message.max_gpu_milli_per_job or None,
        timeout_us=message.timeout_us or None,
        max_timeout_us=message.max_timeout_us or None,
        default=message.default,
        nodes=message.nodes,
        connected=message.connected,
        gpus=message.gpus,
        gpus_free=message.gpus_free,
        cpu_milli=message.cpu_milli,
        cpu_milli_free=message.cpu_milli_free,
        waiting=message.waiting,
        maintenance=tuple(
            policy_views.Window(Micros(one.from_us), Micros(one.to_us), one.why)
            for one in message.maintenance
        ),
        reservations=tuple(to_reservation(one) for one in message.reservations),
    )


def to_reservation(message: policy_pb2.ReservationView) -> policy_views.Reservation:
    return policy_views.Reservation(
        name=message.name,
        from_us=Micros(message.from_us),
        to_us=Micros(message.to_us),
        nodes=message.nodes,
        node_names=tuple(message.node_names),
        users=None if message.all_users else tuple(message.users),
        queues=None if message.all_queues else tuple(message.queues),
        why=message.why,
    )


def to_gpu(message: nodes_pb2.Gpu) -> views.Gpu:
    return views.Gpu(
        index=message.index,
        uuid=message.uuid,
        name=message.name,
        memory_total_bytes=message.memory_total_bytes,
        memory_used_bytes=message.memory_used_bytes if message.HasField("memory_used_bytes") else None,
        utilization_percent=message.utilization_percent if message.HasField("utilization_percent") else None,
        temperature_c=message.temperature_c if message.HasField("temperature_c") else None,
        power_mw=message.power_mw if message.HasField("power_mw") else None,
        pci_bus_id=message.pci_bus_id,
        mig_enabled=message.mig_enabled,
        ecc_uncorrected=message.ecc_uncorrected if message.HasField("ecc_uncorrected") else None,
        last_xid=message.last_xid if message.HasField("last_xid") else None,
        health=message.health,
        state=_enum(GpuState, message.state or _state_by(message.health)),
        needs=message.needs,
        since_us=micros(message.since_us),
        quarantines=message.quarantines,
        numa_node=message.numa_node if message.HasField("numa_node") else None,
        slices=tuple(
            views.GpuSlice(
                index=slice_index(message.index, one.gpu_instance, one.compute_instance),
                uuid=one.uuid,
                name=one.name,
                memory_total_bytes=one.memory_total_bytes,
            )
            for one in message.slices
        ),
    )


def _state_by(health: str) -> GpuState:
    """Of an agent that only says what is wrong."""
    return GpuState.OK if health in ("", "ok") else GpuState.DRAINED


def to_resources(message: common_pb2.Resources) -> Resources:
    return Resources(message.cpu_milli, message.memory_bytes, message.gpus, message.gpu_milli)


def to_reason(message: common_pb2.Reason) -> views.Reason:
    return views.Reason(message.code, message.text, message.hint, dict(message.fields))


def _reason_or_none(present: bool, message: common_pb2.Reason) -> views.Reason | None:
    return to_reason(message) if present and (message.code or message.text) else None


def micros(value: int) -> Micros | None:
    return Micros(value) if value else None


def _enum(kind: type[E], value: str) -> E:
    try:
        return kind(value)
    except ValueError as error:
        raise InvalidRequest(
            f"the scheduler said {kind.__name__} {value!r}, which this version does not know",
            hint=f"install the scheduler's version here; known are: {', '.join(kind)}",
            value=value,
        ) from error
