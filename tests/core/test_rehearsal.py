"""The engine ahead of its clock: what runs ends when it is said to, what waits starts when it can."""

from collections.abc import Callable, Mapping

from paceline.scheduler.core import stimuli as s
from paceline.scheduler.core.job import Job, Shape
from paceline.scheduler.core.node import NodeInventory
from paceline.scheduler.core.settings import SECOND_US, Settings
from paceline.scheduler.loop_engine import Engine
from paceline.scheduler.rehearsal import DryEngine, PitStop, Rehearsal, Steady, silent
from paceline.scheduler.store.base import Loaded
from paceline.spec.ids import JobId, Micros, NodeId
from paceline.spec.lifecycle import AttemptOutcome
from support.paddock import START_US, Paddock, inventory, shape

FOREVER = 10**18


def empty(lasts_s: Mapping[int, float], *nodes: NodeInventory) -> Rehearsal:
    engine = DryEngine(Loaded(0, JobId(0), Micros(0), ()), silent(Settings()))
    rehearsal = Rehearsal(engine, Micros(START_US), Steady(lasting(lasts_s)))
    for number, node in enumerate(nodes, 1):
        rehearsal.tell(s.Hello(NodeId(node.name), number, "boot", node))
    return rehearsal


def lasting(lasts_s: Mapping[int, float]) -> Callable[[Job], int]:
    return lambda job: round(lasts_s[job.number] * SECOND_US)


def submit(rehearsal: Rehearsal, *shapes: Shape, priority: int = 0) -> None:
    jobs = tuple(s.NewJob("train", priority, one, "{}") for one in shapes)
    rehearsal.tell(s.Submit(f"key-{rehearsal.engine.state.last_job}", "ann", jobs))


def run(rehearsal: Rehearsal) -> dict[int, float]:
    """Seconds at which each job first started."""
    while rehearsal.advance(FOREVER):
        pass
    return {job: (at - START_US) / SECOND_US for job, at in rehearsal.course.started_us.items()}


def test_who_waits_starts_when_who_runs_has_ended() -> None:
    rehearsal = empty({1: 100, 2: 50, 3: 7}, inventory("n1", gpus=2))
    submit(rehearsal, shape(gpus=2), shape(gpus=1), shape(gpus=2))
    assert run(rehearsal) == {1: 0, 2: 100, 3: 150}
    course = rehearsal.course
    assert {job: (at - START_US) / SECOND_US for job, at in course.ended_us.items()} == {
        1: 100,
        2: 150,
        3: 157,
    }
    assert course.after == {2: 1, 3: 2}
    assert course.gpu_milli == 0
    assert course.gpu_milli_us == (200 + 50 + 14) * 1000 * SECOND_US


def test_a_gang_ends_as_one() -> None:
    rehearsal = empty({1: 10}, inventory("n1", gpus=2), inventory("n2", gpus=2))
    submit(rehearsal, shape(2, gpus=2, ranks=2))
    run(rehearsal)
    assert list(rehearsal.course.ended_us) == [1] and not rehearsal.engine.state.jobs


def test_what_is_stopped_saves_and_goes_on_at_the_cost_of_a_pit_stop() -> None:
    rehearsal = empty({1: 100, 2: 5}, inventory("n1", gpus=1))
    submit(rehearsal, shape(gpus=1))
    rehearsal.go_to(Micros(START_US + 40 * SECOND_US))
    submit(rehearsal, shape(gpus=1), priority=9)
    rehearsal.tell(s.Preempt("p", JobId(1), by="ann"))
    run(rehearsal)
    [stop] = rehearsal.course.stops
    assert (stop.job, stop.stop.outcome) == (1, AttemptOutcome.PREEMPTED)
    pit_stop = PitStop()
    left_s = (rehearsal.course.ended_us[JobId(1)] - START_US) / SECOND_US
    waited_s = 5 if rehearsal.course.started_us[JobId(2)] < rehearsal.course.ended_us[JobId(1)] else 0
    assert left_s == 100 + waited_s + (pit_stop.save_us + pit_stop.restart_us) / SECOND_US


def test_a_live_cluster_goes_on_from_where_it_stands() -> None:
    paddock = Paddock()
    paddock.node_joins("n1", gpus=2)
    running, starting, waits = paddock.submit(shape(gpus=1), shape(gpus=1), shape(gpus=2))
    paddock.starts(running)
    paddock.pass_time(5)
    engine = Engine(paddock.store.load(), silent(paddock.settings))
    rehearsal = Rehearsal(
        engine, Micros(paddock.now_us), Steady(lasting({running: 30, starting: 20, waits: 1}))
    )
    assert run(rehearsal) == {waits: 35}
    assert rehearsal.course.after == {waits: running}
    assert paddock.job(waits).state == "QUEUED", "the real one has not moved"


def test_a_stop_under_way_is_seen_through() -> None:
    paddock = Paddock()
    paddock.node_joins("n1", gpus=1)
    job, waits = paddock.submit(shape(gpus=1), shape(gpus=1))
    paddock.starts(job)
    paddock.cancel(job)
    engine = Engine(paddock.store.load(), silent(paddock.settings))
    rehearsal = Rehearsal(engine, Micros(paddock.now_us), Steady(lasting({job: 1000, waits: 1})))
    assert run(rehearsal) == {waits: 10}
    assert list(rehearsal.course.ended_us) == [job, waits]


def test_an_exclusive_job_starts_again_when_its_last_attempt_is_gone() -> None:
    rehearsal = empty({1: 100}, inventory("n1", gpus=1))
    submit(rehearsal, shape(gpus=1, exclusive=True))
    rehearsal.tell(s.Preempt("p", JobId(1), by="ann"))
    run(rehearsal)
    assert len(rehearsal.course.starts) == 2 and JobId(1) in rehearsal.course.ended_us


def test_a_node_that_is_drained_is_left() -> None:
    rehearsal = empty({1: 100}, inventory("n1", gpus=1), inventory("n2", gpus=1))
    submit(rehearsal, shape(gpus=1))
    first = rehearsal.course.starts[0].places[0].node
    rehearsal.tell(s.CordonNodes("c", (first,), "ann", "gone", drains=True))
    run(rehearsal)
    assert {start.places[0].node for start in rehearsal.course.starts} == {"n1", "n2"}
    assert rehearsal.course.starts[-1].places[0].node != first


def test_who_can_never_start_keeps_nobody_busy() -> None:
    rehearsal = empty({1: 10}, inventory("n1", gpus=1))
    submit(rehearsal, shape(gpus=1), shape(gpus=2))
    assert run(rehearsal) == {1: 0} and not rehearsal.busy


def test_the_same_again_is_the_same() -> None:
    def course() -> object:
        rehearsal = empty({job: 10 + 7 * job % 13 for job in range(1, 41)}, inventory("n1", gpus=4, cpus=64))
        submit(rehearsal, *(shape(gpus=1 + number % 4) for number in range(40)))
        run(rehearsal)
        return rehearsal.course

    assert course() == course()
