"""A gang that hangs, told from outside: who noticed, who was asked, who is named, and what follows."""

import pytest
from paceline.scheduler.core import stimuli as s
from paceline.scheduler.core.effects import InspectTask
from paceline.scheduler.core.hang import RankLook
from paceline.scheduler.core.hangs import culprits
from paceline.scheduler.core.progress_events import GangHung
from paceline.scheduler.core.timeline import describe
from paceline.spec.failures import FailureClass
from paceline.spec.ids import TaskKey
from paceline.spec.lifecycle import JobState
from support.paddock import Paddock, shape

SECOND = 1_000_000
WAITS = (
    "_engine_run_backward (/venv/lib/python3.11/site-packages/torch/autograd/graph.py:979)\n"
    "Tensor.backward (/venv/lib/python3.11/site-packages/torch/_tensor.py:623)\n"
    "<module> (/code/train.py:19)"
)
SLEEPS = "get (/usr/lib/python3.11/queue.py:171)\nload_batch (/code/data.py:41)\n<module> (/code/train.py:17)"
NODES = {rank: f"n{rank // 2 + 1}" for rank in range(8)}


@pytest.fixture
def paddock() -> Paddock:
    paddock = Paddock()
    for name in ("n1", "n2"):
        paddock.node_joins(name, cpus=2)
    return paddock


def gang(paddock: Paddock, **more: object) -> int:
    [job] = paddock.submit(shape(2, cpus=2, ranks=2, **more))  # type: ignore[arg-type]
    paddock.starts(job)
    paddock.pass_time(60)
    return job


def asked(paddock: Paddock) -> list[TaskKey]:
    return [one.key for one in paddock.sent if isinstance(one, InspectTask)]


def stalled(paddock: Paddock, job: int, task: int = 0, still_s: int = 40) -> None:
    paddock.says(job, task, s.Stalled(still_s * SECOND, 30 * SECOND, 2 * SECOND, 12))


def found(*looks: RankLook, stalled: bool = True, begun: bool = True) -> s.Inspected:
    return s.Inspected(begun, stalled, looks)


def kinds(paddock: Paddock, job: int) -> list[str]:
    return [type(event).__name__ for event in paddock.history(job)]


def test_all_nodes_are_asked_and_the_one_that_did_not_arrive_is_named(paddock: Paddock) -> None:
    job = gang(paddock, retries=1)
    stalled(paddock, job)
    assert [(key.job, key.task) for key in asked(paddock)] == [(job, 0), (job, 1)]
    paddock.says(job, 0, found(RankLook(0, 12, stack=WAITS), RankLook(1, 12, stack=WAITS)))
    assert paddock.state_of(job) is JobState.RUNNING
    paddock.says(job, 1, found(RankLook(2, 12, stack=WAITS), RankLook(3, 12, stack=SLEEPS)))
    hung = next(event for event in paddock.history(job) if isinstance(event, GangHung))
    assert hung.ranks == (3,)
    assert "rank 3 on n2 did not arrive" in hung.text and "load_batch (/code/data.py:41)" in hung.text
    ending = paddock.job(job).course.ending
    assert ending is not None and (ending.code, ending.rank, ending.node) == ("hang", 3, "n2")
    assert "--stacks" in ending.hint and ending.failure is not None
    failure = ending.failure
    assert (failure.kind, failure.attempt, failure.node, failure.rank) == (FailureClass.HANG, 1, "n2", 3)
    assert failure.message == ending.text and failure.hint == ending.hint
    course = paddock.job(job).course
    assert (course.attempt, course.retries_used, course.hangs) == (2, 1, 1)
    assert paddock.starts_sent(job)[-1].job.course.hangs == 1
    book = paddock.ledger(job)
    assert book.hung_us == 40 * SECOND and book.lost_us == 20 * SECOND
    assert paddock.replayed().jobs[job] == paddock.job(job)  # type: ignore[index]


def test_retry_on_decides_whether_a_hang_is_tried_again(paddock: Paddock) -> None:
    job = gang(paddock, retries=1, retry_on=(FailureClass.EXCEPTION,))
    stalled(paddock, job)
    paddock.says(job, 0, found(RankLook(0, 12, stack=WAITS), RankLook(1, 12, stack=WAITS)))
    paddock.says(job, 1, found(RankLook(2, 12, stack=WAITS), RankLook(3, 12, stack=SLEEPS)))
    assert paddock.state_of(job) is JobState.FAILED and paddock.job(job).attempt == 1


def test_one_that_works_clears_the_gang_until_somebody_says_more(paddock: Paddock) -> None:
    """Rank 0's node evaluates; the others wait for it."""
    job = gang(paddock)
    stalled(paddock, job, task=1)
    paddock.says(job, 1, found(RankLook(2, 12, stack=WAITS)))
    paddock.says(job, 0, found(RankLook(0, 12, stack=SLEEPS), stalled=False))
    assert kinds(paddock, job)[-1] == "SuspicionCleared"
    assert paddock.state_of(job) is JobState.RUNNING and paddock.job(job).course.suspicion is None
    paddock.pass_time(60)
    assert paddock.state_of(job) is JobState.RUNNING
    stalled(paddock, job, task=1, still_s=80)
    assert len(asked(paddock)) == 4
    paddock.says(job, 1, found(RankLook(2, 12, stack=WAITS)))
    paddock.says(job, 0, found(RankLook(0, 12, stack=SLEEPS)))
    assert paddock.state_of(job) is JobState.FAILED


@pytest.mark.parametrize(("state", "hangs"), [("stopped by a signal", True), ("sleeping", False)])
def test_nobodys_work_brings_a_rank_on_that_is_stopped(paddock: Paddock, state: str, hangs: bool) -> None:
    """In a save, say, which the peers of a rank have long patience for."""
    job = gang(paddock)
    stalled(paddock, job, task=1)
    paddock.says(job, 0, found(RankLook(0, 12, stack=WAITS), stalled=False))
    paddock.says(job, 1, found(RankLook(2, 12, state=state, stack=WAITS), RankLook(3, 12, stack=WAITS)))
    assert (paddock.state_of(job) is JobState.FAILED) is hangs
    if hangs:
        hung = next(event for event in paddock.history(job) if isinstance(event, GangHung))
        assert hung.ranks == (2,) and "rank 2 on n2 is stopped by a signal" in hung.text


def test_a_rank_that_is_stopped_and_not_yet_still_for_too_long_is_left_alone(paddock: Paddock) -> None:
    job = gang(paddock)
    stalled(paddock, job, task=1)
    paddock.says(job, 0, found(RankLook(0, 12, state="stopped by a signal", stack=WAITS), stalled=False))
    paddock.says(job, 1, found(RankLook(2, 12, stack=WAITS)))
    assert paddock.state_of(job) is JobState.RUNNING


def starts_still(paddock: Paddock, job: int, task: int = 0) -> None:
    paddock.says(job, task, s.Stalled(31 * 60 * SECOND, 1800 * SECOND, 0, -1, idle=True))


def test_a_gang_that_never_makes_its_first_step_hangs_too(paddock: Paddock) -> None:
    job = gang(paddock, retries=1)
    paddock.pass_time(31 * 60)
    starts_still(paddock, job)
    paddock.says(job, 0, found(RankLook(0, stack=WAITS), RankLook(1, stack=WAITS), begun=False))
    paddock.says(job, 1, found(RankLook(2, stack=SLEEPS), RankLook(3, stack=WAITS), begun=False))
    hung = next(event for event in paddock.history(job) if isinstance(event, GangHung))
    assert hung.text.startswith("no step yet for 31 min") and hung.ranks == (2,), hung.text
    texts = [describe(event) for event in paddock.history(job)]
    assert any("no step yet, and no CPU used, for 31 min" in text for text in texts), texts
    assert any("rank 2 before its first step is in load_batch" in text for text in texts), texts
    assert paddock.ledger(job).hung_us == 31 * 60 * SECOND
    assert paddock.replayed().jobs[job] == paddock.job(job)  # type: ignore[index]


@pytest.mark.parametrize("begun", [False, True])
def test_before_the_first_step_a_part_that_is_not_found_still_clears_the_gang(
    paddock: Paddock, begun: bool
) -> None:
    """It works, or nothing says that it is to make steps."""
    job = gang(paddock)
    starts_still(paddock, job)
    paddock.says(job, 0, found(RankLook(0, stack=WAITS), begun=False))
    paddock.says(job, 1, found(RankLook(2, stack=SLEEPS), begun=begun, stalled=False))
    assert kinds(paddock, job)[-1] == "SuspicionCleared" and paddock.state_of(job) is JobState.RUNNING


def test_a_gang_is_not_hung_that_waits_for_a_task_that_is_being_prepared(paddock: Paddock) -> None:
    [job] = paddock.submit(shape(2, cpus=2, ranks=2))
    paddock.says(job, 0, s.Started((100,), "warm"))
    starts_still(paddock, job)
    paddock.says(job, 0, found(RankLook(0, stack=WAITS), begun=False))
    paddock.pass_time(21)
    assert paddock.state_of(job) is JobState.STARTING
    assert "task 1 on n2 has not started yet" in paddock.history(job)[-1].why  # type: ignore[union-attr]


def test_a_part_without_steps_has_no_say(paddock: Paddock) -> None:
    job = gang(paddock)
    stalled(paddock, job)
    paddock.says(job, 0, found(RankLook(0, 12, stack=SLEEPS)))
    paddock.says(job, 1, found(RankLook(2, state="sleeping"), begun=False, stalled=False))
    assert paddock.state_of(job) is JobState.FAILED


def test_who_does_not_answer_in_time_is_stuck_too(paddock: Paddock) -> None:
    job = gang(paddock)
    stalled(paddock, job)
    paddock.says(job, 0, found(RankLook(0, 12, stack=WAITS)))
    paddock.pass_time(19)
    assert paddock.state_of(job) is JobState.RUNNING
    paddock.pass_time(2)
    assert paddock.state_of(job) is JobState.FAILED
    assert "n2 did not say where its ranks are" in paddock.job(job).course.ending.text  # type: ignore[union-attr]


def test_a_node_out_of_contact_is_no_hang(paddock: Paddock) -> None:
    job = gang(paddock, exclusive=True)
    stalled(paddock, job)
    paddock.stream_breaks("n2")
    paddock.says(job, 0, found(RankLook(0, 12, stack=WAITS)))
    paddock.pass_time(21)
    assert "SuspicionCleared" in kinds(paddock, job) and "GangHung" not in kinds(paddock, job)


def test_a_job_that_is_being_stopped_is_not_judged(paddock: Paddock) -> None:
    job = gang(paddock)
    paddock.cancel(job, grace_s=600)
    stalled(paddock, job)
    paddock.says(job, 0, found(RankLook(0, 12, stack=SLEEPS)))
    paddock.says(job, 1, found(RankLook(2, 12, stack=SLEEPS)))
    paddock.pass_time(60)
    assert not asked(paddock) and paddock.state_of(job) is JobState.RUNNING


def test_a_scheduler_that_restarts_goes_on_asking_itself(paddock: Paddock) -> None:
    """What was heard before is in the record; the deadline stands."""
    job = gang(paddock)
    stalled(paddock, job)
    paddock.says(job, 0, found(RankLook(0, 12, stack=WAITS)))
    paddock.scheduler_restarts()
    for name, task in (("n1", 0), ("n2", 1)):
        paddock.node_joins(name, TaskKey(job, paddock.job(job).attempt, task))  # type: ignore[arg-type]
    paddock.says(job, 1, found(RankLook(2, 12, stack=SLEEPS)))
    assert paddock.state_of(job) is JobState.FAILED
    assert "rank 2" in paddock.job(job).course.ending.text  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("looks", "ranks", "says"),
    [
        ((RankLook(0, 7, stack=WAITS), RankLook(1, 6, stack=SLEEPS)), (1,), "step 6, others 7"),
        (
            (RankLook(0, 7), RankLook(1, 6, stack=WAITS), RankLook(2, 6, stack=SLEEPS)),
            (2,),
            "load_batch",
        ),
        ((RankLook(0, 7, stack=WAITS), RankLook(1, 7, stack=SLEEPS)), (1,), "where the others wait"),
        ((RankLook(0, 7, stack=WAITS), RankLook(1, 7, state="stopped by a signal")), (1,), "is stopped"),
        ((RankLook(0, 7, stack=WAITS), RankLook(1, 7, stack=WAITS)), (), "can be told from its peers"),
        ((RankLook(0, 7, stack=SLEEPS), RankLook(1, 7, stack=SLEEPS)), (), "can be told from its peers"),
        ((RankLook(0, 0, 9, stack=WAITS), RankLook(1, 0, 8, stack=SLEEPS)), (1,), "step 8, others 9"),
        ((RankLook(0, 0, 9, stack=WAITS), RankLook(1, stack=SLEEPS)), (1,), "where the others wait"),
        ((RankLook(0, 7, state="sleeping"),), (0,), "is sleeping (no stack)"),
        ((), (), "no rank is to be seen"),
    ],
    ids=[
        "behind",
        "behind and not in a collective",
        "equal counts: by the stack",
        "stopped",
        "all wait",
        "none waits",
        "reports where there are no optimizers",
        "reports of one rank only do not count",
        "alone",
        "nobody",
    ],
)
def test_the_rank_to_name(looks: tuple[RankLook, ...], ranks: tuple[int, ...], says: str) -> None:
    named, text = culprits(looks, NODES)
    assert named == ranks and says in text


def test_a_thousand_ranks_make_one_bounded_sentence() -> None:
    looks = [RankLook(rank, 7 if rank else 8, stack=SLEEPS) for rank in range(1000)]
    ranks, text = culprits(looks, dict.fromkeys(range(1000), "n1"))
    assert len(ranks) == 999 and "and 991 more" in text and len(text) < 2000
