"""The live state run forward: when who waits starts, after whom, and what a change would do."""

import msgspec
import pytest
from msgspec.structs import replace
from paceline.scheduler import forecaster
from paceline.scheduler.core import stimuli as s
from paceline.scheduler.core.cluster_policy import (
    Amount,
    ClusterPolicy,
    PoolPolicy,
    QueuePolicy,
    Reservation,
    Window,
)
from paceline.scheduler.core.job import Shape
from paceline.scheduler.core.settings import Order, Settings
from paceline.scheduler.forecast import HORIZON_US, Forecast, Question, Snapshot, forecast
from paceline.scheduler.forecaster import JOBS_MAX, JobRows, snapshot_of, take
from paceline.scheduler.records import job_row
from paceline.scheduler.store.base import JobRow
from paceline.spec.errors import Conflict, NotFound
from paceline.spec.ids import JobId, Micros
from paceline.spec.progress import TOTAL_STEPS
from support.paddock import Paddock, shape

MINUTE = 60_000_000


def asked(paddock: Paddock, question: Question | None = None) -> Forecast:
    """As it goes over the pipe."""
    question = question or Question()
    taken = take(paddock.state, Micros(paddock.now_us), question)
    body = msgspec.msgpack.encode(snapshot_of(taken, JobRows()))
    return forecast(msgspec.msgpack.decode(body, type=Snapshot), question)


def minutes(paddock: Paddock, at_us: int) -> float:
    return (at_us - paddock.now_us) / MINUTE


def new(one: Shape, name: str = "train", priority: int = 0) -> s.NewJob:
    return s.NewJob(name, priority, one, "{}")


def practised(*minutes: float, gpus: int = 2, order: Order | None = None) -> Paddock:
    """A node with GPUs, on which runs of ann's train have lasted so long."""
    paddock = Paddock(Settings(order=order or Order()))
    paddock.node_joins("n1", gpus=gpus)
    for each in minutes:
        [job] = paddock.submit(shape(gpus=gpus))
        paddock.starts(job)
        paddock.pass_time(each * 60, step_s=10)
        paddock.finishes(job)
    return paddock


def test_who_waits_is_expected_when_who_runs_ends() -> None:
    paddock = practised(10, 10, 10, 10, 20)
    running, waits = paddock.submit(shape(gpus=2), shape(gpus=2))
    paddock.starts(running)
    paddock.pass_time(120, step_s=10)
    found = asked(paddock)
    expected = found.jobs[JobId(waits)]
    assert minutes(paddock, expected.at_us) == pytest.approx(8, abs=1.5)
    assert expected.early_us <= expected.at_us <= expected.late_us
    assert (expected.after, expected.started) == (running, found.draws)
    assert found.ends[JobId(running)][1] == "judged by 5 earlier runs of ann's train"
    assert (found.order, found.cut, found.left_out) == ([waits], "", 0)


def test_a_run_that_tells_its_progress_makes_the_forecast_sharp() -> None:
    paddock = practised()
    running, waits = paddock.submit(shape(gpus=2), shape(gpus=2))
    paddock.starts(running)
    paddock.pass_time(100)
    paddock.says(running, 0, s.Metrics(0, 100, {TOTAL_STEPS: 400}))
    found = asked(paddock)
    assert minutes(paddock, found.jobs[JobId(waits)].at_us) == pytest.approx(5, rel=0.3)
    assert found.ends[JobId(running)][1] == "judged by its pace, at step 100 of 400"


def test_jobs_start_in_line() -> None:
    paddock = practised(10, 10, 10, 10)
    [running, *waiting] = paddock.submit(*[shape(gpus=2)] * 4)
    [urgent] = paddock.submit(shape(gpus=2), priority=5)
    found = asked(paddock, Question(draws=1))
    assert found.order == [urgent, *waiting]
    assert [minutes(paddock, found.jobs[one].at_us) for one in found.order] == [10, 20, 30, 40]
    assert found.jobs[JobId(waiting[0])].after == urgent != running


def test_what_can_never_run_is_not_expected() -> None:
    paddock = practised(10)
    [waits] = paddock.submit(shape(gpus=8))
    found = asked(paddock)
    assert found.jobs[JobId(waits)].started == 0 and found.jobs[JobId(waits)].at_us == 0
    assert found.order == []


def test_a_dry_run_says_where_and_when_and_keeps_nothing() -> None:
    paddock = practised(10, 10, 10, 10, gpus=4)
    before = paddock.state.last_seq
    add = [new(shape(gpus=1)), new(shape(gpus=4)), new(shape(gpus=9))]
    found = asked(paddock, Question(add=add, user="ann"))
    at_once, later, never = found.added
    assert found.jobs[at_once].at_us == paddock.now_us
    assert found.jobs[at_once].places == [("n1", (0,))]
    assert minutes(paddock, found.jobs[later].at_us) == 10
    assert found.jobs[later].after == at_once
    assert found.reasons[later][0].code == "not-now" and "job 5 holds 1 there" in found.reasons[later][0].text
    assert found.never == [never] and found.reasons[never][0].code == "never"
    assert paddock.state.last_seq == before and len(paddock.state.jobs) == 0


def test_queues_limits_and_pools_hold_in_a_forecast() -> None:
    """As the policy has them now: a job of a queue that is full waits for its own queue's job."""
    paddock = practised(10, 10, 10, 10, 20)
    queues = {"a": QueuePolicy(max=Amount(gpu_milli=1000)), "b": QueuePolicy()}
    paddock.policy_becomes(ClusterPolicy(queues, pools={"fast": PoolPolicy(("n1",))}))
    one = replace(shape(gpus=1), queue="a")
    running, full = paddock.submit(one, one)
    paddock.starts(running)
    found = asked(
        paddock,
        Question(
            add=[
                new(replace(shape(gpus=1), queue="b")),
                new(replace(one, demand=replace(one.demand, pool="fast"))),
            ],
            user="ann",
        ),
    )
    other, last = found.added
    assert found.jobs[other].at_us == paddock.now_us, "its queue has no limit"
    assert found.jobs[JobId(full)].at_us > paddock.now_us
    assert found.jobs[last].at_us > found.jobs[JobId(full)].at_us
    assert found.jobs[last].places == [("n1", (0,))]
    with pytest.raises(NotFound, match="there is no queue c"):
        asked(paddock, Question(add=[new(replace(one, queue="c"))]))


def test_another_policy_is_in_force_from_the_begin() -> None:
    paddock = practised(10, 10, 10, 10)
    narrow = ClusterPolicy({"a": QueuePolicy(max=Amount(gpu_milli=1000))})
    paddock.policy_becomes(narrow)
    one = replace(shape(gpus=1), queue="a")
    running, waits = paddock.submit(one, one)
    paddock.starts(running)
    assert minutes(paddock, asked(paddock).jobs[JobId(waits)].at_us) == pytest.approx(10, abs=1)
    wide = Question(policy=ClusterPolicy({"a": QueuePolicy(), "b": QueuePolicy()}))
    assert asked(paddock, wide).jobs[JobId(waits)].at_us == paddock.now_us
    added = msgspec.structs.replace(wide, add=[new(replace(one, queue="b"))], user="ann")
    assert len(asked(paddock, added).added) == 1, "what is added finds the other policy's queues"
    with pytest.raises(Conflict, match="queue a is gone by this policy, and 2 jobs wait or run there"):
        asked(paddock, Question(policy=ClusterPolicy({"b": QueuePolicy()})))
    assert paddock.state.policy == narrow


def test_a_node_that_is_taken_away_makes_room_elsewhere_scarce() -> None:
    paddock = practised(10, 10, 10, 10, order=Order(preemption=False))
    paddock.node_joins("n2", gpus=2)
    first, second, third = paddock.submit(*[shape(gpus=2)] * 3)
    for job in (first, second):
        paddock.starts(job)
    as_is = asked(paddock, Question(draws=1, to_end=True))
    without = asked(paddock, Question(draws=1, to_end=True, remove=["n2"]))
    assert minutes(paddock, as_is.jobs[JobId(third)].at_us) == 10
    assert minutes(paddock, without.jobs[JobId(third)].at_us) > 10
    [stop] = without.stops
    assert (stop.outcome, stop.job in (first, second)) == ("preempted", True)
    assert without.outlook.ended == as_is.outlook.ended == 3
    assert without.outlook.started == 1 and without.outlook.classes[0].jobs == 1, (
        "a restart is no first start"
    )
    assert without.outlook.jct_mean_s > as_is.outlook.jct_mean_s
    with pytest.raises(NotFound, match="n9"):
        asked(paddock, Question(remove=["n9"]))


def test_the_outlook_sums_up() -> None:
    paddock = practised(10, 10, 10, 10)
    paddock.submit(shape(gpus=2), shape(gpus=2), shape(gpus=1))
    outlook = asked(paddock, Question(draws=1, to_end=True)).outlook
    assert (outlook.jobs, outlook.started, outlook.ended) == (3, 2, 3)
    assert outlook.wait_mean_s == 900 and outlook.jct_mean_s == (600 + 1200 + 1800) / 3
    assert outlook.gpu_allocation == 1.0
    assert [(each.name, each.jobs, each.mean_s) for each in outlook.classes] == [
        ("1 GPU", 1, 1200),
        ("2-7 GPUs", 1, 600),
    ]
    assert [(point.at_s, point.queued, point.gpus) for point in outlook.points] == [
        (0, 2, 2),
        (600, 1, 2),
        (1200, 0, 1),
        (1800, 0, 0),
    ]


def test_the_same_seed_gives_the_same_forecast() -> None:
    paddock = practised(3, 5, 10, 30, 60)
    paddock.submit(*[shape(gpus=1)] * 10)
    assert asked(paddock, Question(seed=3)) == asked(paddock, Question(seed=3))
    assert asked(paddock, Question(seed=3)) != asked(paddock, Question(seed=4))


def test_a_snapshot_of_a_long_line_has_those_who_stand_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(forecaster, "JOBS_MAX", 4)
    paddock = practised(10)
    running, *waiting = paddock.submit(*[shape(gpus=2)] * 4)
    small = paddock.submit(shape(gpus=1), shape(gpus=1))
    urgent, held, _ = paddock.submit(shape(gpus=2), shape(gpus=2), shape(gpus=2), priority=5)
    paddock.hold(held)
    paddock.cancel(waiting[0])
    taken = take(paddock.state, Micros(paddock.now_us), Question())
    assert [job.number for job in taken.jobs] == [running, *waiting[1:], urgent, held + 1]
    assert taken.left_out == len([*small, held])
    assert asked(paddock).left_out == 3


def test_a_snapshot_has_jobs_as_they_are_now_and_no_others() -> None:
    paddock, rows = Paddock(), JobRows()
    first, second = paddock.submit(shape(), shape())

    def snapshot() -> list[JobRow]:
        taken = take(paddock.state, Micros(paddock.now_us), Question())
        found = snapshot_of(taken, rows).jobs
        assert found == [job_row(job) for job in taken.jobs]
        return found

    before = snapshot()
    [third] = paddock.submit(shape())
    paddock.cancel(second)
    after = snapshot()
    assert [row.job for row in after] == [first, third]
    assert after[0] is before[0]
    paddock.hold(third)
    assert snapshot()[1] != after[1]


def test_a_forecast_is_bounded_and_says_so() -> None:
    paddock = practised(10, 10, 10, 10)
    paddock.submit(*[shape(gpus=2)] * 50)
    cut = asked(paddock, Question(events_max=60))
    assert cut.draws == 1 and cut.cut.startswith("cut after 60 events, ")
    near = asked(paddock, Question(horizon_us=25 * MINUTE, draws=1))
    assert near.cut == "cut 0.4 h from now" and len(near.order) == 2
    assert HORIZON_US > 25 * MINUTE and JOBS_MAX > 50


def test_who_waits_for_the_end_of_a_maintenance_is_expected_then() -> None:
    """Also where nobody runs: time goes on to the moment at which nodes open."""
    paddock = practised()
    minute = paddock.now_us
    window = Window(minute + 15 * MINUTE, minute + 45 * MINUTE, "new drives")
    paddock.policy_becomes(
        ClusterPolicy(pools={"all": PoolPolicy(("*",), maintenance=(window,), default=True)})
    )
    paddock.pass_time(6 * 60, step_s=1)
    [waits] = paddock.submit(shape(gpus=2, pool="all"))
    found = asked(paddock)
    assert minutes(paddock, found.jobs[JobId(waits)].at_us) == pytest.approx(39)
    [added] = (found := asked(paddock, Question([new(shape(gpus=2, pool="all"))], "ann"))).added
    assert [reason.code for reason in found.reasons[added]][-1] == "maintenance"


def test_who_waits_for_a_reservation_is_expected_when_it_begins() -> None:
    paddock = practised()
    kept = Reservation(paddock.now_us + 60 * MINUTE, paddock.now_us + 90 * MINUTE, 1, ("ann",))
    paddock.policy_becomes(ClusterPolicy(pools={"all": PoolPolicy(("*",), reservations={"exam": kept})}))
    mine, others = paddock.submit(shape(gpus=2, pool="all/exam"), shape(gpus=2, pool="all"))
    paddock.starts(others)
    found = asked(paddock, Question(to_end=True))
    assert minutes(paddock, found.jobs[JobId(mine)].at_us) == pytest.approx(60, abs=1)
