"""`pace reproduce`: a job runs again from what was recorded of it, and says what was not."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from paceline.client.registry_views import OfPath, OfUrl
from paceline.client.reproducing import Part, Reproduction, seed_part
from paceline.spec.errors import NotFound
from paceline.spec.job import job_from_data
from support.cluster import Cluster

JOB = """
command: sh -c 'cat word ${{inputs.data}} > ${{outputs.model}}/w.txt; cat ${{outputs.model}}/w.txt'
code: project
inputs: {data: {path: "table@clean"}, seed: 7}
outputs: {model: {type: custom_model, name: digits, version: first}}
resources: {cpus: 0.5}
"""


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    with Cluster(tmp_path_factory.mktemp("cluster"), agent_args=["--cold"]) as made:
        yield made


def parts(found: Reproduction) -> dict[str, Part]:
    return {part.name: part for part in found.parts}


def test_a_job_runs_again_as_it_was_although_all_has_moved_on(cluster: Cluster, tmp_path: Path) -> None:
    client = cluster.client
    (tmp_path / "project").mkdir()
    (tmp_path / "project" / "word").write_text("code 1\n")
    (tmp_path / "a.csv").write_text("data 1\n")
    (tmp_path / "job.yaml").write_text(JOB)
    client.register("data", "table", OfPath(str(tmp_path / "a.csv")), alias="clean")
    job = client.submit(tmp_path / "job.yaml")
    cluster.wait_state(job, "SUCCEEDED")
    cluster.wait_registered("model", "digits:first")
    (tmp_path / "project" / "word").write_text("code 2\n")
    (tmp_path / "a.csv").write_text("data 2\n")
    client.register("data", "table", OfPath(str(tmp_path / "a.csv")), alias="clean")

    tried = client.reproduce(job, dry_run=True)
    assert tried.job is None and len(client.jobs()) == 1
    done = cluster.pace("reproduce", str(job), "-o", "json")
    told = json.loads(done.stdout)
    assert told["of"] == job and [part["name"] for part in told["parts"]] == list(parts(tried))
    again = told["job"]
    cluster.wait_state(again, "SUCCEEDED")
    assert cluster.output(again) == cluster.output(job) == b"code 1\ndata 1\n"

    found = parts(tried)
    assert found["code"].same and found["seed"] == Part("seed", True, "seed=7")
    assert found["inputs.data"].same
    assert "data:table:1" in found["inputs.data"].text
    assert "(table@clean then; it leads to 2 now)" in found["inputs.data"].text
    assert not found["environment"].same and not found["nodes"].same
    assert (
        not found["outputs.model"].same and "digits:first is never given again" in found["outputs.model"].text
    )
    cluster.wait_registered("model", "digits:1")

    edges = {(edge.source, edge.relation) for edge in client.lineage(f"job:{again}", depth=1).edges}
    assert (f"job:{job}", "reproduces") in edges and ("data:table:1", "inputs.data") in edges
    first, second = (json.loads(client.job(one).document) for one in (job, again))
    assert first["outputs"]["model"].pop("version") == "first"
    second["outputs"]["model"].pop("version", None)
    assert first == second, "nothing else changes"

    shown = cluster.pace("reproduce", str(again), "--dry-run").stdout
    assert "the same:" in shown and "not the same, or not known to be:" in shown
    assert "(table@clean then; it leads to 2 now)" in shown, "the alias is remembered from job to job"


def test_what_was_not_recorded_is_named(cluster: Cluster, tmp_path: Path) -> None:
    (tmp_path / "there.txt").write_text("x")
    (tmp_path / "job.yaml").write_text(
        "command: cat ${{inputs.x}}\ninputs: {x: {path: there.txt, type: uri_file}}\nresources: {cpus: 0.5}\n"
    )
    job = cluster.client.submit(tmp_path / "job.yaml")
    cluster.wait_state(job, "SUCCEEDED")
    found = parts(cluster.client.reproduce(job))
    assert not found["code"].same and f"in {tmp_path} itself" in found["code"].text
    assert not found["inputs.x"].same and str(tmp_path / "there.txt") in found["inputs.x"].text
    assert not found["seed"].same
    cluster.wait_state(cluster.client.jobs(limit=1)[0].job, "SUCCEEDED")


def test_a_url_is_looked_at_again(cluster: Cluster) -> None:
    import fsspec

    def put(data: bytes) -> None:
        fsspec.filesystem("memory").pipe("/far/it", data)

    put(b"1")
    client = cluster.client
    client.register("data", "far", OfUrl("memory://far/it"))
    job = cluster.submit_text(
        "command: echo ${{inputs.x}}\ninputs: {x: {path: far@latest, mode: direct}}\nresources: {cpus: 0.5}\n"
    )
    cluster.wait_state(job, "SUCCEEDED")
    said = parts(client.reproduce(job, dry_run=True))["inputs.x"]
    assert said.same or "no etag" in said.text, said
    if said.same:
        put(b"22")
        said = parts(client.reproduce(job, dry_run=True))["inputs.x"]
        assert not said.same and "has changed: etag" in said.text


def test_what_is_gone_is_refused(cluster: Cluster, tmp_path: Path) -> None:
    (tmp_path / "a").write_text("x")
    client = cluster.client
    client.register("data", "gone", OfPath(str(tmp_path / "a")))
    job = cluster.submit_text(
        "command: cat ${{inputs.x}}\ninputs: {x: {path: 'gone:1'}}\nresources: {cpus: 0.5}\n"
    )
    cluster.wait_state(job, "SUCCEEDED")
    client.delete_asset("data", "gone", "1")
    before = len(client.jobs())
    with pytest.raises(NotFound, match=r"data:gone:1 was deleted by"):
        client.reproduce(job)
    with pytest.raises(NotFound):
        client.reproduce(999_999)
    assert len(client.jobs()) == before


@pytest.mark.parametrize(
    ("document", "same"),
    [
        ({"command": "python t.py"}, False),
        ({"command": "python seeds.py"}, False),
        ({"command": "python t.py --seed 3"}, True),
        ({"command": "python t.py", "inputs": {"data_seed": 3}}, True),
        ({"command": "python t.py", "environment_variables": {"PYTHONHASHSEED": "0"}}, True),
    ],
)
def test_seeds(document: dict, same: bool) -> None:
    assert seed_part(job_from_data(document)[0]).same is same
