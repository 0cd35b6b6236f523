"""A StartTask as the agent gets it: the job's document with its expressions resolved, and the gang's numbers.

Everything a node needs is in the message; an agent never asks back.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Final

from ...content.store import content_folder
from ...proto.codecs import resources_message, task_key_message
from ...proto.generated import agent_pb2
from ...spec.ids import Attempt, JobId, NodeId
from ...spec.job import JobSpec
from ...spec.parts import DataInput, Environment, Pinned
from ...spec.submission import input_marker
from ..core.copies import offered
from ..core.effects import StartTask, StopTask
from ..core.job import Checkpoint

_SECOND_US: Final = 1_000_000
_HOSTS_MAX: Final = 1000
CODE_MARKER: Final = "/@needs/code"
"""In the place of a folder that only the node knows."""


def job_folder(storage: Path, job: JobId) -> Path:
    """What all attempts of a job share; the same path on every node."""
    return storage / str(job)


def output_folders(storage: Path, job: JobId, attempt: Attempt, spec: JobSpec) -> dict[str, str]:
    """Where `${{outputs.NAME}}` leads in one attempt."""
    base = job_folder(storage, job) / "outputs" / str(attempt)
    return {name: str(base / name) for name in spec.outputs}


def checkpoint_url(spec: JobSpec, cluster: str, job: JobId) -> str:
    """Jobs of several clusters may share a bucket. Empty: nothing is uploaded."""
    base = spec.checkpoint.storage.rstrip("/")
    return f"{base}/{cluster}/{job}" if base else ""


def needs_of(spec: JobSpec) -> list[agent_pb2.Need]:
    """What the node is to provide before the start."""
    needs = []
    if spec.environment_path:
        needs.append(agent_pb2.Need(name="environment", url=spec.environment_path))
    if isinstance(built := spec.environment, Environment) and built.is_built:
        lines, version = built.requirements, built.python_version
        needs.append(agent_pb2.Need(name="environment", requirements=lines, python_version=version))
    if spec.container_image:
        needs.append(agent_pb2.Need(name="image", image=spec.container_image, paths=spec.local_paths()))
    if spec.code_tree:
        needs.append(agent_pb2.Need(name="code", tree=spec.code_tree, marker=CODE_MARKER))
    needs += [
        _input_need(name, value, value.pinned)
        for name, value in spec.inputs.items()
        if isinstance(value, DataInput) and value.pinned is not None and value.is_provided
    ]
    return needs


def _input_need(name: str, value: DataInput, pinned: Pinned) -> agent_pb2.Need:
    return agent_pb2.Need(
        name=f"inputs.{name}",
        tree=pinned.tree,
        url=pinned.url,
        version=pinned.etag,
        bytes=pinned.bytes,
        files=pinned.files,
        mode="download" if "download" in (value.mode or "") else "link",
        marker=input_marker(name),
    )


def nodes_named(effect: StartTask, spec: JobSpec) -> tuple[NodeId, ...]:
    """Whose addresses the message says: those of all tasks of the gang, for launchers that write them down
    (each task gets the whole list, so that larger gangs go without), else that of another node."""
    if _names_hosts(effect, spec):
        return tuple(task.node for task in effect.job.course.tasks)
    peer = _peer(effect) if spec.launcher else None
    return () if peer is None else (peer,)


def _names_hosts(effect: StartTask, spec: JobSpec) -> bool:
    return spec.launcher == "deepspeed" and len(effect.job.course.tasks) <= _HOSTS_MAX


def _peer(effect: StartTask) -> NodeId | None:
    """The node of the next task that is not on this one, after the last the first."""
    tasks, at = effect.job.course.tasks, effect.key.task
    return next((task.node for task in (*tasks[at:], *tasks[:at]) if task.node != tasks[at].node), None)


def start_message(
    effect: StartTask, spec: JobSpec, storage: Path, addresses: Mapping[NodeId, str], *, cluster: str
) -> agent_pb2.StartTask:
    """`addresses`: of `nodes_named`, or none; `cluster`: its id. Raises nothing: the document was checked
    when it was accepted."""
    job, course, demand = effect.job, effect.job.course, effect.job.demand
    task = course.tasks[effect.key.task]
    peer = _peer(effect) if addresses else None
    outputs = output_folders(storage, job.number, course.attempt, spec)
    folder = job_folder(storage, job.number)
    return agent_pb2.StartTask(
        task=task_key_message(effect.key),
        command=spec.resolved_command(outputs),
        cwd=CODE_MARKER if spec.code_tree else spec.code or "",  # "": the task's own folder
        needs=needs_of(spec),
        content_folder=str(content_folder(storage)),
        cluster_id=cluster,
        git_commit=spec.code_git.commit if spec.code_git is not None else "",
        environment=spec.resolved_variables(outputs),
        interpreter_environment=demand.environment,
        resources=resources_message(demand.per_task),
        processes=demand.processes_per_task,
        world_size=job.world_size,
        first_rank=job.first_rank(effect.key.task),
        node_rank=effect.key.task,
        node_count=len(course.tasks),
        master_address=effect.master_address,
        master_port=course.rendezvous_port,
        hosts_rendezvous=demand.rendezvous and effect.key.task == 0,
        gpu_indices=task.gpu_indices,
        exclusive=demand.exclusive,
        grace_s=job.shape.policy.grace_us / _SECOND_US,
        timeout_s=effect.timeout_us / _SECOND_US,
        job_folder=str(folder),
        checkpoints=[_checkpoint_message(one) for one in offered(course.checkpoints)],
        log_bytes_max=spec.limits.log_size,
        keep_last=spec.checkpoint.keep_last,
        keep_best=spec.checkpoint.keep_best,
        best_metric=spec.checkpoint.best_metric,
        keep_every=spec.checkpoint.keep_every,
        save_every=spec.checkpoint.every,
        mtbf_s=effect.mtbf_us / _SECOND_US,
        elastic=demand.elastic,
        metric_patterns=spec.metric_patterns,
        when_busy=spec.checkpoint.when_busy,
        output_folders=list(outputs.values()),
        job_name=job.name,
        launcher=spec.launcher,
        hosts=[addresses[one.node] for one in course.tasks]
        if addresses and _names_hosts(effect, spec)
        else (),
        peer_address=addresses[peer] if peer is not None else "",
        hang_timeout_s=spec.limits.hang_timeout_s,
        earlier_hangs=course.hangs,
        checkpoint_url=checkpoint_url(spec, cluster, job.number),
        scrub_s=spec.checkpoint.scrub_s,
        peer_memory=spec.checkpoint.peer_memory and len({place.node for place in course.tasks}) > 1,
    )


def _checkpoint_message(one: Checkpoint) -> agent_pb2.Checkpoint:
    return agent_pb2.Checkpoint(
        step=one.step,
        attempt=one.attempt,
        path=one.path,
        manifest_hash=one.manifest_hash,
        uploaded=bool(one.url),
        job=one.job or 0,
        stall_s=one.stall_us / _SECOND_US,
        persist_s=one.persist_us / _SECOND_US,
    )


def stop_message(effect: StopTask) -> agent_pb2.StopTask:
    return agent_pb2.StopTask(
        task=task_key_message(effect.key),
        grace_s=effect.grace_us / _SECOND_US,
        why=effect.why,
        keep_s=effect.keep_us / _SECOND_US,
    )
