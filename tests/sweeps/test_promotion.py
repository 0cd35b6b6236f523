"""`pace sweep promote`: the best trial's files, put together in a folder."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from paceline.client.sweep_views import Sweep
from paceline.spec.errors import Conflict, NotFound
from support import trial_scripts
from support.cluster import Cluster
from support.trial_sweeps import ended, sweep_of, trials_of


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    with Cluster(tmp_path_factory.mktemp("promotion"), agents=1, cpus=4) as made:
        yield made


@pytest.fixture(scope="module")
def swept(cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Sweep:
    folder = tmp_path_factory.mktemp("code")
    document: dict[str, Any] = sweep_of(
        folder, trial_scripts.SAVING, 3, enqueue=[{"x": 0.9}, {"x": 0.4}, {"x": 0.1}], outputs={"model": None}
    )
    document["trial"]["command"] = "python trial.py ${{outputs.model}}"
    return ended(cluster, cluster.client.submit_sweep(document))


def test_the_best_trial_in_a_folder(cluster: Cluster, swept: Sweep, tmp_path: Path) -> None:
    to = tmp_path / "deep" / "best"
    done = cluster.pace("sweep", "promote", str(swept.sweep), "--to", str(to), "-o", "json")
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert told == json.loads((to / "promoted.json").read_text())
    assert (told["sweep"], told["trial"], told["params"]) == (swept.sweep, 1, {"x": 0.4})
    assert told["job"] == trials_of(cluster, swept.sweep)[1].job
    assert told["values"] == {"loss": pytest.approx(0.01)}
    assert told["step"] == 2
    model = to / told["outputs"]["model"] / "model.txt"
    assert model.read_text() == "0.4"
    assert model.stat().st_nlink == 2, "linked: storage and folder are on one file system"
    manifest = json.loads((to / told["checkpoint"] / "manifest.json").read_text())
    assert (manifest["step"], manifest["job"]) == (2, told["job"])
    assert told["git_commit"] == manifest["git_commit"]
    assert [path.name for path in to.parent.iterdir()] == ["best"]
    shown = cluster.pace("sweep", "promote", str(swept.sweep), "--to", str(tmp_path / "again"))
    assert "its checkpoint of step 2" in shown.stdout


def test_a_trial_that_is_named(cluster: Cluster, swept: Sweep, tmp_path: Path) -> None:
    made = cluster.client.promote(swept.sweep, tmp_path / "third", trial=2)
    assert made.params == {"x": 0.1}
    assert (tmp_path / "third" / "outputs" / "model" / "model.txt").read_text() == "0.1"


def test_what_is_in_the_way_stays(cluster: Cluster, swept: Sweep, tmp_path: Path) -> None:
    (tmp_path / "mine").write_text("precious")
    with pytest.raises(Conflict, match="is there already"):
        cluster.client.promote(swept.sweep, tmp_path)
    with pytest.raises(NotFound, match="has no trial 3"):
        cluster.client.promote(swept.sweep, tmp_path / "new", trial=3)
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]


def test_nothing_to_promote(cluster: Cluster, tmp_path: Path) -> None:
    goals = [{"primary_metric": name, "goal": "minimize"} for name in ("latency", "size")]
    document = sweep_of(tmp_path, trial_scripts.TWO_GOALS, 2, objective=goals)
    goals[1]["goal"] = "maximize"
    number = ended(cluster, cluster.client.submit_sweep(document)).sweep
    done = cluster.pace("sweep", "promote", str(number), "--to", str(tmp_path / "best"))
    assert done.returncode != 0
    assert "2 trials that no other dominates: " in done.stderr
    with pytest.raises(Conflict, match="has left nothing: no outputs and no checkpoint"):
        cluster.client.promote(number, tmp_path / "best", trial=0)
    assert not (tmp_path / "best").exists()
