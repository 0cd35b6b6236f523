"""What a job file may say fits into the message that starts it."""

from pathlib import Path

from paceline.scheduler.services.starts import start_message
from paceline.spec.job import parse_job
from paceline.spec.policies import Checkpoint
from support.paddock import Paddock, shape


def test_the_largest_numbers_of_a_checkpoint_policy_fit() -> None:
    paddock = Paddock()
    paddock.node_joins("n1")
    [job] = paddock.submit(shape(1))
    counts = ("keep_last", "keep_best", "keep_every")
    most = {name: _largest(name) for name in counts}
    lines = ", ".join(f"{name}: {value}" for name, value in most.items())
    spec, _ = parse_job(f"command: x\ncheckpoint: {{best_metric: loss, {lines}}}", "job.yaml")
    start = start_message(paddock.starts_sent(job)[-1], spec, Path("/storage"), {}, cluster="mine")
    assert {name: getattr(start, name) for name in counts} == most


def _largest(name: str) -> int:
    return int(Checkpoint.model_json_schema()["properties"][name]["maximum"])
