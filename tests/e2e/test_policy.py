"""The cluster is shared otherwise while jobs wait: real processes, real commands, real restarts."""

from pathlib import Path

from support.cluster import Cluster

TIGHT = """\
queues:
  prod: {max: {cpus: 2}}
  research: {max_per_user: {jobs: 1}}
default_queue: research
"""


def apply(cluster: Cluster, text: str) -> str:
    path = cluster.folder / "policy.yaml"
    path.write_text(text)
    done = cluster.pace("policy", "apply", str(path))
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_limit_that_is_raised_lets_go_who_waited_for_it(tmp_path: Path) -> None:
    with Cluster(tmp_path, agents=1, cpus=4, agent_args=["--cold"]) as cluster:
        assert "queue prod: new, weight 1, max 2 cpus" in apply(cluster, TIGHT)
        first = cluster.submit_text("command: sleep 600\nqueue: prod\nresources: {cpus: 1.5}")
        cluster.wait_state(first, "RUNNING")
        second = cluster.submit_text("command: sleep 600\nqueue: prod\nresources: {cpus: 1}")
        mine, other = (cluster.submit_text("command: sleep 600\nresources: {cpus: 0.5}") for _ in range(2))
        cluster.wait_state(mine, "RUNNING")
        limit = f"queue prod has 1.5 of at most 2 cpus, asked 1 cpu; job {first} holds 1.5"
        assert cluster.client.why(second).reasons[0].text == limit
        why = cluster.client.why(other).reasons[0].text
        assert why.endswith(f"in queue research has 1 of at most 1 job, asked 1 job; job {mine} runs")

        cluster.kill_scheduler()
        cluster.start_scheduler()
        assert cluster.client.why(second).reasons[0].text == limit, "the policy is kept"
        told = apply(cluster, TIGHT.replace("max: {cpus: 2}", "max: {cpus: 3}"))
        assert told == "queue prod: max 2 cpus -> 3 cpus\n"
        cluster.wait_state(second, "RUNNING")
        in_use = {queue.path: queue.in_use.cpu_milli for queue in cluster.client.queues()}
        assert (in_use["prod"], in_use["research"], in_use[""]) == (2500, 500, 3000)

        refused = cluster.pace("policy", "apply", str(cluster.folder / "none.yaml"))
        assert refused.returncode == 2 and "cannot read" in refused.stderr
        for job in (first, second, mine, other):
            cluster.client.cancel(job, grace_s=0.01)
        for job in (first, second, mine, other):
            cluster.wait_state(job, "CANCELLED")
