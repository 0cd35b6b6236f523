"""What is lost and what is not, what a save is given, what counts after a restore: by hand and by
property."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace
from paceline.scheduler.core import stimuli as s
from paceline.scheduler.core.checkpoint_table import checkpoint_table
from paceline.scheduler.core.checkpoints import checkpoint_of
from paceline.scheduler.core.copies import offered
from paceline.scheduler.core.effects import AskSave, StartTask, StopTask
from paceline.scheduler.core.grace import GRACE_MARGIN_US, GRACE_MAX_US, save_grace_us
from paceline.scheduler.core.job import Checkpoint
from paceline.scheduler.core.rates import PRIOR_US, FaultRate
from paceline.spec.errors import Conflict, NotFound
from paceline.spec.ids import Attempt, Micros
from paceline.spec.lifecycle import JobState
from paceline.spec.retention import Retention
from support.paddock import Paddock, shape

SECOND = 1_000_000


def saved(
    paddock: Paddock, step: int, *, stall_s: float = 0, persist_s: float = 0, **more: object
) -> s.Published:
    """Told now, when it has been on disk for no time at all."""
    staged_us = Micros(paddock.now_us - round(persist_s * SECOND))
    took = (round(stall_s * SECOND), {}, (), round(persist_s * SECOND), staged_us)
    return s.Published(step, f"step-{step}.a1", "hash", 1, *took, **more)  # type: ignore[arg-type]


@pytest.fixture
def paddock() -> Paddock:
    made = Paddock()
    made.node_joins("n1")
    return made


def running(paddock: Paddock, **facts: object) -> int:
    [job] = paddock.submit(shape(1, **facts))  # type: ignore[arg-type]
    paddock.starts(job)
    return job


def texts(paddock: Paddock, job: int) -> str:
    from paceline.scheduler.core.timeline import describe

    return "\n".join(describe(event) for event in paddock.history(job))


def test_steps_made_while_a_checkpoint_is_written_are_lost_with_a_crash(paddock: Paddock) -> None:
    job = running(paddock, retries=1)
    paddock.pass_time(10)
    paddock.says(job, 0, s.Metrics(0, 50, {}), saved(paddock, 40, stall_s=0.5, persist_s=3))
    paddock.pass_time(2)
    paddock.says(job, 0, s.Metrics(0, 60, {}))
    paddock.rank_dies(job, 0)
    ledger = paddock.ledger(job)
    assert (ledger.checkpoint_us, ledger.lost_us) == (SECOND // 2, 5 * SECOND)
    assert "lost: 20 steps and 5 s since the checkpoint of step 40" in texts(paddock, job)


def test_who_was_told_to_save_and_leave_lost_nothing_while_it_was_written(paddock: Paddock) -> None:
    job = running(paddock)
    paddock.pass_time(4)
    paddock.tell(s.Preempt("k", job, None, "ann"))  # type: ignore[arg-type]
    paddock.pass_time(2)
    paddock.says(job, 0, s.Metrics(0, 40, {}), saved(paddock, 40, persist_s=1))
    paddock.task_ends(job, 0, why="preempted")
    ledger = paddock.ledger(job)
    assert (ledger.productive_us, ledger.checkpoint_us, ledger.lost_us) == (5 * SECOND, SECOND, 0)
    assert "preempted by ann" in texts(paddock, job) and "lost" not in texts(paddock, job)
    assert paddock.job(job).attempt == 2 and not paddock.job(job).course.retries_used


@given(
    st.lists(st.tuples(st.integers(0, 30), st.integers(0, 5), st.integers(0, 5)), max_size=6),
    st.integers(0, 30),
)
def test_lost_is_the_time_since_the_copy(saves: list[tuple[int, int, int]], tail: int) -> None:
    """For any run of saves: (pause, stall, time to the disk)."""
    paddock = Paddock()
    paddock.node_joins("n1")
    job = running(paddock, retries=1)
    ran_us, since_us = 0, 0
    for pause, stall, persist in saves:
        paddock.pass_time(pause, step_s=pause or 1)
        ran_us += pause * SECOND
        since_us += pause * SECOND
        paddock.says(job, 0, saved(paddock, 1, stall_s=stall, persist_s=persist))
        since_us = min(max(0, since_us - stall * SECOND), persist * SECOND)
    paddock.pass_time(tail, step_s=tail or 1)
    paddock.rank_dies(job, 0)
    assert paddock.ledger(job).lost_us == since_us + tail * SECOND


@given(st.lists(st.tuples(st.integers(0, 10**10), st.integers(0, 10**10))), st.integers(0, 3600 * SECOND))
def test_the_grace_covers_what_saves_took_within_its_bounds(took: list[tuple[int, int]], own_us: int) -> None:
    fresh = Paddock()
    [number] = fresh.submit(shape(1, grace_s=own_us / SECOND))
    job = fresh.job(number)
    own_us = job.shape.policy.grace_us
    made = tuple(
        Checkpoint(1, Attempt(1), "p", "h", 1, Micros(1), stall_us=stall, persist_us=persist)
        for stall, persist in took
    )
    grace_us = save_grace_us(replace(job, course=replace(job.course, checkpoints=made)))
    longest = max((stall + persist for stall, persist in took[:5]), default=0)
    assert own_us <= grace_us <= max(own_us, GRACE_MAX_US)
    assert grace_us >= min(longest + GRACE_MARGIN_US, GRACE_MAX_US) if longest else grace_us == own_us


def test_a_cancel_after_a_preemption_is_a_cancel(paddock: Paddock) -> None:
    job = running(paddock, grace_s=20)
    paddock.tell(s.Preempt("k", job))  # type: ignore[arg-type]
    paddock.pass_time(5)
    paddock.cancel(job, 60)
    assert [stop.grace_us for stop in paddock.stops_sent(job)] == [20 * SECOND, 15 * SECOND]
    paddock.task_ends(job, 0, why="stopped")
    assert paddock.job(job).state is JobState.CANCELLED


def asks(paddock: Paddock) -> list[int]:
    return [effect.number for effect in paddock.sent if isinstance(effect, AskSave)]


def test_a_request_is_told_again_until_it_is_answered_and_asked_once_by_its_key(paddock: Paddock) -> None:
    job = running(paddock)
    asked = paddock.tell(s.AskCheckpoint("k1", job, "ann"))  # type: ignore[arg-type]
    assert paddock.tell(s.AskCheckpoint("k1", job)) == paddock.tell(s.AskCheckpoint("k2", job)) == asked  # type: ignore[arg-type]
    assert asks(paddock) == [asked.number]
    paddock.scheduler_restarts()
    paddock.node_joins("n1", paddock.job(job).key(0))
    assert asks(paddock) == [asked.number] * 2
    paddock.says(job, 0, saved(paddock, 3, why="asked for", request=asked.number))
    paddock.node_joins("n1", paddock.job(job).key(0))
    assert asks(paddock) == [asked.number] * 2
    assert paddock.tell(s.AskCheckpoint("k1", job)) == asked  # type: ignore[arg-type]
    assert paddock.tell(s.AskCheckpoint("k3", job)).number > asked.number  # type: ignore[arg-type]


def test_who_cannot_save_is_refused_with_the_reason(paddock: Paddock) -> None:
    [job] = paddock.submit(shape(1))
    with pytest.raises(Conflict, match="STARTING and has no state"):
        paddock.tell(s.AskCheckpoint("k", job))  # type: ignore[arg-type]
    with pytest.raises(NotFound):
        paddock.tell(s.AskCheckpoint("k", 99))  # type: ignore[arg-type]
    paddock.starts(job)
    paddock.cancel(job)
    with pytest.raises(Conflict, match="being stopped"):
        paddock.tell(s.AskCheckpoint("k", job))  # type: ignore[arg-type]


def test_sent_back_once_it_goes_on_from_there_and_the_old_attempt_counts_no_more(paddock: Paddock) -> None:
    job = running(paddock)
    for step in (10, 20, 30):
        paddock.says(job, 0, saved(paddock, step))
    for _ in range(2):
        paddock.tell(s.Restore("k", job, 20, "ann"))  # type: ignore[arg-type]
    assert paddock.job(job).attempt == 2
    assert [one.step for one in paddock.starts_sent(job)[-1].job.course.checkpoints] == [20, 10]
    assert isinstance(paddock.sent[-2], StopTask | StartTask)
    paddock.says(job, 0, saved(paddock, 40), attempt=1)
    assert [one.step for one in paddock.job(job).course.checkpoints] == [20, 10]
    with pytest.raises(NotFound, match="it has those of steps 10, 20"):
        paddock.tell(s.Restore("k2", job, 30))  # type: ignore[arg-type]
    lines = checkpoint_table(paddock.job(job), paddock.history(job), Retention(keep_last=1))
    assert [(one.checkpoint.step, one.state, one.kept) for one in lines] == [
        (30, "set aside", ""),
        (20, "good", "last 1"),
        (10, "good", ""),
    ]


def test_the_table_tells_what_was_removed_and_what_was_damaged(paddock: Paddock) -> None:
    job = running(paddock)
    paddock.says(job, 0, saved(paddock, 10), saved(paddock, 20))
    paddock.says(job, 0, replace(saved(paddock, 30), removed_steps=(10,)))
    paddock.says(job, 0, s.Restored(20, "step-20.a1", 1, ("step 30 (attempt 1): a.pt: hash differs",)))
    lines = checkpoint_table(paddock.job(job), paddock.history(job), Retention(keep_last=2))
    assert [(one.checkpoint.step, one.state) for one in lines] == [
        (30, "damaged: a.pt: hash differs"),
        (20, "good"),
        (10, "removed"),
    ]


def test_faults_are_counted_for_each_second_of_a_node(paddock: Paddock) -> None:
    assert FaultRate().mtbf_us(1) == PRIOR_US and FaultRate().mtbf_us(4) == PRIOR_US // 4
    job = running(paddock, retries=3)
    paddock.pass_time(30)
    paddock.rank_dies(job, 0)
    paddock.starts(job)
    paddock.pass_time(10)
    paddock.scheduler_restarts()
    assert paddock.state.rate == FaultRate(1, 30 * SECOND), "of jobs that live on"
    paddock.node_joins("n1", paddock.job(job).key(0))
    paddock.finishes(job)
    assert paddock.state.rate.faults == 1
    assert paddock.starts_sent(job)[-1].mtbf_us == (PRIOR_US + 30 * SECOND) // 2


def test_a_fork_goes_on_from_its_parents_checkpoint(paddock: Paddock) -> None:
    from paceline.scheduler.core.job import Parent

    parent = running(paddock)
    paddock.says(parent, 0, saved(paddock, 10))
    first = replace(paddock.job(parent).course.checkpoints[0], job=parent)
    new = s.NewJob("child", 0, shape(1), "{}")
    fork = s.Submit("k", "ann", (new,), Parent(parent, 10), first)  # type: ignore[arg-type]
    [child] = paddock.tell(fork).jobs
    assert paddock.tell(fork).jobs == (child,)
    assert paddock.starts_sent(child)[0].job.course.checkpoints == (first,)
    assert f"a fork of job {parent} from its step 10" in texts(paddock, child)
    assert paddock.replayed().jobs[child] == paddock.state.jobs[child]


def test_all_that_is_kept_is_on_record_and_offered_however_many(paddock: Paddock) -> None:
    """Only what training has removed leaves it: a run with `keep_last: 1000` goes back to any of them."""
    job = running(paddock, retries=1)
    paddock.says(job, 0, *(s.Published(step, f"step-{step}.a1", "h") for step in range(1, 1001)))
    paddock.says(job, 0, s.Published(1001, "step-1001.a1", "h", removed_steps=(1,)))
    steps = [one.step for one in offered(paddock.job(job).course.checkpoints)]
    assert steps == list(range(1001, 1, -1))
    assert checkpoint_of(paddock.job(job), 2).path == "step-2.a1"


def test_what_a_save_waited_for_the_one_before_is_told(paddock: Paddock) -> None:
    job = running(paddock)
    paddock.says(job, 0, saved(paddock, 10, stall_s=0.7, waited_us=600_000), saved(paddock, 20, stall_s=0.1))
    assert "step 10 accepted, 1 B, stalled 700 ms (600 ms of it until the one before was on disk)" in texts(
        paddock, job
    )
    assert "step 20 accepted, 1 B, stalled 100 ms" in texts(paddock, job)
    assert texts(paddock, job).count("until the one before") == 1


def test_the_table_says_which_is_in_memory_while_its_attempt_has_its_nodes(paddock: Paddock) -> None:
    job = running(paddock, retries=1)
    paddock.says(job, 0, *(saved(paddock, step, image="memory") for step in (10, 20)))

    def tiers() -> dict[int, str]:
        lines = checkpoint_table(paddock.job(job), paddock.history(job), Retention())
        return {line.checkpoint.step: line.tiers for line in lines}

    assert tiers() == {10: "storage", 20: "memory, storage"}
    paddock.says(job, 0, saved(paddock, 30, image="disk"))
    assert tiers() == {10: "storage", 20: "storage", 30: "storage"}, "memory had no room for it"
    paddock.says(job, 0, saved(paddock, 40, image="memory"))
    assert tiers()[40] == "memory, storage"

    def peer(rank: int, why: str = "") -> None:
        paddock.says(job, 0, s.PeerMemory(rank, "n2", 40, 1_000_000, 100_000, why))

    peer(0)
    assert tiers()[40] == "memory, peer memory, storage" and tiers()[30] == "storage"
    peer(1, "no room")
    assert tiers()[40] == "memory, storage"
    peer(1)
    assert tiers()[40] == "memory, peer memory, storage"
    paddock.rank_dies(job, 0)
    assert set(tiers().values()) == {"storage"}, "the next attempt may be on other nodes"
