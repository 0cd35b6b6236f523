"""What a person is told of the size of a gang, and of where it may be."""

from dataclasses import replace

from paceline.client import codecs
from paceline.client.cli.jobs import facts, gang
from paceline.client.views import Job
from paceline.proto.generated import jobs_pb2
from paceline.spec.job import parse_job


def job(instances: int, *, least: int = 1, most: int = 2, size: str = "") -> Job:
    message = jobs_pb2.JobView(
        job=7,
        state="RUNNING",
        attempt=2,
        instance_count=2,
        min_instance_count=least,
        max_instance_count=most,
        processes_per_task=4,
        size=size,
        tasks=[jobs_pb2.TaskView(task=task) for task in range(instances)],
    )
    return codecs.to_job(message)


def test_a_gang_that_is_smaller_than_asked_for_says_so() -> None:
    small = job(1, size="1 instance (2 asked, 1 to 2): \x1b[31mgrows to 2")
    assert (gang(small), dict(facts(small))["size"]) == (
        "1/2x4",
        "1 instance (2 asked, 1 to 2): \\x1b[31mgrows to 2",
    )
    assert (small.instances, small.world_size) == (1, 8)


def test_bounds_are_told_only_where_there_are_some() -> None:
    assert gang(job(2)) == gang(job(0)) == "2x4"
    assert dict(facts(job(2)))["size"] == "1 to 2 instances"
    assert "size" not in dict(facts(job(2, least=2)))


def test_where_a_job_may_be_is_told_where_it_asks_for_it() -> None:
    spec, _ = parse_job(
        """
command: 'true'
compute: fast
resources: {instance_count: 4, gpus: {count: 2, model: [H100, A100]}}
placement: {labels: {zone: [a, b], disk: nvme}, prefer: {gen: 2}, tolerate: [spot, dedicated=vision]}
topology: {within: rack, mode: preferred}
""",
        "job.yaml",
    )
    told = dict(facts(replace(job(4), pool="fast", document=spec.to_json())))
    assert {
        label: told[label] for label in ("pool", "GPU model", "nodes", "prefers", "tolerates", "topology")
    } == {
        "pool": "fast",
        "GPU model": "H100 or A100",
        "nodes": "with disk=nvme and zone=a or b",
        "prefers": "nodes with gen=2",
        "tolerates": "spot, dedicated=vision",
        "topology": "all of it in one rack, if there is room",
    }
    alone = dict(facts(replace(job(1, most=1), document=spec.to_json())))
    assert "topology" not in alone, "a single instance is always in one rack"
    plain, _ = parse_job("command: 'true'", "job.yaml")
    assert dict(facts(replace(job(4), document=plain.to_json()))).keys() == dict(facts(job(4))).keys()
