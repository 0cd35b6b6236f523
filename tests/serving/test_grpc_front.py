"""The protocol over gRPC, against a real server on loopback."""

import json
import re
from collections.abc import Iterator

import grpc
import numpy as np
import pytest
from paceline.proto.generated import inference_pb2 as pb
from paceline.proto.generated.inference_pb2_grpc import GRPCInferenceServiceStub
from support.model_servers import ModelServer

SCRIPT = """
import json

def run(raw_data):
    given = json.loads(raw_data)
    return {"sums": [sum(row) for row in given["rows"]], "words": [word.upper() for word in given["words"]]}
"""
SIGNATURE = {
    "framework": "score",
    "inputs": [
        {"name": "rows", "datatype": "FP32", "shape": [-1, 2]},
        {"name": "words", "datatype": "BYTES", "shape": [-1]},
    ],
    "outputs": [
        {"name": "sums", "datatype": "FP32", "shape": [-1]},
        {"name": "words", "datatype": "BYTES", "shape": [-1]},
    ],
}
Input = pb.ModelInferRequest.InferInputTensor


@pytest.fixture(scope="module")
def stub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[GRPCInferenceServiceStub]:
    place = tmp_path_factory.mktemp("grpc")
    (place / "score.py").write_text(SCRIPT)
    (place / "paceline-model.json").write_text(json.dumps(SIGNATURE))
    with ModelServer(place, "--grpc-port", "0", "--version", "3", log=place / "log") as server:
        server.wait_ready()
        [address] = re.findall(r"gRPC on (\S+)", server.told())
        with grpc.insecure_channel(address) as channel:
            yield GRPCInferenceServiceStub(channel)
        assert server.stop() == 0


def asked(**more: object) -> pb.ModelInferRequest:
    rows = Input(name="rows", datatype="FP32", shape=[2, 2])
    rows.contents.fp32_contents.extend([1, 2, 3, 4])
    words = Input(name="words", datatype="BYTES", shape=[1])
    words.contents.bytes_contents.append("é".encode())
    return pb.ModelInferRequest(**{"model_name": "m", "id": "a", "inputs": [rows, words], **more})


def test_the_model_tells_of_itself(stub: GRPCInferenceServiceStub) -> None:
    assert stub.ServerLive(pb.ServerLiveRequest()).live
    assert stub.ServerReady(pb.ServerReadyRequest()).ready
    assert stub.ServerMetadata(pb.ServerMetadataRequest()).name == "paceline"
    assert stub.ModelReady(pb.ModelReadyRequest(name="m", version="3")).ready
    told = stub.ModelMetadata(pb.ModelMetadataRequest(name="m"))
    assert (list(told.versions), told.platform) == (["3"], "azureml_score")
    assert [(one.name, one.datatype, list(one.shape)) for one in told.inputs] == [
        ("rows", "FP32", [-1, 2]),
        ("words", "BYTES", [-1]),
    ]


def test_an_inference_by_values(stub: GRPCInferenceServiceStub) -> None:
    told = stub.ModelInfer(asked())
    assert (told.model_name, told.model_version, told.id) == ("m", "3", "a")
    sums, words = told.outputs
    assert (list(sums.shape), list(sums.contents.fp32_contents)) == ([2], [3.0, 7.0])
    assert list(words.contents.bytes_contents) == ["É".encode()]
    only = stub.ModelInfer(asked(outputs=[{"name": "words"}]))
    assert [one.name for one in only.outputs] == ["words"]


def test_an_inference_by_raw_bytes(stub: GRPCInferenceServiceStub) -> None:
    inputs = [
        Input(name="rows", datatype="FP32", shape=[1, 2]),
        Input(name="words", datatype="BYTES", shape=[2]),
    ]
    raw = [np.array([1, 2], "<f4").tobytes(), b"\x01\0\0\0a\x02\0\0\0bc"]
    told = stub.ModelInfer(asked(inputs=inputs, raw_input_contents=raw))
    assert np.frombuffer(told.raw_output_contents[0], "<f4").tolist() == [3.0]
    assert told.raw_output_contents[1] == b"\x01\0\0\0A\x02\0\0\0BC"
    for wrong, said in [
        ([raw[0]], "expected raw contents for 2 inputs; found 1"),
        ([raw[0][:-1], raw[1]], "7 raw bytes; FP32 has 4 a value"),
        ([raw[0], raw[1][:-1]], "raw BYTES end amid a value"),
        ([raw[0], b"\x01\0\0\0\xff"], "expected texts in UTF-8"),
    ]:
        with pytest.raises(grpc.RpcError) as failed:
            stub.ModelInfer(asked(inputs=inputs, raw_input_contents=wrong))
        assert failed.value.code() == grpc.StatusCode.INVALID_ARGUMENT
        assert said in failed.value.details()


@pytest.mark.parametrize(
    "more, code, said",
    [
        ({"model_name": "x"}, "NOT_FOUND", "no model 'x'"),
        ({"model_version": "4"}, "NOT_FOUND", "no version '4'"),
        ({"inputs": []}, "INVALID_ARGUMENT", "input 'rows' is missing"),
        ({"inputs": [Input(name="rows", datatype="FP32", shape=[3])]}, "INVALID_ARGUMENT", "shape [-1, 2]"),
        ({"inputs": [Input(name="rows", datatype="X")]}, "INVALID_ARGUMENT", "no datatype 'X'"),
        ({"inputs": [Input(name="rows", datatype="FP16")]}, "INVALID_ARGUMENT", "raw contents only"),
        ({"outputs": [{"name": "z"}]}, "INVALID_ARGUMENT", "no output 'z'"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_refused(
    stub: GRPCInferenceServiceStub, more: dict, code: str, said: str
) -> None:
    with pytest.raises(grpc.RpcError) as failed:
        stub.ModelInfer(asked(**more))
    assert failed.value.code() == grpc.StatusCode[code]
    assert said in failed.value.details()
