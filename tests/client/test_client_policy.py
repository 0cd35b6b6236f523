"""`pace policy`, `queues`, `quota`, `pools`, and the SDK's verbs: what they say, and what they refuse."""

import getpass
import json
import re
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest
from paceline.client.aio import AsyncClient
from paceline.spec.cluster_policy import PolicySpec
from support.cluster import Cluster

Pace = Callable[..., int]
Output = Callable[[], str]
USER = getpass.getuser()

POLICY = """\
queues:
  research:
    weight: 2
    guaranteed: {cpus: 4}
    queues:
      vision: {max: {cpus: 6}}
      speech: {users: [nobody-here]}
  prod: {max_per_user: {jobs: 1}}
default_queue: research/vision
pools:
  fast: {nodes: "*-0", queues: [prod]}
  rest: {nodes: "*-1", default: true}
"""


@pytest.fixture(autouse=True)
def no_policy(cluster: Cluster) -> Iterator[None]:
    yield
    for job in cluster.client.jobs(states=["QUEUED", "STARTING", "RUNNING"]):
        cluster.client.cancel(job.job, grace_s=0.01)
        cluster.client.wait(job.job)
    cluster.client.apply_policy(PolicySpec())


@pytest.fixture
def output(capfd: pytest.CaptureFixture[str]) -> Output:
    return lambda: capfd.readouterr().out


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "policy.yaml"
    path.write_text(POLICY)
    return path


def test_a_plan_shows_what_is_in_use_with_the_job(
    pace: Pace, cluster: Cluster, file: Path, tmp_path: Path, output: Output
) -> None:
    cluster.client.apply_policy(file)
    job = tmp_path / "job.yaml"
    job.write_text("command: 'true'\nresources: {cpus: 2}\n")
    output()
    assert pace("plan", job) == 0
    rows = [line.split() for line in output().splitlines()]
    assert ["queue", "what", "of", "in", "use", "with", "it", "guaranteed", "at", "most"] in rows
    assert ["research", "cpus", "all", "0", "2", "4", "-"] in rows
    assert ["research/vision", "cpus", "all", "0", "2", "-", "6"] in rows
    assert pace("submit", "--dry-run", job, "-o", "json") == 0
    [planned] = json.loads(output())["jobs"]
    assert planned["quota"][0] == {
        "queue": "research",
        "user": "",
        "what": "cpus",
        "in_use": 0.0,
        "with_job": 2.0,
        "guaranteed": 4.0,
        "at_most": None,
    }


def test_a_policy_is_simulated_and_not_applied(
    pace: Pace, cluster: Cluster, tmp_path: Path, output: Output
) -> None:
    path, trace = tmp_path / "one.yaml", tmp_path / "t.csv"
    path.write_text("max_per_user: {jobs: 1}\n")
    trace.write_text("submit_s,duration_s,gpus\n0,60,1\n0,60,1\n")
    jobs = [cluster.submit_text("command: sleep 600\nresources: {cpus: 1}") for _ in range(2)]
    for each in jobs:
        cluster.wait_state(each, "RUNNING")
    output()
    assert pace("simulate", "--policy", path, "-o", "json") == 0
    told = json.loads(output())
    assert told["as_is"]["ended"] == told["changed"]["ended"] == 2
    assert cluster.client.policy().changed_us is None or '"jobs":1' not in cluster.client.policy().document
    sized = ("--trace", trace, "--nodes", 1, "--gpus", 2)
    assert pace("simulate", "--policy", path, *sized) == 0
    assert ["mean", "wait", "0.00", "s", "30.0", "s"] in [line.split() for line in output().splitlines()]
    path.write_text("max_per_usr: {jobs: 1}\n")
    assert pace("simulate", "--policy", path) == 2 == pace("simulate", "--policy", path, *sized)


def test_a_policy_is_tried_applied_and_shown(pace: Pace, file: Path, output: Output) -> None:
    assert pace("policy", "apply", file, "--dry-run") == 0
    told = output()
    assert "queue research: new, weight 2, guaranteed 4 cpus\n" in told
    assert pace("policy", "show", "-o", "json") == 0
    assert json.loads(output())["document"]["queues"] == {}, "a dry run changes nothing"
    assert pace("policy", "apply", file) == 0
    assert output() == told
    assert pace("policy", "apply", file) == 0
    assert output() == "nothing changes: this policy is in force already\n"
    assert pace("policy", "show") == 0
    first, _, rest = output().partition("\n")
    assert first.startswith(f"# applied by {USER} ")
    file.write_text(rest)
    assert pace("policy", "apply", file, "-o", "json") == 0
    assert json.loads(output()) == {"changes": [], "applied": True}, "what is shown can be applied"


def test_what_is_wrong_is_told_by_line_before_anything_is_sent(
    pace: Pace, file: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    file.write_text(POLICY.replace("weight", "wieght").replace("research/vision", "research/vison"))
    assert pace("policy", "apply", file) == 2
    assert (
        f"{file}:3:5: queues.research.wieght: unknown key; did you mean 'weight'?" in capfd.readouterr().err
    )


@pytest.mark.parametrize("verb", ["policy apply", "simulate --policy"])
def test_a_policy_is_checked_where_no_scheduler_is(
    pace: Pace, file: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], verb: str
) -> None:
    monkeypatch.setenv("PACELINE_STATE", str(file.parent / "nobody"))
    assert pace(*verb.split(), file) not in (0, 2), "a good one has nowhere to go"
    assert "no scheduler is known here" in capfd.readouterr().err
    file.write_text(POLICY.replace("weight", "wieght"))
    assert pace(*verb.split(), file) == 2
    assert f"{file}:3:5: queues.research.wieght: unknown key" in capfd.readouterr().err


def test_a_job_says_its_queue_and_pool_and_is_refused_where_it_may_not_be(
    pace: Pace, cluster: Cluster, file: Path, capfd: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    cluster.client.apply_policy(file)
    job = cluster.submit_text("command: sleep 60\nqueue: prod\ncompute: fast")
    found = cluster.wait_state(job, "RUNNING")
    assert (found.queue, found.pool, found.tasks[0].node) == ("prod", "fast", "local-0")
    assert pace("show", job) == 0
    assert "  queue        prod\n  pool         fast\n" in capfd.readouterr().out
    other = cluster.wait_state(cluster.submit_text("command: sleep 60"), "RUNNING")
    assert (other.queue, other.pool, other.tasks[0].node) == ("research/vision", "rest", "local-1")
    for text, code, said in (
        ("queue: reserch/vision", 3, "there is no queue reserch/vision\n  did you mean research/vision?"),
        ("queue: research/speech", 2, f"queue research/speech is for nobody-here; {USER} may not submit"),
        ("compute: fst", 3, "there is no pool fst\n  did you mean fast?"),
        ("compute: fast", 2, "pool fast is for the queues prod; not for research/vision"),
    ):
        (tmp_path / "job.yaml").write_text(f"command: echo\n{text}\n")
        assert pace("submit", tmp_path / "job.yaml") == code
        assert said in capfd.readouterr().err
    file.write_text(POLICY.replace("prod", "produce"))
    assert pace("policy", "apply", file) == 6
    assert "queue prod is gone by this policy, and 1 job waits or runs there" in capfd.readouterr().err


def test_what_there_is_of_queues_quotas_and_pools(
    pace: Pace, cluster: Cluster, file: Path, output: Output
) -> None:
    assert pace("quota") == 0
    assert output() == f"no limits and no guarantees for {USER}\n"
    cluster.client.apply_policy(file)
    for text in ("queue: prod\ncompute: fast", "resources: {cpus: 3}"):
        cluster.wait_state(cluster.submit_text(f"command: sleep 60\n{text}"), "RUNNING")
    cluster.submit_text("command: sleep 60\nresources: {cpus: 2}")
    assert pace("queues") == 0
    rows = [line.split() for line in output().splitlines()]
    assert rows[0][:4] == ["queue", "weight", "GPUs", "min"]
    assert rows[1] == ["(all)", "1", "0", "-", "-", "4", "2", "1", "0.0", "1"]
    assert [row[0] for row in rows[1:]] == ["(all)", "prod", USER, "research", "speech", "vision", USER]
    assert pace("queues", "-o", "json") == 0
    by_path = {queue["path"]: queue for queue in json.loads(output())["queues"]}
    assert by_path["research"]["share"] == pytest.approx(2 / 3)
    assert by_path["research/vision"]["max"] == {"gpu_milli": None, "cpu_milli": 6000, "jobs": None}
    assert by_path["research/vision/" + USER]["in_use"]["cpu_milli"] == 3000
    assert pace("quota") == 0
    lines = output().splitlines()
    assert any(line.split() == ["prod", "jobs", USER, "1", "-", "1"] for line in lines)
    assert any(line.split() == ["research", "cpus", "all", "3", "4", "-"] for line in lines)
    assert pace("quota", "research") == 0
    assert "cpus" in output()
    assert pace("quota", "reserch") == 3
    assert pace("pools") == 0
    told = output()
    assert [line.split() for line in told.splitlines()][1:] == [
        ["fast", "1", "-", "3", "of", "4", "0", "queues", "prod"],
        ["rest", "(default)", "1", "-", "1", "of", "4", "1", "all"],
    ]
    assert all(len(line) <= 80 for line in told.splitlines())


def span(at_s: float, begin_s: float, end_s: float) -> str:
    return ", ".join(
        f"{key}: {datetime.fromtimestamp(at_s + offset_s, UTC).isoformat(timespec='seconds')}"
        for key, offset_s in (("from", begin_s), ("to", end_s))
    )


def windowed(at_s: float, begin_s: float, end_s: float) -> str:
    """A policy by which the pool fast is under maintenance then."""
    fast = f'{{nodes: "*-0", maintenance: [{{{span(at_s, begin_s, end_s)}, why: new drives}}]}}'
    return f'order: {{min_run_minutes: 0}}\npools:\n  fast: {fast}\n  rest: {{nodes: "*-1", default: true}}\n'


def test_a_maintenance_window_is_told_and_empties_the_pool(
    pace: Pace, cluster: Cluster, file: Path, output: Output
) -> None:
    """What runs is told to leave when it begins, and starts again when it is called off."""
    now_s = time.time()
    file.write_text(windowed(now_s, 3600, 7200))
    assert pace("policy", "apply", file) == 0
    job = cluster.submit_text("command: sleep 600\ncompute: fast\ngrace_s: 1")
    cluster.wait_state(job, "RUNNING")
    output()
    assert pace("pools") == 0
    assert re.search(
        r"\nfast is under maintenance from \S+ \S+ UTC to \S+ \S+ UTC\s+\(new drives\)\n", output()
    )
    assert pace("why", job) == 0
    assert "it saves and goes on elsewhere then" in " ".join(output().split())
    file.write_text(windowed(now_s, -60, 7200))
    assert pace("policy", "apply", file) == 0
    waits = cluster.wait_state(job, "QUEUED")
    assert waits.attempt == 1
    output()
    assert pace("why", job) == 0
    told = " ".join(output().split())
    assert "1 of 1 nodes is closed (pool fast is under maintenance until" in told and "(new drives)" in told
    assert pace("pools", "-o", "json") == 0
    [fast, rest] = json.loads(output())["pools"]
    assert fast["maintenance"][0]["why"] == "new drives" and rest["maintenance"] == []
    assert fast["cpu_milli_free"] == 0 < rest["cpu_milli_free"]
    assert pace("nodes") == 0
    assert "pool fast is" in output()
    file.write_text(windowed(now_s, -60, -30))
    assert pace("policy", "apply", file) == 0
    assert cluster.wait_state(job, "RUNNING").attempt == 2


def test_a_reservation_is_asked_for_by_name(
    pace: Pace, cluster: Cluster, file: Path, capfd: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    mine = f"{{{span(time.time(), -60, 7200)}, nodes: 1, users: [{USER}], why: grading}}"
    theirs = f"{{{span(time.time(), 8000, 9000)}, nodes: 1, users: [nobody-here]}}"
    limits = "max_timeout_hours: 48, defaults: {timeout_hours: 2}"
    reservations = f"reservations: {{exam: {mine}, other: {theirs}}}"
    file.write_text(f'pools: {{all: {{nodes: "*", {limits}, {reservations}}}}}')
    assert pace("policy", "apply", file) == 0
    capfd.readouterr()
    assert pace("pools") == 0
    told = " ".join(capfd.readouterr().out.split())
    assert " for up to 2d 00h; usually 2h 00m " in told
    assert re.search(rf"all/exam: local-0 is reserved for users {USER} until \S+ \S+ UTC \(grading\)", told)
    assert re.search(
        r"all/other: local-0 is reserved for users nobody-here from \S+ \S+ UTC to \S+ \S+ UTC", told
    )
    job = cluster.wait_state(cluster.submit_text("command: sleep 600\ncompute: all/exam"), "RUNNING")
    assert (job.pool, job.tasks[0].node) == ("all/exam", "local-0")
    big = "command: sleep 600\ncompute: all\nresources: {cpus: 4}"
    other = cluster.wait_state(cluster.submit_text(big), "RUNNING")
    assert other.tasks[0].node == "local-1"
    waits = cluster.submit_text(big)
    capfd.readouterr()
    assert pace("why", waits) == 0
    told = " ".join(capfd.readouterr().out.split())
    assert f"1 of 2 nodes is reserved as all/exam (users {USER}; grading) until" in told
    assert pace("pools", "-o", "json") == 0
    [pool] = json.loads(capfd.readouterr().out)["pools"]
    assert [(one["name"], one["node_names"]) for one in pool["reservations"]] == [
        ("exam", ["local-0"]),
        ("other", ["local-0"]),
    ]
    (tmp_path / "job.yaml").write_text("command: echo\ncompute: all/other\n")
    assert pace("submit", tmp_path / "job.yaml") == 2
    assert f"reservation all/other is for nobody-here; not for {USER}" in capfd.readouterr().err


async def test_the_async_client_has_the_same_verbs(cluster: Cluster, file: Path) -> None:
    async with AsyncClient(state=cluster.state) as client:
        assert len(await client.apply_policy(file, dry_run=True)) == 7
        assert (await client.policy()).by == USER
        assert [queue.path for queue in await client.queues(user=USER)] == [""]
        assert await client.pools() == ()
