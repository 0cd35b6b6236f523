"""The registry over the real wire: what is refused at the door, and files that are hashed and kept."""

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from paceline.client.aio import AsyncClient
from paceline.client.registry_views import OfJob, OfPath, OfUrl, OfValue
from paceline.content.store import ContentStore, content_folder
from paceline.proto.failures import translated
from paceline.proto.generated import registry_pb2
from paceline.spec.errors import (
    Conflict,
    InvalidRequest,
    LimitExceeded,
    NotFound,
    PacelineError,
    StoreFailure,
)
from support.wire import Wire, wire

HOSTILE = [
    "..",
    "../../etc/passwd",
    "%2e%2e/%2e%2e/etc/passwd",
    "..%252f..%252fetc%252fpasswd",
    "file:///etc/passwd",
    "/etc/passwd",
    "name#/../../etc",
    "name?x=../../etc",
    "http:///#/../../../etc/passwd",
    "..\\..\\etc",
    "n\0",
    "\uff0e\uff0e\uff0fetc",
]
MLMODEL = """
flavors:
  python_function: {loader_module: mlflow.sklearn, python_version: 3.11.7}
  sklearn: {sklearn_version: 1.5.0, serialization_format: cloudpickle}
signature:
  inputs: '[{"type": "tensor", "tensor-spec": {"dtype": "float32", "shape": [-1, 64]}}]'
  outputs: '[{"type": "long"}]'
"""


@pytest.fixture
async def wired(tmp_path: Path) -> AsyncIterator[Wire]:
    async with wire(tmp_path / "state") as wired:
        yield wired


@pytest.fixture
async def client(wired: Wire) -> AsyncIterator[AsyncClient]:
    async with AsyncClient(wired.made.address, state=wired.config.state) as client:
        yield client


async def register(wired: Wire, **changes: Any) -> registry_pb2.AssetView:
    request = registry_pb2.RegisterRequest(
        **{"key": "k", "user": "ann", "kind": "data", "name": "d", "value": "1", **changes}
    )
    with translated():
        view: registry_pb2.AssetView = await wired.registry.Register(request)
    return view


def files_below(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def store_of(wired: Wire) -> ContentStore:
    return ContentStore(content_folder(wired.config.storage_folder))


@pytest.mark.parametrize("text", HOSTILE, ids=ascii)
async def test_hostile_names_are_refused_at_the_door(wired: Wire, tmp_path: Path, text: str) -> None:
    before = files_below(tmp_path)
    for changes in ({"name": text}, {"version": text}, {"alias": text}, {"kind": text}):
        with pytest.raises(InvalidRequest):
            await register(wired, **changes)
    with pytest.raises(InvalidRequest), translated():
        await wired.registry.Get(registry_pb2.GetAssetRequest(kind="data", reference=text))
    with pytest.raises(InvalidRequest), translated():
        await wired.registry.Lineage(registry_pb2.LineageRequest(reference=text))
    for source in ({"tree": text}, {"tree": "a" * 63 + "/"}):
        with pytest.raises(PacelineError):
            await register(wired, value=None, tree=registry_pb2.TreeSource(**source))
    ignored = ("paceline.db-wal", "paceline.db-shm", "paceline.db")
    assert {one for one in files_below(tmp_path) - before if not one.endswith(ignored)} == set()


@pytest.mark.parametrize(
    ("changes", "error"),
    [
        ({"key": ""}, InvalidRequest),
        ({"value": None}, InvalidRequest),
        ({"value": "[1]"}, InvalidRequest),
        ({"value": "NaN"}, InvalidRequest),
        ({"value": '"' + "x" * 10_001 + '"'}, InvalidRequest),
        ({"signature": "[]"}, InvalidRequest),
        ({"signature": "[" * 60_000}, InvalidRequest),
        ({"type": "uri_flie"}, InvalidRequest),
        ({"kind": "model"}, InvalidRequest),
        ({"value": None, "url": registry_pb2.UrlSource(url="file:///etc/passwd")}, InvalidRequest),
        ({"value": None, "url": registry_pb2.UrlSource(url="nothing")}, InvalidRequest),
        ({"description": "x" * 10_001}, LimitExceeded),
        ({"tags": {str(at): "" for at in range(1001)}}, LimitExceeded),
        ({"value": None, "output": registry_pb2.JobOutput(job=7)}, NotFound),
        ({"value": None, "checkpoint": registry_pb2.JobCheckpoint(job=7)}, NotFound),
        ({"value": None, "trial": registry_pb2.SweepTrialSource(sweep=7)}, NotFound),
        ({"value": None, "tree": registry_pb2.TreeSource(tree="ab" * 32)}, NotFound),
    ],
)
async def test_what_cannot_be_registered(wired: Wire, changes: Any, error: type[PacelineError]) -> None:
    with pytest.raises(error):
        await register(wired, **changes)
    with pytest.raises(NotFound), translated():
        await wired.registry.Get(registry_pb2.GetAssetRequest(kind="data", reference="d"))


async def test_a_folder_comes_back_as_it_was(client: AsyncClient, tmp_path: Path) -> None:
    folder = tmp_path / "d"
    (folder / "sub").mkdir(parents=True)
    (folder / "a.csv").write_bytes(b"1,2\n")
    (folder / "sub" / "big.bin").write_bytes(bytes(range(256)) * 12_000)
    (folder / "run.sh").write_text("echo\n")
    (folder / "run.sh").chmod(0o755)
    made = await client.register("data", "d", OfPath(str(folder)), tags={"from": "here"})
    assert (made.version, made.type, made.files, made.tags) == ("1", "uri_folder", 3, {"from": "here"})
    await client.download("data", "d@latest", tmp_path / "got")
    assert files_below(tmp_path / "got") == {"a.csv", "sub/big.bin", "run.sh"}
    for name in files_below(folder):
        assert (tmp_path / "got" / name).read_bytes() == (folder / name).read_bytes()
        assert (tmp_path / "got" / name).stat().st_mode == (folder / name).stat().st_mode
    with pytest.raises(Conflict, match="is there already"):
        await client.download("data", "d", tmp_path / "got")


async def test_equal_folders_are_one_tree(client: AsyncClient, tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "x").write_text("same")
    first = await client.register("data", "d", OfPath(str(tmp_path / "a")))
    second = await client.register("data", "d", OfPath(str(tmp_path / "b")))
    assert first.tree == second.tree and second.version == "2"


@pytest.mark.parametrize("how", ["gone", "short", "changed"])
async def test_a_file_behind_a_version_that_is_not_what_it_was(
    wired: Wire, client: AsyncClient, tmp_path: Path, how: str
) -> None:
    (tmp_path / "x.bin").write_bytes(b"weights")
    made = await client.register("model", "m", OfPath(str(tmp_path / "x.bin")))
    store = store_of(wired)
    blob = store.blob_path(store.manifest(made.tree).files[0].hash)
    blob.chmod(0o644)
    match how:
        case "gone":
            blob.unlink()
        case "short":
            blob.write_bytes(b"w")
        case "changed":
            blob.write_bytes(b"WEIGHTS")
    found, _ = await client.asset("model", "m")
    assert ("x.bin" in found.damage) == (how != "changed"), "of its size: only a read finds it"
    with pytest.raises((NotFound, StoreFailure)):
        await client.download("model", "m", tmp_path / "got")
    assert not (tmp_path / "got").exists() and not any(
        one.startswith(".got") for one in files_below(tmp_path)
    )


async def test_an_mlflow_folder_says_what_it_is(client: AsyncClient, tmp_path: Path) -> None:
    folder = tmp_path / "m"
    folder.mkdir()
    (folder / "MLmodel").write_text(MLMODEL)
    (folder / "model.pkl").write_bytes(b"never opened")
    made = await client.register("model", "m", OfPath(str(folder)))
    assert (made.type, made.framework) == ("mlflow_model", "sklearn 1.5.0")
    assert json.loads(made.signature["outputs"]) == [{"type": "long"}]


async def test_a_model_as_an_mlflow_folder(client: AsyncClient, tmp_path: Path) -> None:
    (tmp_path / "w.bin").write_bytes(b"weights")
    signature = {"inputs": '[{"type": "tensor", "tensor-spec": {"dtype": "float32", "shape": [-1, 64]}}]'}
    await client.register("model", "m", OfPath(str(tmp_path / "w.bin")), signature=signature)
    await client.download_mlflow("m", tmp_path / "got")
    assert (tmp_path / "got" / "data" / "w.bin").read_bytes() == b"weights"
    said = yaml.safe_load((tmp_path / "got" / "MLmodel").read_text())
    assert said["flavors"]["paceline"]["data"] == "data" and said["metadata"]["reference"] == "m:1"
    again = await client.register("model", "m", OfPath(str(tmp_path / "got")))
    assert (again.type, again.framework, again.signature) == ("mlflow_model", "paceline", signature)
    await client.download_mlflow("m", tmp_path / "more")
    assert files_below(tmp_path / "more") == files_below(tmp_path / "got")


@pytest.mark.parametrize(
    "text", ["!!python/object/apply:os.system ['touch /tmp/x']", "a: &a [*a]", "[" * 1000, "\0", "- 1"]
)
async def test_an_mlmodel_that_is_none_is_a_file(client: AsyncClient, tmp_path: Path, text: str) -> None:
    folder = tmp_path / "m"
    folder.mkdir()
    (folder / "MLmodel").write_text(text)
    made = await client.register("model", "m", OfPath(str(folder)))
    assert (made.type, made.framework, made.signature) == ("custom_model", "", {})


async def test_a_link_out_of_the_folder_is_refused(client: AsyncClient, tmp_path: Path) -> None:
    folder = tmp_path / "m"
    folder.mkdir()
    (folder / "passwd").symlink_to("/etc/passwd")
    with pytest.raises(InvalidRequest, match="leads out of"):
        await client.register("model", "m", OfPath(str(folder)))


async def test_a_literal_value_and_a_url(client: AsyncClient, tmp_path: Path) -> None:
    made = await client.register("data", "lr", OfValue(0.1))
    assert (made.type, made.value) == ("literal", 0.1)
    import fsspec

    with fsspec.open("memory://bucket/x.csv", "wb") as file:
        file.write(b"1,2\n")
    made = await client.register("data", "far", OfUrl("memory://bucket/x.csv"))
    assert (made.url, made.bytes, made.tree) == ("memory://bucket/x.csv", 4, "")
    with pytest.raises(InvalidRequest, match="memory://bucket/none cannot be read: FileNotFoundError"):
        await client.register("data", "far", OfUrl("memory://bucket/none"))
    with pytest.raises(InvalidRequest, match="no files here"):
        await client.download("data", "far", tmp_path / "got")


async def test_a_call_that_is_repeated_while_it_works_is_one_version(wired: Wire) -> None:
    views = await asyncio.gather(*(register(wired, key="once") for _ in range(5)))
    assert {view.version for view in views} == {"1"}
    assert (await register(wired, key="once")).version == "1"


async def test_two_people_move_one_alias_at_once(wired: Wire, client: AsyncClient) -> None:
    for _ in range(3):
        await client.register("data", "d", OfValue(1))
    await client.set_alias("data", "d", "good", "1", before="")
    moves = (client.set_alias("data", "d", "good", version, before="1") for version in ("2", "3"))
    done = await asyncio.gather(*moves, return_exceptions=True)
    assert sum(isinstance(one, Conflict) for one in done) == 1
    [moved] = [one for one in done if not isinstance(one, BaseException)]
    assert (await client.asset("data", "d@good"))[1].aliases == moved.aliases
    assert [(one.before, one.after) for one in moved.moves] == [("", "1"), ("1", moved.aliases["good"])]


async def test_inputs_are_pinned_at_the_submit(wired: Wire, client: AsyncClient, tmp_path: Path) -> None:
    (tmp_path / "x.csv").write_text("1\n")
    made = await client.register("data", "d", OfPath(str(tmp_path / "x.csv")), alias="good")
    inputs = {
        "a": {"path": "d@good", "type": "uri_file"},
        "b": {"path": "azureml:d:1"},
        "c": {"path": "d@latest"},
    }
    [job] = await wired.submit(command="cat ${{inputs.a}}", inputs=inputs)
    await client.register("data", "d", OfValue(2), alias="good")
    said = json.loads((await wired.get(job)).document)["inputs"]
    assert {value["path"] for value in said.values()} == {"azureml:d:1"}
    assert {value["pinned"]["tree"] for value in said.values()} == {made.tree}
    async with wired.agent() as agent:
        start = await agent.wait_start(job)
    assert {need.name: need.tree for need in start.needs} == {f"inputs.{name}": made.tree for name in inputs}
    assert start.command == "cat /@needs/inputs.a@/x.csv"


async def test_what_a_document_says_is_pinned_is_not_believed(wired: Wire) -> None:
    forged = {"asset": "data:d:1", "tree": "ab" * 32}
    [job] = await wired.submit(inputs={"a": {"path": "/data", "pinned": forged}})
    assert "pinned" not in json.loads((await wired.get(job)).document)["inputs"]["a"]


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ({"path": "dta:1"}, "no data named 'dta'; did you mean 'dat'"),
        ({"path": "dat:7"}, "no version '7'; did you mean '1'"),
        ({"path": "dat@god"}, "no alias 'god'; did you mean 'good'"),
        ({"path": "dat:1", "type": "custom_model"}, "dat is no model but data"),
    ],
)
async def test_an_unknown_input_is_refused_with_the_nearest(
    wired: Wire, client: AsyncClient, value: dict[str, str], said: str
) -> None:
    await client.register("data", "dat", OfValue(1), alias="good")
    with pytest.raises(InvalidRequest, match=said) as caught, translated():
        await wired.submit(inputs={"x": value})
    assert "inputs.x.path" in str(caught.value)


async def test_lineage_both_ways(wired: Wire, client: AsyncClient, tmp_path: Path) -> None:
    await client.register("data", "d", OfValue(1))
    [job] = await wired.submit(inputs={"x": {"path": "d:1"}}, outputs={"m": {"type": "custom_model"}})
    with pytest.raises(Conflict, match="when it is over"):
        await client.register("model", "m", OfJob(job))
    async with wired.agent() as agent:
        await agent.end(await agent.run(job))
    await wired.wait_state(job, "SUCCEEDED")
    folder = wired.config.storage_folder / str(job) / "outputs" / "1" / "m"
    folder.mkdir(parents=True)
    (folder / "w").write_text("w")
    with pytest.raises(NotFound, match="it has m; did you mean 'm'"):
        await client.register("model", "m", OfJob(job, "mm"))
    await client.register("model", "m", OfJob(job))
    above = await client.lineage("model:m@latest")
    assert [(one.source, one.target, one.relation) for one in above.edges] == [
        (f"job:{job}", "model:m:1", "outputs.m"),
        ("data:d:1", f"job:{job}", "inputs.x"),
    ]
    assert above.edges == tuple(reversed((await client.lineage("data:d:1")).edges))
    assert len((await client.lineage("data:d:1", depth=1)).edges) == 1
    with pytest.raises(NotFound):
        await client.lineage("job:99")
    await client.delete_asset("data", "d", "1")
    texts = {node.reference: node.text for node in (await client.lineage("model:m")).nodes}
    assert "deleted by" in texts["data:d:1"]


async def test_pages_of_names_and_versions(wired: Wire, client: AsyncClient) -> None:
    for name in ("a", "b", "c"):
        for _ in range(3):
            await client.register("data", name, OfValue(1))
    await client.delete_asset("data", "b", "2")

    async def pages(**asked: Any) -> list[str]:
        found: list[str] = []
        after = ""
        while True:
            request = registry_pb2.ListAssetsRequest(kind="data", limit=1, after=after, **asked)
            reply = await wired.registry.List(request)
            found += [f"{one.name}:{one.version}" for one in reply.assets]
            after = reply.next
            if not after:
                return found

    assert await pages() == ["a:3", "b:3", "c:3"]
    assert await pages(name="b") == ["b:3", "b:1"]
    assert await pages(name="b", deleted=True) == ["b:3", "b:2", "b:1"]
