"""PyTorch models, saved by `paceline.save_model` and served by a real server on loopback."""

from pathlib import Path

import paceline
import pytest
import torch
from paceline.spec.errors import PacelineError
from support.model_servers import ModelServer, request, tensor
from torch import nn

pytestmark = [pytest.mark.slow, pytest.mark.timeout(400)]

NET = """
from torch import nn

def make_net():
    return nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))
"""


def make_net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))


class Pair(nn.Module):
    def forward(self, left: torch.Tensor, count: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"sum": left.sum(1) + count, "twice": count * 2}


def save(folder: Path, format: str) -> nn.Module:
    net = make_net()
    entry = ""
    if format == "safetensors":
        folder.mkdir()
        (folder / "net.py").write_text(NET)
        entry = "net.py:make_net"
    paceline.save_model(net, folder, example=torch.ones(1, 4), format=format, entry=entry)
    return net


@pytest.mark.parametrize("format", ["torch.export", "torchscript", "safetensors"])
def test_each_format_answers_as_the_module_does(tmp_path: Path, format: str) -> None:
    net = save(tmp_path / "model", format)
    rows = torch.arange(12.0).reshape(3, 4)
    with ModelServer(tmp_path / "model", "--version", "7", log=tmp_path / "log") as server:
        server.wait_ready()
        told = server.infer(tensor("input", rows.tolist(), [3, 4]), id="a")
        assert told.status == 200, told.body
        output = told.json["outputs"][0]
        assert (told.json["model_name"], told.json["model_version"], told.json["id"]) == ("m", "7", "a")
        assert (output["name"], output["datatype"], output["shape"]) == ("output", "FP32", [3, 3])
        with torch.no_grad():
            torch.testing.assert_close(torch.tensor(output["data"]).reshape(3, 3), net(rows))
        assert (
            request(f"{server.model}/versions/7/infer", (tmp_path / "model/example.json").read_bytes()).status
            == 200
        )
        assert server.stop() == 0


def test_named_inputs_and_outputs(tmp_path: Path) -> None:
    example = {"left": torch.ones(2, 3), "count": torch.ones(2, dtype=torch.int64)}
    paceline.save_model(Pair(), tmp_path / "model", example=example)
    with ModelServer(tmp_path / "model", log=tmp_path / "log") as server:
        server.wait_ready()
        inputs = [tensor("count", [1, 2], [2], "INT64"), tensor("left", [1, 2, 3, 4, 5, 6], [2, 3])]
        assert [one["data"] for one in server.infer(*inputs).json["outputs"]] == [[7.0, 17.0], [2, 4]]
        [only] = server.infer(*inputs, outputs=[{"name": "twice"}]).json["outputs"]
        assert only == {"name": "twice", "datatype": "INT64", "shape": [2], "data": [2, 4]}


@pytest.mark.parametrize(
    "spoil, said",
    [
        (lambda path: path.write_bytes(b"no"), "model m did not load: "),
        (lambda path: path.unlink(), "has no file model.torchscript, which paceline-model.json names"),
    ],
)
def test_a_model_that_does_not_load_ends_the_server(tmp_path: Path, spoil: object, said: str) -> None:
    save(tmp_path / "model", "torchscript")
    spoil(tmp_path / "model" / "model.torchscript")
    with ModelServer(tmp_path / "model", log=tmp_path / "log") as server:
        assert server.wait_end() == 1
    assert said in server.told()


def test_what_cannot_be_saved_is_said_with_what_was_expected(tmp_path: Path) -> None:
    for example, said in [
        ({"rigth": torch.ones(1)}, "the module takes no 'rigth'; expected .'left', 'count'."),
        ({"count": torch.ones(1)}, "one is left out before others"),
        ([torch.ones(1, dtype=torch.complex64)], "left is torch.complex64"),
    ]:
        with pytest.raises(PacelineError, match=said):
            paceline.save_model(Pair(), tmp_path / "model", example=example)
    with pytest.raises(PacelineError, match="2 names; the module gives 1"):
        paceline.save_model(make_net(), tmp_path / "model", example=torch.ones(1, 4), outputs=["a", "b"])
    assert not (tmp_path / "model").exists()
