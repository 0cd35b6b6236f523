"""How ranks and tasks leave: what is told of it, and whether the attempt ends by it.

The first rank that is heard to have failed on its own ends the attempt; when one is heard later that had
failed before it, the report of the last failure says so, and nothing else changes.
"""

from typing import Final

from msgspec.structs import replace

from ...spec.failures import FailureClass
from ...spec.ids import Attempt, Micros, NodeId
from ...spec.lifecycle import AttemptOutcome
from .attempt_events import FirstFailureFound
from .deadlines import went_silent
from .effects import Plan
from .ending import EXIT_NOT_RUN, EXIT_NOT_STARTABLE, end_attempt, stopped, timed_out
from .events import Event
from .failure import AFTER_A_PEER, Failure
from .failures import (
    class_of,
    could_be_cause,
    death_text,
    doubt_of,
    end_of_line,
    error_text,
    hint_of,
    is_before,
    is_gpus_fault,
    will_recur,
    xid_text,
)
from .gpus import gpu_fault
from .job import NEVER, Ending, Job, TaskState
from .node_events import NodeRested
from .settings import SECOND_US
from .signals import job_exit_code
from .state import ClusterState
from .stimuli import Ended, Entry, Exited, Refused, Waiting
from .stranding import within_reach
from .task_events import RankExited, RanksWaiting, StartRefused, TaskEnded

AGENT_GAVE_UP = frozenset({"agent stopped", "lease ran out", "superseded"})
"""Why an agent ended a task unasked; what could not be killed may follow, after a `;`."""
MAY_HAVE_TRAINED_US: Final = 600 * SECOND_US
"""An attempt that ran so long may have got on, though it told of no step."""


def late_facts(
    state: ClusterState, job: Job, node: NodeId, entry: Entry, now_us: Micros
) -> tuple[Event, ...]:
    """How a task of an attempt that is over left; it decides nothing."""
    match entry.said:
        case Exited():
            failure = failure_of(job, node, entry, entry.said, now_us)
            exited = _exit(job, entry, entry.said, failure, now_us)
            return (exited, *told_anew(state, job, failure, entry.said, now_us))
        case Ended():
            return (_end(entry, entry.said, now_us),)
        case Refused():
            return (_refusal(entry, entry.said, now_us),)
    return ()


def on_exited(state: ClusterState, job: Job, entry: Entry, said: Exited, now_us: Micros) -> Plan[None]:
    node = job.tasks[entry.task.task].node
    failure = failure_of(job, node, entry, said, now_us)
    event = _exit(job, entry, said, failure, now_us)
    if failure is None or said.killed_by_us or job.course.stop is not None:
        return Plan(None, (event,))
    return _and_end(state, job, now_us, event, _ending_of(state, job, failure, said))


def on_ended(state: ClusterState, job: Job, entry: Entry, said: Ended, now_us: Micros) -> Plan[None]:
    task = job.tasks[entry.task.task]
    event = _end(entry, said, now_us)
    ending = _ending_of_task(state, job, entry, said, now_us)
    if ending is not None:
        return _and_end(state, job, now_us, event, ending)
    others = [other for other in job.tasks if other.task != task.task]
    open_tasks = [other for other in others if other.state is not TaskState.ENDED]
    reachable = job.course.stop is None or within_reach(state, job.with_task_ended(task.task))
    if open_tasks and reachable:
        return Plan(None, (event,))
    by_itself = said.why == "exited" and all(other.ended_why == "exited" for other in others)
    codes = [code for codes in (said.exit_codes, *(other.exit_codes for other in others)) for code in codes]
    if job.course.stop is not None and not (by_itself and not any(codes)):
        return _and_end(state, job, now_us, event, stopped(job))
    succeeded = Ending(AttemptOutcome.SUCCEEDED, "succeeded", "all ranks exited with code 0")
    return _and_end(state, job, now_us, event, succeeded)


def on_refused(state: ClusterState, job: Job, entry: Entry, said: Refused, now_us: Micros) -> Plan[None]:
    """The job's fault: it is over. The node's fault or a race: elsewhere, after a short, growing backoff."""
    task = job.tasks[entry.task.task]
    event = _refusal(entry, said, now_us)
    text = f"{state.nodes[task.node].name} refused to start task {task.task}: {said.text}"
    ending = Ending(AttemptOutcome.START_FAILED, said.code, text, said.hint, EXIT_NOT_STARTABLE, task.node)
    if not said.transient:
        return _and_end(state, job, now_us, event, ending, again=False)
    again = len(job.course.avoid)
    held_us = state.settings.refusal_backoff_us * min(2**again, 64)
    avoid = None if task.node in job.course.avoid else task.node
    plan = _and_end(state, job, now_us, event, ending, avoid=avoid, held_us=held_us)
    return Plan(None, (*plan.events, *_rests(state, task.node, said, now_us)), plan.effects)


def on_waiting(state: ClusterState, job: Job, entry: Entry, said: Waiting, now_us: Micros) -> Plan[None]:
    """The gang has left together: nothing is left to wait for at its other tasks."""
    event = RanksWaiting(now_us, entry.task, entry.seq, said.ranks)
    if job.course.stop is None:
        return Plan(None, (event,))
    return _and_end(state, job, now_us, event, stopped(job))


def starts_again(state: ClusterState, name: NodeId, now_us: Micros) -> tuple[Event, ...]:
    return (NodeRested(now_us, name, 0),) if state.nodes[name].refusals else ()


def failure_of(job: Job, node: NodeId, entry: Entry, said: Exited, now_us: Micros) -> Failure | None:
    """None: its end cannot be what the attempt failed of."""
    if not could_be_cause(said):
        return None
    rank = job.first_rank(entry.task.task) + said.local_rank
    trained = job.course.step >= 0 or bool(job.course.checkpoints)
    kind = class_of(said, trained=trained, before=_failed_before(job, entry.task.attempt, now_us))
    found = said.evidence
    several = entry.task.attempt > 1 or job.shape.policy.retries_max > 0
    attempt = f" --attempt {entry.task.attempt}" if several else ""
    return Failure(
        kind=kind,
        hint=hint_of(said, kind, job.demand, f"`pace logs {job.number} --rank {rank}{attempt}`"),
        attempt=entry.task.attempt,
        node=node,
        rank=rank,
        exit_code=None if said.killed_by_us else said.exit_code,
        died_us=Micros(min(said.died_us, now_us)) if said.died_us else now_us,
        doubt=doubt_of(said, _world_size(job, entry.task.attempt)),
        error_type=found.error_type,
        message=found.message,
        traceback=found.traceback,
        last_lines=found.last_lines or said.last_line,
    )


def _failed_before(job: Job, attempt: Attempt, now_us: Micros) -> Failure | None:
    """With what a failure of that attempt is compared. When it is over already: with the user-error that
    ended it, so that its other ranks that fell of the same are of the same class."""
    told = job.course.ending.failure if job.course.ending is not None else None
    if told is None:
        return None
    if told.attempt == attempt:
        return told if told.kind is FailureClass.USER_ERROR else None
    got_on = now_us - job.course.attempt_us >= MAY_HAVE_TRAINED_US
    return told if told.attempt == attempt - 1 and not got_on else None


def told_anew(
    state: ClusterState, job: Job, failure: Failure | None, said: Exited, now_us: Micros
) -> tuple[Event, ...]:
    """The attempt that failed last was put down to another rank, which had failed later."""
    ending = job.course.ending
    if failure is None or ending is None or ending.failure is None or failure.rank is None:
        return ()
    told = ending.failure
    if ending.outcome is not AttemptOutcome.WORKER_FAILED or told.attempt != failure.attempt:
        return ()
    if not is_before(failure, told):
        return ()
    anew = replace(
        ending,
        code=failure.kind.value,
        text=death_text(said, failure.rank, _name(state, failure.node)),
        hint=failure.hint,
        node=failure.node,
        rank=failure.rank,
        failure=failure,
    )
    return (FirstFailureFound(now_us, job.number, failure.attempt, anew),)


def _exit(job: Job, entry: Entry, said: Exited, failure: Failure | None, now_us: Micros) -> RankExited:
    rank = job.first_rank(entry.task.task) + said.local_rank
    last_line = end_of_line(said.last_line) if failure is None else error_text(said)
    event = RankExited(
        now_us,
        entry.task,
        entry.seq,
        rank,
        said.exit_code,
        last_line,
        said.killed_by_us,
        said.cause or xid_text(said),
    )
    if failure is None:
        return event
    return replace(event, kind=failure.kind, died_us=failure.died_us or NEVER, doubt=failure.doubt)


def _world_size(job: Job, attempt: Attempt) -> int:
    """Of an earlier attempt that may have had another size: the largest it can have been."""
    if attempt == job.attempt:
        return job.world_size
    return job.demand.instance_count_max * job.demand.processes_per_task


def _name(state: ClusterState, node: NodeId | None) -> str:
    known = None if node is None else state.nodes.get(node)
    return known.name if known is not None else str(node)


def _end(entry: Entry, said: Ended, now_us: Micros) -> TaskEnded:
    return TaskEnded(now_us, entry.task, entry.seq, said.exit_codes, said.log_bytes, said.why)


def _refusal(entry: Entry, said: Refused, now_us: Micros) -> StartRefused:
    return StartRefused(now_us, entry.task, entry.seq, said.code, said.text, said.transient)


def _ending_of(state: ClusterState, job: Job, failure: Failure, said: Exited) -> Ending:
    """A rank fell. When a peer's node went silent, that node is the likelier cause, and no retry is used,
    unless the rank says itself what it fell of."""
    assert failure.rank is not None
    text = death_text(said, failure.rank, _name(state, failure.node))
    if is_gpus_fault(said):
        assert failure.node is not None
        return gpu_fault(failure.node, text)
    silent = _silent_peer(state, job, failure, said)
    if silent is not None:
        text = f"{state.nodes[silent].name} is silent and its peer fell: {text}"
        return Ending(AttemptOutcome.NODE_LOST, "node-lost", text, node=silent, exit_code=EXIT_NOT_RUN)
    return Ending(
        AttemptOutcome.WORKER_FAILED,
        failure.kind.value,
        text,
        failure.hint,
        job_exit_code(said.exit_code),
        failure.node,
        failure.rank,
        failure,
    )


def _silent_peer(state: ClusterState, job: Job, failure: Failure, said: Exited) -> NodeId | None:
    own = failure.kind is FailureClass.OUT_OF_MEMORY
    own = own or (failure.kind is FailureClass.USER_ERROR and will_recur(said))
    if own and failure.doubt != AFTER_A_PEER:
        return None
    peers = (task.node for task in job.tasks if task.node != failure.node)
    return next((peer for peer in peers if went_silent(state.nodes[peer])), None)


def _ending_of_task(
    state: ClusterState, job: Job, entry: Entry, said: Ended, now_us: Micros
) -> Ending | None:
    """How the attempt ends because of the way this task ended; None: it goes on, or ends when all have."""
    task = job.tasks[entry.task.task]
    name = state.nodes[task.node].name
    if job.course.stop is not None:
        return None
    why = said.why.partition(";")[0]
    if why == "timeout":
        return timed_out(job)
    if why in AGENT_GAVE_UP:
        text = f"the agent on {name} ended task {task.task}: {said.why}"
        return Ending(AttemptOutcome.NODE_LOST, "node-lost", text, node=task.node, exit_code=EXIT_NOT_RUN)
    failed = next(((at, code) for at, code in enumerate(said.exit_codes) if code), None)
    if why == "stopped" or (failed is None and said.why != "exited"):
        text = f"the agent on {name} stopped task {task.task} without being asked to: {said.why}"
        return Ending(AttemptOutcome.NODE_LOST, "node-lost", text, node=task.node, exit_code=EXIT_NOT_RUN)
    if failed is None:
        return None
    exited = Exited(failed[0], failed[1])
    failure = failure_of(job, task.node, entry, exited, now_us)
    assert failure is not None
    return _ending_of(state, job, failure, exited)


def _rests(state: ClusterState, name: NodeId, said: Refused, now_us: Micros) -> tuple[Event, ...]:
    """What is wrong on a node fails every job that is sent there: it gets none for a growing time."""
    node, settings = state.nodes[name], state.settings
    if node.rests_until_us > now_us:  # several starts, refused together
        return ()
    rest_us = min(settings.refusal_backoff_us * 2 ** min(node.refusals, 32), settings.rest_max_us)
    return (NodeRested(now_us, name, node.refusals + 1, Micros(now_us + rest_us), said.text),)


def _and_end(
    state: ClusterState,
    job: Job,
    now_us: Micros,
    event: Event,
    ending: Ending,
    *,
    again: bool = True,
    avoid: NodeId | None = None,
    held_us: int = 0,
) -> Plan[None]:
    """The entry, and the attempt's end because of it. The task of an end or a refusal is itself gone."""
    gone_task = event.task.task if isinstance(event, TaskEnded | StartRefused) else None
    plan = end_attempt(
        state, _without(job, gone_task), now_us, ending, again=again, avoid=avoid, held_us=held_us
    )
    return Plan(None, (event, *plan.events), plan.effects)


def _without(job: Job, gone_task: int | None) -> Job:
    if gone_task is None:
        return job
    return job.with_task_ended(gone_task)
