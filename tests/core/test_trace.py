"""A trace on a described cluster: read with care, replayed by the scheduler's own code."""

import csv
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from paceline.scheduler.core.cluster_policy import NO_POLICY, Amount, ClusterPolicy, QueuePolicy
from paceline.scheduler.trace import Arrival, read_trace, simulate
from paceline.spec.cluster_policy import PolicySpec, UserAmount
from paceline.spec.errors import InvalidRequest, NotFound


def trace(folder: Path, *lines: str) -> Path:
    path = folder / "trace.csv"
    path.write_text("\n".join(lines) + "\n")
    return path


def test_a_trace_is_read_in_the_order_of_submission(tmp_path: Path) -> None:
    path = trace(
        tmp_path,
        "name,gpus,duration_s,submit_s,user,queue",
        "a,1,10,5,ann,prod",
        "b,12,20.5,1,bob,",
        "c,4,0,9,,",
    )
    assert read_trace(path, 8) == [
        Arrival(1, 20.5, 2, 6, "bob", "b"),
        Arrival(5, 10, 1, 1, "ann", "a", "prod"),
        Arrival(9, 0, 1, 4, "trace", "c"),
    ]


@pytest.mark.parametrize(
    ("lines", "word"),
    [
        (["submit_s,gpus", "1,1"], "no column duration_s"),
        (["submit_s,duration_s,gpus"], "has 0 jobs"),
        (["submit_s,duration_s,gpus", "0,1,1", "0,x,1"], "line 3: could not convert"),
        (["submit_s,duration_s,gpus", "0,1,0"], "line 2: out of range"),
        (["submit_s,duration_s,gpus", "0,nan,1"], "line 2: out of range"),
        (["submit_s,duration_s,gpus", "0,1"], "line 2"),
    ],
)
def test_what_is_no_trace_is_refused_by_line(tmp_path: Path, lines: list[str], word: str) -> None:
    with pytest.raises(InvalidRequest, match=word):
        read_trace(trace(tmp_path, *lines), 8)
    with pytest.raises(InvalidRequest, match="cannot read"):
        read_trace(tmp_path / "none.csv", 8)


def test_what_a_trace_comes_to() -> None:
    arrivals = [Arrival(0, 100, 1, 8), Arrival(10, 50, 1, 8), Arrival(200, 50, 2, 8), Arrival(210, 10, 1, 1)]
    told = simulate(arrivals, (2, 8), 10**15, lambda _: None)
    assert (told["jobs"], told["ended"], told["cut"]) == (4, 4, "")
    assert told["wait_mean_s"] == pytest.approx(40 / 4)
    assert told["jct_mean_s"] == pytest.approx((100 + 50 + 50 + 50) / 4)
    with pytest.raises(InvalidRequest, match="wants 16 GPUs on 2 nodes; the cluster has 1"):
        simulate(arrivals, (1, 8), 10**15, lambda _: None)
    cut = simulate(arrivals, (2, 8), 205 * 10**6, lambda _: None)
    assert cut["ended"] == 2 and str(cut["cut"]).startswith("cut 0.0569444 h")


def test_a_trace_under_a_policy() -> None:
    """ann's queue may have half of it: her second job waits, and bob's goes first."""
    half = ClusterPolicy({"a": QueuePolicy(max=Amount(4000)), "b": QueuePolicy()})
    arrivals = [
        Arrival(0, 100, 1, 4, "ann", queue="a"),
        Arrival(1, 100, 1, 4, "ann", queue="a"),
        Arrival(2, 100, 1, 4, "bob", queue="b"),
    ]
    told, changed = (
        simulate(arrivals, (1, 8), 10**15, lambda _: None, policy) for policy in (NO_POLICY, half)
    )
    assert told["wait_mean_s"] == pytest.approx(98 / 3), "bob waits"
    assert changed["wait_mean_s"] == pytest.approx(99 / 3), "ann waits for herself"
    with pytest.raises(NotFound, match="no queue b"):
        simulate(arrivals, (1, 8), 10**15, lambda _: None, ClusterPolicy({"a": QueuePolicy()}))
    narrow = ClusterPolicy({"a": QueuePolicy(max=Amount(3000)), "b": QueuePolicy()})
    never = simulate(arrivals, (1, 8), 10**15, lambda _: None, narrow)
    assert str(never["cut"]).startswith("2 jobs can never start") and never["ended"] == 1


def test_the_process_tells_one_json_object(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([("submit_s", "duration_s", "gpus"), (0, 60, 1), (0, 60, 1)])

    def run(*args: str, policy: str = "") -> dict[str, Any]:
        done = subprocess.run(
            [sys.executable, "-m", "paceline.scheduler.trace", *args],
            input=policy,
            capture_output=True,
            text=True,
            check=True,
        )
        told: dict[str, Any] = json.loads(done.stdout)
        return told

    told = run(str(path), "1", "1", "0")
    assert told.keys() == {"as_is"} and told["as_is"]["wait_mean_s"] == 30
    policy = PolicySpec(max_per_user=UserAmount(jobs=1)).to_json()
    assert run(str(path), "1", "2", "0", "-", policy=policy)["changed"]["wait_mean_s"] == 30
    assert "policy" in run(str(path), "1", "2", "0", "-", policy="{")["error"]
    assert "none.csv" in str(run(str(tmp_path / "none.csv"), "1", "1", "0")["error"])
