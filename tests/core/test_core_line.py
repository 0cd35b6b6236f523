"""The tree that a walk goes by stands as a sorted list of all standings would."""

from hypothesis import given
from hypothesis import strategies as st
from paceline.scheduler.core import events as e
from paceline.scheduler.core.cluster_policy import ClusterPolicy, QueuePolicy
from paceline.scheduler.core.evolve import evolve
from paceline.scheduler.core.fair import Levels
from paceline.scheduler.core.job import Course, Job, Shape
from paceline.scheduler.core.line import Line
from paceline.scheduler.core.order import standing
from paceline.scheduler.core.queues import leaf_of_job
from paceline.scheduler.core.state import ClusterState
from paceline.scheduler.core.usage import Account
from paceline.spec.ids import JobId, Micros
from paceline.spec.resources import GangDemand, Resources

NOW = Micros(5)
QUEUES = ("a", "a/x", "a/x/ann", "a/y", "b", "b/ann")
jobs = st.tuples(st.sampled_from(QUEUES), st.sampled_from(["ann", "bob", ""]), st.integers(0, 1))
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
