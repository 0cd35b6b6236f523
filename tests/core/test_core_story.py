"""The life of a gang, told from outside: submit, place, start, fall, ride on, end."""

import pytest
from paceline.scheduler.core import stimuli as s
from paceline.scheduler.core.attempt_events import AttemptEnded, AttemptStarted, JobSubmitted
from paceline.scheduler.core.task_events import RankExited, TaskEnded, TaskStarted
from paceline.spec.errors import NotFound
from paceline.spec.ids import NodeId
from paceline.spec.lifecycle import AttemptOutcome, JobState
from support.paddock import Paddock, shape
from support.sim_checks import picture


@pytest.fixture
def paddock() -> Paddock:
    return Paddock()


def test_a_gang_starts_runs_and_succeeds(paddock: Paddock) -> None:
    paddock.node_joins("n1")
    paddock.node_joins("n2")
    [job] = paddock.submit(shape(2, cpus=4, rendezvous=True))
    assert paddock.state_of(job) is JobState.STARTING
    assert paddock.nodes_of(job) == ["n1", "n2"]
    assert {start.master_address for start in paddock.starts_sent(job)} == {"n1.test"}
    paddock.starts(job)
    assert paddock.state_of(job) is JobState.RUNNING
    paddock.finishes(job)
    done = paddock.job(job)
    assert done.state is JobState.SUCCEEDED
    assert done.course.ending is not None and done.course.ending.exit_code == 0
    assert not paddock.state.jobs
    assert paddock.state.loads["n1"].free_cpu_milli == 8000  # type: ignore[index]


def test_history_is_in_the_order_of_time_though_the_clock_is_set_back(paddock: Paddock) -> None:
    """A load takes the last event's time for the latest of all."""
    paddock.node_joins("a")
    [job] = paddock.submit(shape(1))
    paddock.now_us -= 3600 * 1_000_000
    paddock.starts(job)
    paddock.scheduler_restarts()
    paddock.submit(shape(1))
    times = [row.at_us for row in paddock.store.event_rows]
    assert times == sorted(times)
    assert paddock.state.last_at_us == times[-1] > paddock.now_us


def test_nothing_runs_before_all_tasks_have_room(paddock: Paddock) -> None:
    paddock.node_joins("n1", cpus=4)
    [job] = paddock.submit(shape(2, cpus=4))
    assert paddock.state_of(job) is JobState.QUEUED
    assert not paddock.sent
    paddock.node_joins("n2", cpus=4)
    assert paddock.nodes_of(job) == ["n1", "n2"]


def test_tasks_share_a_node_only_where_there_are_too_few(paddock: Paddock) -> None:
    paddock.node_joins("n1")
    [job] = paddock.submit(shape(2, cpus=4))
    assert paddock.nodes_of(job) == ["n1", "n1"]


def test_gpus_are_given_by_index_and_model(paddock: Paddock) -> None:
    paddock.node_joins("a1", gpus=4, model="NVIDIA A100-SXM4-40GB")
    paddock.node_joins("h1", gpus=4)
    first, second, third = paddock.submit(
        shape(gpus=2, models=["h100"]), shape(gpus=2, models=["h100", "h200"]), shape(gpus=4, models=["A100"])
    )
    assert [paddock.job(job).tasks[0].gpu_indices for job in (first, second)] == [(0, 1), (2, 3)]
    assert paddock.nodes_of(third) == ["a1"]


def test_who_fits_starts_and_the_impossible_step_aside(paddock: Paddock) -> None:
    paddock.node_joins("n1", gpus=8, cpus=16)
    running, never, large, small, other = paddock.submit(
        shape(gpus=4), shape(gpus=16), shape(gpus=8), shape(gpus=4), shape(gpus=4)
    )
    assert paddock.state_of(running) is JobState.STARTING
    assert paddock.state_of(small) is JobState.STARTING, "the room is of no use to who stands before it"
    assert paddock.why(never).never
    assert paddock.why(never).reasons[0].text == "never: the largest node has 8 GPUs, asked 16 per task"
    first, _shortage, *_ = paddock.why(other).reasons
    assert first.text == f"waits behind 1 job; first in line is job {large}"
    assert f"job {running} holds 4" in paddock.why(large).reasons[0].text
    paddock.cancel(other)
    for job in (running, small):
        paddock.starts(job)
        paddock.finishes(job)
    assert paddock.state_of(large) is JobState.STARTING
    paddock.node_joins("n2", gpus=16, cpus=64)
    assert paddock.state_of(never) is JobState.STARTING, "nodes that could run it have joined"


def test_priority_goes_first_and_equals_by_number(paddock: Paddock) -> None:
    paddock.node_joins("n1", cpus=1)
    [blocker] = paddock.submit(shape())
    low, low2 = paddock.submit(shape(), shape())
    [high] = paddock.submit(shape(), priority=5)
    order = []
    for _ in range(3):
        running = next(
            job for job in (blocker, low, low2, high) if paddock.state_of(job) is JobState.STARTING
        )
        paddock.starts(running)
        paddock.finishes(running)
        order.append(running)
    assert order == [blocker, high, low]
    assert paddock.state_of(low2) is JobState.STARTING


def test_a_fallen_rank_restarts_the_gang_at_once_where_it_was(paddock: Paddock) -> None:
    paddock.node_joins("n1")
    paddock.node_joins("n2")
    [job, waiting] = paddock.submit(shape(2, cpus=8, retries=1, rendezvous=True), shape(cpus=8))
    paddock.starts(job)
    paddock.rank_dies(job, 1, -9, "boom")
    again = paddock.job(job)
    assert (again.state, again.attempt) == (JobState.STARTING, 2)
    assert paddock.nodes_of(job) == ["n1", "n2"]
    assert {stop.key.attempt for stop in paddock.stops_sent(job)} == {1}
    assert all(stop.grace_us == 0 for stop in paddock.stops_sent(job))
    assert again.course.rendezvous_port != 0
    assert paddock.state_of(waiting) is JobState.QUEUED
    paddock.starts(job)
    paddock.rank_dies(job, 0, 3)
    failed = paddock.job(job)
    assert failed.state is JobState.FAILED
    assert failed.course.ending is not None
    assert failed.course.ending.exit_code == 3
    assert failed.course.ending.text == "rank 0 on n1 exited with code 3; all 1 retries are used up"
    assert paddock.state_of(waiting) is JobState.STARTING


def test_what_the_node_knows_of_a_death_is_in_the_reason(paddock: Paddock) -> None:
    paddock.node_joins("n1")
    [job] = paddock.submit(shape())
    paddock.starts(job)
    cause = "out of memory: the task reached its limit of 96 MiB"
    paddock.says(job, 0, s.Exited(0, -9, "epoch 3", cause=cause))
    ending = paddock.job(job).course.ending
    assert ending is not None
    assert ending.text == f"rank 0 on n1 was killed by signal 9 (SIGKILL), {cause}: epoch 3"


def test_a_rank_that_we_killed_is_not_the_cause(paddock: Paddock) -> None:
    paddock.node_joins("n1")
    [job] = paddock.submit(shape(2, retries=3))
    paddock.starts(job)
    paddock.says(job, 0, s.Exited(0, -9, "", killed_by_us=True))
    assert paddock.job(job).attempt == 1
    paddock.rank_dies(job, 1, -11)
    ending = paddock.job(job).course.ending
    assert ending is not None and ending.rank == 1 and ending.exit_code == 139


def test_stale_attempts_change_nothing(paddock: Paddock) -> None:
    paddock.node_joins("n1")
    [job] = paddock.submit(shape(retries=1))
    paddock.starts(job)
    paddock.rank_dies(job, 0)
    before = paddock.job(job)
    acked = paddock.says(
        job, 0, s.Published(5, "p", "h"), s.Metrics(0, 9, {"loss": 1}), s.Ended((0,)), attempt=1
    )
    assert acked.positions[0].seq == paddock.seqs[acked.positions[0].task], "acked, so that its folder can go"
    assert paddock.job(job) == before


def test_entries_are_taken_once_and_in_order(paddock: Paddock) -> None:
    paddock.node_joins("n1")
    [job] = paddock.submit(shape())
    key = paddock.job(job).key(0)
    entries = (s.Entry(key, 1, s.Started((1,))), s.Entry(key, 2, s.Metrics(0, 1, {"loss": 2.0})))
    for _ in range(2):
        assert paddock.tell(s.Reports(paddock.job(job).tasks[0].node, entries)).positions[0].seq == 2
    skipping = (s.Entry(key, 4, s.Ended((0,))),)
    assert paddock.tell(s.Reports(paddock.job(job).tasks[0].node, skipping)).positions[0].seq == 2
    assert paddock.state_of(job) is JobState.RUNNING
    assert len(paddock.store.metric_rows) == 1


def test_checkpoints_are_kept_newest_first_and_removed_by_step(paddock: Paddock) -> None:
    paddock.node_joins("n1")
    [job] = paddock.submit(shape(retries=1))
    paddock.starts(job)
    paddock.says(job, 0, s.Published(10, "c10", "h"), s.Published(20, "c20", "h", removed_steps=(10,)))
    paddock.says(job, 0, s.Published(30, "c30", "h", metrics={"loss": float("nan")}))
    assert [one.step for one in paddock.job(job).course.checkpoints] == [30, 20]
    paddock.rank_dies(job, 0)
    [start] = [one for one in paddock.starts_sent(job) if one.key.attempt == 2]
    assert [one.path for one in start.job.course.checkpoints] == ["c30", "c20"]


def test_the_same_key_makes_one_job(paddock: Paddock) -> None:
    first = paddock.submit(shape(), shape(), key="k")
    assert paddock.submit(shape(), shape(), key="k") == first
    assert len(paddock.state.jobs) == 2


def test_cancel_of_a_waiting_job_is_over_at_once(paddock: Paddock) -> None:
    [job] = paddock.submit(shape())
    paddock.cancel(job)
    assert paddock.state_of(job) is JobState.CANCELLED
    with pytest.raises(NotFound):
        paddock.cancel(job)


def test_cancel_gives_notice_and_waits_for_the_end(paddock: Paddock) -> None:
    paddock.node_joins("n1")
    [job] = paddock.submit(shape(2, grace_s=20, retries=3))
    paddock.starts(job)
    paddock.cancel(job)
    assert [stop.grace_us for stop in paddock.stops_sent(job)] == [20_000_000] * 2
    assert paddock.state_of(job) is JobState.RUNNING
    paddock.says(job, 0, s.Exited(0, -15, "", killed_by_us=True), s.Ended((-15,), (0,), "stopped"))
    assert paddock.state_of(job) is JobState.RUNNING
    assert paddock.why(job).reasons[0].code == "stopping"
    paddock.task_ends(job, 1, 0, "stopped")
    assert paddock.state_of(job) is JobState.CANCELLED


def test_a_cancel_that_came_too_late_does_not_hide_success(paddock: Paddock) -> None:
    paddock.node_joins("n1")
    [job] = paddock.submit(shape())
    paddock.starts(job)
    paddock.cancel(job)
    paddock.finishes(job)
    assert paddock.state_of(job) is JobState.SUCCEEDED


def test_a_stop_that_nobody_answers_is_given_up(paddock: Paddock) -> None:
    paddock.node_joins("n1")
    [job] = paddock.submit(shape(grace_s=10))
    paddock.starts(job)
    paddock.cancel(job, 1)
    paddock.pass_time(15)
    assert paddock.state_of(job) is JobState.RUNNING
    paddock.pass_time(2)
    assert paddock.state_of(job) is JobState.CANCELLED


def test_the_timeout_counts_from_the_first_run_over_restarts(paddock: Paddock) -> None:
    paddock.node_joins("n1")
    [job] = paddock.submit(shape(retries=5, timeout_s=60, grace_s=5))
    paddock.pass_time(100)
    paddock.starts(job)
    paddock.pass_time(40)
    paddock.rank_dies(job, 0)
    paddock.starts(job)
    assert paddock.starts_sent(job)[-1].timeout_us == 20_000_000
    paddock.pass_time(21)
    assert paddock.stops_sent(job)[-1].grace_us == 5_000_000
    paddock.task_ends(job, 0, -15, "stopped")
    ending = paddock.job(job).course.ending
    assert paddock.state_of(job) is JobState.FAILED
    assert ending is not None and ending.outcome is AttemptOutcome.TIMED_OUT and ending.exit_code == 124


def test_a_refusal_for_now_goes_elsewhere_and_for_good_is_the_end(paddock: Paddock) -> None:
    paddock.node_joins("n1")
    [job] = paddock.submit(shape())
    paddock.node_joins("n2")
    paddock.says(job, 0, s.Refused("port", "port 41000 is taken", transient=True))
    assert paddock.state_of(job) is JobState.QUEUED
    assert paddock.why(job).reasons[0].code == "backoff"
    paddock.pass_time(1)
    assert paddock.nodes_of(job) == ["n2"]
    paddock.says(job, 0, s.Refused("cwd", "/nowhere does not exist", transient=False))
    assert paddock.state_of(job) is JobState.FAILED
    assert paddock.job(job).course.retries_used == 0


def test_refusals_without_end_are_bounded(paddock: Paddock) -> None:
    paddock.node_joins("n1")
    [job] = paddock.submit(shape())
    for _ in range(paddock.settings.free_restarts_max + 1):
        paddock.says(job, 0, s.Refused("port", "taken", transient=True))
        if paddock.state_of(job) is JobState.FAILED:
            break
        paddock.pass_time(61, step_s=1)
    ending = paddock.job(job).course.ending
    assert paddock.state_of(job) is JobState.FAILED
    assert ending is not None and "100 restarts" in ending.text


def test_the_rendezvous_port_changes_with_the_attempt(paddock: Paddock) -> None:
    paddock.node_joins("n1", ports=(5000, 5001))
    [job] = paddock.submit(shape(2, rendezvous=True, retries=1))
    first = paddock.job(job).course.rendezvous_port
    paddock.starts(job)
    paddock.rank_dies(job, 0)
    assert {first, paddock.job(job).course.rendezvous_port} == {5000, 5001}


def test_without_a_free_port_a_gang_waits_and_says_so(paddock: Paddock) -> None:
    paddock.node_joins("n1", ports=(5000,))
    first, second = paddock.submit(shape(rendezvous=True), shape(rendezvous=True))
    assert paddock.state_of(second) is JobState.QUEUED
    assert paddock.why(second).reasons[0].code == "no-port"
    paddock.starts(first)
    paddock.finishes(first)
    assert paddock.state_of(second) is JobState.STARTING


def test_every_event_of_a_life_is_in_the_history(paddock: Paddock) -> None:
    paddock.node_joins("n1")
    [job] = paddock.submit(shape())
    paddock.starts(job)
    paddock.finishes(job)
    kinds = [type(event) for event in paddock.history(job)]
    assert kinds == [
        JobSubmitted,
        AttemptStarted,
        TaskStarted,
        RankExited,
        TaskEnded,
        AttemptEnded,
    ]


def test_how_the_tasks_of_a_failed_gang_left_is_told_after_its_end(paddock: Paddock) -> None:
    paddock.node_joins("n1")
    paddock.node_joins("n2")
    [job] = paddock.submit(shape(2, cpus=5))
    paddock.starts(job)
    paddock.rank_dies(job, 0, 7, "bad input")
    over = paddock.job(job)
    assert paddock.state_of(job) is JobState.FAILED
    key = over.key(1)
    killed = (s.Exited(0, -9, "", True), s.Ended((-9,), (12,), "stopped"))
    acked = paddock.says(job, 1, s.Published(40, "step-40", "hash"), *killed)
    paddock.task_ends(job, 0, 7)
    assert [position.seq for position in acked.positions] == [4], "also what does not count is acknowledged"
    first, second = paddock.job(job).tasks
    assert (first.exit_codes, second.exit_codes, second.log_bytes) == ((7,), (-9,), (12,))
    assert paddock.job(job).course.ending == over.course.ending
    assert not paddock.job(job).course.checkpoints, "nothing of a job that is over is accepted"
    told = paddock.history(job)
    paddock.says(job, 1, *killed)
    paddock.tell(s.Reports(NodeId("n2"), (s.Entry(key, 4, killed[1]),)))
    assert paddock.history(job) == told, "once"
    assert picture(paddock.replayed()) == picture(paddock.state)


def test_a_job_that_was_cancelled_between_attempts_tells_how_its_last_one_left(paddock: Paddock) -> None:
    paddock.node_joins("n1", cpus=2)
    [job] = paddock.submit(shape(1, cpus=2, exclusive=True, retries=1))
    paddock.starts(job)
    paddock.rank_dies(job, 0, 7)
    paddock.cancel(job)
    paddock.task_ends(job, 0, 7)
    assert paddock.state_of(job) is JobState.CANCELLED
    assert paddock.job(job).tasks[0].exit_codes == (7,)
