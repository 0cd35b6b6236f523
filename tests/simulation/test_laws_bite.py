"""The simulation finds a broken core: each of these `evolve`s does one thing wrong, and the first event after
which the state is wrong is named, also when the next event of the same batch would put it right again."""

from collections.abc import Callable

import pytest
from msgspec.structs import replace
from paceline.scheduler.core.attempt_events import AttemptEnded, AttemptStarted, JobEnded
from paceline.scheduler.core.events import Event
from paceline.scheduler.core.evolve import evolve
from paceline.scheduler.core.hang import Suspicion
from paceline.scheduler.core.node_events import NodeChanged, NodeConnected, NodeLost
from paceline.scheduler.core.order import first_in_line
from paceline.scheduler.core.state import ClusterState, Touched
from paceline.scheduler.core.task_events import TaskStarted
from support.sim_run import Evolve, simulate

SEEDS = range(40)


def forgets_to_free_gpus(state: ClusterState, event: Event) -> Touched:
    standing = {name: dict(load.free_gpus) for name, load in state.loads.items()}
    touched = evolve(state, event)
    if isinstance(event, AttemptEnded):
        for name, free in standing.items():
            state.loads[name].free_gpus = free
    return touched


def frees_gpus_one_event_late() -> Evolve:
    """Right again before the batch is committed: only who looks inside the batch sees it."""
    owed: list[Callable[[], None]] = []

    def late(state: ClusterState, event: Event) -> Touched:
        while owed:
            owed.pop()()
        standing = {name: dict(load.free_gpus) for name, load in state.loads.items()}
        touched = evolve(state, event)
        if isinstance(event, AttemptEnded):
            for name, free in standing.items():
                load = state.loads[name]
                freed, load.free_gpus = load.free_gpus, free
                owed.append(lambda load=load, freed=freed: setattr(load, "free_gpus", freed))  # type: ignore[misc]
        return touched

    return late


def stays_in_line_when_placed(state: ClusterState, event: Event) -> Touched:
    waited = state.jobs[event.job] if isinstance(event, AttemptStarted) else None
    touched = evolve(state, event)
    if waited is not None and waited.number not in state.stranded:
        state.queue.add(waited)
    return touched


def forgets_the_port(state: ClusterState, event: Event) -> Touched:
    touched = evolve(state, event)
    if isinstance(event, AttemptStarted) and event.rendezvous_port:
        state.loads[event.places[0].node].ports.clear()
    return touched


def forgets_the_start_timeout(state: ClusterState, event: Event) -> Touched:
    touched = evolve(state, event)
    if isinstance(event, AttemptStarted):
        state.timers.drop((0, event.job))
    return touched


def forgets_who_is_stranded(state: ClusterState, event: Event) -> Touched:
    touched = evolve(state, event)
    if isinstance(event, NodeLost):
        state.stranded.clear()
    return touched


def forgets_who_may_grow(state: ClusterState, event: Event) -> Touched:
    touched = evolve(state, event)
    if isinstance(event, TaskStarted):
        state.small.clear()
    return touched


def grows_beyond_its_bounds(state: ClusterState, event: Event) -> Touched:
    if isinstance(event, AttemptStarted) and state.jobs[event.job].demand.elastic:
        demand = state.jobs[event.job].demand
        more = demand.instance_count_max + 1 - len(event.places)
        event = replace(event, places=(*event.places, *[event.places[0]] * more))
    return evolve(state, event)


def still_suspects_what_is_over(state: ClusterState, event: Event) -> Touched:
    standing = state.jobs[event.job] if isinstance(event, AttemptEnded) else None
    touched = evolve(state, event)
    if standing is not None and standing.number in state.jobs:
        job = state.jobs[standing.number]
        suspicion = Suspicion(event.at_us, 0, event.at_us, 1, 1)
        state.jobs[job.number] = replace(job, course=replace(job.course, suspicion=suspicion))
    return touched


def keeps_step_times_of_the_past(state: ClusterState, event: Event) -> Touched:
    paces = state.paces.get(event.job) if isinstance(event, AttemptEnded) else None
    touched = evolve(state, event)
    if paces is not None and isinstance(event, AttemptEnded):
        state.paces[event.job] = paces
    return touched


def tells_a_fact_twice(state: ClusterState, event: Event) -> Touched:
    if isinstance(event, NodeConnected):
        evolve(state, event)
    return evolve(state, event)


def clears_the_cordon_of_who_dials_in(state: ClusterState, event: Event) -> Touched:
    touched = evolve(state, event)
    if isinstance(event, NodeConnected):
        state.nodes[event.node] = replace(state.nodes[event.node], cordon=None)
    return touched


def offers_what_is_out_of_service(state: ClusterState, event: Event) -> Touched:
    touched = evolve(state, event)
    if isinstance(event, NodeChanged):
        state.loads[event.node].free_gpus |= {gpu.index: gpu.model for gpu in event.inventory.sick}
    return touched


def ends_the_wrong_job(state: ClusterState, event: Event) -> Touched:
    touched = evolve(state, event)
    if isinstance(event, JobEnded) and state.held:
        state.jobs.pop(min(state.held))
    elif isinstance(event, JobEnded):
        state.jobs.pop(first_in_line(state, event.at_us) or event.job, None)
    return touched


@pytest.mark.parametrize(
    ("broken", "after", "says"),
    [
        (forgets_to_free_gpus, "AttemptEnded", "GPUs ["),
        (frees_gpus_one_event_late(), "AttemptEnded", "GPUs ["),
        (stays_in_line_when_placed, "AttemptStarted", "stand in line"),
        (forgets_the_port, "AttemptStarted", "the jobs say"),
        (forgets_the_start_timeout, "AttemptStarted", "is due at"),
        (forgets_who_is_stranded, "NodeLost", "stranded are"),
        (forgets_who_may_grow, "TaskStarted", "may grow, not"),
        (grows_beyond_its_bounds, "AttemptStarted", "is not within its bounds"),
        (still_suspects_what_is_over, "AttemptEnded", "suspected: "),
        (keeps_step_times_of_the_past, "AttemptEnded", "have step times"),
        (tells_a_fact_twice, "NodeConnected", "a gap in the history"),
        (clears_the_cordon_of_who_dials_in, "NodeConnected", "are cordoned, and then"),
        (offers_what_is_out_of_service, "NodeChanged", "GPUs ["),
        (ends_the_wrong_job, "JobEnded", "moved to None"),
    ],
    ids=lambda value: getattr(value, "__name__", None),
)
def test_a_broken_evolve_is_caught_at_its_event(broken: Evolve, after: str, says: str) -> None:
    with pytest.raises(AssertionError) as caught:
        for seed in SEEDS:
            simulate(seed, evolve=broken)
    message = str(caught.value).splitlines()[0]
    assert f"after {after}(" in message and says in message, message
    assert "replay: python tests/simulation/replay.py --seed" in str(caught.value)
