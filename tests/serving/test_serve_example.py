"""The example: a script trains and saves, a server serves, a client asks."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
from support.model_servers import ModelServer, request

pytestmark = [pytest.mark.slow, pytest.mark.timeout(400)]

EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "serve"


def script(name: str, *args: str) -> str:
    done = subprocess.run([sys.executable, EXAMPLE / name, *args], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_model_is_trained_served_and_asked(tmp_path: Path) -> None:
    model = tmp_path / "model"
    script("train.py", "--out", str(model))
    with ModelServer(model, name="digits", log=tmp_path / "log") as server:
        server.wait_ready()
        assert request(f"{server.model}/infer", (model / "example.json").read_bytes()).status == 200
        told = script("ask.py", server.url, "digits")
        assert server.stop() == 0
    found = re.search(r"(\d+) of 360 held-out digits", told)
    assert found, told
    assert int(found[1]) > 330
