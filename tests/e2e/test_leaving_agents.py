"""An agent that ends with its tasks: their jobs have the time that their saves take, and go on elsewhere."""

import json
import sys
from pathlib import Path

from support.cluster import Cluster, wait_until

SCRIPT = Path(__file__).parents[1] / "support" / "policy_rank.py"
SAVE_S = 1.5
GRACE_S = 0.2
"""Too short for a save."""


def lines_of(file: Path) -> list[str]:
    return file.read_text().splitlines() if file.exists() else []


def test_jobs_of_an_agent_that_ends_save_and_go_on_elsewhere(tmp_path: Path) -> None:
    with Cluster(tmp_path, agents=2, cpus=4, agent_args=["--stop-tasks"]) as cluster:
        (tmp_path / "j").mkdir()
        first = f"--slow-save {SAVE_S} --first-save 3"
        document = {
            "command": f"{sys.executable} {SCRIPT} {tmp_path / 'j'} 100000 {first}",
            "resources": {"cpus": 4},
            "grace_s": GRACE_S,
        }
        job = cluster.submit_text(json.dumps(document))
        wait_until("it goes on after a save", lambda: (cluster.client.job(job).step or -1) >= 5)
        wait_until("that is accepted", lambda: bool(cluster.client.job(job).checkpoints))
        left = cluster.client.job(job).tasks[0].node
        other = {"local-0": "local-1", "local-1": "local-0"}[left]
        index = int(left[-1])
        cluster.stop_agent(index)

        lines = tmp_path / "j" / "0"
        wait_until("it goes on", lambda: any(line.startswith("2 starts") for line in lines_of(lines)))
        step = next(int(line.split()[3]) for line in lines_of(lines) if line.startswith("1 stops after"))
        assert f"2 starts at {step + 1} with {step}" in lines_of(lines)
        assert [task.node for task in cluster.client.job(job).tasks] == [other]
        texts = [entry.text for entry in cluster.client.timeline(job).entries]
        [told] = [text for text in texts if text.startswith("preemption")]
        assert told.startswith(f"preemption (the agent of {left} ends): the tasks have "), told
        [end] = [text for text in texts if text.startswith("attempt 1 ended")]
        assert f"(preempted, uses no retry): preempted: the agent of {left} ends" in end, end

        second = cluster.submit_text("command: echo hi\nresources: {cpus: 4}")
        assert "silent" in (why := cluster.client.why(second).reasons[0].text) or "lost" in why, why
        cluster.start_agent(index)
        assert cluster.wait_state(second, "SUCCEEDED").tasks[0].node == left
        cluster.client.cancel(job, grace_s=0.01)
        cluster.wait_state(job, "CANCELLED")


def test_without_a_scheduler_tasks_have_the_grace_of_their_document(tmp_path: Path) -> None:
    with Cluster(tmp_path, agent_args=["--stop-tasks"]) as cluster:
        flag = tmp_path / "trapped"
        command = f"trap 'echo bye; exit 0' TERM; touch {flag}; while :; do sleep 0.05; done"
        job = cluster.submit_text(json.dumps({"command": command, "retry": {"max_attempts": 2}}))
        wait_until("it runs", flag.exists)
        cluster.kill_scheduler()
        cluster.stop_agent()
        assert "no scheduler says how long their saves take" in cluster.agents[0].log_text()
        flag.unlink()
        cluster.start_scheduler()
        cluster.start_agent()
        wait_until("it runs again", flag.exists)
        found = cluster.client.job(job)
        assert found.attempt == 2
        [end] = [e.text for e in cluster.client.timeline(job).entries if e.text.startswith("attempt 1 ended")]
        assert "(node-lost, uses no retry)" in end, end
        cluster.client.cancel(job)
        cluster.wait_state(job, "CANCELLED")
