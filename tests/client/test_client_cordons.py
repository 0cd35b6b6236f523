"""`pace cordon`, `drain`, `uncordon`, and the SDK's verbs: what they say, and what they refuse."""

import json
from collections.abc import Callable, Iterator

import pytest
from paceline.client import views
from paceline.client.aio import AsyncClient
from paceline.client.cli import main as cli
from paceline.client.cli.nodes import note
from support.cluster import Cluster

Output = Callable[[], str]


@pytest.fixture(autouse=True)
def all_in_service(cluster: Cluster) -> Iterator[None]:
    yield
    cluster.client.uncordon("local-0", "local-1")


@pytest.fixture
def output(capfd: pytest.CaptureFixture[str]) -> Output:
    return lambda: capfd.readouterr().out


def named(cluster: Cluster, name: str) -> views.Node:
    return next(node for node in cluster.client.nodes().nodes if node.name == name)


def test_the_commands_say_what_stands(cluster: Cluster, pace: Callable[..., int], output: Output) -> None:
    assert pace("cordon", "local-1", "local-0", "--why", "new disks") == 0
    assert output() == "local-0 is cordoned\nlocal-1 is cordoned\n"
    assert note(named(cluster, "local-0")).startswith("cordoned (for ")
    job = cluster.submit_text("command: echo hi\nresources: {cpus: 1}")
    assert pace("why", job) == 0
    why = output()
    assert "2 of 2 nodes are cordoned (local-0: new disks, by " in why
    assert "they would have room for 2 tasks" in why and "never" not in why
    assert pace("uncordon", "local-0", "-o", "json") == 0
    told = json.loads(output())
    assert (told["nodes"][0]["name"], told["nodes"][0]["cordon"], told["jobs"]) == ("local-0", None, [])
    assert cluster.wait_state(job, "SUCCEEDED").tasks[0].node == "local-0"
    assert pace("drain", "local-1") == 0
    assert output() == "local-1 is drained\n"
    assert pace("nodes") == 0
    assert ": new disks)" in output(), "the reason stays until there is another"


def test_a_drain_names_the_jobs_that_it_moves(
    cluster: Cluster, pace: Callable[..., int], output: Output
) -> None:
    job = cluster.submit_text("command: sleep 600\nresources: {cpus: 4}\ngrace_s: 20")
    name = cluster.wait_state(job, "RUNNING").tasks[0].node
    assert pace("cordon", name) == 0
    assert output() == f"{name} is cordoned; what runs there goes on: 1 task\n"
    assert pace("drain", name, "--deadline", "1 s", "--why", "new disks", "-o", "json") == 0
    told = json.loads(output())
    assert told["jobs"] == [job]
    cordon = told["nodes"][0]["cordon"]
    assert set(cordon) == {"by", "why", "since_us", "drains", "tasks_left"} and cordon["drains"] is True
    other = {"local-0": "local-1", "local-1": "local-0"}[name]
    moved = cluster.wait_state(job, "RUNNING")
    while moved.attempt == 1:
        moved = cluster.wait_state(job, "RUNNING")
    assert moved.tasks[0].node == other
    cluster.client.cancel(job, grace_s=0.01)
    cluster.wait_state(job, "CANCELLED")


STAYS = "command: trap '' TERM; while true; do sleep 0.1; done\nresources: {cpus: 4}\ngrace_s: 300"


def test_a_drain_is_waited_for_and_says_who_is_left(
    cluster: Cluster, pace: Callable[..., int], capfd: pytest.CaptureFixture[str]
) -> None:
    job = cluster.submit_text(STAYS)
    name = cluster.wait_state(job, "RUNNING").tasks[0].node
    assert pace("drain", name, "--wait", "--timeout", "0.1 s", "-o", "json") == cli.EXIT_FAILED
    told = capfd.readouterr()
    found = json.loads(told.out)
    assert (found["drained"], found["held_by"], found["jobs"]) == (False, [job], [job])
    assert f"1 task left on {name}: of job {job}\n" in told.err
    assert f"1 task is left there after 0.1 s: of job {job}\n" in told.err
    assert pace("drain", name, "--wait", "--deadline", "1 s") == 0
    told = capfd.readouterr()
    assert told.err == f"1 task left on {name}: of job {job}\n"
    assert told.out.startswith(f"{name} is drained\n")
    assert pace("drain", name, "--wait", "-o", "json") == 0, "it is drained already"
    found = json.loads(capfd.readouterr().out)
    assert (found["drained"], found["held_by"], found["jobs"]) == (True, [], [])
    assert pace("drain", name, "--timeout", "1 s") == cli.EXIT_USAGE
    cluster.client.cancel(job, grace_s=0.01)
    cluster.wait_state(job, "CANCELLED")


def test_who_waits_for_a_drain_drains_nothing_anew(cluster: Cluster) -> None:
    """Somebody puts the node back meanwhile: that stands."""
    job = cluster.submit_text(STAYS)
    name = cluster.wait_state(job, "RUNNING").tasks[0].node
    looks = cluster.client.watch_drain(name)
    assert next(looks).held_by == (job,)
    cluster.client.uncordon(name)
    assert [look.nodes[0].cordon for look in looks] == [None]
    cluster.client.cancel(job, grace_s=0.01)
    cluster.wait_state(job, "CANCELLED")


def test_what_cannot_be_is_refused_with_the_next_step(
    pace: Callable[..., int], capfd: pytest.CaptureFixture[str]
) -> None:
    assert pace("cordon", "local-7") == cli.EXIT_NOT_FOUND
    assert "there is no node local-7" in (said := capfd.readouterr().err) and "did you mean local-" in said
    assert pace("drain", "local-0", "--deadline", "soon") == cli.EXIT_USAGE
    assert "such as `90 s`, `10 min` or `2 h`" in capfd.readouterr().err
    assert pace("drain", "local-0", "--deadline", "25 h") == cli.EXIT_USAGE
    assert pace("uncordon") == cli.EXIT_USAGE


async def test_asyncio_has_the_same_verbs(cluster: Cluster) -> None:
    async with AsyncClient(cluster.address, state=cluster.state) as client:
        done = await client.cordon("local-0", why="new disks")
        assert done.nodes[0].cordon is not None and done.nodes[0].cordon.why == "new disks"
        done = await client.drain("local-0", deadline_s=5)
        assert done.nodes[0].cordon is not None and done.nodes[0].cordon.drains and not done.jobs
        assert [look.tasks_left async for look in client.watch_drain("local-0", timeout_s=0)] == [0]
        assert (await client.uncordon("local-0")).nodes[0].cordon is None
