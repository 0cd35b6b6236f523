"""Of what class a failure is, what follows from it, and which rank of a gang was the first."""

from collections.abc import Sequence
from dataclasses import replace

import pytest
from msgspec import structs
from paceline.scheduler.core import stimuli as s
from paceline.scheduler.core.attempt_events import FirstFailureFound
from paceline.scheduler.core.events import Event
from paceline.scheduler.core.failure import AFTER_A_PEER, ON_ITS_OWN, SEEN_FAILING, Evidence, Failure
from paceline.scheduler.core.failures import class_of, could_be_cause, death_text, doubt_of, hint_of
from paceline.scheduler.core.job import Shape
from paceline.spec.failures import FAILURES, RETRY_CHOICES, FailureClass
from paceline.spec.ids import JobId, Micros
from paceline.spec.lifecycle import JobState
from support.paddock import Paddock, shape

K = FailureClass
GLOO = "[/pytorch/third_party/gloo/gloo/transport/tcp/pair.cc:553] Connection closed by peer [127.0.0.1]:905"
NCCL = "NCCL error: remote process exited or there was a network error, NCCL version 2.21.5"
WATCHDOG = "[Rank 0] Watchdog caught collective operation timeout: WorkNCCL(SeqNum=7, OpType=ALLREDUCE)"
CUDA = "CUDA out of memory. GPU 0 has a total capacity of 79.10 GiB of which 1 GiB is free."


@pytest.fixture
def paddock() -> Paddock:
    made = Paddock()
    made.node_joins("n1")
    made.node_joins("n2")
    return made


def raised(error: str, message: str = "", *, code: int = 1, **more: object) -> s.Exited:
    trace = (
        f'Traceback (most recent call last):\n  File "/w/train.py", line 7, in <module>\n{error}: {message}'
    )
    evidence = Evidence(error, message, trace, f"{error}: {message}", recorded=True)
    return s.Exited(0, code, f"{error}: {message}", evidence=replace(evidence, **more))  # type: ignore[arg-type]


def said(code: int, lines: str = "") -> s.Exited:
    last = lines.splitlines()[-1] if lines else ""
    return s.Exited(0, code, last, evidence=Evidence(last_lines=lines))


@pytest.mark.parametrize(
    ("exited", "kind", "hint"),
    [
        (raised("torch.OutOfMemoryError", CUDA), K.OUT_OF_MEMORY, "ask for a GPU with more than 79.10 GiB"),
        (raised("torch.cuda.OutOfMemoryError", "x"), K.OUT_OF_MEMORY, "the GPU's memory is full"),
        (raised("RuntimeError", "CUDA error: out of memory"), K.OUT_OF_MEMORY, "the GPU's memory is full"),
        (raised("RuntimeError", "HIP out of memory."), K.OUT_OF_MEMORY, "lower the batch size"),
        (raised("MemoryError"), K.OUT_OF_MEMORY, "the node's memory is full"),
        (raised("RuntimeError", "DefaultCPUAllocator: can't allocate memory"), K.OUT_OF_MEMORY, "the node's"),
        (
            raised("OSError", "[Errno 12] Cannot allocate memory"),
            K.OUT_OF_MEMORY,
            "the node's memory is full",
        ),
        (
            said(134, "terminate called\n  what():  std::bad_alloc"),
            K.OUT_OF_MEMORY,
            "the node's memory is full",
        ),
        (
            s.Exited(0, -9, "", cause="out of memory: the task reached its limit of 96 MiB"),
            K.OUT_OF_MEMORY,
            "more than 16 GiB (resources.memory)",
        ),
        (raised("SyntaxError", "invalid syntax"), K.USER_ERROR, "correct /w/train.py, line 7"),
        (raised("IndentationError", "x"), K.USER_ERROR, "correct /w/train.py, line 7"),
        (raised("ImportError", "cannot import name 'x'"), K.USER_ERROR, "does not go with this import"),
        (
            raised("ModuleNotFoundError", "No module named 'datasets'"),
            K.USER_ERROR,
            "datasets is not there: install",
        ),
        (said(127, "bash: line 1: trian: command not found"), K.USER_ERROR, "command not found"),
        (said(126, "bash: ./train: Permission denied"), K.USER_ERROR, "not executable"),
        (
            s.Exited(0, 126, "Error: crun: ...", cause="no container: podman did not start it"),
            K.EXIT_CODE,
            "see `pace logs 1`",
        ),
        (
            said(2, "usage: train.py [-h]\ntrain.py: error: unrecognized arguments: -x"),
            K.USER_ERROR,
            "correct the",
        ),
        (said(2, "bash: -c: line 1: syntax error near unexpected token `then'"), K.USER_ERROR, "correct the"),
        (
            said(2, "python: can't open file '/w/x.py': [Errno 2] No such file"),
            K.USER_ERROR,
            "correct the command",
        ),
        (raised("ValueError", "bad label"), K.EXCEPTION, "see `pace logs 1`"),
        (raised("KeyboardInterrupt"), K.EXCEPTION, "see `pace logs 1`"),
        (raised("RuntimeError", "x", code=-6), K.EXCEPTION, "see `pace logs 1`"),
        (raised("RuntimeError", "x", code=9), K.EXCEPTION, "see `pace logs 1`"),
        (
            raised("RuntimeError", "logged and survived", code=3, recorded=False),
            K.EXIT_CODE,
            "see `pace logs 1`",
        ),
        (said(1, "not good"), K.EXIT_CODE, "see `pace logs 1`"),
        (said(2, "done with 2 warnings"), K.EXIT_CODE, "see `pace logs 1`"),
        (said(3), K.EXIT_CODE, "see `pace logs 1`"),
        (said(255), K.EXIT_CODE, "see `pace logs 1`"),
        (said(-11, "about to crash"), K.SIGNAL, "PYTHONFAULTHANDLER"),
        (said(139), K.SIGNAL, "PYTHONFAULTHANDLER"),
        (said(-7), K.SIGNAL, "/dev/shm"),
        (said(-9), K.SIGNAL, "dmesg"),
        (said(137), K.SIGNAL, "dmesg"),
        (said(-6), K.SIGNAL, "native code gave up"),
        (said(-40), K.SIGNAL, "see `pace logs 1`"),
    ],
)
def test_of_what_class_a_failure_is(exited: s.Exited, kind: FailureClass, hint: str) -> None:
    assert class_of(exited, trained=False) is kind
    assert hint in hint_of(exited, kind, shape(memory_gib=16).demand, "`pace logs 1`")


@pytest.mark.parametrize("error", ["SyntaxError", "ModuleNotFoundError"])
def test_what_fails_a_job_that_has_trained_need_not_recur(error: str) -> None:
    assert class_of(raised(error, "x"), trained=True) is K.EXCEPTION


@pytest.mark.parametrize(
    ("exited", "doubt"),
    [
        (raised("ValueError", "x"), ON_ITS_OWN),
        (said(3, "Connection to the data base refused"), ON_ITS_OWN),
        (raised("ValueError", "x", last_lines=GLOO), ON_ITS_OWN),
        (said(-11), ON_ITS_OWN),
        (raised("RuntimeError", GLOO), AFTER_A_PEER),
        (raised("torch.distributed.DistBackendError", NCCL), AFTER_A_PEER),
        (raised("torch.distributed.DistNetworkError", "The client socket has timed out"), AFTER_A_PEER),
        (raised("ConnectionResetError", "[Errno 104] Connection reset by peer"), AFTER_A_PEER),
        (said(-6, f"{WATCHDOG}\nterminate called"), AFTER_A_PEER),
    ],
)
def test_ranks_that_fell_of_their_peers_are_told_apart(exited: s.Exited, doubt: int) -> None:
    assert doubt_of(exited, world_size=2) == doubt
    assert doubt_of(exited, world_size=1) == ON_ITS_OWN, "alone, it has no peer"


def test_a_rank_that_we_killed_counts_only_if_it_had_failed_before() -> None:
    fine = s.Exited(0, -9, "step 7", killed_by_us=True)
    recorded = structs.replace(raised("ValueError", "x", code=-9), killed_by_us=True)
    seen = structs.replace(raised("ValueError", "x", code=-9, recorded=False), killed_by_us=True)
    assert [could_be_cause(one) for one in (fine, recorded, seen, s.Exited(0, 0))] == [
        False,
        True,
        True,
        False,
    ]
    assert [doubt_of(one, 2) for one in (recorded, seen)] == [ON_ITS_OWN, SEEN_FAILING]


# --- what follows: every class by every rule

OWN = {
    K.OUT_OF_MEMORY: raised("MemoryError"),
    K.USER_ERROR: raised("SyntaxError", "invalid syntax"),
    K.EXCEPTION: raised("ValueError", "x"),
    K.EXIT_CODE: said(3),
    K.SIGNAL: said(-11),
}


def with_rule(one: Shape, **rule: object) -> Shape:
    return structs.replace(one, policy=structs.replace(one.policy, **rule))  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", OWN)
@pytest.mark.parametrize("named", [None, True, False])
def test_a_job_is_tried_again_after_what_its_rule_names(
    paddock: Paddock, kind: FailureClass, named: bool | None
) -> None:
    one = shape(retries=1)
    if named is not None:
        others = tuple(choice for choice in RETRY_CHOICES if choice is not kind)
        one = with_rule(one, retry_on=(kind,) if named else others)
    [job] = paddock.submit(one)
    paddock.starts(job)
    paddock.says(job, 0, OWN[kind])
    again = FAILURES[kind].retried if named is None else named
    found = paddock.job(job)
    failure = found.course.ending and found.course.ending.failure
    assert failure is not None and (failure.kind, failure.rank, failure.attempt) == (kind, 0, 1)
    assert found.state is (JobState.STARTING if again else JobState.FAILED)
    assert found.course.retries_used == again
    if not again:
        assert found.course.ending is not None and "not tried again" in found.course.ending.text
        return
    paddock.starts(job)
    paddock.says(job, 0, OWN[kind])
    assert paddock.state_of(job) is JobState.FAILED, "one retry, and no more"


@pytest.mark.parametrize("again", [True, False])
def test_after_the_loss_of_a_node_too(paddock: Paddock, again: bool) -> None:
    """Named or not, it uses no attempt; not named, the gang waits for the node, and at last fails."""
    one = shape(2, cpus=5)
    [job] = paddock.submit(one if again else with_rule(one, retry_on=(K.EXIT_CODE,)))
    paddock.starts(job)
    paddock.node_joins("n3")
    paddock.goes_silent("n2")
    paddock.pass_time(10)
    found = paddock.job(job)
    if again:
        assert (found.state, found.attempt, found.course.retries_used) == (JobState.STARTING, 2, 0)
        assert found.course.ending is not None and found.course.ending.failure is not None
        assert found.course.ending.failure.kind is K.NODE_LOST
        return
    assert (found.state, found.attempt) == (JobState.RUNNING, 1)
    paddock.pass_time(700, step_s=5)
    found = paddock.job(job)
    assert found.state is JobState.FAILED
    assert found.course.ending is not None and found.course.ending.failure == Failure(
        K.NODE_LOST, found.attempt, "see `pace nodes`", found.tasks[1].node
    )


def test_a_preemption_ends_a_job_whose_rule_does_not_name_it(paddock: Paddock) -> None:
    [job] = paddock.submit(shape(retries=3, retry_on=[K.EXCEPTION, K.NODE_LOST]))
    paddock.starts(job)
    paddock.tell(s.Preempt("k", JobId(job), by="ann"))
    assert paddock.state_of(job) is JobState.RUNNING, "it has time to save"
    paddock.leaves(job)
    found = paddock.job(job)
    assert (found.state, found.attempt, found.course.retries_used) == (JobState.FAILED, 1, 0)
    assert found.course.ending is not None and found.course.ending.failure is not None
    assert found.course.ending.failure.kind is K.PREEMPTED
    assert found.course.ending.text == "preempted by ann; not tried again, retry.on does not name preempted"


def test_a_refused_start_is_tried_elsewhere_whatever_the_rule(paddock: Paddock) -> None:
    [job] = paddock.submit(with_rule(shape(retries=1), retry_on=()))
    paddock.says(job, 0, s.Refused("port", "the port is taken", transient=True))
    assert paddock.state_of(job) is JobState.QUEUED
    ending = paddock.job(job).course.ending
    assert ending is not None and ending.failure is not None and ending.failure.kind is K.START_FAILED


def test_a_timeout_is_a_failure_of_its_own(paddock: Paddock) -> None:
    [job] = paddock.submit(shape(retries=3, timeout_s=5, grace_s=1))
    paddock.starts(job)
    paddock.pass_time(6)
    paddock.task_ends(job, 0, -15, "timeout")
    found = paddock.job(job)
    assert found.state is JobState.FAILED
    assert found.course.ending is not None and found.course.ending.failure is not None
    assert found.course.ending.failure.kind is K.TIMEOUT


def test_a_user_error_on_one_node_is_not_put_down_to_a_silent_peer(paddock: Paddock) -> None:
    [job] = paddock.submit(shape(2, cpus=5, retries=3))
    paddock.starts(job)
    paddock.goes_silent("n2")
    paddock.pass_time(2)
    paddock.says(job, 0, raised("SyntaxError", "invalid syntax"))
    assert paddock.state_of(job) is JobState.FAILED


# --- the same again

NAME = raised("NameError", "name 'modle' is not defined")
FILE = raised("FileNotFoundError", "[Errno 2] No such file or directory: 'data.csv'")


def elsewhere(exited: s.Exited, *, line: int = 7, folder: str = "/w") -> s.Exited:
    """The same error, raised in another line, or by another copy of the code."""
    found = exited.evidence
    trace = found.traceback.replace("line 7", f"line {line}").replace("/w/", f"{folder}/")
    return structs.replace(exited, evidence=replace(found, traceback=trace))


def failing(paddock: Paddock, *deaths: s.Exited, **more: object) -> tuple[int, JobState]:
    """The attempt of a job whose attempts fail so one after the other, and what it is then."""
    [job] = paddock.submit(shape(retries=4, backoff_s=0, **more))  # type: ignore[arg-type]
    for death in deaths:
        assert paddock.state_of(job) is JobState.STARTING
        paddock.starts(job)
        paddock.says(job, 0, death)
    return paddock.job(job).attempt, paddock.state_of(job)


@pytest.mark.parametrize("death", [NAME, FILE, raised("RuntimeError", "x", code=-6)])
def test_what_fails_in_the_same_way_twice_is_not_tried_a_third_time(
    paddock: Paddock, death: s.Exited
) -> None:
    assert failing(paddock, death, elsewhere(death, folder="/copies/2")) == (2, JobState.FAILED)
    failure = first(paddock, 1)
    assert (failure.kind, failure.attempt) == (K.USER_ERROR, 2)
    assert failure.hint == (
        "it failed in the same way twice, before its first step: correct it; "
        "see `pace logs 1 --rank 0 --attempt 2`"
    )
    ending = paddock.job(1).course.ending
    assert ending is not None and ending.text.endswith("; not tried again, a user-error recurs")


@pytest.mark.parametrize(
    "deaths",
    [
        (NAME, FILE),
        (NAME, elsewhere(NAME, line=8)),
        (NAME, raised("NameError", "name 'date' is not defined")),
        (NAME, FILE, NAME),
        (raised("ValueError", "x", traceback=""),) * 2,
        (said(1, "no such file"),) * 2,
        (said(-11),) * 2,
        (raised("MemoryError"),) * 2,
        (raised("RuntimeError", "NCCL error: unhandled system error"),) * 2,
        (raised("RuntimeError", "CUDA error: uncorrectable ECC error encountered"),) * 2,
        (structs.replace(NAME, xid=31, xid_gpu=0),) * 2,
        (raised("ConnectionRefusedError", "[Errno 111] Connection refused"),) * 2,
        (raised("requests.exceptions.ReadTimeout", "HTTPSConnectionPool: Read timed out."),) * 2,
        (raised("urllib.error.HTTPError", "HTTP Error 503: Service Unavailable"),) * 2,
        (raised("OSError", "[Errno 116] Stale file handle: '/data/x'"),) * 2,
        (raised("OSError", "[Errno 28] No space left on device"),) * 2,
    ],
)
def test_what_may_pass_is_tried_again_though_it_looks_the_same(
    paddock: Paddock, deaths: Sequence[s.Exited]
) -> None:
    assert failing(paddock, *deaths) == (len(deaths) + 1, JobState.STARTING)


def test_an_error_that_came_of_one_outside_may_pass(paddock: Paddock) -> None:
    trace = (
        'Traceback (most recent call last):\n  File "/h/hub.py", line 3, in get\n'
        "socket.gaierror: [Errno -3] Temporary failure in name resolution\n\n"
        "During handling of the above exception, another exception occurred:\n\n"
        'Traceback (most recent call last):\n  File "/w/train.py", line 7, in <module>\nKeyError: 0'
    )
    assert failing(paddock, *(raised("KeyError", "0", traceback=trace),) * 2) == (3, JobState.STARTING)


@pytest.mark.parametrize("progress", ["step", "checkpoint", "time"])
@pytest.mark.parametrize("attempt", [1, 2])
def test_after_progress_the_same_error_is_tried_again(paddock: Paddock, progress: str, attempt: int) -> None:
    [job] = paddock.submit(shape(retries=4, backoff_s=0))
    for at in (1, 2):
        paddock.starts(job)
        if at == attempt and progress == "step":
            paddock.says(job, 0, s.Metrics(0, 0, {"loss": 1.0}))
        if at == attempt and progress == "checkpoint":
            paddock.saves(job, 1)
        if at == 2 and progress == "time":
            paddock.pass_time(600, step_s=1)
        paddock.says(job, 0, NAME)
    assert (paddock.state_of(job), first(paddock, job).kind) == (JobState.STARTING, K.EXCEPTION)


def test_the_same_after_an_attempt_that_ended_otherwise_is_tried_again(paddock: Paddock) -> None:
    [job] = paddock.submit(shape(retries=4, backoff_s=0))
    paddock.starts(job)
    paddock.says(job, 0, NAME)
    paddock.starts(job)
    paddock.task_ends(job, 0, -9, "lease ran out")
    paddock.starts(job)
    paddock.says(job, 0, NAME)
    assert (paddock.job(job).attempt, paddock.state_of(job)) == (4, JobState.STARTING)


def test_a_rule_that_names_user_errors_has_it_tried_on(paddock: Paddock) -> None:
    assert failing(paddock, NAME, NAME, NAME, retry_on=RETRY_CHOICES) == (4, JobState.STARTING)


def test_the_other_ranks_that_fell_of_it_are_of_its_class(paddock: Paddock) -> None:
    """They are heard when the job is over; one of them may have been the first."""
    [job] = paddock.submit(shape(2, cpus=5, retries=4, backoff_s=0))
    for _ in range(2):
        paddock.starts(job)
        paddock.pass_time(10)
        paddock.says(job, 0, at(NAME, 5.2))
    assert paddock.state_of(job) is JobState.FAILED
    paddock.says(job, 1, at(NAME, 5.1), attempt=2)
    assert (first(paddock, job).rank, first(paddock, job).kind) == (1, K.USER_ERROR)
    assert "in the same way twice" in first(paddock, job).hint


def test_the_same_twice_is_put_down_to_a_silent_peer_all_the_same(paddock: Paddock) -> None:
    [job] = paddock.submit(shape(2, cpus=5, retries=4, backoff_s=0))
    paddock.starts(job)
    paddock.says(job, 0, NAME)
    paddock.starts(job)
    paddock.goes_silent("n2")
    paddock.pass_time(2)
    paddock.says(job, 0, NAME)
    assert first(paddock, job).kind is K.NODE_LOST


# --- backoff


def test_each_failure_in_a_row_waits_longer_up_to_the_bound(paddock: Paddock) -> None:
    [job] = paddock.submit(with_rule(shape(retries=6), backoff_start_us=2_000_000, backoff_max_us=5_000_000))
    waited = []
    for _ in range(5):
        paddock.starts(job)
        paddock.rank_dies(job, 0, 3)
        before_us = paddock.now_us
        if paddock.state_of(job) is JobState.QUEUED:
            [reason] = [one for one in paddock.why(job).reasons if one.code == "backoff"]
            assert "failure" in reason.text and "in a row" in reason.text
            paddock.scheduler_restarts()
            paddock.node_joins("n1")
        while paddock.state_of(job) is JobState.QUEUED:
            paddock.pass_time(0.25)
        waited.append((paddock.now_us - before_us) / 1e6)
    assert waited == [0, 2, 4, 5, 5]


@pytest.mark.parametrize("progress", ["checkpoint", "time"])
def test_progress_begins_a_new_row(paddock: Paddock, progress: str) -> None:
    [job] = paddock.submit(with_rule(shape(retries=9), backoff_max_us=5_000_000))
    for _ in range(2):
        paddock.starts(job)
        paddock.rank_dies(job, 0, 3)
    paddock.pass_time(1)
    assert paddock.job(job).course.failed_in_row == 2
    paddock.starts(job)
    if progress == "checkpoint":
        paddock.says(job, 0, s.Published(10, "step-10.a3", "hash"))
    else:
        paddock.pass_time(5)
    paddock.rank_dies(job, 0, 3)
    found = paddock.job(job)
    assert (found.state, found.course.failed_in_row, found.course.retries_used) == (JobState.STARTING, 1, 3)


# --- which rank was the first


def first(paddock: Paddock, job: int) -> Failure:
    ending = paddock.job(job).course.ending
    assert ending is not None and ending.failure is not None
    return ending.failure


def found_anew(paddock: Paddock, job: int) -> list[Event]:
    return [event for event in paddock.history(job) if isinstance(event, FirstFailureFound)]


def at(exited: s.Exited, second: float) -> s.Exited:
    return structs.replace(exited, died_us=Micros(1_000_000_000_000 + round(second * 1e6)))


@pytest.mark.parametrize("retries", [0, 3])
def test_who_fell_of_a_peer_is_not_the_first_once_that_peer_is_heard(paddock: Paddock, retries: int) -> None:
    """Also when the next attempt has begun, and when the job is over: what was decided stays."""
    [job] = paddock.submit(shape(2, cpus=5, retries=retries))
    paddock.starts(job)
    paddock.pass_time(10)
    paddock.says(job, 0, at(raised("RuntimeError", GLOO), 5.1))
    before = paddock.job(job)
    assert first(paddock, job).rank == 0
    paddock.says(job, 1, at(raised("ValueError", "label 11"), 5.3), attempt=1)
    failure = first(paddock, job)
    assert (failure.rank, failure.node, failure.kind, failure.attempt) == (1, "n2", K.EXCEPTION, 1)
    assert failure.died_us == 1_000_005_300_000 and "label 11" in failure.traceback
    after = paddock.job(job)
    assert (after.state, after.attempt, after.course.retries_used) == (
        before.state,
        before.attempt,
        before.course.retries_used,
    )
    assert before.course.ending is not None and after.course.ending is not None
    assert after.course.ending.exit_code == before.course.ending.exit_code
    assert after.course.ending.text == "rank 1 on n2 exited with code 1: ValueError: label 11"
    assert len(found_anew(paddock, job)) == 1
    assert paddock.replayed().jobs == paddock.state.jobs


def test_among_equals_the_time_of_death_decides(paddock: Paddock) -> None:
    [job] = paddock.submit(shape(3, cpus=3))
    paddock.starts(job)
    paddock.pass_time(10)
    paddock.says(job, 1, at(raised("ValueError", "second"), 5.2))
    paddock.says(job, 2, at(raised("ValueError", "third"), 5.3))
    assert first(paddock, job).message == "second"
    paddock.says(job, 0, at(raised("ValueError", "first"), 5.1))
    assert (first(paddock, job).rank, first(paddock, job).message) == (0, "first")
    assert len(found_anew(paddock, job)) == 1


def test_a_rank_killed_while_it_was_failing_was_before_its_peers(paddock: Paddock) -> None:
    [job] = paddock.submit(shape(2, cpus=5))
    paddock.starts(job)
    paddock.pass_time(10)
    paddock.says(job, 0, at(raised("RuntimeError", GLOO), 5.2))
    killed = at(structs.replace(raised("ValueError", "x", code=-9, recorded=False), killed_by_us=True), 5.1)
    paddock.says(job, 1, killed)
    assert (first(paddock, job).rank, first(paddock, job).exit_code) == (1, None)
    ending = paddock.job(job).course.ending
    assert ending is not None and ending.text == "rank 1 on n2 failed: ValueError: x"


def test_what_we_killed_is_never_told_as_the_first(paddock: Paddock) -> None:
    [job] = paddock.submit(shape(2, cpus=5))
    paddock.starts(job)
    paddock.pass_time(10)
    paddock.says(job, 0, at(raised("RuntimeError", GLOO), 5.2))
    paddock.says(job, 1, at(s.Exited(0, -9, "step 7", killed_by_us=True), 5.1))
    assert first(paddock, job).rank == 0 and not found_anew(paddock, job)


def test_of_an_attempt_before_the_last_failure_nothing_is_told(paddock: Paddock) -> None:
    [job] = paddock.submit(with_rule(shape(2, cpus=5, retries=3), backoff_start_us=0))
    for _ in range(2):
        paddock.starts(job)
        paddock.pass_time(10)
        paddock.says(job, 0, at(raised("RuntimeError", GLOO), 5.2))
    paddock.says(job, 1, at(raised("ValueError", "old"), 1), attempt=1)
    assert first(paddock, job).attempt == 2 and not found_anew(paddock, job)


def test_the_same_entry_again_is_told_once(paddock: Paddock) -> None:
    [job] = paddock.submit(shape(2, cpus=5, retries=3))
    paddock.starts(job)
    paddock.pass_time(10)
    paddock.says(job, 0, at(raised("RuntimeError", GLOO), 5.2))
    for _ in range(3):
        paddock.says(job, 1, at(raised("ValueError", "x"), 5.3), attempt=1)
    assert len(found_anew(paddock, job)) == 1


def test_without_a_word_on_when_a_rank_is_taken_to_have_died_now(paddock: Paddock) -> None:
    [job] = paddock.submit(shape(memory_gib=1))
    paddock.starts(job)
    paddock.pass_time(3)
    paddock.says(job, 0, said(3))
    assert first(paddock, job).died_us == paddock.now_us


def test_a_reason_holds_the_part_of_a_long_line_that_says_most() -> None:
    assert death_text(said(3, "lost: disk 7"), 0, "n1") == "rank 0 on n1 exited with code 3: lost: disk 7"
    line = death_text(said(3, "loss=0.1 " * 50 + "lost: disk 7"), 0, "n1")
    assert line.endswith("loss=0.1 lost: disk 7") and "code 3: ... " in line and len(line) < 250
    error = death_text(raised("ValueError", "shape 3 " + "x" * 900), 0, "n1")
    assert ": ValueError: shape 3 xx" in error and error.endswith("x ...") and len(error) < 250


def test_who_has_a_share_of_a_gpu_is_told_of_the_share() -> None:
    ended = raised("torch.OutOfMemoryError", CUDA)
    hint = hint_of(ended, K.OUT_OF_MEMORY, shape(gpus=0.25).demand, "`pace logs 1`")
    assert hint.startswith("its share of the GPU's memory is full: ")
    assert hint.endswith("ask for more than 0.25 of one (resources.gpus)")
