"""Endpoints for real: a scheduler, agents, replicas and a router, requests over HTTP, every one counted."""

import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from paceline.client import endpoint_calls
from paceline.client.cli.main import run
from paceline.client.endpoint_views import Deployment, Endpoint
from paceline.client.invoking import invoke
from paceline.spec.errors import Conflict, InvalidRequest, NotFound
from paceline.spec.problems import InvalidDocument
from support.cluster import Cluster, wait_until
from support.endpoint_models import Load, model

pytest.importorskip("aiohttp", reason="paceline[serve]")
pytest.importorskip("uvicorn", reason="paceline[serve]")
READY_S = 180


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    with Cluster(tmp_path_factory.mktemp("endpoints"), agents=2, cpus=8) as running:
        yield running


def ready(cluster: Cluster, name: str, deployment: str = "main", model: str = "") -> Endpoint:
    """When all replicas of the newest revision are well (of `model`, if it is named)."""

    def look() -> Endpoint | None:
        found = cluster.client.endpoint(name)
        one = found.of(deployment)
        assert one is not None
        assert one.state != "failed", found
        well = found.url and one.state == "ready" and (not model or one.model == model)
        settled = all(each.state == "ready" and each.revision == one.revision for each in one.replicas)
        return found if well and settled else None

    return wait_until(f"{name} is ready", look, READY_S)


def deployed(cluster: Cluster, endpoint: str, folder: Path, **more: object) -> Endpoint:
    cluster.client.deploy({"endpoint_name": endpoint, "model": str(folder), **more})
    return ready(cluster, endpoint, str(more.get("name", "main")), str(folder))


def said(endpoint: Endpoint, body: bytes = b'{"x": 1}', **more: str) -> dict[str, object]:
    answer = invoke(endpoint, body, **more)
    assert answer.status == 200, answer
    return json.loads(answer.body)


def gone(cluster: Cluster, name: str, *, asked: bool = False) -> None:
    if not asked:
        cluster.client.undeploy(name)
    wait_until(
        f"{name} is gone", lambda: name not in [one.endpoint for one in cluster.client.endpoints()], READY_S
    )


def test_a_model_answers_those_who_have_the_key(cluster: Cluster, tmp_path: Path) -> None:
    found = deployed(cluster, "one", model(tmp_path / "m", "first"))
    assert said(found)["model"] == "first"
    assert said(found)["got"] == {"x": 1}
    keyless = Endpoint(**{name: getattr(found, name) for name in found.__slots__} | {"key": "wrong"})
    refused = invoke(keyless, b"{}")
    assert (refused.status, "needs the endpoint's key" in refused.body.decode()) == (401, True)
    (replica,) = found.deployments[0].replicas
    direct = Endpoint(**{name: getattr(found, name) for name in found.__slots__} | {"url": replica.url})
    assert invoke(direct, b"{}").status == 401, "a replica answers the router alone"
    assert invoke(found, b"{}", path="/nothing").status == 404
    large = json.dumps({"x": "y" * (5 << 20)}).encode()
    assert said(found, large)["got"] == json.loads(large)
    unknown = invoke(found, b"{}", deployment="blue")
    assert (unknown.status, json.loads(unknown.body)["error"]) == (
        503,
        "there is no deployment 'blue'; there are: main",
    )
    assert any("answers at http" in entry.text for entry in cluster.client.timeline(replica.job).entries)
    gone(cluster, "one")
    assert cluster.client.job(replica.job).state == "CANCELLED"


def test_an_update_under_load_answers_every_request(cluster: Cluster, tmp_path: Path) -> None:
    first, second = model(tmp_path / "a", "a", answer_s=0.01), model(tmp_path / "b", "b", answer_s=0.01)
    found = deployed(cluster, "roll", first, instance_count=2)
    with Load(found) as load:
        load.wait_more(20)
        deployed(cluster, "roll", second, instance_count=2)
        load.wait_more(20)
    load.all_answered()
    assert set(load.models) == {"a", "b"}
    assert said(cluster.client.endpoint("roll"))["model"] == "b"
    with Load(found) as load:
        load.wait_more(5)
        cluster.client.rollback("roll")
        ready(cluster, "roll", model=str(first))
        load.wait_more(5)
    load.all_answered()
    assert said(cluster.client.endpoint("roll"))["model"] == "a"
    gone(cluster, "roll")


def test_a_model_that_does_not_load_is_taken_back_unnoticed(cluster: Cluster, tmp_path: Path) -> None:
    found = deployed(cluster, "safe", model(tmp_path / "good", "good"))
    bad = model(tmp_path / "bad", "bad", at_init="raise ValueError('no weights')")
    with Load(found, clients=2) as load:
        load.wait_more(5)
        cluster.client.deploy({"endpoint_name": "safe", "model": str(bad)})
        back = wait_until(
            "it is taken back",
            lambda: (now := cluster.client.endpoint("safe")).deployments[0].revision == 3 and now,
            READY_S,
        )
        back = ready(cluster, "safe")
        load.wait_more(5)
    load.all_answered()
    assert set(load.models) == {"good"}
    assert back.deployments[0].model == str(tmp_path / "good")
    assert back.deployments[0].replicas[0].job == found.deployments[0].replicas[0].job, "it never left"
    told = [event.text for event in back.history]
    assert any("revision 2 was taken back" in text for text in told), told
    gone(cluster, "safe")


def test_a_first_model_that_does_not_load_says_why(cluster: Cluster, tmp_path: Path) -> None:
    bad = model(tmp_path / "bad", "bad", at_init="raise ValueError('no weights')")
    cluster.client.deploy({"endpoint_name": "broken", "model": str(bad)})
    failed = wait_until(
        "it has failed",
        lambda: (now := cluster.client.endpoint("broken")).deployments[0].state == "failed" and now,
        READY_S,
    )
    assert "ended: rank 0" in failed.deployments[0].why
    with pytest.raises(Conflict, match="main of endpoint broken has never been ready"):
        cluster.client.set_traffic("broken", {"main": 100})
    gone(cluster, "broken")


def test_the_same_wish_again_changes_nothing(cluster: Cluster, tmp_path: Path) -> None:
    """As it comes when a reply was lost: with the key of the first time, also after a restart."""
    deployed(cluster, "twice", model(tmp_path / "a", "a"))
    deployed(cluster, "twice", model(tmp_path / "b", "b"))
    deployed(cluster, "twice", model(tmp_path / "c", "c"))
    back = endpoint_calls.rollback("twice")
    assert cluster.client._call(back).deployments[0].model == str(tmp_path / "b")
    assert cluster.client._call(back).deployments[0].model == str(tmp_path / "b")
    cluster.kill_scheduler()
    cluster.start_scheduler()
    assert cluster.client._call(back).deployments[0].model == str(tmp_path / "b")
    ready(cluster, "twice", model=str(tmp_path / "b"))
    gone(cluster, "twice")


def test_a_replica_that_is_killed_costs_no_request_and_comes_back(cluster: Cluster, tmp_path: Path) -> None:
    found = deployed(cluster, "hit", model(tmp_path / "m", "m", answer_s=0.02), instance_count=2)
    pid = int(said(found)["pid"])  # type: ignore[call-overload]
    with Load(found) as load:
        load.wait_more(10)
        os.kill(pid, signal.SIGKILL)
        load.wait_more(40)
        ready(cluster, "hit")
        load.wait_more(10)
    load.all_answered()
    gone(cluster, "hit")


def test_a_scheduler_that_is_killed_amid_an_update_costs_no_request(cluster: Cluster, tmp_path: Path) -> None:
    first, second = model(tmp_path / "a", "a"), model(tmp_path / "b", "b", load_s=0.5)
    found = deployed(cluster, "dying", first, instance_count=2)
    with Load(found, clients=2) as load:
        load.wait_more(5)
        cluster.client.deploy({"endpoint_name": "dying", "model": str(second), "instance_count": 2})
        for _ in range(2):
            load.wait_more(5)
            cluster.kill_scheduler()
            load.wait_more(5)
            cluster.start_scheduler()
        now = ready(cluster, "dying", model=str(second))
        load.wait_more(5)
    load.all_answered()
    assert len(now.deployments[0].replicas) == 2, "none was started twice"
    assert said(now)["model"] == "b"
    gone(cluster, "dying")


def test_traffic_is_shared_as_asked_and_copied(cluster: Cluster, tmp_path: Path) -> None:
    deployed(cluster, "share", model(tmp_path / "blue", "blue"), name="blue")
    found = deployed(cluster, "share", model(tmp_path / "green", "green"), name="green")
    assert found.traffic == {"blue": 100}
    assert {said(found)["model"] for _ in range(5)} == {"blue"}
    assert said(found, deployment="green")["model"] == "green"
    cluster.client.set_traffic("share", {"blue": 75, "green": 25}, mirror={"green": 50})
    wait_until("the router knows", lambda: {said(found)["model"] for _ in range(4)} == {"blue", "green"}, 60)
    models = [said(found)["model"] for _ in range(40)]
    assert (models.count("blue"), models.count("green")) == (30, 10), "evenly, not by chance"
    before = cluster.client.endpoint("share").of("green")
    for _ in range(40):
        said(found, deployment="blue")
    copied = wait_until(
        "half of them were copied",
        lambda: (
            (now := cluster.client.endpoint("share").of("green")).requests >= before.requests + 20 and now
        ),
        60,
    )
    assert copied.failures == 0
    with pytest.raises(Conflict, match="25 % of the traffic"):
        cluster.client.undeploy("share", "green")
    with pytest.raises(InvalidRequest, match="90 % together"):
        cluster.client.set_traffic("share", {"blue": 90})
    with pytest.raises(NotFound, match="did you mean 'green'"):
        cluster.client.set_traffic("share", {"gren": 100})
    cluster.client.set_traffic("share", {"blue": 100})
    cluster.client.undeploy("share", "green")
    wait_until("green is gone", lambda: cluster.client.endpoint("share").of("green") is None, READY_S)
    gone(cluster, "share")


def test_as_many_replicas_as_the_requests_need(cluster: Cluster, tmp_path: Path) -> None:
    scale = {"min_instances": 1, "max_instances": 3, "target_requests": 1, "scale_down_s": 2}
    slow = model(tmp_path / "m", "m", answer_s=0.3)
    found = deployed(cluster, "wide", slow, scale_settings=scale)

    def now() -> Deployment:
        return cluster.client.endpoint("wide").deployments[0]

    with Load(found, clients=4) as load:
        three = wait_until(
            "there are three",
            lambda: (now := cluster.client.endpoint("wide").of("main")).ready == 3 and now,
            READY_S,
        )
        load.wait_more(5)
    load.all_answered()
    assert three.wanted == 3
    wait_until(
        "one is enough", lambda: len(cluster.client.endpoint("wide").deployments[0].replicas) == 1, READY_S
    )
    assert said(cluster.client.endpoint("wide"))["model"] == "m"
    gone(cluster, "wide")


def test_the_commands(cluster: Cluster, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    at = ["--state", str(cluster.state)]
    folder, body = model(tmp_path / "m", "m"), tmp_path / "body.json"
    body.write_text('{"x": 2}')
    assert run(["deploy", str(folder), "--name", "cli", *at]) == 0
    assert "1 of 1 replicas ready, 100 % of the traffic" in " ".join(capsys.readouterr().out.split())
    assert run(["invoke", "cli", "--data", str(body), *at]) == 0
    assert json.loads(capsys.readouterr().out)["got"] == {"x": 2}
    assert run(["invoke", "cli", "--data", str(body), "--path", "/nothing", *at]) == 1
    assert "answered 404" in capsys.readouterr().err
    assert run(["endpoints", *at, "-o", "json"]) == 0
    (listed,) = [one for one in json.loads(capsys.readouterr().out)["endpoints"] if one["endpoint"] == "cli"]
    assert listed["deployments"][0]["state"] == "ready"
    assert run(["traffic", "cli", "main=90", *at]) == 2
    assert run(["traffic", "cli", "main=50", "main=50", *at]) == 2
    assert run(["traffic", "cli", "main", *at]) == 2
    assert run(["rollback", "cli", *at]) == 6
    assert run(["endpoints", "clj", *at]) == 3
    assert "did you mean 'cli'" in capsys.readouterr().err
    assert run(["deploy", "--name", "cli", *at]) == 2
    assert run(["deploy", str(folder), "--name", "cli", "--set", "engin=torch", *at]) == 2
    assert "did you mean" in capsys.readouterr().err
    assert run(["undeploy", "cli", *at]) == 0
    wait_until(
        "it is gone", lambda: "cli" not in [one.endpoint for one in cluster.client.endpoints()], READY_S
    )


def test_a_file_of_a_deployment_is_checked_by_line(cluster: Cluster, tmp_path: Path) -> None:
    file = tmp_path / "deployment.yaml"
    file.write_text("endpoint_name: e\nmodl: ./m\nscale_settings: {min_instances: 2, max_instances: 1}\n")
    with pytest.raises(InvalidDocument) as refused:
        cluster.client.deploy(file)
    text = str(refused.value)
    assert f"{file}:2:1: modl: unknown key; did you mean 'model'?" in text
    assert f"{file}:3:" in text
