"""A node is drained under a job that trains: real processes, real commands, real restarts."""

import json
import sys
from pathlib import Path

from paceline.client import views
from support.cluster import Cluster, wait_until

SCRIPT = Path(__file__).parents[1] / "support" / "policy_rank.py"


def node(cluster: Cluster, name: str) -> views.Node:
    return next(one for one in cluster.client.nodes().nodes if one.name == name)


def said(cluster: Cluster, name: str) -> str:
    reason = node(cluster, name).reason
    return reason.text if reason is not None else ""


def test_a_drained_node_is_left_from_a_checkpoint_and_gets_work_again(tmp_path: Path) -> None:
    with Cluster(tmp_path, agents=2, cpus=4) as cluster:
        (tmp_path / "j").mkdir()
        document = {
            "command": f"{sys.executable} {SCRIPT} {tmp_path / 'j'} 100000",
            "resources": {"cpus": 4},
        }
        job = cluster.submit_text(json.dumps(document))
        wait_until("it trains", lambda: (cluster.client.job(job).step or -1) >= 5)
        left = cluster.client.job(job).tasks[0].node
        other = {"local-0": "local-1", "local-1": "local-0"}[left]

        done = cluster.pace("drain", left, "--why", "new disks")
        assert done.returncode == 0, done.stderr
        assert f"job {job} is told to save and go on elsewhere" in done.stdout

        lines = tmp_path / "j" / "0"
        wait_until("it goes on", lambda: any(line.startswith("2 starts") for line in _lines(lines)))
        step = next(int(line.split()[3]) for line in _lines(lines) if line.startswith("1 stops after"))
        assert f"2 starts at {step + 1} with {step}" in _lines(lines)
        view = cluster.client.job(job)
        assert [task.node for task in view.tasks] == [other]
        texts = [entry.text for entry in cluster.client.timeline(job).entries]
        [end] = [text for text in texts if text.startswith("attempt 1 ended")]
        assert "(preempted, uses no retry): preempted by" in end and f"{left} is drained: new disks" in end
        assert "lost" not in end
        assert said(cluster, left).startswith("drained (for ") and "new disks" in said(cluster, left)

        index = int(left[-1])
        cluster.kill_scheduler()
        cluster.kill_agent(index)
        cluster.start_scheduler()
        cluster.start_agent(index)
        assert said(cluster, left).startswith("drained (for ")
        second = cluster.submit_text("command: echo hi\nresources: {cpus: 4}")
        why = cluster.client.why(second)
        assert not why.never and f"1 of 2 nodes is cordoned ({left}: new disks, by " in why.reasons[0].text
        assert "it would have room for 1 task" in why.reasons[0].text

        assert cluster.pace("uncordon", left).stdout == f"{left} is in service\n"
        assert cluster.wait_state(second, "SUCCEEDED").tasks[0].node == left
        assert cluster.client.job(job).tasks[0].node == other, "it stays where it is"
        cluster.client.cancel(job, grace_s=0.01)
        cluster.wait_state(job, "CANCELLED")


def _lines(file: Path) -> list[str]:
    return file.read_text().splitlines() if file.exists() else []
