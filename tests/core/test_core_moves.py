"""Who moves so that a gang fits: a story for each rule; and the cheapest set, beside all sets."""

from collections.abc import Iterator
from dataclasses import replace
from itertools import combinations

from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from paceline.scheduler.core import stimuli as s
from paceline.scheduler.core.attempt_events import PlacesClaimed
from paceline.scheduler.core.moves import MOVES_MAX, find_moves
from paceline.scheduler.core.preemption import loss_us, stoppable
from paceline.scheduler.core.settings import Order, Settings
from paceline.scheduler.core.timeline import describe
from paceline.spec.ids import Micros
from paceline.spec.lifecycle import JobState
from support.paddock import Paddock, shape
from support.sim_laws import state_is_sane


def with_nodes(*gpus: int, **knobs: object) -> Paddock:
    """Nodes n1, n2, ...; nobody is stopped but to move; silence is no matter: hours pass in one step."""
    order = replace(Order(preemption=False, defragment=True), **knobs)  # type: ignore[arg-type]
    paddock = Paddock(Settings(heartbeat_us=10**13, order=order))
    for at, count in enumerate(gpus, start=1):
        paddock.node_joins(f"n{at}", gpus=count, cpus=64)
    return paddock


def runs_on(paddock: Paddock, node: str, gpus: int, *, saves: bool = True, **more: object) -> int:
    """A job that was placed there, because the others were cordoned."""
    others = [name for name in paddock.sessions if name != node]
    paddock.cordon(*others)
    [job] = paddock.submit(shape(gpus=gpus, **more))  # type: ignore[arg-type]
    paddock.starts(job)
    paddock.uncordon(*others)
    if saves:
        paddock.saves(job, 1, took_us=10**6)
    return job


def test_without_the_policy_it_is_proposed() -> None:
    paddock = with_nodes(4, 4, defragment=False)
    first, second = runs_on(paddock, "n1", 2), runs_on(paddock, "n2", 2)
    paddock.pass_hours(1)
    [large] = paddock.submit(shape(gpus=4))
    assert not paddock.stops_sent(first) and not paddock.stops_sent(second)
    [shortage, proposed] = paddock.why(large).reasons
    assert shortage.code == "not-now" and proposed.code == "fragmented"
    assert proposed.text == (
        f"it would fit if job {first} (1 task with 2 GPUs, 1 cpu on n1) moved to n2: 32 s lost"
    )
    assert proposed.hint == "`pace policy` with order.defragment: true does it by itself"
    assert proposed.fields == {"jobs": str(first), "lost_us": 32_000_000}


def test_by_policy_the_job_moves_and_the_gang_starts() -> None:
    paddock = with_nodes(4, 4)
    first, second = runs_on(paddock, "n1", 2), runs_on(paddock, "n2", 2)
    paddock.pass_hours(1)
    [large] = paddock.submit(shape(gpus=4))
    stop = paddock.job(first).course.stop
    assert stop is not None and stop.why == f"moves to n2, so that job {large} fits"
    assert paddock.why(large).reasons[0].text == (
        f"n1 is kept for it since 0 ms: job {first} saves and leaves, within 30 s"
    )
    [claimed] = [event for event in paddock.history(large) if isinstance(event, PlacesClaimed)]
    assert describe(claimed) == f"n1 kept for it: job {first} told to save and move elsewhere"
    [small] = paddock.submit(shape(gpus=1))
    assert paddock.state_of(small) is JobState.QUEUED, "the room on n2 is kept for the one that moves"
    paddock.leaves(first)
    assert paddock.nodes_of(first) == ["n2"] and paddock.job(first).attempt == 2
    assert paddock.nodes_of(large) == ["n1"]
    assert paddock.job(first).course.free_restarts == 0 and not paddock.stops_sent(second)
    state_is_sane(paddock.state)


def test_a_crash_on_the_way_changes_nothing() -> None:
    paddock = with_nodes(4, 4)
    first, second = runs_on(paddock, "n1", 2), runs_on(paddock, "n2", 2)
    paddock.pass_hours(1)
    [large] = paddock.submit(shape(gpus=4))
    paddock.scheduler_restarts()
    for name, job in (("n1", first), ("n2", second)):
        paddock.node_joins(name, *[task.key for task in paddock.starts_sent(job)])
    assert paddock.state.claimed == {"n1": large, "n2": large}
    paddock.leaves(first)
    assert (paddock.nodes_of(first), paddock.nodes_of(large)) == (["n2"], ["n1"])


def test_a_gang_waits_for_all_that_move_for_it() -> None:
    paddock = with_nodes(4, 4, 4)
    movers = [runs_on(paddock, "n1", 1), runs_on(paddock, "n2", 1)]
    runs_on(paddock, "n3", 2)
    paddock.pass_hours(1)
    [gang] = paddock.submit(shape(2, gpus=4))
    assert paddock.job(gang).course.claim is not None
    paddock.leaves(movers[0])
    assert paddock.nodes_of(movers[0]) == ["n3"] and paddock.state_of(gang) is JobState.QUEUED
    paddock.leaves(movers[1])
    assert paddock.nodes_of(movers[1]) == ["n3"] and paddock.nodes_of(gang) == ["n1", "n2"]


def test_nobody_moves_who_has_not_saved_has_just_begun_or_counts_for_more() -> None:
    paddock = with_nodes(4, 4)
    runs_on(paddock, "n1", 2, saves=False), runs_on(paddock, "n2", 2, exclusive=True)
    paddock.pass_hours(1)
    [large] = paddock.submit(shape(gpus=4))
    assert paddock.job(large).course.claim is None
    paddock = with_nodes(4, 4)
    runs_on(paddock, "n1", 2), runs_on(paddock, "n2", 2)
    [large] = paddock.submit(shape(gpus=4))
    assert paddock.job(large).course.claim is None, "nobody has run for ten minutes"
    paddock = with_nodes(4, 4)
    for node in ("n1", "n2"):
        runs_on(paddock, node, 2)
    paddock.pass_hours(1)
    [large] = paddock.submit(shape(gpus=4), priority=-1)
    assert paddock.job(large).course.claim is None


def test_what_is_free_must_be_enough_in_all() -> None:
    paddock = with_nodes(4, 4)
    runs_on(paddock, "n1", 2), runs_on(paddock, "n2", 3)
    paddock.pass_hours(1)
    [large] = paddock.submit(shape(gpus=4))
    assert paddock.job(large).course.claim is None
    assert [one.code for one in paddock.why(large).reasons] == ["not-now"]


def test_when_a_node_falls_out_on_the_way_the_moved_one_still_goes_first() -> None:
    paddock = with_nodes(4, 4, 4)
    first = runs_on(paddock, "n1", 2)
    runs_on(paddock, "n2", 2), runs_on(paddock, "n3", 3)
    paddock.pass_hours(1)
    [large] = paddock.submit(shape(gpus=4))
    assert paddock.state.claimed == {"n1": large, "n2": large}
    paddock.cordon("n2")
    assert not paddock.state.claims
    paddock.leaves(first)
    assert paddock.nodes_of(first) == ["n1"] and paddock.state_of(large) is JobState.QUEUED


def seatings(free: list[int], sizes: list[int]) -> Iterator[list[int]]:
    """Every way to put tasks of these sizes on nodes."""
    if not sizes:
        yield []
        return
    for node, left in enumerate(free):
        if left >= sizes[0]:
            rest = [*free[:node], left - sizes[0], *free[node + 1 :]]
            yield from ([node, *others] for others in seatings(rest, sizes[1:]))


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.filter_too_much])
@given(
    st.lists(
        st.lists(st.tuples(st.integers(1, 2), st.integers(0, 9)), min_size=1, max_size=2),
        min_size=3,
        max_size=4,
    ),
    st.integers(1, 2),
    st.integers(3, 4),
)
def test_the_cheapest_set_moves_and_then_everybody_runs(
    running: list[list[tuple[int, int]]], tasks: int, gpus: int
) -> None:
    """`running`: on each node, the GPUs of each job, and the seconds that its checkpoint took."""
    paddock = with_nodes(*[4] * len(running), min_run_us=0, defragment=False)
    free, jobs = [4] * len(running), {}
    for node, there in enumerate(running):
        for size, stall_s in there:
            free[node] -= size
            job = runs_on(paddock, f"n{node + 1}", size, saves=False)
            saved = s.Published(1, f"/c/{job}", "hash", 10, stall_us=stall_s * 10**6, persist_us=0)
            paddock.says(job, 0, saved)
            jobs[job] = (node, size)
    state, now_us = paddock.state, Micros(paddock.now_us)
    assume(sum(left // gpus for left in free) < tasks and sum(free) >= tasks * gpus)
    [gang] = paddock.submit(shape(tasks, gpus=gpus))

    def would_do(moved: tuple[int, ...]) -> bool:
        rooms = list(free)
        for job in moved:
            rooms[jobs[job][0]] += jobs[job][1]
        return any(seatings(rooms, [gpus] * tasks + [jobs[job][1] for job in moved]))

    costs = [
        sum(loss_us(paddock.job(job), now_us) for job in moved)
        for count in range(1, MOVES_MAX + 1)
        for moved in combinations(jobs, count)
        if would_do(moved)
    ]
    found = find_moves(state, paddock.job(gang), stoppable(state, now_us), now_us)
    assert (found is not None) == bool(costs)
    if found is None:
        return
    movers = [move.job for move in found.moves]
    assert sum(loss_us(paddock.job(job), now_us) for job in movers) == min(costs)
    order = replace(paddock.state.policy, order=Order(preemption=False, defragment=True, min_run_us=0))
    paddock.policy_becomes(order)
    paddock.pass_time(31, step_s=31)
    for job in movers:
        assert paddock.job(job).course.stop is not None
        paddock.leaves(job)
        state_is_sane(paddock.state)
    assert all(paddock.job(job).placed for job in (gang, *jobs))
    assert all(
        [task.node for task in paddock.job(move.job).tasks] == list(move.nodes) for move in found.moves
    )
