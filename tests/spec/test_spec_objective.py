"""Sweeps by function: trial.objective in place of a command."""

import pytest
from paceline.spec.sweep import SweepSpec
from paceline.spec.sweep_reading import parse_canonical_sweep, parse_document
from support.sweeps import LIMITS, SPACE, as_sweep, refused

HEAD = "type: sweep\ntrial: {objective: 'objective.py:objective', code: /code}\n"
GOAL = "objective: {goal: minimize}\n"


def read(text: str) -> SweepSpec:
    return as_sweep(parse_document(text, "s.yaml")[0])


def test_the_job_that_runs_its_trials() -> None:
    spec = read(f"{HEAD}{GOAL}{LIMITS}name: fit\n")
    assert spec.by_function and spec.trials_max() == 9
    job = spec.trial_job(2, {})
    assert job.command == "python -m paceline.training.objectives objective.py:objective"
    assert (job.name, job.code, job.params) == ("fit-worker-2", "/code", {})


def test_objectives_need_no_names() -> None:
    assert [one.primary_metric for one in read(f"{HEAD}{GOAL}{LIMITS}").objectives] == ["value"]
    several = "objective: [{goal: minimize}, {goal: maximize, primary_metric: speed}, {goal: minimize}]\n"
    names = [one.primary_metric for one in read(f"{HEAD}{several}{LIMITS}").objectives]
    assert names == ["value", "speed", "value_2"]


def test_its_canonical_text_is_itself() -> None:
    spec = read(f"{HEAD}{GOAL}{LIMITS}enqueue: [{{lr: 0.1}}]\n")
    text = spec.to_json()
    assert parse_canonical_sweep(text) == spec
    assert parse_canonical_sweep(text).to_json() == text


@pytest.mark.parametrize("target", ["a.py:f", "sub/a-b.py:f", "pack.mod:f", "mod:f"])
def test_what_names_a_function(target: str) -> None:
    spec = read(f"type: sweep\ntrial: {{objective: '{target}', code: /code}}\n{GOAL}{LIMITS}")
    assert spec.trial.objective == target


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            f"{HEAD}{SPACE}{GOAL}{LIMITS}",
            "s.yaml:3:15: search_space: not with trial.objective, which asks its trial for values",
        ),
        (
            f"type: sweep\ntrial: {{objective: 'a.py:f', command: x, code: /c}}\n{GOAL}{LIMITS}",
            "s.yaml:2:39: trial.command: given beside objective; keep one of them",
        ),
        (
            f"type: sweep\ntrial: {{objective: a.py, code: /c}}\n{GOAL}{LIMITS}",
            "s.yaml:2:20: trial.objective: expected FILE.py:FUNCTION or PACKAGE.MODULE:FUNCTION; found",
        ),
        (
            f"type: sweep\ntrial: {{}}\n{SPACE}{GOAL}{LIMITS}",
            "s.yaml:2:8: trial: required key 'command' is missing",
        ),
        (
            f"{HEAD}{GOAL}{LIMITS}sampling_algorithm: grid\n",
            "s.yaml:5:21: sampling_algorithm: grid needs a search_space; trial.objective has none",
        ),
        (
            f"{HEAD}{GOAL}{LIMITS}constraints: [size]\n",
            "s.yaml:5:14: constraints: not with trial.objective yet",
        ),
        (
            f"{HEAD}{GOAL}limits: {{max_total_trials: 9, trial_timeout: 5}}\n",
            "s.yaml:4:46: limits.trial_timeout: not with trial.objective: its trials share a process",
        ),
        (
            "type: sweep\ntrial: {objective: 'a.py:f', code: /c, resources: {instance_count: 2}}\n"
            f"{GOAL}{LIMITS}",
            "s.yaml:2:68: trial.resources.instance_count: an objective runs in one process;",
        ),
    ],
)
def test_what_does_not_go_with_it(text: str, message: str) -> None:
    assert message in refused(text)
