"""The ledger adds up, rows come back as they went, the line and the memos match a plain count."""

from collections.abc import Mapping
from dataclasses import replace
from typing import get_args, get_type_hints

from hypothesis import given, settings
from hypothesis import strategies as st
from paceline.scheduler.core import stimuli as s
from paceline.scheduler.core.attempt_events import AttemptEnded, AttemptStarted, JobEnded, JobSubmitted, Place
from paceline.scheduler.core.candidates import can_ever, candidates_for, most_tasks, tasks_that_fit
from paceline.scheduler.core.checkpoint_events import CheckpointAccepted
from paceline.scheduler.core.cluster_policy import QueuePolicy
from paceline.scheduler.core.events import DurableEvent, Event
from paceline.scheduler.core.evolve import HANDLERS
from paceline.scheduler.core.job import Checkpoint, Course, Ending, Job, Lingering, Shape, Stop, TaskRun
from paceline.scheduler.core.ledger import ledger_of
from paceline.scheduler.core.order import Standing, ahead_of, first_in_line, standing
from paceline.scheduler.core.packing import fit_of
from paceline.scheduler.core.progress_events import GangHung
from paceline.scheduler.core.queue import LaneKey, Queue
from paceline.scheduler.core.state import ClusterState
from paceline.scheduler.core.task_events import TaskStarted
from paceline.scheduler.core.timeline import describe
from paceline.scheduler.core.timers import Timers
from paceline.scheduler.core.workload import Workload
from paceline.scheduler.records import event_from_row, event_row, job_from_row, job_row
from paceline.spec.ids import Attempt, JobId, Micros, NodeId, TaskKey
from paceline.spec.lifecycle import AttemptOutcome, JobState, NodeContact
from paceline.spec.resources import Constraints, GangDemand, Resources
from support.paddock import Paddock, shape
from support.sim_laws import state_is_sane

JOB = JobId(1)
KEY = TaskKey(JOB, Attempt(1), 0)
TASKS = 2

steps = st.sampled_from(["start", "task", "checkpoint", "fault", "hang", "preempt", "node", "idle"])
gaps = st.integers(0, 10_000_000)


def history(moves: list[tuple[str, int, int]], end: str | None) -> list[Event]:
    """A legal history from whatever is drawn: moves that do not fit are left out."""
    at_us, attempt, phase, started = 1_000, 0, "queued", 0
    told: list[Event] = [JobSubmitted(Micros(at_us), JOB, "j", "u", 0, Shape(GangDemand(Resources())))]
    for move, gap_us, stall_us in moves:
        at_us += gap_us
        now = Micros(at_us)
        key = TaskKey(JOB, Attempt(attempt), 0)
        if move == "start" and phase == "queued":
            attempt, phase, started = attempt + 1, "placed", 0
            told.append(AttemptStarted(now, JOB, Attempt(attempt), (Place(NodeId("n")),) * TASKS))
        elif move == "task" and phase == "placed" and started < TASKS:
            started += 1
            told.append(TaskStarted(now, key, started))
        elif move == "checkpoint" and phase == "placed":
            told.append(CheckpointAccepted(now, key, 1, 1, "p", "h", stall_us=stall_us))
        elif move in ("fault", "hang", "preempt") and phase == "placed":
            outcome = AttemptOutcome.PREEMPTED if move == "preempt" else AttemptOutcome.WORKER_FAILED
            if move == "hang":
                told.append(GangHung(now, JOB, Attempt(attempt), Micros(at_us - stall_us), 1, (), "t"))
            phase = "queued"
            ending = Ending(outcome, "c", "t")
            told.append(AttemptEnded(now, JOB, Attempt(attempt), JobState.QUEUED, ending))
    if end is not None:
        ending = Ending(AttemptOutcome(end), "c", "t")
        now = Micros(at_us + 5)
        if phase == "placed":
            told.append(AttemptEnded(now, JOB, Attempt(attempt), JobState.FAILED, ending))
        else:
            told.append(JobEnded(now, JOB, JobState.FAILED, ending))
    return told


@given(
    st.lists(st.tuples(steps, gaps, gaps), max_size=40),
    st.sampled_from([None, "succeeded", "node-lost"]),
    gaps,
)
def test_the_ledger_adds_up_to_the_wall_time(
    moves: list[tuple[str, int, int]], end: str | None, later_us: int
) -> None:
    told = history(moves, end)
    now_us = Micros(told[-1].at_us + later_us)
    book = ledger_of(told, now_us)
    parts = [
        book.queued_us,
        book.starting_us,
        book.productive_us,
        book.checkpoint_us,
        book.lost_us,
        book.restarting_us,
        book.hung_us,
    ]
    assert all(part >= 0 for part in parts)
    assert sum(parts) == book.wall_us
    assert book.wall_us == (told[-1].at_us if end else now_us) - told[0].at_us


def test_a_ledger_tells_what_was_lost() -> None:
    place = (Place(NodeId("n")),)
    fault = Ending(AttemptOutcome.WORKER_FAILED, "c", "t")
    well = Ending(AttemptOutcome.SUCCEEDED, "c", "t")
    second = TaskKey(JOB, Attempt(2), 0)
    told = [
        JobSubmitted(Micros(0), JOB, "j", "u", 0, shape()),
        AttemptStarted(Micros(10), JOB, Attempt(1), place),
        TaskStarted(Micros(15), KEY, 1),
        CheckpointAccepted(Micros(115), KEY, 2, 1, "p", "h", stall_us=7),
        AttemptEnded(Micros(150), JOB, Attempt(1), JobState.QUEUED, fault),
        AttemptStarted(Micros(151), JOB, Attempt(2), place),
        TaskStarted(Micros(160), second, 1),
        AttemptEnded(Micros(200), JOB, Attempt(2), JobState.SUCCEEDED, well),
    ]
    book = ledger_of(told, Micros(999))
    assert (book.queued_us, book.starting_us, book.checkpoint_us) == (10, 5, 7)
    assert (book.lost_us, book.restarting_us, book.productive_us, book.wall_us) == (35, 10, 93 + 40, 200)


def test_a_ledger_tells_what_hung_from_the_last_step_on() -> None:
    """Not lost besides: only what was done after the checkpoint and before the hang is done again."""
    place = (Place(NodeId("n")),)
    told = [
        JobSubmitted(Micros(0), JOB, "j", "u", 0, shape()),
        AttemptStarted(Micros(10), JOB, Attempt(1), place),
        TaskStarted(Micros(15), KEY, 1),
        CheckpointAccepted(Micros(115), KEY, 2, 1, "p", "h"),
        GangHung(Micros(400), JOB, Attempt(1), Micros(150), 9, (0,), "rank 0"),
        AttemptEnded(
            Micros(400),
            JOB,
            Attempt(1),
            JobState.QUEUED,
            Ending(AttemptOutcome.WORKER_FAILED, "hang", "t"),
        ),
    ]
    book = ledger_of(told, Micros(405))
    assert (book.hung_us, book.lost_us, book.productive_us, book.restarting_us) == (250, 35, 100, 5)
    assert book.wall_us == 405


def test_a_hang_is_no_longer_than_its_attempt() -> None:
    """A checkpoint may be accepted while the gang hangs already; clocks of nodes drift."""
    place = (Place(NodeId("n")),)
    told = [
        JobSubmitted(Micros(0), JOB, "j", "u", 0, shape()),
        AttemptStarted(Micros(10), JOB, Attempt(1), place),
        TaskStarted(Micros(15), KEY, 1),
        CheckpointAccepted(Micros(115), KEY, 2, 1, "p", "h", stall_us=7),
        GangHung(Micros(200), JOB, Attempt(1), Micros(1), 9, (0,), "rank 0"),
    ]
    book = ledger_of(told, Micros(200))
    assert (book.hung_us, book.checkpoint_us, book.productive_us, book.lost_us) == (178, 7, 0, 0)


texts = st.text(max_size=20)
ints = st.integers(0, 2**53)
values = st.dictionaries(texts, st.floats(allow_nan=False, allow_infinity=False), max_size=3)
keys = st.builds(TaskKey, ints, ints, ints)
shapes = st.builds(Shape)
st.register_type_strategy(Resources, st.builds(Resources, ints, ints, ints, ints))
st.register_type_strategy(TaskKey, keys)
st.register_type_strategy(QueuePolicy, st.builds(QueuePolicy, weight=st.floats(0.1, 100)))
st.register_type_strategy(
    Mapping,
    lambda kind: (
        values
        if float in get_args(kind)
        else st.dictionaries(texts, st.from_type(get_args(kind)[1]) if get_args(kind) else texts, max_size=3)
    ),
)
for record in (Checkpoint, CheckpointAccepted):  # else msgspec's mark of a default made anew is taken for one
    each = {name: st.from_type(hint) for name, hint in get_type_hints(record).items()}
    st.register_type_strategy(record, st.builds(record, **each))


def test_every_event_has_a_meaning_for_the_state() -> None:
    assert set(HANDLERS) == set(get_args(Event))


@settings(max_examples=200)
@given(st.data())
def test_every_event_comes_back_as_it_went(data: st.DataObject) -> None:
    kind = data.draw(st.sampled_from([kind for kind in HANDLERS if issubclass(kind, DurableEvent)]))
    event = data.draw(st.from_type(kind))
    row = event_row(7, event)
    assert event_from_row(row) == event
    assert "\n" not in describe(event)


@given(
    st.builds(
        Job,
        ints,
        texts,
        texts,
        st.integers(-100, 100),
        ints,
        shapes,
        st.builds(
            Course,
            tasks=st.lists(st.builds(TaskRun), max_size=2).map(tuple),
            checkpoints=st.lists(st.builds(Checkpoint, metrics=values), max_size=2).map(tuple),
            metrics=values,
            lingering=st.lists(st.builds(Lingering), max_size=2).map(tuple),
            stop=st.none() | st.builds(Stop),
            ending=st.none() | st.builds(Ending),
        ),
    )
)
def test_every_job_comes_back_as_it_went(job: Job) -> None:
    assert job_from_row(job_row(job)) == job


def test_equal_jobs_share_what_they_can() -> None:
    rows = [job_row(Job(JobId(at), "n", "u", 0, Micros(1), shape(2, gpus=1))) for at in range(2)]
    first, second = (job_from_row(row) for row in rows)
    assert first.shape is second.shape
    assert first.course is second.course


@given(st.lists(st.tuples(st.sampled_from("asrp"), st.integers(0, 3), st.integers(0, 2)), max_size=80))
def test_the_line_stands_as_a_sorted_list_would(moves: list[tuple[str, int, int]]) -> None:
    line, plain, parked, number = Queue(), {}, set(), 0
    for move, priority, kind in moves:
        if move in "as":
            number += 1
            course = Course(attempt=Attempt(1)) if move == "s" else Course()
            job = Job(JobId(number), "j", "u", priority, Micros(0), shape(kind + 1), course)
            line.add(job)
            plain[number] = job
        elif move == "r" and plain:
            job = plain.pop(sorted(plain)[priority % len(plain)])
            line.remove(job)
        elif move == "p" and line.waits:
            _, first = next(line.firsts())
            line.park(plain[first])
            parked.add(line.key_of(plain[first]))
        parked = {lane for lane in parked if any(line.key_of(job) == lane for job in plain.values())}
        lanes: dict[LaneKey, JobId] = {}
        for job in plain.values():  # in the order of their numbers
            lanes.setdefault(line.key_of(job), job.number)
        assert dict(line.firsts()) == {key: first for key, first in lanes.items() if key not in parked}
        assert len(line) == len(plain)
    line.unpark_all()
    state = ClusterState(queue=line, jobs=plain)
    order = sorted(plain.values(), key=lambda job: (not job.attempt, -job.priority, job.number))
    for at, job in enumerate(order):
        assert ahead_of(state, job, Micros(0))[0] == at
    for job in order:
        assert first_in_line(state, Micros(0)) == job.number
        line.remove(job)
    assert not line.waits and not line.lanes


@given(
    st.lists(st.tuples(st.integers(0, 2), st.integers(0, 2), st.integers(0, 3)), min_size=1, max_size=20),
    st.sets(st.integers(0, 19)),
)
def test_who_stands_before_is_counted_as_if_each_were_looked_at(
    asked: list[tuple[int, int, int]], left: set[int]
) -> None:
    """Jobs of a few priorities and classes, some of which their patience has lifted; some have left."""
    state = ClusterState(capacity_milli=1000)
    patience_us = state.order.patience_us
    for number, (priority, service, waited) in enumerate(asked):
        course = Course(service=service, queued_us=waited * patience_us)
        job = Job(JobId(number), "j", "u", priority, Micros(1), shape(1 + number % 2), course)
        state.jobs[job.number] = job
        state.queue.add(job)
    for number in sorted(left & state.jobs.keys()):
        state.queue.remove(state.jobs.pop(JobId(number)))
    firsts = {
        number: standing(state, key, state.jobs[number], Micros(1)) for key, number in state.queue.firsts()
    }
    others = {
        number: Standing(key.turn, (), key.minus_priority, key.service, number)
        for key, lane in state.queue.lanes.items()
        for number in lane.jobs
        if number not in lane.gone
    }
    for number, job in state.jobs.items():
        mine = standing(state, state.queue.key_of(job), job, Micros(1))
        before = [one for one, stands in (others | firsts).items() if one != number and stands < mine]
        first = min(firsts, key=firsts.__getitem__) if before else None
        assert ahead_of(state, job, Micros(1)) == (len(before), first)


@given(st.lists(st.integers(0, 19), unique=True), st.lists(st.integers(0, 19), unique=True), st.booleans())
def test_many_at_once_stand_as_one_by_one(first: list[int], left: list[int], parked: bool) -> None:
    """`first` stand, `left` have left from among them, all others come: together, or each on its own."""
    jobs = [Job(JobId(n), "j", "u", 0, Micros(0), shape(1)) for n in range(20)]
    together, each = Queue(), Queue()
    for line in (together, each):
        for n in first:
            line.add(jobs[n])
        if parked and first:
            line.park(jobs[first[0]])
        for n in left:
            if n in first:
                line.remove(jobs[n])
    coming = [job for job in jobs if job.number not in first or job.number in left]
    if coming:
        together.add_all(coming)
    for job in coming:
        each.add(job)
    for line in (together, each):
        line.unpark_all()
    for job in jobs:
        assert [number for _, number in together.firsts()] == [job.number]
        assert dict(together.firsts()) == dict(each.firsts())
        assert len(together) == len(each)
        together.remove(job)
        each.remove(job)
    assert not together.lanes


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 50)), max_size=60))
def test_timers_miss_nothing_and_name_each_once(sets: list[tuple[int, int]]) -> None:
    timers, earliest = Timers(), {}
    for name, at_us in sets:
        timers.set((0, JobId(name)), Micros(at_us))
        earliest[name] = min(at_us, earliest.get(name, at_us))
    timers.drop((0, JobId(3)))
    earliest.pop(3, None)
    for now_us in (10, 30, 50):
        expected = {name for name, at_us in earliest.items() if at_us <= now_us}
        due = [name for _, name in timers.due(now_us)]
        assert set(due) == expected and len(due) == len(expected)
        assert timers.next_us() == min(earliest.values(), default=None)
        assert {name for _, name in timers.pop_due(now_us)} == expected
        earliest = {name: at_us for name, at_us in earliest.items() if name not in expected}


@settings(max_examples=40)
@given(st.lists(st.tuples(st.sampled_from("jjjfdncu"), st.integers(0, 7)), max_size=40))
def test_the_memo_of_rooms_is_what_a_plain_count_says(moves: list[tuple[str, int]]) -> None:
    paddock = Paddock()
    for name in ("n1", "n2", "n3"):
        paddock.node_joins(name, cpus=4, gpus=2)
    held: dict[NodeId, set[TaskKey]] = {}
    watched = [
        shape(cpus=1),
        shape(2, cpus=2, gpus=1),
        shape(3, cpus=0.5, gpus=0.3),
        shape(cpus=0.5, gpus=0.7),
        shape(cpus=0.5, memory_gib=30),
        shape(cpus=0.5, constraints=Constraints(labels=(("zone", ("a",)),), tolerate=(("spot", "b"),))),
    ]
    for move, which in moves:
        live = sorted(paddock.state.jobs)
        if move == "j":
            paddock.submit(watched[which % len(watched)])
        elif move == "f" and live:
            job = live[which % len(live)]
            if paddock.state.jobs[job].placed:
                paddock.starts(job)
                paddock.finishes(job)
        elif move == "d" and f"n{which % 3 + 1}" in paddock.sessions:
            paddock.stream_breaks(f"n{which % 3 + 1}")
        elif move == "n":
            name = f"n{which % 3 + 1}"
            tasks = paddock.state.loads[NodeId(name)].tasks
            taints = [f"spot={'ab'[which % 2]}"] if which > 3 else []
            paddock.node_joins(name, *tasks, labels={"zone": "ab"[which % 2]}, taints=taints)
        elif move in "cu":
            (paddock.cordon if move == "c" else paddock.uncordon)(f"n{which % 3 + 1}")
        for one in watched:
            _memo_is_true(paddock, one.demand)
        for name, node in paddock.state.nodes.items():
            there = set(paddock.state.loads[name].tasks)
            assert node.cordon is None or there <= held.get(name, set()), (
                "nothing new comes to a cordoned node"
            )
            held[name] = there


def _memo_is_true(paddock: Paddock, demand: GangDemand) -> None:
    state = paddock.state
    memo = candidates_for(state, demand)
    plain = {
        name: fits
        for name, node in state.nodes.items()
        if node.contact is NodeContact.CONNECTED
        and node.cordon is None
        and (fits := tasks_that_fit(node, state.loads[name], memo.demand))
    }
    serving = [node for node in state.nodes.values() if node.cordon is None]
    most = sum(most_tasks(node.inventory, demand) for node in serving)
    assert can_ever(state, demand) is (most >= demand.instance_count_min)
    assert memo.fits == plain
    assert memo.room == sum(plain.values())
    order = list(memo.best_first())
    assert sorted(order) == sorted(plain), "each once"
    assert order == sorted(plain, key=lambda name: (*_fresh_fit(state, name, demand), name))
    assert order == list(memo.best_first()), "looking changes nothing"


def _fresh_fit(state: ClusterState, name: NodeId, demand: GangDemand) -> tuple[int, int]:
    """Without any memo."""
    workload = Workload(shares=dict(sorted(state.workload.shares.items())))
    load = replace(state.loads[name], groups=None)
    return fit_of(workload, state.nodes[name].inventory, load, demand)


demands = st.builds(
    lambda cpus, gpus, models: shape(cpus=cpus, gpus=gpus, models=models),
    st.sampled_from([0.5, 1, 4]),
    st.sampled_from([0, 0.2, 0.5, 0.999, 1, 2, 4]),
    st.sampled_from([(), ("H100",), ("T4", "A100")]),
)


@settings(max_examples=60)
@given(st.lists(st.tuples(demands, st.integers(0, 3)), max_size=60))
def test_no_gpu_is_given_twice_whatever_is_shared(asks: list[tuple[Shape, int]]) -> None:
    """Also not across a recovery, which must find every share where it was."""
    paddock = Paddock()
    for name, model in (("n1", "NVIDIA H100"), ("n2", "Tesla T4"), ("n3", "NVIDIA A100")):
        paddock.node_joins(name, cpus=8, gpus=4, model=model)
    for ask, then in asks:
        paddock.submit(ask)
        placed = [number for number, job in sorted(paddock.state.jobs.items()) if job.placed]
        if then == 0 and placed:
            paddock.starts(placed[0])
            paddock.finishes(placed[0])
        state_is_sane(paddock.state)
    before = paddock.state.loads
    paddock.scheduler_restarts()
    assert paddock.state.loads == before


@given(st.permutations(["n1", "n2", "n3", "n4"]), st.lists(demands, max_size=20))
def test_where_a_job_goes_does_not_depend_on_who_joined_first(names: list[str], asks: list[Shape]) -> None:
    def placed(order: list[str]) -> list[list[tuple[str, tuple[int, ...]]]]:
        paddock = Paddock()
        for name in order:
            paddock.node_joins(name, cpus=8, gpus=4, model="T4" if name < "n3" else "H100")
        jobs = [paddock.submit(ask)[0] for ask in asks]
        return [[(task.node, task.gpu_indices) for task in paddock.job(job).tasks] for job in jobs]

    assert placed(names) == placed(sorted(names))


def test_a_long_line_does_not_slow_a_cycle() -> None:
    """Counted, not timed: a cycle looks at the first in line, whatever stands behind it."""
    paddock = Paddock()
    paddock.node_joins("n1", cpus=1)
    paddock.submit(*[shape()] * 2000)
    looked = 0

    class Counting(dict[JobId, Job]):
        def __getitem__(self, key: JobId) -> Job:
            nonlocal looked
            looked += 1
            return super().__getitem__(key)

    paddock.state.jobs = Counting(paddock.state.jobs)
    job = next(iter(paddock.state.jobs))
    paddock.says(job, 0, s.Started((1,)), s.Exited(0, 0), s.Ended((0,)))
    assert paddock.state.jobs[JobId(job + 1)].placed
    assert looked < 30
