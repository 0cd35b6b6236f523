"""The tree that a walk goes by stands as a sorted list of all standings would."""

from hypothesis import given
from hypothesis import strategies as st
from paceline.scheduler.core import events as e
from paceline.scheduler.core.cluster_policy import ClusterPolicy, QueuePolicy
from paceline.scheduler.core.evolve import evolve
from paceline.scheduler.core.fair import Levels
from paceline.scheduler.core.job import Course, Ending, Job, Shape
from paceline.scheduler.core.line import Line
from paceline.scheduler.core.order import standing
from paceline.scheduler.core.queues import leaf_of_job, path_of
from paceline.scheduler.core.state import ClusterState
from paceline.scheduler.core.usage import Account
from paceline.spec.ids import JobId, Micros
from paceline.spec.lifecycle import AttemptOutcome, JobState
from paceline.spec.resources import GangDemand, Resources

NOW = Micros(5)
QUEUES = ("a", "a/x", "a/x/ann", "a/y", "b", "b/ann")
jobs = st.tuples(st.sampled_from(QUEUES), st.sampled_from(["ann", "bob", ""]), st.integers(0, 1))
ENDING = Ending(AttemptOutcome.CANCELLED, "c", "t")
used = st.dictionaries(st.sampled_from([*QUEUES, "a/bob", "b/bob", "a/x/bob"]), st.integers(0, 2))


@given(st.lists(jobs, max_size=30), used)
def test_the_first_of_the_tree_is_the_least_of_all_standings(
    waiting: list[tuple[str, str, int]], had: dict[str, int]
) -> None:
    state = ClusterState()
    queues = {path: QueuePolicy() for path in QUEUES}
    evolve(state, e.PolicyChanged(Micros(1), "admin", ClusterPolicy(queues)))
    for number, (queue, user, priority) in enumerate(waiting, 1):
        shape = Shape(GangDemand(Resources(gpus=1)), queue=queue)
        evolve(state, e.JobSubmitted(Micros(2), JobId(number), "job", user, priority, shape))
    state.usage.accounts = {path: Account(float(gpu_s), NOW) for path, gpu_s in had.items()}
    levels, firsts = Levels(state, NOW), state.queue.firsts()
    plain = sorted((standing(state, key, state.jobs[number], NOW, levels), key) for key, number in firsts)
    line, order = Line(state, NOW, lambda demand: True, lambda key: True), []
    while (found := line.first()) is not None:
        order.append(found[0])
        line.drop(found[0])
    assert order == [key for _, key in plain]


@given(
    st.lists(st.tuples(jobs, st.integers(1, 3)), max_size=30),
    used,
    st.lists(st.tuples(st.sampled_from([*QUEUES, "a/x/bob", "b/bob"]), st.integers(1, 9)), max_size=30),
    st.integers(0, 3),
)
def test_whatever_begins_meanwhile_the_first_is_the_least_of_those_with_room(
    waiting: list[tuple[tuple[str, str, int], int]],
    had: dict[str, int],
    begun: list[tuple[str, int]],
    roomy: int,
) -> None:
    """Also below queues that nobody has looked at yet."""
    state = ClusterState()
    queues = {path: QueuePolicy() for path in QUEUES}
    evolve(state, e.PolicyChanged(Micros(1), "admin", ClusterPolicy(queues)))
    for number, ((queue, user, priority), gpus) in enumerate(waiting, 1):
        shape = Shape(GangDemand(Resources(gpus=gpus)), queue=queue)
        evolve(state, e.JobSubmitted(Micros(2), JobId(number), "job", user, priority, shape))
    state.usage.accounts = {path: Account(float(gpu_s), NOW) for path, gpu_s in had.items()}
    line = Line(state, NOW, lambda demand: demand.per_task.gpus <= roomy, lambda key: False)
    left = {key for key in state.queue.lanes if key.demand.per_task.gpus <= roomy}
    for leaf, gpu_s in [*begun, *[("", 0)] * len(left)]:
        levels = Levels(state, NOW)
        plain = {
            standing(state, key, state.jobs[number], NOW, levels): key
            for key, number in state.queue.firsts()
            if key in left
        }
        found = line.first()
        assert found is None if not left else found is not None and found[0] == plain[min(plain)]
        if found is None:
            break
        key, job = found
        if not leaf:
            left.remove(key)
            line.drop(key)
            continue
        evolve(state, e.JobEnded(NOW, job.number, JobState.CANCELLED, ENDING))
        left &= state.queue.lanes.keys()
        for path in path_of(leaf):
            known = state.usage.account(path, NOW, state.policy.half_life_us)
            state.usage.accounts[path] = Account(known.gpu_s + gpu_s, NOW)
        line.moved(key, leaf)


def test_the_next_of_a_lane_may_stand_better_than_its_first() -> None:
    """It has waited longer in all, so its patience has lifted it."""
    state = ClusterState(capacity_milli=1_000_000)
    for number, queued_us in ((1, 0), (2, 5 * state.order.patience_us)):
        shape = Shape(GangDemand(Resources(gpus=1)))
        job = Job(JobId(number), "job", "ann", 0, NOW, shape, Course(queued_us=queued_us))
        state.jobs[job.number] = job
        state.queue.add(job)
    line = Line(state, NOW, lambda demand: True, lambda key: True)
    found = line.first()
    assert found is not None and found[1].number == 1
    state.queue.remove(found[1])
    line.moved(found[0], leaf_of_job(found[1]))
    found = line.first()
    assert found is not None and found[1].number == 2
