"""An elastic gang in the step loop loses a node: the ranks that are left stay up as a smaller gang, with
other numbers, and stay up again when it grows back. Each sample of each step has the loss that it has in a
run that nothing ever happened to."""

import json
import signal
import subprocess
import sys
from collections import defaultdict
from pathlib import Path
from typing import Any

import pytest
from paceline.client import process
from support.cluster import Cluster, wait_until

SCRIPT = Path(__file__).resolve().parents[1] / "support" / "elastic_loop_rank.py"
SAVE_EVERY = 40


def records(folder: Path) -> dict[int, list[dict[str, Any]]]:
    """By pid. The last line of a killed rank may be torn."""
    return {
        int(path.stem): [json.loads(line) for line in path.read_text().split("\n")[:-1]]
        for path in folder.glob("*.jsonl")
    }


def is_made(one: dict[str, Any]) -> bool:
    """The other lines say which samples a step has, before it is known to come about."""
    return "losses" not in one


def last_step(folder: Path, attempt: int, rank: int = 0) -> int:
    lines = (one for lines in records(folder).values() for one in lines)
    made = (one for one in lines if is_made(one) and (one["attempt"], one["rank"]) == (attempt, rank))
    return max((one["step"] for one in made), default=0)


@pytest.mark.parametrize(
    ("nodes", "processes", "lost"),
    [
        (3, 1, 1),
        pytest.param(3, 1, 0, marks=pytest.mark.slow),
        pytest.param(2, 2, 0, marks=pytest.mark.slow),
        (2, 1, 0),
    ],
)
def test_the_ranks_that_are_left_stay_up_with_other_numbers(
    tmp_path: Path, nodes: int, processes: int, lost: int
) -> None:
    """`lost`: the task whose node is killed. 0 has the rendezvous; those behind it move up."""
    folder, alone = tmp_path / "job", tmp_path / "alone"
    for each in (folder, alone):
        each.mkdir()
    document = {
        "command": f"{sys.executable} {SCRIPT} {folder} 1500 {SAVE_EVERY}",
        "distribution": {"type": "pytorch", "process_count_per_instance": processes},
        "resources": {"instance_count": nodes, "min_instance_count": 1, "cpus": 1},
        "grace_s": 20,
    }
    with Cluster(tmp_path, agents=nodes, cpus=1) as cluster:
        job = cluster.submit_text(json.dumps(document))
        wait_until("all train", lambda: last_step(folder, 1) > 12, 120)
        tasks = sorted(cluster.client.job(job).tasks, key=lambda task: task.first_rank)
        stay = [pid for task in tasks for pid in task.pids if task is not tasks[lost]]
        index = int(tasks[lost].node.rpartition("-")[2])
        for found in cluster.node_processes(index):
            process.send(found, signal.SIGKILL)
        wait_until("the others go on", lambda: last_step(folder, 2) > 0, 120)
        assert sorted(cluster.task_pids(job)) == sorted(stay), cluster.story(job, "who stays")
        cluster.start_agent(index)
        wait_until("all go on", lambda: last_step(folder, 3) > 0, 120)
        assert set(stay) < set(cluster.task_pids(job)), cluster.story(job, "who stays when it grows")
        wait_until("they train on", lambda: last_step(folder, 3) % SAVE_EVERY > 8, 120)
        (folder / "enough").touch()
        cluster.wait_state(job, "SUCCEEDED", timeout_s=120)
        story = cluster.story(job, "")
    lines = [one for lines in records(folder).values() for one in lines]
    sizes = {(1, nodes * processes), (2, (nodes - 1) * processes), (3, nodes * processes)}
    assert {(one["attempt"], one["world_size"]) for one in lines} == sizes, story
    for each in (records(folder)[pid] for pid in stay):
        steps = [one["step"] for one in each if is_made(one)]
        assert len(set(steps)) == len(steps), f"a rank that stayed made a step twice: {story}"
    compare(lines, alone, story)


def compare(lines: list[dict[str, Any]], alone: Path, story: str) -> None:
    """With the run of one process, which has all samples of a step in one line. A step that one rank has made
    holds the gradients of all that had begun it, also of one that was killed before it could say more."""
    made = {(one["attempt"], one["step"]) for one in lines if is_made(one)}
    last = max(step for _, step in made)
    (alone / "enough").touch()
    subprocess.run([sys.executable, str(SCRIPT), str(alone), str(last), "0"], check=True, timeout=120)
    [whole] = records(alone).values()
    expected = {one["step"]: one["losses"] for one in whole if not is_made(one)}
    samples: defaultdict[tuple[int, int], set[str]] = defaultdict(set)
    for one in lines:
        if (one["attempt"], one["step"]) in made and not is_made(one):
            for sample, loss in one["losses"].items():
                assert loss == pytest.approx(expected[one["step"]][sample], rel=1e-9), one
            samples[one["attempt"], one["step"]] |= one["losses"].keys()
    assert {step for _, step in made} == expected.keys(), f"a step was skipped: {story}"
    for attempt, step in made:
        assert samples[attempt, step] == expected[step].keys(), f"step {step} lacks samples: {story}"
