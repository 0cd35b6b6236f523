"""GPUs that are out of service: whose attempts end by them, and how that is told.

Which are is a fact of the inventory, and looked at anew with each: a gang on a quarantined GPU is restarted
elsewhere, whenever and however its node says so. One on a GPU that is only drained goes on. None is ever
placed on either.
"""

from collections.abc import Collection, Iterable, Sequence

from ...spec.gpu_health import GpuState
from ...spec.ids import JobId, Micros, NodeId, TaskKey
from ...spec.lifecycle import AttemptOutcome
from ...spec.resources import GpuWish
from ...spec.slices import gpu_of, index_text
from .amounts import duration_text
from .effects import Effect, Plan
from .ending import EXIT_NOT_RUN, end_attempt
from .events import Event
from .job import NEVER, Ending, Job, TaskState
from .node import Node, NodeInventory, SickGpu, will_do
from .state import ClusterState

SHOWN = 3
HINT = "see `pace nodes`; it is tested by itself, and given back when it does well"


def jobs_on(state: ClusterState, node: NodeId) -> list[Job]:
    numbers = sorted({key.job for key in state.loads[node].tasks})
    return [state.jobs[number] for number in numbers]


def ends_on(
    state: ClusterState,
    node: NodeId,
    inventory: NodeInventory,
    now_us: Micros,
    has: Collection[TaskKey] | None = None,
) -> Plan[frozenset[JobId]]:
    """The ends of the attempts there that have a task on a quarantined GPU, to come before the change of the
    inventory; answer: whose. One that is being stopped anyway keeps its grace. `has`: the tasks that are
    there, where that is known."""
    bad = {gpu.index: gpu for gpu in inventory.sick if gpu.state is GpuState.QUARANTINED}
    jobs: list[JobId] = []
    events: list[Event] = []
    effects: list[Effect] = []
    for job in jobs_on(state, node) if bad else ():
        gpu = next(filter(None, (bad.get(index) for index in _held(job, node))), None)
        if gpu is None or job.course.stop is not None:
            continue
        text = f"GPU {index_text(gpu.index)} of {inventory.name or node} is quarantined: {gpu.why}"
        there = has is None or any(key in has for key in state.loads[node].tasks if key.job == job.number)
        plan = end_attempt(state, job, now_us, gpu_fault(node, text), gone=() if there else (node,))
        jobs.append(job.number)
        events += plan.events
        effects += plan.effects
    return Plan(frozenset(jobs), tuple(events), tuple(effects))


def _held(job: Job, node: NodeId) -> list[int]:
    """The GPUs there that processes of the job may be using; with slices also the GPUs that they are of: one
    that was lost before its agent came tells of no slices."""
    tasks = (task for task in job.tasks if task.node == node and task.state is not TaskState.ENDED)
    indices = [index for task in tasks for index in task.gpu_indices]
    return list(dict.fromkeys([*indices, *map(gpu_of, indices)]))


def gpu_fault(node: NodeId, text: str) -> Ending:
    """Not the job's doing: it uses no retry."""
    return Ending(AttemptOutcome.NODE_LOST, "gpu-fault", text, HINT, EXIT_NOT_RUN, node)


def sick_texts(nodes: Iterable[Node], wish: GpuWish, now_us: Micros) -> str:
    """`; 1 of 8 GPUs of n1 is quarantined for 12 min: XID 79: fallen off the bus`, of the first few."""
    texts = []
    for node in nodes:
        if sick := [gpu for gpu in node.inventory.sick if will_do(gpu, wish)]:
            texts.append(sick_text(node.inventory, node.name, sick, now_us))
    more = f"; and GPUs of {len(texts) - SHOWN} more nodes" if len(texts) > SHOWN else ""
    return "".join(f"; {text}" for text in texts[:SHOWN]) + more


def sick_text(inventory: NodeInventory, name: str, sick: Sequence[SickGpu], now_us: Micros) -> str:
    """Of some that are out of service. `now_us` NEVER: not for how long."""
    count = len(inventory.gpus) + len(inventory.sick)
    worst = next((gpu for gpu in sick if gpu.state is GpuState.QUARANTINED), sick[0])
    are = "is" if len(sick) == 1 else "are"
    how = "quarantined" if worst.state is GpuState.QUARANTINED else "drained"
    return f"{len(sick)} of {count} GPUs of {name} {are} {how}{_since(worst, now_us)}: {worst.why}"


def _since(gpu: SickGpu, now_us: Micros) -> str:
    if NEVER in (gpu.since_us, now_us):
        return ""
    return f" for {duration_text(max(0, now_us - gpu.since_us))}"
