"""What an agent reports of a rank's end: bounded, and timed by how long ago it was on the node's clock."""

import pytest
from paceline.proto.generated import agent_pb2, common_pb2
from paceline.scheduler.core import stimuli as s
from paceline.scheduler.services.reports import Arrival, entry_of
from paceline.spec.errors import InvalidRequest
from paceline.spec.ids import Micros

NOW_US = Micros(1_700_000_000_000_000)


def exited(at_s: float, *, local_rank: int = 0, **evidence: object) -> agent_pb2.JournalEntry:
    return agent_pb2.JournalEntry(
        task=common_pb2.TaskKey(job=1, attempt=1, task=0),
        seq=2,
        at_monotonic_s=at_s,
        exited=agent_pb2.RankExited(
            local_rank=local_rank,
            exit_code=1,
            evidence=agent_pb2.Evidence(**evidence),  # type: ignore[arg-type]
        ),
    )


@pytest.mark.parametrize(
    ("entry_s", "failed_s", "sent_s", "ago_us"),
    [
        (100.0, 0.0, 100.0, 0),
        (100.0, 0.0, 107.5, 7_500_000),
        (100.0, 99.25, 100.5, 1_250_000),
        (100.0, 101.0, 102.0, 2_000_000),
        (9_000_000.0, 0.0, 5.0, 0),
        (100.0, 99.0, 0.0, 0),
        (100.0, float("nan"), 101.0, 0),
    ],
    ids=[
        "now",
        "waited",
        "failed before its end",
        "never after its end",
        "a reboot",
        "no clock",
        "no number",
    ],
)
def test_a_rank_failed_so_long_before_the_report_was_sent(
    entry_s: float, failed_s: float, sent_s: float, ago_us: int
) -> None:
    said = entry_of(exited(entry_s, at_monotonic_s=failed_s), Arrival(NOW_US, sent_s)).said
    assert isinstance(said, s.Exited)
    assert said.died_us == NOW_US - ago_us


def test_evidence_is_bounded() -> None:
    long = "x" * 100_000
    fields = dict.fromkeys(("error_type", "message", "traceback", "last_lines"), long)
    said = entry_of(exited(1.0, **fields, recorded=True), Arrival(NOW_US, 1.0)).said
    assert isinstance(said, s.Exited)
    found = said.evidence
    lengths = (len(found.error_type), len(found.message), len(found.traceback), len(found.last_lines))
    assert lengths == (500, 1000, 4000, 4000)
    assert found.recorded


def test_there_is_no_rank_below_the_first() -> None:
    with pytest.raises(InvalidRequest, match="-1 is no local rank"):
        entry_of(exited(1.0, local_rank=-1), Arrival(NOW_US, 1.0))
