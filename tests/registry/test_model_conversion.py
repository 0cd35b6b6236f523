"""A checkpoint is made a model folder by a job, and registered."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from paceline.client.conversion import Conversion
from paceline.spec.errors import InvalidRequest
from support.cluster import Cluster

TRAIN = """
import paceline, torch
from net import make

run = paceline.init()
torch.manual_seed(1)
net = make()
run.save(3, model=net, optimizer=torch.optim.Adam(net.parameters()))
run.flush()
print(net(torch.ones(1, 4)).tolist())
"""
NET = "import torch\ndef make():\n    return torch.nn.Linear(4, 2)\n"


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    with Cluster(tmp_path_factory.mktemp("cluster")) as made:
        yield made


@pytest.fixture(scope="module")
def trained(cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> int:
    folder = tmp_path_factory.mktemp("project")
    (folder / "train.py").write_text(TRAIN)
    (folder / "net.py").write_text(NET)
    job = cluster.client.submit({"command": "python train.py", "code": str(folder), "resources": {"cpus": 1}})
    assert cluster.wait_state(job, "SUCCEEDED").exit_code == 0
    return job


@pytest.mark.slow
@pytest.mark.parametrize("form", ["safetensors", "torch-export"])
def test_a_checkpoint_becomes_a_model_that_gives_the_same(
    cluster: Cluster, trained: int, tmp_path: Path, form: str
) -> None:
    (tmp_path / "example.json").write_text("[[1.0, 1.0, 1.0, 1.0]]")
    given = ["--as", form, "--entry", "net.py:make", "--example", str(tmp_path / "example.json")]
    done = cluster.pace(
        "model", "register", form, "--checkpoint", f"{trained}:3", *given, "-o", "json", timeout_s=240
    )
    assert done.returncode == 0, done.stderr + str([cluster.output(job.job) for job in cluster.client.jobs()])
    made = json.loads(done.stdout)
    cluster.client.download("model", f"{form}:1", tmp_path / "got")
    said = json.loads((tmp_path / "got" / "paceline-model.json").read_text())
    assert said["inputs"] == [{"name": "input", "datatype": "FP32", "shape": [-1, 4]}]
    if form == "torch-export":
        module = torch.export.load(tmp_path / "got" / "model.pt2").module()
    else:
        from safetensors.torch import load_file

        assert (tmp_path / "got" / "net.py").read_text() == NET and said["entry"] == "net.py:make"
        module = torch.nn.Linear(4, 2)
        module.load_state_dict(load_file(tmp_path / "got" / "model.safetensors"))
    given_then = json.loads(cluster.output(trained))
    assert torch.allclose(module(torch.ones(1, 4)), torch.tensor(given_then))
    sources = {edge.source for edge in cluster.client.lineage(f"model:{form}:1").edges}
    assert f"checkpoint:{trained}:3" in sources and made["source"].endswith("outputs.model")


@pytest.mark.slow
def test_weights_alone_need_no_module(cluster: Cluster, trained: int, tmp_path: Path) -> None:
    from safetensors.torch import load_file

    done = cluster.pace(
        "model", "register", "bare", "--checkpoint", str(trained), "--as", "safetensors", timeout_s=240
    )
    assert done.returncode == 0, done.stderr
    cluster.client.download("model", "bare", tmp_path / "got")
    found = load_file(tmp_path / "got" / "model.safetensors")
    assert {name: tuple(one.shape) for name, one in found.items()} == {"weight": (2, 4), "bias": (2,)}


def test_what_is_lacking_is_said(cluster: Cluster) -> None:
    with pytest.raises(InvalidRequest, match="torch-export needs an entry and an example"):
        cluster.client.convert(1, 3, Conversion("torch-export"))
    with pytest.raises(InvalidRequest, match="safetensors needs an example"):
        cluster.client.convert(1, 3, Conversion("safetensors", entry="net.py:make"))
    done = cluster.pace("model", "register", "x", "./somewhere", "--as", "safetensors", timeout_s=240)
    assert done.returncode == 2 and "--as goes with --checkpoint" in done.stderr
