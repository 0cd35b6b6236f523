"""An elastic gang loses a node for real, goes on at once with what is left, and grows back at a checkpoint:
its samples and its losses are those of a run that nothing ever happened to."""

import json
import signal
import subprocess
import sys
from collections import defaultdict
from pathlib import Path
from typing import Any

import pytest
from paceline.client import process, views
from support.cluster import Cluster, wait_until
from support.elastic_rank import SAMPLES

SCRIPT = Path(__file__).resolve().parents[1] / "support" / "elastic_rank.py"


def records(folder: Path) -> dict[tuple[int, int], dict[int, dict[str, Any]]]:
    """Attempt and rank -> step -> what it wrote. The last line of a killed rank may be torn."""
    found: dict[tuple[int, int], dict[int, dict[str, Any]]] = {}
    for path in folder.glob("*.jsonl"):
        attempt, rank, _ = path.name.split(".")
        lines = path.read_text().split("\n")[:-1]
        found[int(attempt), int(rank)] = {each["step"]: each for each in map(json.loads, lines)}
    return found


def last_step(folder: Path, attempt: int) -> int:
    return max(
        (max(steps, default=0) for (at, _), steps in records(folder).items() if at == attempt), default=0
    )


def sizes(cluster: Cluster, job: int) -> list[int]:
    entries = cluster.client.timeline(job).entries
    return [len(json.loads(each.body)["places"]) for each in entries if each.kind == "AttemptStarted"]


def on_nodes(job: views.Job) -> set[str]:
    return {task.node for task in job.tasks}


@pytest.mark.timeout(600)
@pytest.mark.parametrize("kind", ["ddp", "fsdp2"])
def test_a_gang_goes_on_with_what_is_left_and_grows_back(tmp_path: Path, kind: str) -> None:
    folder, alone = tmp_path / "elastic", tmp_path / "alone"
    for each in (folder, alone):
        each.mkdir()
    text = f"""
command: python {SCRIPT} {folder} 1000000 0 {kind}
name: elastic
distribution: {{type: pytorch}}
resources: {{instance_count: 2, min_instance_count: 1, cpus: 1}}
"""
    with Cluster(tmp_path, agents=2, cpus=1) as cluster:
        job = cluster.submit_text(text)
        wait_until("both train", lambda: last_step(folder, 1) > 12, 120)
        wait_until("a checkpoint is accepted", lambda: bool(cluster.client.job(job).checkpoints))
        for found in cluster.node_processes(1):
            process.send(found, signal.SIGKILL)
        wait_until("one goes on", lambda: last_step(folder, 2) > 0, 120)
        small = cluster.client.job(job)
        assert (small.attempt, on_nodes(small), small.instances) == (2, {"local-0"}, 1)
        assert "1 instance (2 asked, 1 to 2): there is no room for more instances" in small.size, small.size
        assert "1 lost node could help" in small.size or "1 silent node not counted" in small.size, small.size
        cluster.start_agent(1)
        wait_until("two go on", lambda: last_step(folder, 3) > 0, 120)
        whole = cluster.client.job(job)
        assert (whole.attempt, on_nodes(whole), whole.size) == (3, {"local-0", "local-1"}, "")
        wait_until("they train on", lambda: last_step(folder, 3) > min(records(folder)[3, 0]) + 8, 120)
        (folder / "enough").touch()
        done = cluster.wait_state(job, "SUCCEEDED", timeout_s=120)
        story = cluster.client.timeline(job)
        assert (done.attempt, sizes(cluster, job)) == (3, [2, 1, 2]), cluster.story(job, "sizes")
        said = "\n".join(entry.text for entry in story.entries)
        assert "goes on with 1 of 2 instances (min 1): local-1 lost" in said, said
        assert "attempt 1 ended (node-lost, uses no retry)" in said, said
        assert "room for 2 instances (has 1): grows at its next checkpoint" in said, said
        assert "attempt 2 ended (resized, uses no retry): stopped at a checkpoint to grow from 1 to 2" in said
        assert done.finished_us is not None and story.ledger.restarting_us > 0
        assert story.ledger.wall_us == done.finished_us - done.submitted_us
    steps = last_step(folder, 3)
    subprocess.run([sys.executable, str(SCRIPT), str(alone), str(steps)], check=True, timeout=300)
    compare(records(folder), records(alone)[0, 0])


def compare(
    found: dict[tuple[int, int], dict[int, dict[str, Any]]], whole: dict[int, dict[str, Any]]
) -> None:
    """Of each step the last attempt counts: what was done after its checkpoint is undone."""
    counts = {step: max(at for at, _ in found if step in found[at, 0]) for step in whole}
    seen: defaultdict[int, list[int]] = defaultdict(list)
    for step, expected in whole.items():
        ranks = [steps[step] for (at, _), steps in sorted(found.items()) if at == counts[step]]
        assert [index for rank in ranks for index in rank["samples"]] == expected["samples"], step
        assert ranks[0]["loss"] == pytest.approx(expected["loss"], rel=1e-9), step
        seen[expected["epoch"]] += expected["samples"]
    assert all(sorted(samples) == list(range(SAMPLES)) for samples in list(seen.values())[:-1])
    assert len(seen) > 3 and {1, 2, 3} == set(counts.values()), counts
