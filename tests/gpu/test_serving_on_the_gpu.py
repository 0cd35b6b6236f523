"""A model's server uses the GPU that it sees."""

import os
from pathlib import Path

import pytest
from support.model_servers import ModelServer, tensor

NET = """
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(3.0))

    def forward(self, x):
        return x * self.scale, torch.full_like(x, float(x.is_cuda and self.scale.is_cuda))

def make_net():
    return Net()
"""


@pytest.mark.parametrize("sees", [True, False])
def test_it_answers_from_the_device_that_it_sees(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sees: bool
) -> None:
    import paceline
    import torch

    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "net.py").write_text(NET)
    made: dict[str, type[torch.nn.Module]] = {}
    exec(NET, made)
    example = torch.ones(1, 3)
    paceline.save_model(made["Net"](), folder, example=example, format="safetensors", entry="net.py:make_net")
    if not sees:
        monkeypatch.setitem(os.environ, "CUDA_VISIBLE_DEVICES", "")
    with ModelServer(folder, log=tmp_path / "log") as server:
        server.wait_ready()
        outputs = server.infer(tensor("x", [1.0, 2.0, 3.0], [1, 3])).json["outputs"]
        assert [one["data"] for one in outputs] == [[3.0, 6.0, 9.0], [float(sees)] * 3]
        assert server.stop() == 0
