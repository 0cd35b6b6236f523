"""What a person is told of a failure: who, of what class, what to do; and nothing that acts on a terminal."""

from dataclasses import replace

from paceline.client import codecs
from paceline.client.cli.failures import failure_lines
from paceline.client.views import Job
from paceline.proto.generated import jobs_pb2
from paceline.spec.failures import FailureClass

HEAD = "Traceback (most recent call last):"
TRACE = f'{HEAD}\n  File "train.py", line 7, in <module>\nValueError: bad \x1b[31mlabel'


def job(failure: jobs_pb2.Failure | None, *, processes: int = 2, attempt: int = 1) -> Job:
    message = jobs_pb2.JobView(
        job=7,
        state="FAILED",
        attempt=attempt,
        instance_count=1,
        processes_per_task=processes,
        failure=failure,
    )
    return codecs.to_job(message)


def told(shown: Job, told_hint: str = "") -> list[str]:
    return [text for text, _ in failure_lines(shown, told_hint=told_hint)]


def of_rank(**more: object) -> jobs_pb2.Failure:
    fields: dict[str, object] = {
        "kind": "exception",
        "attempt": 1,
        "hint": "see `pace logs 7 --rank 1`",
        "node": "n2",
        "rank": 1,
        "exit_code": 1,
        "error_type": "ValueError",
        "message": "bad \x1b[31mlabel",
        "traceback": TRACE,
        "last_lines": f"[rank1]: ValueError: bad \x1b[31mlabel\nstep 7\n[rank1]: {HEAD}",
    }
    return jobs_pb2.Failure(**{**fields, **more})  # type: ignore[arg-type]


def test_who_failed_of_what_and_what_to_do() -> None:
    assert told(job(of_rank())) == [
        "  first failure: rank 1 on n2, exit code 1 (exception)",
        "     ValueError: bad \\x1b[31mlabel",
        "     see `pace logs 7 --rank 1`",
        "     traceback:",
        "       Traceback (most recent call last):",
        '         File "train.py", line 7, in <module>',
        "       ValueError: bad \\x1b[31mlabel",
        "     last lines:",
        "       step 7",
    ]


def test_a_hint_is_told_once() -> None:
    hint = "see `pace logs 7 --rank 1`"
    assert not any(hint in line for line in told(job(of_rank()), told_hint=hint))


def test_of_what_attempt_when_there_were_several() -> None:
    assert told(job(of_rank(), attempt=2))[0].startswith("  first failure of attempt 1: rank 1 on n2")


def test_of_one_rank_it_is_not_the_first() -> None:
    assert told(job(of_rank(rank=0), processes=1))[0] == "  failure: rank 0 on n2, exit code 1 (exception)"


def test_no_ranks_doing() -> None:
    lost = jobs_pb2.Failure(kind="node-lost", attempt=1, hint="see `pace nodes`", node="n2")
    shown = job(lost)
    assert shown.failure is not None
    assert (shown.failure.rank, shown.failure.exit_code, shown.failure.at_us) == (None, None, None)
    assert shown.failure.kind is FailureClass.NODE_LOST
    assert told(shown) == ["  failure: on n2 (node-lost)", "     see `pace nodes`"]
    assert told(job(jobs_pb2.Failure(kind="timeout", attempt=1))) == ["  failure: timeout"]


def test_where_nothing_failed_nothing_is_told() -> None:
    assert told(job(None)) == []
    assert told(replace(job(of_rank()), failure=None)) == []
