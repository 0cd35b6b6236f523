"""MLflow model folders, saved by mlflow itself, behind a real server on loopback."""

from pathlib import Path

import mlflow
import numpy as np
import pandas as pd
import pytest
from mlflow.models import infer_signature
from sklearn.linear_model import LinearRegression
from support.model_servers import ModelServer, request, tensor

pytestmark = [pytest.mark.slow, pytest.mark.timeout(400)]

FRAME = pd.DataFrame({"a": [1.0, 2.0, 3.0, 4.0], "b": [1.0, 0.0, 1.0, 0.0]})
ASKED = {"columns": ["a", "b"], "data": [[1.0, 1.0], [5.0, 0.0]]}


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> ModelServer:
    """y = 2 a + b, by scikit-learn."""
    place = tmp_path_factory.mktemp("mlflow")
    model = LinearRegression().fit(FRAME, 2 * FRAME.a + FRAME.b)
    signature = infer_signature(FRAME, model.predict(FRAME))
    mlflow.sklearn.save_model(
        model, place / "model", signature=signature, pip_requirements=[], serialization_format="cloudpickle"
    )
    with ModelServer(place / "model", log=place / "log") as server:
        yield server.wait_ready()


@pytest.mark.parametrize(
    "asked",
    [
        {"dataframe_split": ASKED},
        {"dataframe_records": [{"a": 1.0, "b": 1.0}, {"a": 5.0, "b": 0.0}]},
        {"instances": [{"a": 1.0, "b": 1.0}, {"a": 5.0, "b": 0.0}]},
        {"inputs": {"a": [1.0, 5.0], "b": [1.0, 0.0]}},
    ],
    ids=lambda asked: next(iter(asked)),
)
def test_the_ways_of_asking(served: ModelServer, asked: dict) -> None:
    told = request(f"{served.url}/invocations", asked)
    assert told.status == 200, told.body
    assert np.allclose(told.json["predictions"], [3.0, 10.0])


def test_csv(served: ModelServer) -> None:
    told = request(f"{served.url}/invocations", b"a,b\n1,1\n5,0\n", kind="text/csv")
    assert np.allclose(told.json["predictions"], [3.0, 10.0])
    assert request(f"{served.url}/invocations", b"x", kind="text/html").status == 415


def test_probes(served: ModelServer) -> None:
    assert request(f"{served.url}/ping").status == request(f"{served.url}/health").status == 200
    assert request(f"{served.url}/version").body.decode() == mlflow.__version__


@pytest.mark.parametrize(
    "asked, said",
    [
        (b"{", "valid JSON"),
        (b'{"rows": []}', "exactly one of the input fields"),
        (b'{"dataframe_split": {"columns": ["a"], "data": [[1.0]]}}', "missing inputs ['b']"),
    ],
)
def test_what_does_not_fit_is_refused_without_a_traceback(
    served: ModelServer, asked: bytes, said: str
) -> None:
    told = request(f"{served.url}/invocations", asked)
    assert told.status == 400
    assert said in told.json["message"]
    assert b"Traceback" not in told.body
    assert b"stack_trace" not in told.body


def test_columns_are_tensors_on_the_protocol(served: ModelServer) -> None:
    told = request(served.model).json
    assert told["inputs"] == [
        {"name": "a", "datatype": "FP64", "shape": [-1]},
        {"name": "b", "datatype": "FP64", "shape": [-1]},
    ]
    a, b = tensor("a", [1.0, 5.0], [2], "FP64"), tensor("b", [1.0, 0.0], [2], "FP64")
    [output] = served.infer(a, b).json["outputs"]
    assert (output["datatype"], output["shape"]) == ("FP64", [2])
    assert np.allclose(output["data"], [3.0, 10.0])
    told = served.infer(a, tensor("b", [1.0], [1], "FP64"))
    assert (told.status, told.error) == (400, "expected columns of one length; found {'a': 2, 'b': 1}")
    assert served.infer(a).error.startswith("input 'b' is missing")


DOUBLES = """
import mlflow

class Doubles(mlflow.pyfunc.PythonModel):
    def predict(self, context, model_input, params=None):
        return model_input * 2

mlflow.models.set_model(Doubles())
"""


def test_a_python_function_of_tensors(tmp_path: Path) -> None:
    code = tmp_path / "doubles.py"
    code.write_text(DOUBLES)
    rows = np.arange(6, dtype=np.float32).reshape(3, 2)
    mlflow.pyfunc.save_model(
        tmp_path / "model", python_model=str(code), signature=infer_signature(rows, rows), pip_requirements=[]
    )
    with ModelServer(tmp_path / "model", log=tmp_path / "log") as server:
        server.wait_ready()
        assert request(server.model).json["inputs"] == [
            {"name": "input", "datatype": "FP32", "shape": [-1, 2]}
        ]
        told = server.infer(tensor("input", [1, 2], [1, 2]))
        assert told.json["outputs"] == [
            {"name": "output", "datatype": "FP32", "shape": [1, 2], "data": [2, 4]}
        ]
        assert request(f"{server.url}/invocations", {"inputs": [[1, 2]]}).json == {"predictions": [[2, 4]]}
        assert server.stop() == 0
