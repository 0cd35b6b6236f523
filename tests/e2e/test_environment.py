"""What a job ran with: recorded by its node, kept, shown, compared, and pinned when it is reproduced."""

import json
import sqlite3
import sys
import venv
from collections.abc import Iterator
from pathlib import Path

import pytest
from paceline.client.checkpoint_verbs import fork_of
from paceline.client.documents import Prepared
from paceline.client.ran_with import Change, Difference, RanWith
from paceline.client.reproducing import Part
from paceline.content.store import records_folder
from paceline.spec.job import job_from_data
from support.cluster import Cluster
from support.nvml_node import build_stub, h100, nvml_environment
from support.wheels import make_wheel, unpack_into

TRUE = "command: 'true'\nresources: {cpus: 0.1}\n"


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    with Cluster(tmp_path_factory.mktemp("cluster"), agent_args=["--cold"]) as made:
        yield made


def done(cluster: Cluster, text: str) -> int:
    job = cluster.submit_text(text)
    cluster.wait_state(job, "SUCCEEDED")
    return job


def ran(cluster: Cluster, job: int, attempt: int = 0) -> RanWith:
    [found] = cluster.client.ran_with(job, attempt=attempt)
    return found


def test_a_job_says_what_it_ran_with_also_after_the_scheduler_was_killed(cluster: Cluster) -> None:
    job = done(cluster, TRUE)
    found = ran(cluster, job)
    assert (found.problem, found.interpreter, found.tasks) == ("", sys.executable, (0,))
    assert found.python == ".".join(map(str, sys.version_info[:3]))
    assert found.packages_count == len(found.packages) > 10
    cluster.kill_scheduler()
    cluster.start_scheduler()
    assert ran(cluster, job) == found
    told = json.loads(cluster.pace("environment", str(job), "-o", "json").stdout)
    assert told["job"] == job and told["ran_with"][0]["packages"][0].keys() == {"name", "version", "origin"}
    [shown] = json.loads(cluster.pace("show", str(job), "-o", "json").stdout)["ran_with"]
    assert shown["record"] == found.record and "packages" not in shown
    assert (
        f"Python {found.python} ({sys.executable}), {found.packages_count} packages"
        in cluster.pace("show", str(job)).stdout
    )
    text = cluster.pace("environment", str(job)).stdout
    assert "grpcio" in text and found.kernel in text


def test_its_record_stands_in_its_lineage(cluster: Cluster) -> None:
    job = done(cluster, TRUE)
    found = cluster.client.lineage(f"job:{job}")
    edges = {(edge.source, edge.target): edge.relation for edge in found.edges}
    reference = f"record:{ran(cluster, job).record}"
    assert edges[reference, f"job:{job}"] == "ran with"
    assert {node.reference: node.text for node in found.nodes}[reference]
    assert "ran with: record:" in cluster.pace("lineage", str(job)).stdout


def test_a_thousand_trials_keep_one_record_and_an_attempt_costs_a_hash(cluster: Cluster) -> None:
    first = done(cluster, TRUE)
    kept = sorted(records_folder(cluster.state / "storage").glob("blobs/*/*"))
    jobs = cluster.client.submit_many([{"command": "true", "resources": {"cpus": 0.1}}] * 20)
    for job in jobs:
        cluster.wait_state(job, "SUCCEEDED")
    assert {ran(cluster, job).record for job in jobs} == {ran(cluster, first).record}
    assert sorted(records_folder(cluster.state / "storage").glob("blobs/*/*")) == kept
    with sqlite3.connect(f"file:{cluster.state}/paceline.db?mode=ro", uri=True) as store:
        rows = store.execute("select body from events where kind = 'TaskStarted' and job = ?", (jobs[-1],))
        [(body,)] = rows.fetchall()
    said = json.loads(body)
    without = json.dumps(
        {name: value for name, value in said.items() if name not in ("record", "unrecorded")}
    )
    assert len(said["record"]) == 64
    assert len(json.dumps(said)) - len(without) < 110


def test_what_was_installed_between_two_runs_is_a_difference(cluster: Cluster, tmp_path: Path) -> None:
    venv.create(tmp_path / "own", with_pip=False)
    text = f"command: 'true'\nenvironment: {tmp_path}/own\nresources: {{cpus: 0.1}}\n"
    unpack_into(tmp_path / "own", make_wheel(tmp_path / "wheels", "our", "1"))
    first, same = done(cluster, text), done(cluster, text)
    assert cluster.client.differences(same, first) == Difference(same, first, (), (), ())
    assert "ran with what job" in cluster.pace("environment", str(same), "--against", str(first)).stdout
    [packages] = (tmp_path / "own").glob("lib/python3*/site-packages")
    (packages / "our-1.dist-info").rename(packages / "our-2.dist-info")
    metadata = packages / "our-2.dist-info" / "METADATA"
    metadata.write_text(metadata.read_text().replace("Version: 1", "Version: 2"))
    unpack_into(tmp_path / "own", make_wheel(tmp_path / "wheels", "added", "3"))
    second = done(cluster, text)
    changes = (Change("added", "", "3"), Change("our", "1", "2"))
    assert cluster.client.differences(second, first) == Difference(second, first, (), changes, ())
    shown = cluster.pace("environment", str(second), "--against", str(first)).stdout
    assert [line.split() for line in shown.splitlines()[1:]] == [["added", "-", "3"], ["our", "1", "2"]]
    told = json.loads(cluster.pace("environment", str(second), "--against", str(first), "-o", "json").stdout)
    assert told["packages"] == [["added", "", "3"], ["our", "1", "2"]]


def test_a_built_environment_is_reproduced_with_the_versions_that_it_had(
    cluster: Cluster, tmp_path: Path
) -> None:
    wheels = make_wheel(tmp_path / "wheels", "our", "1").parent
    make_wheel(wheels, "other", "5")
    lines = ["--no-index", f"--find-links {wheels}", "our", "other==5"]
    job = done(
        cluster,
        f"command: 'true'\nenvironment: {{requirements: {json.dumps(lines)}}}\nresources: {{cpus: 0.1}}\n",
    )
    make_wheel(wheels, "our", "2")
    told = cluster.client.reproduce(job)
    parts = {part.name: part for part in told.parts}
    assert parts["environment"] == Part(
        "environment",
        True,
        "2 packages, pinned to the versions that it ran with; 1 of its requirements named none",
    )
    assert "it ran with CPython 3." in parts["python"].text and not parts["python"].same
    assert told.job is not None
    cluster.wait_state(told.job, "SUCCEEDED")
    asked = json.loads(cluster.client.job(told.job).document)["environment"]
    assert asked["requirements"] == [*lines[:2], "other==5", "our==1"]
    assert {one.name: one.version for one in ran(cluster, told.job).packages} == {"our": "1", "other": "5"}
    assert cluster.client.differences(told.job, job).packages == ()
    again = cluster.client.reproduce(told.job, dry_run=True)
    assert {part.name: part for part in again.parts}[
        "environment"
    ].text == "its requirements name all versions"


def test_a_retry_on_another_node_has_a_record_of_its_own(tmp_path: Path) -> None:
    stub = build_stub(tmp_path / "stub")
    environment = {}
    for index, (driver, serial) in enumerate((("550.54.15", 1001), ("560.35.3", None))):
        (tmp_path / f"driver-{index}").write_text(f"driver {driver}\ncuda 12040\n{h100(0, serial=serial)}\n")
        environment[index] = nvml_environment(stub, tmp_path / f"driver-{index}")
    with Cluster(tmp_path, agent_args=["--cold"], environment=environment[0]) as cluster:
        job = cluster.submit_text(
            f"command: while [ ! -e {tmp_path}/go ]; do sleep 0.02; done; exit $((2 - PACELINE_ATTEMPT))\n"
            "resources: {cpus: 0.1, gpus: 1}\nretry: {max_attempts: 2}\n"
        )
        cluster.wait_state(job, "RUNNING")
        cluster.client.cordon("local-0")
        cluster.environment |= environment[1]
        cluster.start_agent(1)
        (tmp_path / "go").touch()
        cluster.wait_state(job, "SUCCEEDED")
        first, second = ran(cluster, job, 1), ran(cluster, job)
        assert (first.driver, [gpu.serial for gpu in first.gpus]) == ("550.54.15", ["1001"])
        assert (second.driver, second.node) == ("560.35.3", "local-1")
        assert [(gpu.serial, gpu.uuid) for gpu in second.gpus] == [("", "GPU-0000")]
        assert (
            "driver 560.35.3, GPU 0 NVIDIA H100 80GB HBM3 GPU-0000" in cluster.pace("show", str(job)).stdout
        )
        assert "serial 1001" in cluster.pace("environment", str(job), "--attempt", "1").stdout
        refused = cluster.pace("environment", str(job), "--attempt", "3")
        assert refused.returncode == 2 and "no attempt 3" in refused.stderr
        driver = {part.name: part for part in cluster.client.reproduce(job, dry_run=True).parts}["driver"]
        assert driver == Part(
            "driver", False, "560.35.3 then; the nodes with GPUs have 550.54.15, 560.35.3 now"
        )


def test_a_fork_of_a_job_without_code_runs_in_no_folder_of_who_forks_it(cluster: Cluster) -> None:
    spec = job_from_data({"command": "true"})[0]
    [job] = cluster.client.submit_prepared([Prepared(spec, "made by a program")])
    parent = cluster.client.job(job)
    assert "code" not in json.loads(parent.document)
    made = fork_of(parent, ["priority=3"], "again").spec
    assert (made.code, made.code_in_place, made.packs, made.priority) == (None, False, "", 3)
    named = fork_of(parent, ["code=/srv/it"], "").spec
    assert named.packs == "/srv/it"
    cluster.wait_state(job, "SUCCEEDED")
