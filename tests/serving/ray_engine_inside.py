"""Ray Serve behind a real server on loopback. Run by test_ray_engine.py, in a network namespace."""

import json
from pathlib import Path

import psutil
import pytest
from support import model_servers
from support.cluster import wait_until
from support.model_servers import ModelServer, request, tensor

pytestmark = pytest.mark.timeout(400)

APPLICATION = """
from ray import serve
from neighbour import FACTOR

@serve.deployment(num_replicas=2)
class Scaled:
    def __call__(self, inputs):
        if inputs["x"][0] < 0:
            raise ValueError("a secret of the model's")
        return {"y": inputs["x"] * FACTOR}

app = Scaled.bind()
"""
SCRIPT = """
import json

def run(raw_data):
    return [sum(row) for row in json.loads(raw_data)["data"]]
"""


@pytest.fixture(autouse=True)
def patience(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(model_servers, "START_S", 300.0)


def folder_of(place: Path, **signature: object) -> Path:
    place.mkdir()
    (place / "paceline-model.json").write_text(json.dumps(signature))
    return place


def ray_processes() -> list[str]:
    return [
        p.info["name"] for p in psutil.process_iter(["name"]) if p.info["name"] in ("raylet", "gcs_server")
    ]


def ray_sessions() -> set[Path]:
    return set(Path("/tmp").glob("pace-*/session_*"))


def test_a_serve_application(tmp_path: Path) -> None:
    model = folder_of(
        tmp_path / "model",
        framework="ray",
        entry="app.py:app",
        inputs=[{"name": "x", "datatype": "FP32", "shape": [-1]}],
        outputs=[{"name": "y", "datatype": "FP32", "shape": [-1]}],
    )
    (model / "app.py").write_text(APPLICATION)
    (model / "neighbour.py").write_text("FACTOR = 3\n")
    others = ray_sessions()
    with ModelServer(model, log=tmp_path / "log") as server:
        server.wait_ready()
        told = server.infer(tensor("x", [1, 2], [2]))
        assert told.json["outputs"] == [{"name": "y", "datatype": "FP32", "shape": [2], "data": [3.0, 6.0]}]
        assert server.infer(tensor("x", [[1]], [1, 1])).status == 400
        failed = server.infer(tensor("x", [-1], [1]))
        assert failed.status == 500
        assert "secret" not in failed.error
        assert ray_processes()
        assert server.stop() == 0
    wait_until("Ray is gone", lambda: not ray_processes())
    assert not ray_sessions() - others


def test_any_folder_in_rays_replicas(tmp_path: Path) -> None:
    model = folder_of(
        tmp_path / "model",
        framework="score",
        inputs=[{"name": "rows", "datatype": "INT64", "shape": [-1, 2]}],
        outputs=[{"name": "sums", "datatype": "INT64", "shape": [-1]}],
    )
    (model / "score.py").write_text(SCRIPT)
    with ModelServer(model, "--engine", "ray", log=tmp_path / "log") as server:
        server.wait_ready()
        assert request(server.model).json["platform"] == "ray_serve_azureml_score"
        [output] = server.infer(tensor("rows", [1, 2, 3, 4], [2, 2], "INT64")).json["outputs"]
        assert output["data"] == [3, 7]
        assert request(f"{server.url}/score", {"data": [[5, 6]]}).json == [11]
        assert request(f"{server.url}/").body == b"Healthy"
        assert server.stop() == 0


def test_an_application_that_fails_ends_the_server(tmp_path: Path) -> None:
    model = folder_of(tmp_path / "model", framework="ray", entry="app.py:other")
    (model / "app.py").write_text("")
    with ModelServer(model, log=tmp_path / "log") as server:
        assert server.wait_end() == 1
    assert "has no 'other'" in server.told()
    wait_until("Ray is gone", lambda: not ray_processes())
