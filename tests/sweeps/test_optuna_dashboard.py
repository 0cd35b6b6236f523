"""optuna-dashboard against a live sweep: its own server, in a process of its own, on our storage."""

import json
import subprocess
import sys
import urllib.request
from pathlib import Path
from typing import Any

import pytest
from support import trial_scripts
from support.cluster import Cluster, wait_until
from support.trial_sweeps import sweep_of

pytest.importorskip("optuna_dashboard")

SERVE = """
import sys
from wsgiref.simple_server import make_server
import optuna_dashboard
import paceline

app = optuna_dashboard.wsgi(paceline.StudyStorage(sys.argv[1], state=sys.argv[2]))
with make_server("127.0.0.1", 0, app) as server:
    print(server.server_port, flush=True)
    server.serve_forever()
"""


def read(port: int, path: str) -> Any:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/api/{path}", timeout=30) as reply:
        return json.load(reply)


def test_the_dashboard_shows_a_sweep_that_runs(tmp_path: Path) -> None:
    with Cluster(tmp_path, agents=1, cpus=2) as cluster:
        points = [{"x": 0.25}, {"x": 0.75}]
        number = cluster.client.submit_sweep(sweep_of(tmp_path, trial_scripts.HELD, 2, enqueue=points))
        name = cluster.client.sweep(number).name
        line = [sys.executable, "-c", SERVE, cluster.address, str(cluster.state)]
        server = subprocess.Popen(line, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
        try:
            assert server.stdout is not None
            port = int(server.stdout.readline())
            [listed] = read(port, "studies")["study_summaries"]
            assert (listed["study_id"], listed["study_name"]) == (number, name)

            def trials(state: str) -> list[dict[str, Any]] | None:
                found: list[dict[str, Any]] = read(port, f"studies/{number}?after=0")["trials"]
                there = [one for one in found if one["state"] == state and one["intermediate_values"]]
                return there if len(there) == 2 else None

            running = wait_until("both run, and have reported", lambda: trials("Running"))
            assert [one["params"][0]["param_external_value"] for one in running] == ["0.25", "0.75"]
            (tmp_path / "gate").touch()
            whole = wait_until("both are complete", lambda: trials("Complete"))
            assert [one["values"] for one in whole] == [[0.25], [0.75]]
        finally:
            server.kill()
            server.wait()
