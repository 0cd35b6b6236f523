"""Whatever is submitted, ends, and is changed meanwhile: limits hold, guarantees are reached, and a scheduler
that was recovered decides as the one that was not."""

from dataclasses import dataclass, field
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st
from paceline.scheduler.core.attempt_events import AttemptStarted, PlacesClaimed
from paceline.scheduler.core.cluster_policy import Amount, ClusterPolicy, QueuePolicy, UserAmount
from paceline.scheduler.core.evolve import evolve
from paceline.scheduler.core.indexes import put_node
from paceline.scheduler.core.quota import limits_of, tasks_allowed
from paceline.scheduler.core.state import ClusterState
from paceline.scheduler.core.stimuli import Tick
from paceline.spec.errors import Conflict
from paceline.spec.lifecycle import JobState
from support.paddock import Paddock, shape
from support.sim_checks import picture
from support.sim_laws import state_is_sane

QUEUES = ("a", "a/x", "a/y", "b")
NODES = tuple(f"n{number}" for number in range(4))
"""Of 8 GPUs each."""
TICK = Tick()

amounts = st.none() | st.integers(0, 24).map(lambda gpus: gpus * 1000)


@st.composite
def policies(draw: st.DrawFn) -> ClusterPolicy:
    """Also such as no document could say: the core bears them."""
    queues = {
        path: QueuePolicy(
            draw(st.sampled_from([0.5, 1.0, 2.0])),
            Amount(draw(amounts)),
            Amount(draw(amounts), draw(st.none() | st.integers(1, 64).map(lambda cpus: cpus * 1000))),
            UserAmount(draw(amounts), draw(st.none() | st.integers(0, 3))),
        )
        for path in QUEUES
    }
    return ClusterPolicy(queues, half_life_us=draw(st.sampled_from([3600, 86_400])) * 1_000_000)


moves = st.one_of(
    st.tuples(
        st.just("submit"),
        st.sampled_from(QUEUES),
        st.sampled_from(["ann", "bob"]),
        st.integers(1, 3),
        st.sampled_from([0, 0.5, 1, 4, 8]),
        st.integers(-1, 1),
    ),
    st.tuples(st.just("start"), st.integers(0, 50)),
    st.tuples(st.just("end"), st.integers(0, 50)),
    st.tuples(st.just("time"), st.integers(1, 5000)),
    st.tuples(st.just("policy"), policies()),
)


@dataclass
class Story:
    """The same moves on a paddock of its own."""

    paddock: Paddock = field(default_factory=Paddock)
    jobs: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        for name in NODES:
            self.paddock.node_joins(name, gpus=8, cpus=16)

    def goes_on(self, move: tuple[Any, ...]) -> None:
        paddock = self.paddock
        match move:
            case ("submit", queue, user, tasks, gpus, priority):
                one = shape(tasks, gpus=gpus, queue=queue, least=1)
                self.jobs += paddock.submit(one, user=user, priority=priority)
            case ("start", at):
                for job in self._some(at, JobState.STARTING):
                    paddock.starts(job)
            case ("end", at):
                for job in self._some(at, JobState.RUNNING):
                    leaves(paddock, job) if paddock.job(job).course.stop else paddock.finishes(job)
            case ("time", seconds):
                passes(paddock, seconds)
            case ("policy", policy):
                try:
                    paddock.policy_becomes(policy)
                except Conflict:
                    return

    def _some(self, at: int, state: JobState) -> list[int]:
        there = [job for job in self.jobs if self.paddock.state_of(job) is state]
        return [there[at % len(there)]] if there else []


@settings(max_examples=60, deadline=None)
@given(policies(), st.lists(moves, max_size=40))
def test_limits_hold_and_a_recovered_scheduler_decides_alike(
    policy: ClusterPolicy, told: list[tuple[Any, ...]]
) -> None:
    story, twin = Story(), Story()
    for one in (story, twin):
        one.goes_on(("policy", policy))
    for move in told:
        story.goes_on(move)
        twin.goes_on(move)
        recovers(twin.paddock)
        state_is_sane(story.paddock.state)
        for job in story.paddock.state.jobs.values():
            rooms = [limit.room for limit in limits_of(story.paddock.state, job)]
            least = min((room for room in rooms if room is not None), default=job.demand.instance_count_max)
            assert tasks_allowed(story.paddock.state, job) == least
        assert picture(story.paddock.state) == picture(twin.paddock.state)
    holds_all_along(story.paddock)


def passes(paddock: Paddock, seconds: int) -> None:
    """In one step; all nodes are heard of."""
    paddock.now_us += seconds * 1_000_000
    for name, session in paddock.sessions.items():
        paddock.engine.heard(name, session, paddock.now_us)  # type: ignore[arg-type]
    paddock.tell(TICK)


def leaves(paddock: Paddock, job: int) -> None:
    for task in paddock.job(job).tasks:
        paddock.task_ends(job, task.task, -15)


def recovers(paddock: Paddock) -> None:
    """From rows in another order, and with all nodes still there."""
    store = paddock.store
    store.account_rows = dict(reversed(store.account_rows.items()))
    store.node_rows = dict(reversed(store.node_rows.items()))
    before = paddock.state
    denied = paddock.engine._turns.denied  # what was denied lately is looked at again after a while
    paddock.engine = type(paddock.engine)(store.load(), paddock.settings)
    paddock.engine._turns.denied, paddock.engine._turns.policy = denied, paddock.engine.state.policy
    state = paddock.engine.state
    for name, node in before.nodes.items():
        put_node(state, state.nodes[name], node)
    state.trusted_us = before.trusted_us
    state.freed, state.workload = before.freed, before.workload


def holds_all_along(paddock: Paddock) -> None:
    """Nothing starts, and nothing is kept for anybody, above a limit that is in force then."""
    state = ClusterState(paddock.settings)
    for event in paddock.history():
        evolve(state, event)
        if isinstance(event, AttemptStarted | PlacesClaimed):
            for limit in limits_of(state, state.jobs[event.job]):
                assert limit.has <= limit.most or not limit.asked, f"{event}: {limit}"


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.integers(0, 8), min_size=3, max_size=3),
    st.lists(st.tuples(st.sampled_from("abc"), st.integers(1, 2)), min_size=1, max_size=40),
    st.sampled_from("abc"),
)
def test_a_guarantee_is_reached_when_it_is_demanded(
    guaranteed: list[int], others: list[tuple[str, int]], who: str
) -> None:
    """Of single GPUs, which no fragment keeps: whoever waits has its guarantee once the others have left."""
    paddock = Paddock()
    for name in NODES:
        paddock.node_joins(name, gpus=8, cpus=64)
    kept = dict(zip("abc", guaranteed, strict=True))
    queues = {name: QueuePolicy(guaranteed=Amount(1000 * count)) for name, count in kept.items()}
    paddock.policy_becomes(ClusterPolicy(queues))
    for queue, count in others:
        paddock.submit(*[shape(gpus=1, queue=queue)] * count)
    run_all(paddock)
    paddock.submit(*[shape(gpus=1, queue=who)] * 8)
    for _ in range(40):
        passes(paddock, 700)
        left = [job for job in paddock.state.placed if paddock.state.jobs[job].course.stop is not None]
        if not left:
            break
        for job in sorted(left):
            leaves(paddock, job)
        run_all(paddock)
    usage = paddock.state.usage
    for name, count in kept.items():
        waits = any(
            job.state is JobState.QUEUED and job.shape.queue == name for job in paddock.state.jobs.values()
        )
        assert not waits or usage.of(name).gpu_milli >= 1000 * count, f"{name} has not its {count}"


def run_all(paddock: Paddock) -> None:
    for job in sorted(paddock.state.placed):
        if paddock.state_of(job) is JobState.STARTING:
            paddock.starts(job)
