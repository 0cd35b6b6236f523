"""The registry with real processes: outputs of jobs, what jobs read, and a scheduler that is killed amid."""

import json
import time
from pathlib import Path

import pytest
from paceline.client.registry_views import OfJob, OfPath
from paceline.content.store import ContentStore, content_folder
from support.cluster import Cluster, wait_until

WRITES = """
command: sh -c 'cp ${{inputs.data}} ${{outputs.model}}/w.bin; echo 1 > ${{outputs.log}}/l'
inputs: {data: {path: "table@clean"}}
outputs: {model: {type: custom_model, name: digits, version: %s}, log: {name: logs}}
"""


@pytest.mark.slow
def test_from_data_to_a_model_and_into_the_next_job(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("1,2\n")
    with Cluster(tmp_path) as cluster:
        client = cluster.client
        client.register("data", "table", OfPath(str(tmp_path / "a.csv")), alias="clean")
        job = cluster.submit_text(WRITES % '"1"')
        cluster.wait_state(job, "SUCCEEDED")
        cluster.wait_registered("model", "digits")
        cluster.wait_registered("data", "logs")
        read = (
            "command: cat ${{inputs.m}}/w.bin\ninputs: {m: {type: custom_model, path: 'azureml:digits:1'}}\n"
        )
        second = cluster.submit_text(read)
        cluster.wait_state(second, "SUCCEEDED")
        assert cluster.output(second) == b"1,2\n"
        again = cluster.submit_text(WRITES % '"1"')
        cluster.wait_state(again, "SUCCEEDED")
        told = wait_until(
            "it is told", lambda: [w.text for w in client.job(again).warnings if w.key == "outputs"] or None
        )
        assert "not registered: model:digits:1 was registered by" in told[0]
        lineage = client.lineage(f"job:{second}")
        made_of = {edge.source for edge in lineage.edges if edge.relation != "ran with"}
        assert made_of == {"model:digits:1", f"job:{job}", "data:table:1"}
        shown = cluster.pace("lineage", str(second))
        assert "inputs.m: model:digits:1" in shown.stdout and "data:table:1" in shown.stdout, shown.stdout


@pytest.mark.slow
def test_a_job_whose_model_has_lost_a_file_is_refused_with_the_reason(tmp_path: Path) -> None:
    (tmp_path / "w.bin").write_bytes(b"weights")
    with Cluster(tmp_path) as cluster:
        made = cluster.client.register("model", "m", OfPath(str(tmp_path / "w.bin")))
        store = ContentStore(content_folder(cluster.state / "storage"))
        blob = store.blob_path(store.manifest(made.tree).files[0].hash)
        blob.chmod(0o644)
        blob.write_bytes(b"WEIGHTS")
        read = "command: cat ${{inputs.m}}/w.bin\ninputs: {m: {type: custom_model, path: m@latest}}\n"
        job = cluster.submit_text(read)
        failed = wait_until("it has failed", lambda: (found := cluster.client.job(job)).is_over and found)
        assert failed.state == "FAILED" and "inputs.m" in json.dumps(cluster.story(job, "")), failed.reason
        assert cluster.output(job) == b""


@pytest.mark.slow
@pytest.mark.serial
@pytest.mark.parametrize("after_s", [0.0, 0.05, 0.2])
def test_a_scheduler_killed_amid_registration_goes_on_with_it(tmp_path: Path, after_s: float) -> None:
    big = "command: sh -c 'head -c 50000000 /dev/urandom > ${{outputs.model}}/w.bin'\n"
    big += "outputs: {model: {type: custom_model, name: digits}}\n"
    with Cluster(tmp_path) as cluster:
        job = cluster.submit_text(big)
        cluster.wait_state(job, "SUCCEEDED")
        time.sleep(after_s)  # not for luck: each of these is another moment of the registration
        cluster.kill_scheduler()
        cluster.start_scheduler()
        made = cluster.wait_registered("model", "digits")
        assert made.version == "1" and made.bytes == 50_000_000
        cluster.client.download("model", "digits", tmp_path / "got")  # verified
        cluster.kill_scheduler()
        cluster.start_scheduler()
        assert [one.version for one in cluster.client.assets("model", "digits")] == ["1"]
        assert cluster.client.asset("model", "digits")[0] == made
        assert cluster.client.register("model", "digits", OfJob(job)).version == "2"
