"""Jobs in containers, by a real podman and a real docker: found, told of, run in, ended without a trace."""

import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from paceline.agent import kernel
from paceline.agent.claims import owner
from support.cluster import Cluster, wait_until
from support.container_engines import (
    IMAGE,
    INSIDE,
    PYTHON,
    USR,
    ContainerEngine,
    image_layout,
    own_docker,
    own_podman,
    root_of_image,
    with_python,
)
from support.image_registry import serving

TRAIN = """
import os, torch, paceline
run = paceline.init()
model = torch.nn.Linear(2, 1)
restored = run.restore(model=model)
for step in range((restored.step if restored else 0) + 1, 5):
    run.report(step, loss=1.0 / step)
    run.save(step, model=model)
    if step == 2 and run.attempt == 1:
        os.kill(os.getpid(), 9)
print(open("/etc/image").read(), paceline.__file__, run.attempt)
"""
MEET = """
import os, torch
from torch import distributed
distributed.init_process_group("gloo")
total = torch.tensor([float(distributed.get_rank() + 1)])
distributed.all_reduce(total)
print("total", total.item(), open("/etc/image").read())
distributed.destroy_process_group()
"""
COLD_S = 300.0
"""Two processes import torch, with nothing of it warm."""
UP = "echo up; while :; do sleep 0.1; done"
POLITE = f"trap 'echo bye; exit 5' TERM; {UP}"
SECRET = 'it\'s "$HOME" \\ `x`\nand a second line'


@pytest.fixture(scope="module", params=[own_podman, own_docker], ids=["podman", "docker"])
def engine(request: pytest.FixtureRequest) -> Iterator[ContainerEngine]:
    yield from request.param()


@pytest.fixture(scope="module")
def cluster(engine: ContainerEngine, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    with Cluster(tmp_path_factory.mktemp("cluster"), environment=engine.environment) as made:
        yield made


def submit(cluster: Cluster, command: str, image: str = IMAGE, **document: object) -> int:
    parts = {"inputs": USR, "resources": {"cpus": 0.5}, "environment": {"image": image}, **document}
    return cluster.submit_text(json.dumps({"command": command, **parts}))


def lines(cluster: Cluster, job: int) -> list[str]:
    return cluster.output(job).decode().splitlines()


def is_up(cluster: Cluster, job: int) -> None:
    wait_until(f"job {job} is up", lambda: "up" in lines(cluster, job))


def started(cluster: Cluster, job: int) -> list[str]:
    return [entry.text for entry in cluster.client.timeline(job).entries if " started " in entry.text]


def name_of(engine: ContainerEngine, job: int) -> str:
    return next(name for name in engine.containers() if f"-{job}." in name)


def nothing_is_left(engine: ContainerEngine, name: str) -> None:
    wait_until(f"{name} is removed", lambda: name not in engine.containers())
    assert kernel.contained(name) == []


def test_a_node_says_what_it_has(cluster: Cluster, engine: ContainerEngine) -> None:
    [node] = cluster.client.nodes().nodes
    assert node.container_engine.startswith(f"{engine.name} ")
    shown = cluster.pace("nodes", COLUMNS="250").stdout
    assert "CONTAINERS" in shown.upper() and node.container_engine in shown


def test_a_command_runs_in_the_image(cluster: Cluster, engine: ContainerEngine) -> None:
    command = "cat /etc/image; echo; pwd; echo $PACELINE_JOB_NAME; exit 3"
    job = submit(cluster, command, name="here")
    cluster.wait_state(job, "FAILED")
    assert cluster.client.job(job).exit_code == 3
    assert lines(cluster, job) == [INSIDE, str(cluster.folder), "here"]
    assert f", cold: in a container of {engine.name}; prepared image (kept) in " in started(cluster, job)[0]
    assert engine.containers() == []


def test_variables_are_passed_as_they_are_and_not_shown(cluster: Cluster, engine: ContainerEngine) -> None:
    variables = {"SECRET": SECRET}
    job = submit(cluster, f'A="$SECRET"; printf %s "$A"; echo; {UP}', environment_variables=variables)
    is_up(cluster, job)
    assert SECRET in cluster.output(job).decode()
    words = [Path(f"/proc/{pid}/cmdline").read_bytes() for pid in cluster.gang_pids(job, 1)]
    assert words and all(engine.name.encode() in each and b"second line" not in each for each in words)
    [file] = (cluster.agent_state() / "tasks").glob(f"{job}.*/rank-0.env")
    assert file.stat().st_mode & 0o777 == 0o600
    name = name_of(engine, job)
    cluster.client.cancel(job, grace_s=0)
    cluster.wait_state(job, "CANCELLED")
    nothing_is_left(engine, name)


def test_a_script_reports_and_saves_and_goes_on_after_a_kill(cluster: Cluster) -> None:
    (cluster.folder / "train.py").write_text(TRAIN)
    job = submit(cluster, f"{PYTHON} train.py", **with_python())
    cluster.wait_state(job, "SUCCEEDED", timeout_s=COLD_S)
    assert f"{INSIDE} /opt/paceline/paceline/__init__.py 2" in lines(cluster, job)
    story = [entry.text for entry in cluster.client.timeline(job).entries]
    assert any("attempt 1 ended (signal" in text and "code 137" in text for text in story), story
    assert any("goes on from the checkpoint of step 2, read from memory" in text for text in story), story
    assert sorted(one.step for one in cluster.client.checkpoints(job) if one.attempt == 2) == [3, 4]


def test_ranks_meet_at_the_store_of_rank_0(cluster: Cluster) -> None:
    (cluster.folder / "meet.py").write_text(MEET)
    gang = {"distribution": {"type": "pytorch", "process_count_per_instance": 2}}
    job = submit(cluster, f"{PYTHON} meet.py", **gang, **with_python())
    cluster.wait_state(job, "SUCCEEDED", timeout_s=COLD_S)
    assert [line for line in lines(cluster, job) if line.startswith("total")] == [f"total 3.0 {INSIDE}"] * 2


def test_a_cancelled_script_may_say_its_last_words(cluster: Cluster, engine: ContainerEngine) -> None:
    job = submit(cluster, POLITE)
    is_up(cluster, job)
    name = name_of(engine, job)
    assert len(kernel.contained(name)) >= 1
    cluster.client.cancel(job)
    cluster.wait_state(job, "CANCELLED")
    assert "bye" in lines(cluster, job)
    nothing_is_left(engine, name)


def test_a_rank_that_is_killed_and_one_whose_client_is(cluster: Cluster, engine: ContainerEngine) -> None:
    for victim in ("inside", "client"):
        job = submit(cluster, UP, retry={"max_attempts": 1})
        is_up(cluster, job)
        name = name_of(engine, job)
        pid = kernel.contained(name)[0] if victim == "inside" else cluster.gang_pids(job, 1)[0]
        kill(pid)
        failed = cluster.wait_state(job, "FAILED")
        assert failed.exit_code == 137
        nothing_is_left(engine, name)


def test_a_shim_that_dies_leaves_no_container(cluster: Cluster, engine: ContainerEngine) -> None:
    job = submit(cluster, UP, retry={"max_attempts": 1})
    is_up(cluster, job)
    name = name_of(engine, job)
    kill(shim_of(cluster, job))
    cluster.wait_state(job, "FAILED")
    nothing_is_left(engine, name)


def test_an_agent_that_dies_stops_nothing_and_the_next_one_takes_over(
    cluster: Cluster, engine: ContainerEngine
) -> None:
    job = submit(cluster, POLITE)
    is_up(cluster, job)
    name = name_of(engine, job)
    inside = kernel.contained(name)[0]
    cluster.kill_agent()
    cluster.start_agent()
    assert kernel.contained(name)[0] == inside
    cluster.client.cancel(job)
    cluster.wait_state(job, "CANCELLED")
    assert "bye" in lines(cluster, job)
    nothing_is_left(engine, name)


def test_what_died_with_its_shim_while_there_was_no_agent_is_removed_by_the_next(
    cluster: Cluster, engine: ContainerEngine
) -> None:
    job = submit(cluster, UP, retry={"max_attempts": 1})
    is_up(cluster, job)
    name, shim, client = name_of(engine, job), shim_of(cluster, job), cluster.gang_pids(job, 1)[0]
    cluster.kill_agent()
    kill(shim)
    kill(client)
    assert kernel.contained(name), "the container goes on without any of them"
    cluster.start_agent()
    cluster.wait_state(job, "FAILED")
    nothing_is_left(engine, name)


def test_an_image_is_pulled_once_and_its_pull_is_in_the_output(
    cluster: Cluster, engine: ContainerEngine, tmp_path: Path
) -> None:
    image_layout(tmp_path / "layout")
    with serving(tmp_path / "layout") as registry:
        engine.trust(registry.address)
        image = f"{registry.address}/team/ours:1"
        first = submit(cluster, "cat /etc/image", image)
        cluster.wait_state(first, "SUCCEEDED")
        assert f"prepared image (pulled with {engine.name} " in started(cluster, first)[0]
        assert len(lines(cluster, first)) > 1 and lines(cluster, first)[-1] == INSIDE
        asked = len(registry.asked)
        again = submit(cluster, "cat /etc/image", image)
        cluster.wait_state(again, "SUCCEEDED")
        assert lines(cluster, again) == [INSIDE] and len(registry.asked) == asked

        unknown = submit(cluster, "true", f"{registry.address}/team/ours:no-such-tag")
        failed = cluster.wait_state(unknown, "FAILED")
        assert failed.reason is not None
        assert f"image {registry.address}/team/ours:no-such-tag: {engine.name} " in failed.reason.text
        assert "the registry has no such image, or gives it to others only" in failed.reason.text
        assert "manifest unknown" in failed.reason.text
        assert failed.attempt == 1


def test_a_container_that_is_not_started_is_its_nodes_fault(
    cluster: Cluster, engine: ContainerEngine
) -> None:
    image = "localhost/no-shell:1"
    engine("import", "-", image, stdin=root_of_image({}, links={}))
    job = submit(cluster, "true", image, retry={"max_attempts": 2})
    failed = cluster.wait_state(job, "FAILED")
    assert failed.attempt == 2 and failed.reason is not None
    assert f"no container: {engine.name} did not start it" in failed.reason.text
    assert "/bin/sh" in cluster.output(job).decode()


def test_an_image_that_is_none_is_refused(cluster: Cluster) -> None:
    job = submit(cluster, "true", "--privileged")
    failed = cluster.wait_state(job, "FAILED")
    assert failed.reason is not None and "'--privileged' is not the name of an image" in failed.reason.text


def kill(pid: int) -> None:
    os.kill(pid, signal.SIGKILL)


def shim_of(cluster: Cluster, job: int) -> int:
    [folder] = (cluster.agent_state() / "tasks").glob(f"{job}.*")
    found = owner(str(folder))
    assert found is not None
    return found[0]
