"""A real server of a model folder on loopback, and a client's requests to it."""

import json
import signal
import subprocess
import sys
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any, NamedTuple

from support.cluster import wait_until

START_S = 300.0


class Reply(NamedTuple):
    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def error(self) -> str:
        told = self.json
        assert list(told) == ["error"], told
        assert "Traceback" not in told["error"]
        return told["error"]


def request(url: str, body: object = None, *, kind: str = "application/json", timeout_s: float = 30) -> Reply:
    """GET, or POST where there is a body: bytes as they are, anything else as JSON."""
    data = body if isinstance(body, bytes) or body is None else json.dumps(body).encode()
    asked = urllib.request.Request(url, data, {"content-type": kind})
    try:
        with urllib.request.urlopen(asked, timeout=timeout_s) as answer:
            return Reply(answer.status, dict(answer.headers), answer.read())
    except urllib.error.HTTPError as error:
        with error:
            return Reply(error.code, dict(error.headers), error.read())


class ModelServer:
    """`python -m paceline.serving.server`; entered: it listens. Left: it is gone."""

    def __init__(self, model: Path, *more: str, name: str = "m", log: Path) -> None:
        self.name = name
        self.log = log
        args = ["--model", str(model), "--name", name, *more]
        with log.open("wb") as file:
            self.process = subprocess.Popen(
                [sys.executable, "-P", "-m", "paceline.serving.server", *args],
                stdout=subprocess.PIPE,
                stderr=file,
            )

    def __enter__(self) -> "ModelServer":
        assert self.process.stdout is not None
        line = self.process.stdout.readline().decode()
        assert line.startswith(f"serving {self.name} on http://"), line + self.told()
        self.url = line.split(" on ")[1].strip()
        self.model = f"{self.url}/v2/models/{self.name}"
        return self

    def __exit__(self, *_error: object) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.communicate()

    def wait_ready(self) -> "ModelServer":
        def ready() -> bool:
            assert self.process.poll() is None, self.told()
            if "is ready after" not in self.told():  # asking would take time from the loading
                return False
            return request(f"{self.url}/v2/health/ready").status == 200

        wait_until("the model is ready", ready, START_S)
        return self

    def infer(self, *inputs: dict[str, Any], **more: Any) -> Reply:
        return request(f"{self.model}/infer", {"inputs": list(inputs), **more})

    def stop(self) -> int:
        """As who runs it would; its exit code."""
        self.process.send_signal(signal.SIGTERM)
        return self.wait_end()

    def wait_end(self) -> int:
        """Its exit code."""
        return self.process.wait(START_S)

    def told(self) -> str:
        return self.log.read_text(errors="replace")


def tensor(name: str, data: object, shape: list[int], datatype: str = "FP32") -> dict[str, Any]:
    return {"name": name, "shape": shape, "datatype": datatype, "data": data}
