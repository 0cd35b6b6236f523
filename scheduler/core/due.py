"""What time alone brings about: one plan for each job or node that is due."""

from ...spec.ids import Micros
from ...spec.lifecycle import AttemptOutcome, JobState
from .attempt_events import JobEnded
from .contact import on_node_due
from .deadlines import stop_deadline
from .effects import Plan
from .ending import EXIT_NOT_RUN, end_attempt, stopped, timed_out
from .hangs import conclude
from .job import Ending, Job, Stop
from .making_way import make_way
from .state import ClusterState
from .submit import request_stop
from .timers import TimerKey


def on_due(state: ClusterState, key: TimerKey, now_us: Micros) -> Plan[None]:
    """An entry may fire too early: then nothing is due yet."""
    _, name = key
    if isinstance(name, str):
        node = state.nodes.get(name)
        if node is None:
            return Plan(None)
        leave = make_way(state, node, now_us)
        return leave if leave.events else on_node_due(state, node, now_us)
    job = state.jobs.get(name)
    return Plan(None) if job is None else _on_job_due(state, job, now_us)


def _on_job_due(state: ClusterState, job: Job, now_us: Micros) -> Plan[None]:
    course, policy = job.course, job.shape.policy
    if course.stop is not None:
        if now_us < stop_deadline(state, job):
            return Plan(None)
        return end_attempt(state, job, now_us, stopped(job))
    suspicion = course.suspicion
    if suspicion is not None and now_us >= suspicion.at_us + state.settings.inspect_us:
        return conclude(state, job, suspicion, now_us)
    if policy.timeout_us and course.started_us and now_us >= course.started_us + policy.timeout_us:
        if not job.placed:
            return Plan(None, (JobEnded(now_us, job.number, JobState.FAILED, timed_out(job)),))
        return request_stop(state, job, Stop(AttemptOutcome.TIMED_OUT, now_us, policy.grace_us))
    if course.state is JobState.STARTING and now_us >= course.attempt_us + state.settings.start_timeout_us:
        return _start_took_too_long(state, job, now_us)
    return Plan(None)


def _start_took_too_long(state: ClusterState, job: Job, now_us: Micros) -> Plan[None]:
    waited = [task for task in job.tasks if not task.applied_seq] or list(job.tasks)
    name = state.nodes[waited[0].node].name
    limit_s = state.settings.start_timeout_us / 1e6
    text = f"task {waited[0].task} on {name} has not started within {limit_s:g} s"
    ending = Ending(AttemptOutcome.START_FAILED, "start-timeout", text, "", EXIT_NOT_RUN, waited[0].node)
    return end_attempt(state, job, now_us, ending, avoid=waited[0].node)
