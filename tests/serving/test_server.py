"""The server: the protocol, its errors, and its end, with a model that costs nothing."""

import json
import shutil
import socket
import threading
from pathlib import Path

import pytest
from paceline.serving import server
from paceline.serving.folder import choose_engine, read_folder
from paceline.spec.errors import PacelineError
from paceline.spec.model_signature import parse_signature
from support.cluster import wait_until
from support.model_servers import ModelServer, Reply, request, tensor

SCRIPT = """
import json, time
from pathlib import Path

HERE = Path(__file__).parent

def run(raw_data):
    rows = json.loads(raw_data)["data"]
    (HERE / "entered").touch()
    while (HERE / "wait").exists():
        time.sleep(0.01)
    if rows[0][0] < 0:
        raise ValueError("a secret of the model's")
    return [row[:3] for row in rows]
"""


def folder_of(place: Path) -> Path:
    """Gives three of four columns. Its requests stay in it as long as there is a file `wait`."""
    place.mkdir()
    (place / "score.py").write_text(SCRIPT)
    signature = {
        "framework": "score",
        "inputs": [{"name": "input", "datatype": "FP32", "shape": [-1, 4]}],
        "outputs": [{"name": "output", "datatype": "FP32", "shape": [-1, 3]}],
    }
    (place / "paceline-model.json").write_text(json.dumps(signature))
    return place


def test_the_metadata_is_the_signature(tmp_path: Path) -> None:
    with ModelServer(folder_of(tmp_path / "model"), "--version", "2", log=tmp_path / "log") as server:
        server.wait_ready()
        assert request(f"{server.url}/v2/health/live").status == 200
        assert request(f"{server.model}/ready").json == {"name": "m", "ready": True}
        assert request(f"{server.url}/v2").json["name"] == "paceline"
        assert request(server.model).json == request(f"{server.model}/versions/2").json == {
            "name": "m",
            "versions": ["2"],
            "platform": "azureml_score",
            "inputs": [{"name": "input", "datatype": "FP32", "shape": [-1, 4]}],
            "outputs": [{"name": "output", "datatype": "FP32", "shape": [-1, 3]}],
        }  # fmt: skip


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> ModelServer:
    place = tmp_path_factory.mktemp("served")
    with ModelServer(folder_of(place / "model"), "--body-bytes-max", "2000", log=place / "log") as server:
        yield server.wait_ready()


GOOD = tensor("input", [1, 2, 3, 4], [1, 4])


@pytest.mark.parametrize(
    "wrong, said",
    [
        ({"shape": [1, 5]}, "input 'input': expected shape [-1, 4] (-1: any size); found [1, 5]"),
        ({"shape": [4]}, "expected shape [-1, 4]"),
        ({"shape": [-1, 4]}, "expected shape"),
        ({"shape": [1 << 62, 4]}, "expected 18446744073709551616 values"),
        ({"data": [1, 2, 3]}, "expected 4 values for shape [1, 4]"),
        ({"data": [[1, 2], [3, 4]]}, "found data of shape [2, 2]"),
        ({"data": [[1, 2], [3]]}, "nested unevenly"),
        ({"data": ["a", "b", "c", "d"]}, "expected numbers for datatype FP32"),
        ({"data": [1, 2, 3, None]}, "expected numbers for datatype FP32"),
        ({"data": [1, 2, 3, 1e300]}, "expected numbers for datatype FP32 up to 3.40282e+38"),
        ({"data": None}, "expected 4 values"),
        ({"data": {"a": 1}}, "expected 4 values"),
        ({"datatype": "FP64"}, "expected datatype FP32; found 'FP64'"),
        ({"datatype": "FLOAT"}, "expected datatype FP32; found 'FLOAT'"),
        ({"name": "inptu"}, "no input 'inptu'; expected 'input' FP32[-1, 4]; did you mean 'input'?"),
        ({"shape": "a"}, "Expected `array`, got `str` - at `$.inputs[0].shape`"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_refused_with_what_was_expected(
    served: ModelServer, wrong: dict, said: str
) -> None:
    told = served.infer({**GOOD, **wrong})
    assert told.status == 400
    assert said in told.error
    assert served.infer(GOOD).status == 200


@pytest.mark.parametrize(
    "body, said",
    [
        (b"", "expected a v2 inference request as JSON"),
        (b"[]", "Expected `object`, got `array`"),
        (b"{}", "missing required field `inputs`"),
        (b'{"inputs": []}', "input 'input' is missing; expected 'input' FP32[-1, 4]"),
        (b"\xff\xfe", "expected a v2 inference request as JSON"),
        (b"[" * 1900, "expected a v2 inference request as JSON"),
    ],
)
def test_what_is_no_request_is_refused(served: ModelServer, body: bytes, said: str) -> None:
    told = request(f"{served.model}/infer", body)
    assert (told.status, said in told.error) == (400, True), told.body


def test_names_and_paths_that_are_not_there(served: ModelServer) -> None:
    assert served.infer(GOOD, GOOD).error == "input 'input' is given twice"
    assert served.infer(GOOD, outputs=[{"name": "x"}]).error == "no output 'x'; expected 'output'"
    told = request(f"{served.url}/v2/models/other")
    assert (told.status, told.error) == (404, "no model 'other'; this server has 'm'")
    assert request(f"{served.model}/versions/3/infer", b"{}").status == 404
    assert request(f"{served.url}/invocations", b"{}").status == 404
    assert request(f"{served.model}/infer").status == 405


def test_a_body_that_is_too_large_is_refused(served: ModelServer) -> None:
    told = request(f"{served.model}/infer", b" " * 2001)
    assert (told.status, told.error) == (413, "the request has 2001 bytes; at most 2000 are taken")


def test_a_model_that_fails_tells_the_client_a_number_and_the_log_the_rest(tmp_path: Path) -> None:
    with ModelServer(folder_of(tmp_path / "model"), log=tmp_path / "log") as server:
        server.wait_ready()
        told = server.infer(tensor("input", [-1, 0, 0, 0], [1, 4]))
        assert told.status == 500
        assert told.error == "the model failed with ValueError; the server's log has it as failure 1"
        assert "a secret of the model's" in server.told()
        assert "Traceback" in server.told()
        assert server.infer(GOOD).status == 200


def test_sigterm_answers_what_is_under_way(tmp_path: Path) -> None:
    model = folder_of(tmp_path / "model")
    with ModelServer(model, log=tmp_path / "log") as server:
        server.wait_ready()
        (model / "wait").touch()
        (model / "entered").unlink(missing_ok=True)
        answers: list[Reply] = []
        ask = threading.Thread(target=lambda: answers.append(server.infer(GOOD)))
        ask.start()
        wait_until("it is in the model", (model / "entered").exists)
        server.process.terminate()
        wait_until("new ones are refused", lambda: not connects(server.url))
        assert server.process.poll() is None
        (model / "wait").unlink()
        ask.join()
        assert [one.status for one in answers] == [200]
        assert server.wait_end() == 0


def connects(url: str) -> bool:
    host, port = url.removeprefix("http://").split(":")
    try:
        socket.create_connection((host, int(port))).close()
    except ConnectionRefusedError:
        return False
    return True


@pytest.mark.parametrize(
    "spoil, said",
    [
        (lambda model: (model / "score.py").write_text("1/0"), "did not load: ZeroDivisionError"),
        (lambda model: (model / "score.py").write_text("exit(3)"), "did not load: SystemExit: 3"),
        (lambda model: (model / "score.py").unlink(), "has no file score.py"),
        (lambda model: (model / "paceline-model.json").write_text("{}"), "'framework' is missing"),
        (shutil.rmtree, "is not a folder"),
    ],
)
def test_a_model_that_does_not_load_ends_the_server(tmp_path: Path, spoil: object, said: str) -> None:
    spoil(folder_of(tmp_path / "model"))
    with ModelServer(tmp_path / "model", log=tmp_path / "log") as server:
        assert server.wait_end() == 1
    assert said in server.told()


def test_a_folder_for_which_there_is_no_engine(tmp_path: Path) -> None:
    (tmp_path / "weights.bin").touch()
    with pytest.raises(PacelineError, match=r"no engine fits .*; found weights\.bin"):
        choose_engine(read_folder(tmp_path))


def test_paths_of_a_signature_stay_in_the_folder() -> None:
    for path in ("../x", "/etc/passwd", "a/../../x", "a\\..\\x", "a//b", "x\0y", "./x"):
        with pytest.raises(PacelineError, match="inside the model folder"):
            parse_signature(json.dumps({"framework": "torchscript", "file": path}))


def test_answers_do_not_wait_for_acknowledgements() -> None:
    """A connection has Nagle's algorithm off, though asyncio did not make the socket that it came by."""
    with (
        server._listen("127.0.0.1", 0) as listener,
        socket.create_connection(listener.getsockname()),
        listener.accept()[0] as connection,
    ):
        assert connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
