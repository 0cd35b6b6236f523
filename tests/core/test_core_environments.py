"""An image goes where a node has a container engine or maps it; a name only where it is mapped."""

import pytest
from paceline.proto.generated import nodes_pb2
from paceline.scheduler.core import stimuli as s
from paceline.scheduler.records import job_from_row, job_row
from paceline.scheduler.services.inventories import inventory_of
from paceline.spec.ids import NodeId
from paceline.spec.lifecycle import JobState
from support.paddock import Paddock, inventory, shape

IMAGE = "pytorch/pytorch:2.9"
NOT_ON_PATH = "no podman, docker, apptainer or singularity on the agent's PATH"


@pytest.fixture
def paddock() -> Paddock:
    return Paddock()


def told(paddock: Paddock, job: int) -> tuple[str, str]:
    reason = paddock.why(job).reasons[0]
    return reason.text, reason.hint


def test_an_image_goes_to_an_engine_or_to_who_maps_it(paddock: Paddock) -> None:
    paddock.node_joins("bare")
    paddock.node_joins("engine", engine="podman 4.3.1")
    paddock.node_joins("mapping", environments=[IMAGE])
    jobs = paddock.submit(*[shape(cpus=8, environment=IMAGE, image=IMAGE)] * 3)
    assert sorted(node for job in jobs for node in paddock.nodes_of(job)) == ["engine", "mapping"]
    text, _ = told(paddock, jobs[2])
    assert f"1 of 3 nodes has no container engine for image '{IMAGE}'" in text


def test_a_name_without_an_image_needs_a_mapping(paddock: Paddock) -> None:
    paddock.node_joins("engine", engine="podman 4.3.1")
    [job] = paddock.submit(shape(environment="torch-2.9"))
    assert told(paddock, job) == (
        "never: none of 1 node has the environment 'torch-2.9'; they have none",
        "map it: `pace agent --environment torch-2.9=/path/to/bin/python`",
    )


def test_what_is_lacking_is_said_with_numbers_and_ends_when_an_engine_comes(paddock: Paddock) -> None:
    for name in ("a", "b", "c"):
        paddock.node_joins(name, no_engine=NOT_ON_PATH)
    paddock.node_joins("d", no_engine="docker does not answer: exit code 1", environments=["jax"])
    [job] = paddock.submit(shape(environment=IMAGE, image=IMAGE))
    assert told(paddock, job) == (
        f"never: none of 4 nodes has a container engine for image '{IMAGE}' (3 say: {NOT_ON_PATH};"
        f" 1 says: docker does not answer: exit code 1), or maps '{IMAGE}'; they map jax",
        "install podman, docker or apptainer on a node and restart its agent, or map it:"
        f" `pace agent --environment {IMAGE}=/path/to/bin/python`",
    )
    facts = inventory("d", engine="docker 26.1")
    paddock.tell(s.InventoryChanged(NodeId("d"), paddock.sessions["d"], facts))
    assert (paddock.state_of(job), paddock.nodes_of(job)) == (JobState.STARTING, ["d"])


def test_what_is_asked_for_survives_a_restart(paddock: Paddock) -> None:
    [job] = paddock.submit(shape(environment=IMAGE, image=IMAGE))
    assert job_from_row(job_row(paddock.job(job))).demand.image == IMAGE
    paddock.scheduler_restarts()
    paddock.node_joins("engine", engine="podman 4.3.1")
    assert paddock.nodes_of(job) == ["engine"]


@pytest.mark.parametrize(
    ("said", "engine", "why"),
    [
        ("podman 4.3.1", "podman 4.3.1", ""),
        ("none: docker does not answer", "", "docker does not answer"),
        ("", "", "its agent is older"),
    ],
)
def test_what_a_node_says_of_its_engine(said: str, engine: str, why: str) -> None:
    facts = inventory_of(nodes_pb2.Inventory(name="n", container_engine=said))
    assert (facts.engine, facts.no_engine) == (engine, why)
