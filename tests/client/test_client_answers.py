"""`pace usage`, `plan`, `submit --dry-run`, `simulate` and what `why` expects, on a real cluster."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from paceline.client import views
from paceline.client.cli.clocks import at_clock
from paceline.client.cli.usage import hours
from support.cluster import Cluster, wait_until

Pace = Callable[..., int]
JobFile = Callable[[str], Path]


@pytest.fixture
def full(cluster: Cluster) -> Iterator[list[int]]:
    """A job on each node, and one that waits."""
    jobs = [cluster.submit_text("command: sleep 600\nresources: {cpus: 4}\nname: fill") for _ in range(3)]
    for job in jobs[:2]:
        cluster.wait_state(job, "RUNNING")
    yield jobs
    for job in jobs:
        cluster.client.cancel(job, grace_s=0.01)
        cluster.wait_state(job, "CANCELLED")


def test_a_dry_run_says_where_it_would_go_and_submits_nothing(
    pace: Pace, job_file: JobFile, cluster: Cluster, capsys: pytest.CaptureFixture[str]
) -> None:
    path = job_file("command: 'true'\nname: small\nresources: {cpus: 1}")
    before = cluster.client.jobs(limit=1)
    assert pace("submit", "--dry-run", path) == 0
    printed = capsys.readouterr()
    assert printed.out.startswith("small would be accepted\n  expected to start now [")
    assert "would go to local-" in printed.out and "nothing was submitted" in printed.err
    assert pace("plan", path, "-o", "json") == 0
    [job] = json.loads(capsys.readouterr().out)["jobs"]
    assert job["start"]["started"] == job["start"]["draws"] > 0 and not job["never"]
    assert cluster.client.jobs(limit=1) == before
    assert pace("plan", job_file("comand: x")) == 2


def test_what_never_fits_is_said_before_it_is_submitted(
    pace: Pace, job_file: JobFile, capsys: pytest.CaptureFixture[str]
) -> None:
    assert pace("plan", job_file("command: 'true'\nresources: {cpus: 99}")) == 0
    printed = capsys.readouterr().out
    assert "never: no node of this cluster could ever run it" in printed
    assert "the largest node has 4 cpus, asked 99 per task" in printed


def test_why_tells_the_expected_start_with_its_time(
    pace: Pace, cluster: Cluster, full: list[int], capsys: pytest.CaptureFixture[str]
) -> None:
    def told() -> str | None:
        capsys.readouterr()
        assert pace("why", full[2]) == 0
        printed = capsys.readouterr().out
        return printed if "expected to start in " in printed else None

    printed = wait_until("a forecast is there", told)
    assert " makes room then, " in printed and ":" in printed.rpartition("[")[2]
    assert pace("why", full[0]) == 0
    assert "expected to end in " in capsys.readouterr().out
    codes = [reason.code for reason in cluster.client.why(full[2], patience_s=5).reasons]
    assert "expected" in codes


def test_a_simulation_compares_and_draws(
    pace: Pace, full: list[int], job_file: JobFile, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path, plot = job_file("command: 'true'\nresources: {cpus: 4}"), tmp_path / "plot.png"
    assert pace("simulate", "--add", path, "--remove", "local-1", "--plot", plot) == 0
    printed = capsys.readouterr()
    assert ["jobs", "3", "4"] in [line.split() for line in printed.out.splitlines()]
    assert plot.stat().st_size > 10_000
    assert pace("simulate", "-o", "json", "--seed", "3") == 0
    told = json.loads(capsys.readouterr().out)
    assert told["changed"] is None and told["as_is"]["jobs"] == 3
    assert pace("simulate", "--remove", "nowhere") == 3
    assert pace("simulate", "--plot", tmp_path / "plot.doc") == 2


def test_a_trace_needs_no_scheduler(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from paceline.client.cli import main as cli

    monkeypatch.setenv("PACELINE_STATE", str(tmp_path / "none"))
    trace = tmp_path / "t.csv"
    trace.write_text("submit_s,duration_s,gpus\n0,480,8\n0,480,8\n")
    args = ["simulate", "--trace", str(trace), "--nodes", "1", "--gpus", "8"]
    assert cli.run(args) == 0
    assert ["mean", "wait", "4m", "00s"] in [line.split() for line in capsys.readouterr().out.splitlines()]
    assert cli.run([*args, "-o", "json"]) == 0
    told = json.loads(capsys.readouterr().out)["as_is"]
    assert (told["wait_mean_s"], told["gpu_allocation"], told["classes"][0]["name"]) == (240, 1.0, "8 GPUs")
    assert cli.run(args[:3]) == 2
    assert cli.run([*args, "--remove", "n1"]) == 2
    trace.write_text("submit_s\n1\n")
    assert cli.run(args) == 2
    assert "no column duration_s, gpus" in capsys.readouterr().err


def test_usage_is_a_table_and_json(pace: Pace, cluster: Cluster, capsys: pytest.CaptureFixture[str]) -> None:
    job = cluster.submit_text("command: 'true'\nexperiment_name: vision\nresources: {cpus: 1}")
    cluster.wait_state(job, "SUCCEEDED")
    assert pace("usage", "--by", "project") == 0
    printed = capsys.readouterr().out.splitlines()
    assert printed[0].split() == [
        "project",
        "jobs",
        "GPU",
        "hours",
        "productive",
        "lost",
        "other",
        "cpu",
        "hours",
    ]
    assert any(line.startswith("vision") for line in printed)
    assert pace("usage", "--since", "1 h", "-o", "json") == 0
    told = json.loads(capsys.readouterr().out)
    assert told["by"] == "user" and told["since_us"] < told["until_us"]
    assert pace("usage", "--since", "2099-01-01") == 0
    assert "no job has held anything" in capsys.readouterr().err
    assert pace("usage", "--since", "yesterday") == 2


def test_a_decision_is_told_long_after(
    pace: Pace, cluster: Cluster, capsys: pytest.CaptureFixture[str]
) -> None:
    job = cluster.submit_text("command: 'true'\nresources: {cpus: 1}")
    cluster.wait_state(job, "SUCCEEDED")
    entries = cluster.client.timeline(job).entries
    [seq] = [entry.seq for entry in entries if entry.kind == "AttemptStarted"]
    assert pace("decision", seq) == 0
    printed = capsys.readouterr().out
    assert printed.startswith(f"decision {seq}, ") and f"job {job}, " in printed
    assert "2 of 2 nodes in service had room" in printed
    assert "taken again from the history before it: the same" in printed
    assert pace("decision", seq, "-o", "json") == 0
    assert json.loads(capsys.readouterr().out)["again"]
    assert pace("decision", 10**5) == 3


def test_times_and_hours_read_well() -> None:
    us = 1_700_000_000_000_000
    fields = {"start_us": str(us), "early_us": str(us - 60_000_000), "late_us": "0"}
    text = at_clock(views.Reason("expected", "", "", fields))
    assert text.endswith("to later]") and text.count(":") >= 2
    assert at_clock(views.Reason("behind", "")) == ""
    assert [hours(value) for value in (0, 0.001, 0.1234, 12.34, 1234.5)] == [
        "0.00",
        "<0.01",
        "0.12",
        "12.3",
        "1,234",
    ]


def test_a_plot_without_matplotlib_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import importlib.util

    from paceline.client.cli.plots import check_plot
    from paceline.spec.errors import InvalidRequest

    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(InvalidRequest) as refused:
        check_plot("plot.svg")
    assert refused.value.hint == "pip install 'paceline[plots]'"
