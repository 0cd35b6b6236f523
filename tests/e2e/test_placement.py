"""Nodes with labels and taints, and jobs that ask for them: real agents, real commands."""

from pathlib import Path

from support.cluster import Cluster

GANG = """
command: echo "$PACELINE_RANK"
resources: {instance_count: 2, cpus: 2}
topology: {within: rack}
"""


def test_agents_say_where_they_stand_and_jobs_go_by_it(tmp_path: Path) -> None:
    with Cluster(tmp_path, agents=0, cpus=2, scheduler_args=("--topology-levels", "row,rack")) as cluster:
        stands = (("a", "r1"), ("b", "r2"), ("b", "r1"), ("b", "r1"))
        for index, (row, rack) in enumerate(stands):
            taint = ("--taint", "spot") if index == 1 else ()
            cluster.start_agent(index, "--label", f"row={row}", "--label", f"rack={rack}", *taint, wait=False)
        for index in range(len(stands)):
            cluster.wait_connected(index)

        gang = cluster.submit_text(GANG)
        done = cluster.wait_state(gang)
        assert done.state == "SUCCEEDED"
        assert sorted(task.node for task in done.tasks) == ["local-2", "local-3"]

        spot = cluster.submit_text("command: 'true'\nplacement: {labels: {rack: r2}, tolerate: [spot]}")
        assert [task.node for task in cluster.wait_state(spot).tasks] == ["local-1"]

        never = cluster.submit_text("command: 'true'\nplacement: {labels: {rack: r2}}")
        told = cluster.pace("why", str(never)).stdout
        assert "the only node with rack=r2 has a taint that it does not tolerate: spot (1)" in told

        nodes = cluster.pace("nodes")
        assert "rack=r2 row=b, tainted spot" in nodes.stdout, nodes.stderr
        [tainted] = [node for node in cluster.client.nodes().nodes if node.taints]
        assert (dict(tainted.labels), dict(tainted.taints)) == ({"rack": "r2", "row": "b"}, {"spot": ""})


def test_a_wrong_level_is_refused(tmp_path: Path) -> None:
    with Cluster(tmp_path, agents=0) as cluster:
        refused = cluster.pace("scheduler", "--state", str(tmp_path / "x"), "--topology-levels", "a b")
        assert refused.returncode == 2
        assert "--topology-levels: 'a b' is not the key of a label" in refused.stderr
