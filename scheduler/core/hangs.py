"""Whether a gang hangs, and which of its ranks did not arrive.

A node that sees no step for too long raises the suspicion; every node of the gang is asked where its ranks
are and whether it finds them still for too long as well. One that moves clears the gang: a rank may work for
long while its peers wait for it. Not so where a rank is stopped by a signal, and still for too long by its
own node's measure: whatever the others work at, it does not go on. Whoever has not answered by the deadline
is taken for stuck, unless its node is out of contact: then that is the matter, and others decide it. Where no
step has been made yet, a node that does not find its ranks still clears the gang too, and so does a task that
is still to start: its peers wait for what is being prepared there.

The rank to name: one that is stopped or not to be seen; else one that has not begun the collective in which
others wait, by torch's flight recorder; else one whose count of steps is behind its peers'; among equals, one
whose stack does not wait in a collective while others' do.
"""

from collections.abc import Callable, Sequence
from typing import Final

from ...spec.failures import FailureClass
from ...spec.ids import Micros
from ...spec.lifecycle import AttemptOutcome, NodeContact
from .amounts import duration_text
from .collectives import judge
from .effects import InspectTask, Plan
from .ending import EXIT_NOT_RUN, end_attempt
from .failure import Failure
from .hang import RankLook, Suspicion, place_of, silence_text, waits_for_peers, with_look
from .job import Ending, Job, TaskRun, TaskState
from .progress_events import GangHung, RanksInspected, SuspicionCleared, TaskStalled
from .state import ClusterState
from .stimuli import Entry, Inspected, Stalled

_Why = Callable[[RankLook], str]
NAMED_MAX: Final = 8
_STOPPED: Final = "stopped"


def on_stalled(job: Job, entry: Entry, said: Stalled, now_us: Micros) -> Plan[None]:
    """Ask all nodes of the gang, unless they are being asked already, or the gang is on its way out."""
    since_us = Micros(max(now_us - said.still_us, job.course.attempt_us))
    stalled = TaskStalled(
        now_us, entry.task, entry.seq, since_us, said.limit_us, said.longest_us, said.step, said.idle
    )
    if job.course.stop is not None or job.course.suspicion is not None:
        return Plan(None, (stalled,))
    asks = tuple(InspectTask(task.node, job.key(task.task)) for task in _living(job))
    return Plan(None, (stalled,), asks)


def on_inspected(state: ClusterState, job: Job, entry: Entry, said: Inspected, now_us: Micros) -> Plan[None]:
    event = RanksInspected(now_us, entry.task, entry.seq, said.begun, said.stalled, said.ranks)
    suspicion = with_look(job.course.suspicion, event)
    if suspicion is None or job.course.stop is not None:
        return Plan(None, (event,))
    if any(suspicion.look_of(task.task) is None for task in _living(job)):
        return Plan(None, (event,))
    then = conclude(state, job, suspicion, now_us)
    return Plan(None, (event, *then.events), then.effects)


def conclude(state: ClusterState, job: Job, suspicion: Suspicion, now_us: Micros) -> Plan[None]:
    """All have answered, or had their time."""
    moves = _why_not_hung(state, job, suspicion)
    if moves:
        return Plan(None, (SuspicionCleared(now_us, job.number, job.attempt, moves),))
    looks = [look for task in suspicion.looks for look in task.ranks]
    silent = tuple(task.task for task in _living(job) if suspicion.look_of(task.task) is None)
    names = {look.rank: _node_name(state, job, look.rank) for look in looks}
    ranks, text = culprits(looks, names)
    if silent:
        nodes = ", ".join(state.nodes[job.tasks[task].node].name for task in silent[:NAMED_MAX])
        ranks, text = (), f"{nodes} did not say where its ranks are; of the others, {text}"
    still_us = now_us - suspicion.since_us
    text = f"{silence_text(suspicion.step, duration_text(still_us))}: {text}"
    hung = GangHung(now_us, job.number, job.attempt, suspicion.since_us, suspicion.step, ranks, text)
    node = job.tasks[ranks[0] // job.demand.processes_per_task].node if ranks else None
    rank = ranks[0] if ranks else None
    hint = f"see `pace logs {job.number} --stacks --attempt {job.attempt}`"
    failure = Failure(FailureClass.HANG, job.attempt, hint, node, rank, message=text)
    ending = Ending(
        AttemptOutcome.WORKER_FAILED, failure.kind.value, text, hint, EXIT_NOT_RUN, node, rank, failure
    )
    plan = end_attempt(state, job, now_us, ending)
    return Plan(None, (hung, *plan.events), plan.effects)


def culprits(looks: Sequence[RankLook], nodes: dict[int, str]) -> tuple[tuple[int, ...], str]:
    """The ranks that did not arrive, and a sentence about them; no rank, where none can be told from its
    peers."""
    late, why = _late(looks)
    if not late:
        where = "; ".join(f"rank {look.rank} {place_of(look)}" for look in looks[:NAMED_MAX])
        return (), f"no rank can be told from its peers: {where}" if where else "no rank is to be seen"
    named = "; ".join(
        f"rank {look.rank} on {nodes[look.rank]} {why(look)}, {place_of(look)}" for look in late[:NAMED_MAX]
    )
    more = f"; and {len(late) - NAMED_MAX} more" if len(late) > NAMED_MAX else ""
    return tuple(look.rank for look in late), named + more


def _late(looks: Sequence[RankLook]) -> tuple[list[RankLook], _Why]:
    stopped = [look for look in looks if look.state.startswith(_STOPPED)]
    if stopped:
        return stopped, lambda look: f"is {look.state}"
    if len(looks) == 1:
        return list(looks), lambda look: "makes no step"
    behind, why = judge(looks)
    if behind:
        return behind, why
    counts = {look.rank: _count(look, looks) for look in looks}
    most, least = max(counts.values(), default=0), min(counts.values(), default=0)
    behind = [look for look in looks if counts[look.rank] < most and counts[look.rank] == least]
    if behind:
        apart = [look for look in behind if not waits_for_peers(look)]
        return apart or behind, lambda look: f"did not arrive (step {counts[look.rank]}, others {most})"
    seen = [look for look in looks if look.stack]
    apart = [look for look in seen if not waits_for_peers(look)]
    if apart and len(apart) < len(seen):
        return apart, lambda look: "did not arrive where the others wait"
    return [], lambda look: ""


def _count(look: RankLook, looks: Sequence[RankLook]) -> int:
    """Optimizer steps where all make them; reports where all make those; else nothing can be compared."""
    if all(one.steps for one in looks):
        return look.steps
    return look.reports if all(one.reports for one in looks) else 0


def _why_not_hung(state: ClusterState, job: Job, suspicion: Suspicion) -> str:
    """Empty: it hangs."""
    stalled = [look for task in suspicion.looks if task.stalled for look in task.ranks]
    if any(look.state.startswith(_STOPPED) for look in stalled):
        return ""
    for task in _living(job):
        look, node = suspicion.look_of(task.task), state.nodes[task.node]
        if look is not None and not look.stalled and (look.begun or suspicion.step < 0):
            return f"task {task.task} on {node.name} may well be working"
        if task.state is TaskState.ASSIGNED and suspicion.step < 0:
            return f"task {task.task} on {node.name} has not started yet"
        if look is None and node.contact is not NodeContact.CONNECTED:
            return f"{node.name} is out of contact, and may be what the others wait for"
    return ""


def _living(job: Job) -> list[TaskRun]:
    return [task for task in job.tasks if task.state is not TaskState.ENDED]


def _node_name(state: ClusterState, job: Job, rank: int) -> str:
    return state.nodes[job.tasks[rank // job.demand.processes_per_task].node].name
