"""Keeps the indexes of a ClusterState true when a job or node changes. Only evolve and recovery come here.

A job is in exactly one place: in line, held back, on hold, with a claim, placed on nodes, or (when over)
nowhere. A stranded one is placed, and in line to move.
"""

from collections import Counter
from collections.abc import Iterable, Sequence

from ...spec.ids import Micros, NodeId
from ...spec.lifecycle import JobState, NodeContact, check_transition
from .deadlines import job_deadline, node_deadline
from .job import FRESH, Claim, Job, may_grow
from .maintenance import closing_of, next_change_us
from .node import Node, fresh_load
from .queues import leaf_of, leaf_of_job
from .reservations import assign, changes_assignment, note_time
from .state import ClusterState
from .stranding import is_stranded
from .weights import gang_milli, weight_milli


def put_job(state: ClusterState, old: Job | None, new: Job) -> Job:
    """`new` takes the place of `old`. Raises IllegalTransition, with the job's story."""
    if old is not None and old.state is not new.state:
        check_transition(old.state, new.state, lambda: story(old))
    if old is None or _place_changes(old, new):
        if old is not None:
            _leave(state, old)
        _enter(state, new)
    elif old.priority != new.priority and old.number in state.stranded:
        state.queue.remove(old)
        state.queue.add(new)
    if new.over:
        del state.jobs[new.number]
        state.small.discard(new.number)
        state.timers.drop((0, new.number))
        return new
    state.jobs[new.number] = new
    if new.course is not FRESH:  # of one that has only ever waited there is nothing to note
        _note_stranded(state, new)
        _note_small(state, new)
        _set_job_timer(state, new)
    return new


def story(job: Job) -> str:
    """What is known of a job, for the message of a bug."""
    course = job.course
    tasks = ", ".join(f"task {task.task} on {task.node} {task.state}" for task in course.tasks)
    return (
        f"job {job.number} ({job.name}): attempt {course.attempt} {course.state}; {tasks or 'no tasks'}; "
        f"last ending: {course.ending}; stop: {course.stop}"
    )


def put_node(state: ClusterState, old: Node | None, new: Node | None) -> Node | None:
    """`new` takes the place of `old`; None: it is forgotten."""
    if old is not None:
        state.contacts[old.contact] -= 1
        state.capacity_milli -= _capacity_milli(old)
    if new is None:
        assert old is not None
        del state.nodes[old.node], state.loads[old.node]
        state.resting.discard(old.node)
        state.closed.discard(old.node)
        state.windows_until_us.pop(old.node, None)
        _note_assignment(state, old, new)
        state.timers.drop((1, old.node))
        state.changes.add(old.node, len(state.nodes))
        return None
    state.contacts[new.contact] += 1
    state.capacity_milli += _capacity_milli(new)
    state.nodes[new.node] = new
    if old is None or old.inventory != new.inventory:
        _rebuild_load(state, new)
    if old is None or old.inventory != new.inventory or _came_or_went(old, new):
        state.queue.unpark_all()
        state.ever.clear()
        state.capacities.clear()
    if old is None or _takes_other_work(old, new):
        state.freed += 1
        state.changes.add(new.node, len(state.nodes))
    if old is not None and _came_or_went(old, new):
        for number in sorted({key.job for key in state.loads[new.node].tasks}):
            _note_stranded(state, state.jobs[number])
    _note_resting(state, new)
    if old is None or old.inventory != new.inventory:
        note_closed(state, new)
    _note_assignment(state, old, new)
    set_node_timer(state, new)
    return new


def settle_reservations(state: ClusterState) -> None:
    """Their nodes are chosen anew."""
    before = state.kept
    assign(state)
    note_time(state)
    for name in sorted(state.kept.keys() | before.keys()):
        if state.kept.get(name) != before.get(name) and name in state.nodes:
            set_node_timer(state, state.nodes[name])


def _note_assignment(state: ClusterState, old: Node | None, new: Node | None) -> None:
    if changes_assignment(state, old, new):
        settle_reservations(state)


def note_closed(state: ClusterState, node: Node) -> None:
    """By the maintenance windows of its pools."""
    if not state.timed and not state.closed:
        return
    until_us = next_change_us(state, node)
    if until_us is None:
        state.windows_until_us.pop(node.node, None)
    else:
        state.windows_until_us[node.node] = until_us
    closes = closing_of(state, node, state.last_at_us) is not None
    _set_out_of_use(state, state.closed, node, out=closes)


def set_node_timer(state: ClusterState, node: Node) -> None:
    deadline = node_deadline(state, node)
    if deadline is not None:
        state.timers.set((1, node.node), deadline)


def settle_timers(state: ClusterState, now_us: Micros) -> None:
    """Take out what was due, set what still stands, and let those back in line whose backoff is over."""
    if state.spans and state.last_at_us >= state.spans_until_us:
        note_time(state)
    for _, name in state.timers.pop_due(now_us):
        if isinstance(name, str):
            node = state.nodes.get(name)
            if node is not None:
                _note_resting(state, node)
                if state.last_at_us >= state.windows_until_us.get(name, state.last_at_us + 1):
                    note_closed(state, node)
                set_node_timer(state, node)
            continue
        job = state.jobs.get(name)
        if job is None:
            continue
        if job.number in state.held and not _must_wait(state, job):
            _leave(state, job)
            _enter(state, job)
        _set_job_timer(state, job)


def enter_recovered(state: ClusterState, jobs: Sequence[Job], waiting: Iterable[Sequence[Job]]) -> None:
    """Jobs from the store, in the order of their numbers, when their nodes are already there. Most have only
    ever waited, and nothing is due for these: they also come in `waiting`, each lane's together."""
    state.jobs = {job.number: job for job in jobs}
    for job in jobs:
        if job.course is not FRESH:
            state.rate = state.rate.plus(job.course.rate)
            _enter(state, job)
            _note_stranded(state, job)
            _note_small(state, job)
            _set_job_timer(state, job)
    for alike in waiting:
        state.queue.add_all(alike)
        for user, count in Counter(job.user for job in alike).items():
            _count_waiting(state, leaf_of(alike[0].shape.queue, user), count)


def _capacity_milli(node: Node) -> int:
    return weight_milli(node.inventory.capacity) if node.in_service else 0


def _set_job_timer(state: ClusterState, job: Job) -> None:
    deadline = job_deadline(state, job)
    if deadline is not None:
        state.timers.set((0, job.number), deadline)


def _came_or_went(old: Node, new: Node) -> bool:
    """It is lost or cordoned, or no longer."""
    lost = (old.contact is NodeContact.LOST) != (new.contact is NodeContact.LOST)
    return lost or (old.cordon is None) != (new.cordon is None)


def _takes_other_work(old: Node, new: Node) -> bool:
    other = old.contact is not new.contact or old.inventory != new.inventory
    return other or (old.cordon is None) != (new.cordon is None)


def _place_changes(old: Job, new: Job) -> bool:
    before, after = old.course, new.course
    return (
        (before.state is not after.state and not (old.placed and new.placed))
        or before.lingering is not after.lingering
        or before.held_until_us != after.held_until_us
        or before.claim is not after.claim
        or (not new.placed and (before.hold is not after.hold or old.priority != new.priority))
    )


def _must_wait(state: ClusterState, job: Job) -> bool:
    return bool(job.course.lingering) or job.course.held_until_us > state.last_at_us


def _enter(state: ClusterState, job: Job) -> None:
    if job.placed:
        _take(state, job)
    elif job.state is JobState.QUEUED:
        _count_waiting(state, leaf_of_job(job), 1)
        for one in job.course.lingering:
            state.loads[one.node].lingering.add(one.key)
            set_node_timer(state, state.nodes[one.node])
        if job.course.claim is not None:
            _note_claim(state, job, job.course.claim)
        elif _must_wait(state, job):
            state.held.add(job.number)
        elif job.course.hold is not None:
            state.on_hold.add(job.number)
        else:
            state.queue.add(job)


def _count_waiting(state: ClusterState, leaf: str, more: int) -> None:
    count = state.waiting.pop(leaf, 0) + more
    if count:
        state.waiting[leaf] = count


def _note_claim(state: ClusterState, job: Job, claim: Claim) -> None:
    state.claims.add(job.number)
    state.usage.claim(job, 1)
    state.freed += 1
    for name in claim.kept:
        state.claimed[name] = job.number
        state.changes.add(name, len(state.nodes))


def _forget_claim(state: ClusterState, job: Job, claim: Claim) -> None:
    state.claims.remove(job.number)
    state.usage.claim(job, -1)
    state.freed += 1
    for name in claim.kept:
        del state.claimed[name]
        state.changes.add(name, len(state.nodes))


def _note_resting(state: ClusterState, node: Node) -> None:
    _set_out_of_use(state, state.resting, node, out=node.rests_until_us > state.last_at_us)


def _set_out_of_use(state: ClusterState, those: set[NodeId], node: Node, *, out: bool) -> None:
    """It is among those that get no work at present, or no longer."""
    if out == (node.node in those):
        return
    state.freed += 1
    state.changes.add(node.node, len(state.nodes))
    if out:
        those.add(node.node)
    else:
        those.remove(node.node)


def _note_stranded(state: ClusterState, job: Job) -> None:
    """In line while it is stranded; its place there is that of a restart."""
    stands = job.number in state.stranded
    if is_stranded(state, job) == stands:
        return
    state.freed += 1
    if stands:
        state.stranded.remove(job.number)
        state.queue.remove(job)
    else:
        state.stranded.add(job.number)
        state.queue.add(job)


def _note_small(state: ClusterState, job: Job) -> None:
    if may_grow(job):
        state.small.add(job.number)
    else:
        state.small.discard(job.number)


def _leave(state: ClusterState, job: Job) -> None:
    if job.number in state.stranded:
        state.stranded.remove(job.number)
        state.queue.remove(job)
    if job.placed:
        _give_back(state, job)
    elif job.state is JobState.QUEUED:
        _count_waiting(state, leaf_of_job(job), -1)
        for one in job.course.lingering:
            state.loads[one.node].lingering.discard(one.key)
        if job.course.claim is not None:
            _forget_claim(state, job, job.course.claim)
        elif job.number in state.held:
            state.held.remove(job.number)
        elif job.number in state.on_hold:
            state.on_hold.remove(job.number)
        else:
            state.queue.remove(job)


def _take(state: ClusterState, job: Job) -> None:
    need = job.demand.per_task
    state.placed.add(job.number)
    state.lifted_milli += _lifted_milli(job)
    state.usage.take(job, state.last_at_us, state.policy.half_life_us)
    for task in job.tasks:
        load = state.loads[task.node]
        load.take(need, task.gpu_indices)
        load.tasks[job.key(task.task)] = task.gpu_indices
        state.changes.add(task.node, len(state.nodes))
    if job.course.rendezvous_port:
        state.loads[job.tasks[0].node].ports[job.course.rendezvous_port] = job.key(0)


def _lifted_milli(job: Job) -> int:
    return gang_milli(job.demand, len(job.tasks)) if job.course.lifted else 0


def _give_back(state: ClusterState, job: Job) -> None:
    need = job.demand.per_task
    state.placed.remove(job.number)
    state.lifted_milli -= _lifted_milli(job)
    state.usage.give_back(job, state.last_at_us, state.policy.half_life_us)
    state.freed += 1
    for task in job.tasks:
        load = state.loads[task.node]
        del load.tasks[job.key(task.task)]
        state.changes.add(task.node, len(state.nodes))
        load.give_back(need, task.gpu_indices, state.nodes[task.node].inventory)
    if job.course.rendezvous_port:
        state.loads[job.tasks[0].node].ports.pop(job.course.rendezvous_port, None)


def _rebuild_load(state: ClusterState, node: Node) -> None:
    """The inventory changed: what is taken stays taken."""
    old = state.loads.get(node.node)
    load = state.loads[node.node] = fresh_load(node.inventory)
    if old is None:
        return
    load.ports, load.lingering = old.ports, old.lingering
    for key, indices in old.tasks.items():
        need = state.jobs[key.job].demand.per_task
        load.tasks[key] = indices
        load.take(need, indices)
