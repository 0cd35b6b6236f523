"""Azure's scoring scripts behind a real server on loopback."""

import json
from pathlib import Path

import pytest
from support.model_servers import ModelServer, request, tensor

SCRIPT = """
import json, os
import numpy as np
from neighbour import FACTOR

def init():
    global offset
    with open(os.path.join(os.environ["AZUREML_MODEL_DIR"], "weights", "offset.json")) as file:
        offset = json.load(file)

def run(raw_data):
    rows = np.array(json.loads(raw_data)["data"])
    return (rows * FACTOR + offset).sum(axis=1)
"""


def folder_of(place: Path, script: str = SCRIPT, **signature: object) -> Path:
    (place / "weights").mkdir(parents=True)
    (place / "weights" / "offset.json").write_text("1")
    (place / "neighbour.py").write_text("FACTOR = 10\n")
    (place / "score.py").write_text(script)
    if signature:
        (place / "paceline-model.json").write_text(json.dumps({"framework": "score", **signature}))
    return place


def test_a_script_without_a_signature(tmp_path: Path) -> None:
    with ModelServer(folder_of(tmp_path / "model"), log=tmp_path / "log") as server:
        server.wait_ready()
        assert "engine score, the folder has a file score.py" in server.told()
        assert request(f"{server.url}/").body == b"Healthy"
        told = request(f"{server.url}/score", {"data": [[1, 2], [3, 4]]})
        assert (told.status, told.json) == (200, [32, 72])
        assert request(server.model).json["inputs"] == []
        told = server.infer(tensor("x", [1], [1]))
        assert (told.status, told.error) == (
            400,
            "model m has no signature of tensors: use POST /score",
        )
        told = request(f"{server.url}/score", {"rows": []})
        assert told.status == 500
        assert told.error == "the model failed with KeyError; the server's log has it as failure 1"
        assert "KeyError: 'data'" in server.told()
        assert request(f"{server.url}/score", b"\xff").status == 400
        assert request(f"{server.url}/score").status == 405
        assert server.stop() == 0


def test_tensors_go_through_run_where_the_signature_says_which(tmp_path: Path) -> None:
    model = folder_of(
        tmp_path / "model",
        inputs=[{"name": "rows", "datatype": "INT64", "shape": [-1, 2]}],
        outputs=[{"name": "sums", "datatype": "INT64", "shape": [-1]}],
    )
    with ModelServer(model, log=tmp_path / "log") as server:
        server.wait_ready()
        told = server.infer(tensor("rows", [1, 2, 3, 4], [2, 2], "INT64"))
        assert told.json["outputs"] == [{"name": "sums", "datatype": "INT64", "shape": [2], "data": [32, 72]}]
        assert server.infer(tensor("rows", [1.5, 2], [1, 2], "INT64")).error == (
            "input 'rows': expected whole numbers for datatype INT64"
        )
        assert request(f"{server.url}/score", {"data": [[1, 2]]}).json == [32]


def test_init_that_fails_ends_the_server(tmp_path: Path) -> None:
    script = "def init():\n    raise OSError('no weights')\ndef run(raw_data):\n    pass\n"
    with ModelServer(folder_of(tmp_path / "model", script), log=tmp_path / "log") as server:
        assert server.wait_end() == 1
    assert "model m did not load: OSError: no weights" in server.told()
    assert "Traceback" in server.told()


def test_a_script_of_another_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As Azure's code_configuration: it works in its code's folder, and imports from there and beside it."""
    model, code = tmp_path / "model", tmp_path / "code"
    folder_of(model, "raise RuntimeError('not this one')")
    (model / "neighbour.py").unlink()
    (code / "sub").mkdir(parents=True)
    (code / "sub" / "entry.py").write_text(
        SCRIPT + "\n    \nfrom shared import ROOT\nassert os.environ['AML_APP_ROOT'] == os.getcwd() == ROOT\n"
    )
    (code / "sub" / "neighbour.py").write_text("FACTOR = 100\n")
    (code / "shared.py").write_text("import os\nROOT = os.path.dirname(os.path.abspath(__file__))\n")
    monkeypatch.chdir(code)
    with ModelServer(model, "--script", "sub/entry.py", log=tmp_path / "log") as server:
        server.wait_ready()
        assert "engine score, its scoring script is sub/entry.py" in server.told()
        assert request(f"{server.url}/score", {"data": [[1, 2]]}).json == [302]
    with ModelServer(model, "--script", "sub/none.py", log=tmp_path / "log2") as server:
        assert server.wait_end() == 1
    assert f"model m did not load: {code} has no file sub/none.py" in server.told()
