"""Saving by policy, on request and before the end; going back, forking: real gangs, real commands."""

import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from paceline.client import views
from support.cluster import Cluster, wait_until

SCRIPT = Path(__file__).parents[1] / "support" / "policy_rank.py"


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    with Cluster(tmp_path_factory.mktemp("policy"), agents=1, cpus=8) as made:
        yield made


def submit(cluster: Cluster, folder: Path, *args: str, ranks: int = 2, **document: object) -> int:
    folder.mkdir(exist_ok=True)
    return cluster.submit_text(
        json.dumps(
            {
                "command": f"{sys.executable} {SCRIPT} {folder} {' '.join(args)}",
                "distribution": {"type": "pytorch", "process_count_per_instance": ranks},
                "resources": {"cpus": 1},
                **document,
            }
        )
    )


def told(folder: Path, rank: int = 0) -> list[str]:
    file = folder / str(rank)
    return file.read_text().splitlines() if file.exists() else []


def wait_step(cluster: Cluster, job: int, step: int) -> None:
    wait_until(f"job {job} is at step {step}", lambda: (cluster.client.job(job).step or -1) >= step)


def wait_saved(cluster: Cluster, job: int, count: int = 1) -> None:
    wait_until(f"job {job} has saved", lambda: len(cluster.client.job(job).checkpoints) >= count)


def texts(cluster: Cluster, job: int, kind: str) -> list[str]:
    return [entry.text for entry in cluster.client.timeline(job).entries if entry.kind == kind]


def table(cluster: Cluster, job: int) -> dict[int, views.Checkpoint]:
    return {one.step: one for one in cluster.client.checkpoints(job)}


def test_the_job_file_says_how_often_and_what_stays(cluster: Cluster, tmp_path: Path) -> None:
    policy = {"every": "10 steps", "keep_last": 1, "keep_every": 40}
    job = submit(cluster, tmp_path / "j", "95", "--every", "auto", checkpoint=policy)
    cluster.wait_state(job, "SUCCEEDED")
    saved = [line for line in told(tmp_path / "j") if "saved" in line]
    assert saved == [f"1 saved {step}: " for step in range(10, 100, 10)]
    assert told(tmp_path / "j", 1)[1:-1] == saved
    found = table(cluster, job)
    assert sorted(found) == list(range(10, 100, 10))
    assert found[90].state == "good" and "last 1" in found[90].kept and found[90].why == "every 10 steps"
    assert {found[40].kept, found[80].kept} == {"every 40"}
    gone = [found[step] for step in (10, 20, 50)]
    assert all(one.state == "removed" and not Path(one.path).exists() for one in gone)
    assert all(Path(found[step].path).exists() for step in (40, 80, 90))
    assert found[90].persist_s > 0


def test_a_checkpoint_is_made_when_somebody_asks(cluster: Cluster, tmp_path: Path) -> None:
    job = submit(cluster, tmp_path / "j", "100000")
    wait_step(cluster, job, 5)
    done = cluster.pace("checkpoint", str(job), "-o", "json")
    assert done.returncode == 0, cluster.story(job, done.stderr)
    made = json.loads(done.stdout)
    assert made["why"] == "asked for" and made["size_bytes"] > 0 and made["state"] == "good"
    assert made["tiers"] == "memory, storage"
    assert f"1 saved {made['step']}: " in told(tmp_path / "j", 1)
    listed = cluster.pace("checkpoints", str(job))
    assert str(made["step"]) in listed.stdout and "asked for" in listed.stdout and "last 2" in listed.stdout
    cluster.client.cancel(job)
    cluster.wait_state(job, "CANCELLED")
    refused = cluster.pace("checkpoint", str(job))
    assert refused.returncode == 6 and "is over (CANCELLED)" in refused.stderr


def test_a_script_that_never_asks_is_told_of(cluster: Cluster, tmp_path: Path) -> None:
    job = cluster.submit_text("command: sleep 600\nresources: {cpus: 0.5}\ngrace_s: 0")
    cluster.wait_state(job, "RUNNING")
    done = cluster.pace("checkpoint", str(job), "--timeout", "1")
    assert done.returncode == 1 and "should_save" in done.stderr
    cluster.client.cancel(job)
    cluster.wait_state(job, "CANCELLED")


def test_preempted_it_is_given_the_time_that_its_save_takes(cluster: Cluster, tmp_path: Path) -> None:
    """The save takes 3 s, the document's grace is 1 s."""
    job = submit(cluster, tmp_path / "j", "100000", "--slow-save", "3", "--first-save", "3", grace_s=1)
    wait_saved(cluster, job)
    wait_step(cluster, job, 8)
    done = cluster.pace("preempt", str(job))
    assert done.returncode == 0, done.stderr
    wait_until("the next attempt goes on", lambda: len(told(tmp_path / "j")) > 4)
    lines = told(tmp_path / "j")
    before_end = next(line for line in lines if "stops after" in line)
    step = int(before_end.split()[3])
    assert f"2 starts at {step + 1} with {step}" in lines, lines
    (end,) = texts(cluster, job, "AttemptEnded")
    assert "preempted" in end and "uses no retry" in end and "lost" not in end
    (seen,) = texts(cluster, job, "StopSeen")
    assert f"after step {step}" in seen
    (restored,) = texts(cluster, job, "CheckpointRestored")
    assert f"of step {step}, read from memory in" in restored, "what came back at once finds what it left"
    newest = table(cluster, job)[step]
    assert newest.why == "before the end that was asked for" and newest.stall_s > 2.9
    assert cluster.client.timeline(job).ledger.lost_us == 0
    cluster.client.cancel(job, grace_s=0.01)
    cluster.wait_state(job, "CANCELLED")


def test_who_ignores_the_notice_is_killed_and_what_was_lost_is_said(cluster: Cluster, tmp_path: Path) -> None:
    job = submit(cluster, tmp_path / "j", "100000", "--deaf", "--first-save", "5", grace_s=1)
    wait_saved(cluster, job)
    wait_step(cluster, job, 20)
    cluster.client.preempt(job, grace_s=0.5)
    end = wait_until("the attempt is over", lambda: next(iter(texts(cluster, job, "AttemptEnded")), None))
    lost = re.search(r"lost: (\d+) steps and .* since the checkpoint of step 5", end)
    assert lost is not None and int(lost[1]) >= 15, end
    assert not texts(cluster, job, "StopSeen")
    timeline = cluster.client.timeline(job)
    accepted = next(json.loads(one.body) for one in timeline.entries if one.kind == "CheckpointAccepted")
    ended_us = next(one.at_us for one in timeline.entries if one.kind == "AttemptEnded")
    assert timeline.ledger.lost_us == ended_us - accepted["staged_us"]
    assert accepted["staged_us"] < accepted["at_us"] and accepted["persist_us"] > 0
    cluster.client.cancel(job, grace_s=0.01)
    cluster.wait_state(job, "CANCELLED")


def test_it_is_sent_back_and_forked(cluster: Cluster, tmp_path: Path) -> None:
    policy = {"every": "50 steps", "keep_last": 1000}
    job = submit(cluster, tmp_path / "j", "100000", checkpoint=policy)
    wait_saved(cluster, job, 3)
    steps = [one.step for one in cluster.client.job(job).checkpoints]
    back = steps[1]
    done = cluster.pace("restore", str(job), "--step", str(back))
    assert done.returncode == 0, done.stderr
    wait_until("it goes on from there", lambda: f"2 starts at {back + 1} with {back}" in told(tmp_path / "j"))
    assert table(cluster, job)[steps[0]].attempt == 2 or table(cluster, job)[steps[0]].state == "set aside"
    (tmp_path / "f").mkdir()
    made = cluster.pace(
        "fork", str(job), "--from-step", str(back), "--name", "branch", "-o", "json",
        "--set", f"command={sys.executable} {SCRIPT} {tmp_path / 'f'} {back + 5}",
    )  # fmt: skip
    assert made.returncode == 0, made.stderr
    child = json.loads(made.stdout)["job"]
    cluster.client.cancel(job)
    cluster.wait_state(job, "CANCELLED")
    cluster.wait_state(child, "SUCCEEDED")
    last = back + 5
    assert told(tmp_path / "f") == [f"1 starts at {back + 1} with {back}", f"1 done {last} with {last}"]
    view = cluster.client.job(child)
    assert (view.parent_job, view.parent_step, view.name) == (job, back, "branch")
    assert f"a fork of job {job} from its step {back}" in texts(cluster, child, "JobSubmitted")[0]
    assert f"fork         of job {job}" in cluster.pace("show", str(child)).stdout
    over = cluster.pace("restore", str(job), "--step", str(back))
    assert over.returncode == 6 and f"pace fork {job} --from-step {back}" in over.stderr
    missing = cluster.pace("fork", str(job), "--from-step", "7")
    assert missing.returncode == 3 and "no good checkpoint of step 7" in missing.stderr


def test_a_fork_from_what_is_damaged_fails_and_says_so(cluster: Cluster, tmp_path: Path) -> None:
    job = submit(cluster, tmp_path / "j", "60", checkpoint={"every": "50 steps"}, ranks=1)
    cluster.wait_state(job, "SUCCEEDED")
    origin = table(cluster, job)[50]
    [file] = Path(origin.path).glob("*.distcp")
    with file.open("r+b") as damaged:
        damaged.seek(file.stat().st_size // 2)
        damaged.write(b"\xff" * 8)
    made = cluster.pace("fork", str(job), "--from-step", "50", "-o", "json", "--set", "retry.max_attempts=2")
    assert made.returncode == 0, made.stderr
    child = json.loads(made.stdout)["job"]
    cluster.wait_state(child, "FAILED")
    why = cluster.pace("why", str(child)).stdout
    assert f"begins from step 50 of job {job}, and no checkpoint of it is good" in why
    assert f"pace checkpoints {job}" in cluster.pace("show", str(child)).stdout
    assert len(texts(cluster, child, "AttemptEnded")) == 2, "nor does the second attempt start anew"
    assert "damaged in storage" in texts(cluster, child, "CheckpointDamaged")[0]
