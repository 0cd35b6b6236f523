"""`code:` from a folder here to a working folder there: packed once, uploaded once, and traceable."""

import json
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from paceline.client import content_calls, packing, rpc, settings
from paceline.client.documents import prepare
from paceline.client.sdk import Client
from paceline.content.manifest import tree_id
from paceline.content.store import ContentStore, content_folder
from paceline.spec.errors import LimitExceeded
from support.cluster import Cluster

SCRIPT = """
import os, sys
import helper
there = sorted(set(os.listdir(".")) - {"__pycache__"})
print(helper.NAME, there, os.path.dirname(os.path.abspath(__file__)) == os.getcwd())
open("written", "w").write("x")
"""


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    with Cluster(tmp_path_factory.mktemp("cluster"), agents=2, agent_args=["--cold"]) as made:
        yield made


@pytest.fixture
def project(tmp_path: Path) -> Path:
    folder = tmp_path / "project"
    folder.mkdir()
    (folder / "train.py").write_text(SCRIPT)
    (folder / "helper.py").write_text("NAME = 'helped'\n")
    (folder / "secret.log").write_text("")
    (folder / ".paceignore").write_text("*.log\n")
    (tmp_path / "job.yaml").write_text("command: python train.py\ncode: project\nresources: {cpus: 0.5}\n")
    return folder


def storage(cluster: Cluster) -> ContentStore:
    return ContentStore(content_folder(cluster.state / "storage"))


def output(cluster: Cluster, job: int) -> str:
    return b"".join(chunk.data for chunk in cluster.client.logs(job, follow=True)).decode()


def document(cluster: Cluster, job: int) -> dict:
    return json.loads(cluster.client.job(job).document)


def test_a_job_runs_in_a_copy_of_its_code_as_it_was(cluster: Cluster, project: Path) -> None:
    job = cluster.client.submit(project.parent / "job.yaml")
    (project / "helper.py").write_text("NAME = 'changed later'\n")
    assert cluster.wait_state(job, "SUCCEEDED").exit_code == 0
    assert output(cluster, job) == "helped ['.paceignore', 'helper.py', 'train.py'] True\n"
    assert not (project / "written").exists()
    [started] = [entry.text for entry in cluster.client.timeline(job).entries if "started" in entry.text]
    assert "; prepared code (3 files, " in started
    said = document(cluster, job)
    assert said["code"] == str(project)
    assert [entry.path for entry in storage(cluster).manifest(said["code_tree"]).files] == [
        ".paceignore",
        "helper.py",
        "train.py",
    ]


def test_a_job_without_code_runs_where_its_file_is(cluster: Cluster, tmp_path: Path) -> None:
    (tmp_path / "job.yaml").write_text("command: echo x > written\nresources: {cpus: 0.5}\n")
    job = cluster.client.submit(tmp_path / "job.yaml")
    cluster.wait_state(job, "SUCCEEDED")
    assert (tmp_path / "written").read_text() == "x\n"
    assert "code_tree" not in document(cluster, job)


def test_code_that_says_so_runs_in_place(cluster: Cluster, project: Path) -> None:
    text = "command: python train.py\ncode: project\ncode_in_place: true\nresources: {cpus: 0.5}\n"
    (project.parent / "job.yaml").write_text(text)
    job = cluster.client.submit(project.parent / "job.yaml")
    cluster.wait_state(job, "SUCCEEDED")
    assert (project / "written").exists()


def test_trials_of_a_sweep_run_in_one_tree(cluster: Cluster, project: Path) -> None:
    (project.parent / "sweep.yaml").write_text(
        "type: sweep\ntrial: {command: \"python train.py && echo 'x=${{search_space.x}}'\", code: project,"
        " resources: {cpus: 0.5}, metric_patterns: {x: 'x=(?P<value>.*)'}}\n"
        "search_space: {x: {type: choice, values: [1, 2, 3]}}\nsampling_algorithm: grid\n"
        "objective: {primary_metric: x, goal: maximize}\n"
    )
    sweep = cluster.client.submit_sweep(project.parent / "sweep.yaml")
    assert cluster.client.wait_sweep(sweep).state == "SUCCEEDED"
    jobs = [trial.job for trial in cluster.client.trials(sweep)]
    assert len(jobs) == 3
    assert len({document(cluster, job)["code_tree"] for job in jobs}) == 1
    assert not (project / "written").exists()


def test_a_trial_files_own_code_decides_whether_it_is_packed(project: Path) -> None:
    sweep = (
        "type: sweep\ntrial: job.yaml\nsearch_space: {x: {type: choice, values: [1]}}\n"
        "sampling_algorithm: grid\nobjective: {primary_metric: x, goal: maximize}\n"
    )
    (project.parent / "sweep.yaml").write_text(sweep)
    assert prepare(project.parent / "sweep.yaml").packs == str(project)
    (project.parent / "job.yaml").write_text("command: 'true'\ncode: .\n")
    assert prepare(project.parent / "sweep.yaml").packs == str(project.parent)
    (project.parent / "job.yaml").write_text("command: 'true'\n")
    found = prepare(project.parent / "sweep.yaml")
    assert found.packs == ""
    assert found.spec.trial.code == str(project.parent)


def test_show_names_the_code_and_where_it_stood_in_git(cluster: Cluster, project: Path) -> None:
    def git(*arguments: str) -> str:
        names = ["-c", "user.name=me", "-c", "user.email=me@here", "-c", "init.defaultBranch=main"]
        done = subprocess.run(
            ["git", *names, *arguments], cwd=project, capture_output=True, text=True, check=True
        )
        return done.stdout.strip()

    git("init")
    git("add", ".")
    git("commit", "-m", "first")
    git("remote", "add", "origin", "https://me:secret@example.com/it.git")
    (project / "helper.py").write_text("NAME = 'not committed'\n")
    job = cluster.client.submit(project.parent / "job.yaml")
    cluster.wait_state(job, "SUCCEEDED")
    said = document(cluster, job)
    shown = cluster.pace("show", str(job)).stdout
    assert f"{project}, packed as {said['code_tree'][:12]}" in "".join(shown.split("\n               "))
    assert f"{git('rev-parse', 'HEAD')[:12]} on main of https://example.com/it.git, with uncommitted" in shown
    assert "secret" not in json.dumps(said)
    with storage(cluster).open(said["code_git"]["diff"]) as file:
        assert b"+NAME = 'not committed'" in file.read()


def test_a_fork_runs_its_parents_code_or_another_that_is_named(cluster: Cluster, project: Path) -> None:
    from paceline.client.checkpoint_verbs import fork_of

    job = cluster.client.submit(project.parent / "job.yaml")
    parent = cluster.client.job(job)
    same = fork_of(parent, [], "")
    assert same.packs == "" and same.spec.code_tree == json.loads(parent.document)["code_tree"]
    other = fork_of(parent, [f"code={project.parent}"], "")
    assert other.packs == str(project.parent) and other.spec.code_tree is None
    cluster.wait_state(job, "SUCCEEDED")


def test_what_is_refused_is_refused_before_anything_is_submitted(cluster: Cluster, project: Path) -> None:
    (project / "out").symlink_to("/etc")
    before = len(cluster.client.jobs())
    done = cluster.pace("submit", str(project.parent / "job.yaml"))
    assert done.returncode != 0
    assert "the link out leads out of" in done.stderr and ".paceignore" in done.stderr
    assert len(cluster.client.jobs()) == before
    (project / "out").unlink()
    with pytest.raises(LimitExceeded, match="more than 2 files"):
        few = settings.load(state=cluster.state, environ={"PACELINE_CODE_FILES": "2"})
        packing.pack(str(project), few)


def test_an_upload_goes_on_where_a_killed_scheduler_left_it(tmp_path: Path) -> None:
    project = tmp_path / "project"
    project.mkdir()
    size = 5 * content_calls.CONTENT_PUT_BYTES_MAX + 17
    (project / "big.bin").write_bytes(bytes(range(256)) * (size // 256) + b"x" * (size % 256))
    (project / "small.py").write_text("x")
    (tmp_path / "cluster").mkdir()
    with Cluster(tmp_path / "cluster", agents=0) as cluster:
        client = cluster.new_client(patience_s=300)
        prepared = prepare({"command": "true", "code": str(project)})
        sent: list[rpc.Call] = []
        calling = packing.packed([prepared], client.settings)
        call = calling.send(None)
        while len(sent) < 5:  # missing, missing, and three pieces
            sent.append(call)
            call = calling.send(client._call(call))
        cluster.kill_scheduler()
        restart = threading.Thread(target=cluster.start_scheduler)
        restart.start()
        [ready] = _finish(calling, call, client)
        restart.join()
        tree = ready.spec.code_tree
        assert tree is not None and storage(cluster).has_tree(tree)

        # Another client, from the start: of what is there nothing is sent again.
        (project / "more.bin").write_bytes(b"m")
        again = packing.packed([prepare({"command": "true", "code": str(project)})], client.settings)
        pieces = _pieces(again, client)
        assert [piece.data for piece in pieces] == [b"m"]
        store = storage(cluster)
        entry = next(one for one in store.manifest(tree).files if one.path == "big.bin")
        assert entry.size == size
        store.materialise(tree, tmp_path / "out")
        assert (tmp_path / "out" / "big.bin").read_bytes() == (project / "big.bin").read_bytes()
        assert tree_id(store.manifest(tree)) == tree
        assert not list((cluster.state / "storage" / "content" / "part").iterdir())


def _finish(calling: packing.Calling, call: rpc.Call, client: Client) -> list:
    while True:
        try:
            call = calling.send(client._call(call))
        except StopIteration as done:
            return done.value


def _pieces(calling: packing.Calling, client: Client) -> list:
    found, reply = [], None
    while True:
        try:
            call = calling.send(reply)
        except StopIteration:
            return found
        found += getattr(call.request, "pieces", [])
        reply = client._call(call)
