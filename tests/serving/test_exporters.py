"""What the exporters write. Triton's Python backend is played by a small module; config.pbtxt is read as a
protobuf text would be, by its grammar.
"""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from paceline.client.cli.main import run
from paceline.serving.exporters.base import Wish, export
from paceline.serving.folder import read_folder
from paceline.spec.errors import PacelineError

SIGNATURE = {
    "inputs": [
        {"name": "rows", "datatype": "FP32", "shape": [-1, 2]},
        {"name": "words", "datatype": "BYTES", "shape": [1]},
    ],
    "outputs": [{"name": "sums", "datatype": "FP32", "shape": [-1]}],
}  # fmt: skip
SCRIPT = """
import json

def run(raw_data):
    given = json.loads(raw_data)
    return [sum(row) + len(given["words"][0]) for row in given["rows"]]
"""
PB_UTILS = """
class Tensor:
    def __init__(self, name, array): self._name, self._array = name, array
    def name(self): return self._name
    def as_numpy(self): return self._array

class TritonError(str): pass

class InferenceResponse:
    def __init__(self, output_tensors=(), error=None): self.outputs, self.error = output_tensors, error

class Request:
    def __init__(self, tensors, wanted): self._tensors, self._wanted = tensors, wanted
    def inputs(self): return self._tensors
    def requested_output_names(self): return self._wanted
"""
PLAY = """
import sys
import numpy as np
import triton_python_backend_utils as pb
from model import TritonPythonModel

model = TritonPythonModel()
model.initialize({"model_repository": sys.argv[1], "model_version": "1"})
words = pb.Tensor("words", np.array([b"abc"], dtype=object))
good = pb.Request([pb.Tensor("rows", np.array([[1, 2], [3, 4]], np.float32)), words], ["sums"])
bad = pb.Request([words], ["sums"])
[made, failed] = model.execute([good, bad])
print(made.outputs[0].name(), made.outputs[0].as_numpy().tolist(), failed.error)
model.finalize()
"""


def folder_of(place: Path, framework: str, **files: str) -> Path:
    place.mkdir()
    (place / "paceline-model.json").write_text(json.dumps({"framework": framework, **SIGNATURE}))
    for name, text in files.items():
        (place / name.replace("_", ".")).write_text(text)
    return place


def hugging_face(place: Path, **config: object) -> Path:
    place.mkdir()
    (place / "config.json").write_text(
        json.dumps({"model_type": "gpt2", "architectures": ["GPT2LMHeadModel"], **config})
    )
    (place / "tokenizer.json").touch()
    (place / "model.safetensors").touch()
    return place


def test_torchscript_for_triton(tmp_path: Path) -> None:
    model = folder_of(tmp_path / "m", "torchscript", model_torchscript="weights")
    made = export("triton", Wish(read_folder(model), "net", tmp_path / "out"))
    assert [str(file.relative_to(tmp_path / "out")) for file in made.files] == [
        "net/1/model.pt",
        "net/config.pbtxt",
    ]
    assert (tmp_path / "out/net/config.pbtxt").read_text() == (
        'name: "net"\nplatform: "pytorch_libtorch"\nbackend: "pytorch"\nmax_batch_size: 0\n'
        'input { name: "rows__0" data_type: TYPE_FP32 dims: [-1, 2] }\n'
        'input { name: "words__1" data_type: TYPE_STRING dims: [1] }\n'
        'output { name: "sums__0" data_type: TYPE_FP32 dims: [-1] }\n'
    )


def test_anything_with_a_signature_for_tritons_python_backend(tmp_path: Path) -> None:
    model = folder_of(tmp_path / "m", "score", score_py=SCRIPT)
    export("triton", Wish(read_folder(model), "net", tmp_path / "out"))
    version = tmp_path / "out/net/1"
    assert 'backend: "python"' in (tmp_path / "out/net/config.pbtxt").read_text()
    (tmp_path / "triton_python_backend_utils.py").write_text(PB_UTILS)
    (tmp_path / "play.py").write_text(f"import sys; sys.path[:0] = [{str(version)!r}]\n{PLAY}")
    told = subprocess.run(
        [sys.executable, str(tmp_path / "play.py"), str(tmp_path / "out/net")],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert told.stdout.startswith("sums [6.0, 10.0] KeyError: ")


@pytest.mark.parametrize(
    "framework, files, kind",
    [
        ("torchscript", {"model_torchscript": ""}, "triton"),
        ("score", {"score_py": SCRIPT}, None),
    ],
)
def test_a_kserve_service(tmp_path: Path, framework: str, files: dict, kind: str | None) -> None:
    model = folder_of(tmp_path / "m", framework, **files)
    export("kserve", Wish(read_folder(model), "net", tmp_path / "out", "s3://models/net", "our/image:1"))
    service = yaml.safe_load((tmp_path / "out/inferenceservice.yaml").read_text())
    assert (service["apiVersion"], service["kind"]) == ("serving.kserve.io/v1beta1", "InferenceService")
    predictor = service["spec"]["predictor"]
    if kind:
        assert predictor["model"] == {
            "modelFormat": {"name": kind},
            "storageUri": "s3://models/net",
            "protocolVersion": "v2",
        }
        assert (tmp_path / "out/repository/net/config.pbtxt").exists()
    else:
        [container] = predictor["containers"]
        assert container["image"] == "our/image:1"
        assert container["command"][:3] == ["python", "-m", "paceline.serving.server"]
        assert container["env"] == [{"name": "STORAGE_URI", "value": "s3://models/net"}]


def test_folders_that_kserve_knows(tmp_path: Path) -> None:
    for name, folder in [("huggingface", hugging_face(tmp_path / "hf")), ("mlflow", tmp_path / "ml")]:
        folder.mkdir(exist_ok=True)
        if name == "mlflow":
            (folder / "MLmodel").touch()
        export("kserve", Wish(read_folder(folder), "net", tmp_path / f"{name}-out", "gs://m"))
        service = yaml.safe_load((tmp_path / f"{name}-out/inferenceservice.yaml").read_text())
        assert service["spec"]["predictor"]["model"]["modelFormat"] == {"name": name}


def test_the_vllm_command(tmp_path: Path) -> None:
    folder = hugging_face(tmp_path / "it's")
    made = export("vllm", Wish(read_folder(folder), "gpt", tmp_path / "out"))
    (tmp_path / "vllm").write_text('#!/bin/sh\nprintf "%s|" "$@"\n')
    (tmp_path / "vllm").chmod(0o755)
    told = subprocess.run(
        [made.files[0], "--port", "9"],
        env={"PATH": f"{tmp_path}:/usr/bin:/bin"},
        capture_output=True,
        text=True,
    )
    assert told.stdout == (
        f"serve|{folder}|--served-model-name|gpt|--load-format|safetensors|--host|127.0.0.1|--port|9|"
    )


@pytest.mark.parametrize(
    "to, wish, said",
    [
        ("vllm", {}, "no Hugging Face model"),
        ("kserve", {}, "needs the URI"),
        ("kserve", {"name": "Net", "storage_uri": "s3://m"}, "lower-case letters"),
        ("kserve", {"storage_uri": "s3://m"}, "needs an image with paceline"),
        ("triton", {"name": "../net"}, "expected a name"),
    ],
)
def test_what_cannot_be_exported_is_refused(tmp_path: Path, to: str, wish: dict, said: str) -> None:
    model = folder_of(tmp_path / "m", "score", score_py=SCRIPT)
    with pytest.raises(PacelineError, match=said):
        export(to, Wish(read_folder(model), wish.pop("name", "net"), tmp_path / "out", **wish))
    assert not (tmp_path / "out").exists()


def test_code_and_pickles_are_not_trusted(tmp_path: Path) -> None:
    own = hugging_face(tmp_path / "own", auto_map={"AutoModel": "net.Net"})
    pickled = hugging_face(tmp_path / "pickled")
    (pickled / "model.safetensors").rename(pickled / "pytorch_model.bin")
    for folder, said in [(own, "code of its own"), (pickled, "no weights as safetensors")]:
        with pytest.raises(PacelineError, match=said):
            export("vllm", Wish(read_folder(folder), "net", tmp_path / "out"))


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = folder_of(tmp_path / "m", "torchscript", model_torchscript="")
    arguments = ["model", "export", str(model), "--to", "triton", str(tmp_path / "out")]
    assert run([*arguments, "-o", "json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert [re.sub(".*/out/", "", file) for file in told["files"]] == ["m/1/model.pt", "m/config.pbtxt"]
    assert run(arguments) == 6
    assert "not an empty folder" in capsys.readouterr().err
    assert run(["model", "export", str(tmp_path / "none"), "--to", "vllm", str(tmp_path / "out")]) == 3
