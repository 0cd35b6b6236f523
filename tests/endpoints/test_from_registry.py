"""From a job's output to an endpoint and to scored data: by name, pinned, in the lineage."""

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from paceline.client.cli.main import run
from paceline.client.invoking import invoke
from paceline.client.registry_views import OfPath
from paceline.spec.errors import Conflict, InvalidRequest, NotFound
from paceline.spec.problems import InvalidDocument
from support.cluster import Cluster, wait_until
from support.endpoint_models import model

pytest.importorskip("aiohttp", reason="paceline[serve]")
pytest.importorskip("uvicorn", reason="paceline[serve]")
READY_S = 180


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    with Cluster(tmp_path_factory.mktemp("registry"), agents=2, cpus=8) as running:
        yield running


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_a_registered_model_is_deployed_by_alias_stays_and_is_in_the_lineage(
    cluster: Cluster, tmp_path: Path
) -> None:
    client = cluster.client
    client.register("model", "digits", OfPath(str(model(tmp_path / "m", "one"))), alias="production")
    client.deploy({"endpoint_name": "front", "model": "digits@production"})

    def ready(revision: int) -> bool:
        one = client.endpoint("front").of("main")
        assert one is not None
        return one.state == "ready" and one.revision == revision and bool(client.endpoint("front").url)

    wait_until("it is ready", lambda: ready(1), READY_S)
    found = client.endpoint("front")
    assert json.loads(invoke(found, b"{}").body)["model"] == "one"
    assert found.deployments[0].model == "digits@production"
    client.register("model", "digits", OfPath(str(model(tmp_path / "n", "two"))), alias="production")
    assert json.loads(invoke(found, b"{}").body)["model"] == "one", "what is deployed is pinned"
    with pytest.raises(Conflict, match=r"endpoint 'front'"):
        client.delete_asset("model", "digits", "1")
    client.deploy({"endpoint_name": "front", "model": "digits@production"})
    wait_until("it is ready", lambda: ready(2), READY_S)
    assert json.loads(invoke(client.endpoint("front"), b"{}").body)["model"] == "two"
    edges = {(one.source, one.target) for one in client.lineage("endpoint:front").edges}
    assert {
        ("model:digits:1", "deployment:front/main"),
        ("model:digits:2", "deployment:front/main"),
        ("deployment:front/main", "endpoint:front"),
    } <= edges
    with pytest.raises(
        InvalidRequest, match=r"model: there is no model named 'digit'; did you mean 'digits'"
    ):
        client.deploy({"endpoint_name": "front", "model": "digit@production"})
    client.undeploy("front")
    wait_until("it is gone", lambda: not client.endpoints(), READY_S)


CODE = """
import json, os
from helping import WORD

def init():
    global model
    with open(os.path.join(os.environ["AZUREML_MODEL_DIR"], "weights.txt")) as file:
        model = file.read()

def run(text):
    return {"model": model, "word": WORD, "here": os.path.exists("helping.py"), "got": json.loads(text)}
"""


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_a_scoring_script_apart_from_its_model(cluster: Cluster, tmp_path: Path) -> None:
    client = cluster.client
    (tmp_path / "m").mkdir()
    (tmp_path / "m" / "weights.txt").write_text("w1")
    client.register("model", "bare", OfPath(str(tmp_path / "m")))
    code = tmp_path / "deploy" / "scoring"
    code.mkdir(parents=True)
    (code / "score.py").write_text(CODE)
    (code / "helping.py").write_text("WORD = 'one'\n")
    (code / "notes.txt").write_text("")
    (code / ".amlignore").write_text("notes.txt\n")
    file = tmp_path / "deploy" / "blue.yaml"
    file.write_text(
        "endpoint_name: coded\nmodel: bare:1\ncode_configuration: {code: scoring, scoring_script: score.py}\n"
    )

    def ask(revision: int) -> object:
        def ready() -> bool:
            found = client.endpoint("coded")
            one = found.of("main")
            assert one is not None and one.state != "failed", found
            return bool(found.url) and one.state == "ready" and one.revision == revision

        wait_until("it is ready", ready, READY_S)
        return json.loads(invoke(client.endpoint("coded"), b"1").body)

    client.deploy(file)
    assert ask(1) == {"model": "w1", "word": "one", "here": True, "got": 1}
    (code / "helping.py").write_text("WORD = 'two'\n")
    deploy = ["deploy", "bare:1", "--name", "coded", "--code", str(code), "--state", str(cluster.state)]
    assert run(deploy) == 0
    assert ask(2)["word"] == "two"
    client.rollback("coded")
    assert ask(3)["word"] == "one", "the code that was, although the folder has changed"

    for script, why in (
        ("scor.py", rf"there is no scor\.py in {code}; did you mean 'score\.py'\?"),
        ("notes.txt", rf"notes\.txt is in {code}, but not packed"),
    ):
        with pytest.raises(InvalidRequest, match=why):
            client.deploy(file, overrides=[f"code_configuration.scoring_script={script}"])
    with pytest.raises(
        InvalidDocument, match=r"expected the path of a file below `code`; found '\.\./x\.py'"
    ):
        client.deploy(file, overrides=["code_configuration.scoring_script=../x.py"])
    with pytest.raises(InvalidDocument, match=r"a scoring script is served by `score`; found 'torch'"):
        client.deploy(file, overrides=["engine=torch"])
    client.undeploy("coded")
    wait_until("it is gone", lambda: not client.endpoints(), READY_S)


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_rows_are_scored_by_a_gang_and_the_answers_are_data(cluster: Cluster, tmp_path: Path) -> None:
    client = cluster.client
    client.register("model", "scorer", OfPath(str(model(tmp_path / "m", "s"))))
    rows = tmp_path / "rows"
    rows.mkdir()
    for file in range(4):
        lines = (json.dumps({"x": 100 * file + row}) + "\n" for row in range(100))
        (rows / f"{file}.jsonl").write_text("".join(lines))
    client.register("data", "rows", OfPath(str(rows)))
    asked = ["score", "scorer@latest", "--data", "rows:1", "--name", "answers", "--instances", "2"]
    assert run([*asked, "-o", "json", "--state", str(cluster.state)]) == 0
    job = client.jobs(limit=1)[0].job
    cluster.wait_state(job, "SUCCEEDED")

    def registered() -> bool:
        with contextlib.suppress(NotFound):
            return bool(client.asset("data", "answers:1"))
        return False

    wait_until("they are registered", registered, READY_S)
    client.download("data", "answers:1", tmp_path / "got")
    answers = [
        json.loads(line)["got"]["x"]
        for file in sorted((tmp_path / "got").rglob("*.jsonl"))
        for line in file.read_text().splitlines()
    ]
    assert answers == list(range(400))
    made_of = {edge.source for edge in client.lineage("data:answers:1").edges}
    assert {"model:scorer:1", "data:rows:1", f"job:{job}"} <= made_of
