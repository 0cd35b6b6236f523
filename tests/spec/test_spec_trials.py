"""A sweep's trials as ordinary jobs, and job files in the place of its `trial`."""

import json
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from paceline.spec.errors import InvalidRequest
from paceline.spec.job import JobSpec, parse_canonical
from paceline.spec.sweep_reading import (
    TrialFile,
    document_from_data,
    parse_canonical_document,
    parse_document,
)
from support.sweep_strategies import sweep_documents
from support.sweeps import GOAL, LIMITS, as_sweep, refused, sweep


def test_a_trial_is_an_ordinary_job() -> None:
    spec = sweep(
        name="digits",
        trial={
            "command": "train --lr ${{search_space.lr}} --m ${{search_space.m}}"
            " ${{inputs.data}} ${{outputs.o}}",
            "code": "/src",
            "environment_variables": {"M": "m=${{search_space.m}}", "LR": "${{search_space.lr}}"},
            "resources": {"gpus": 0.5, "instance_count": 2},
            "distribution": {"type": "pytorch", "process_count_per_instance": 2},
            "retry": {"max_attempts": 2},
            "limits": {"timeout": 7, "hang_timeout": 60},
        },
        search_space={
            "lr": {"type": "uniform", "min_value": 0.1, "max_value": 0.2},
            "m": {"type": "uniform", "min_value": 0, "max_value": 1, "when": {"opt": "sgd"}},
            "opt": {"type": "choice", "values": ["sgd", "adam", None]},
        },
        inputs={"data": {"path": "/data"}, "opt": "none"},
        outputs={"o": None},
        queue="research",
        compute="pool",
        experiment_name="e",
        priority=7,
        limits={"max_total_trials": 3, "trial_timeout": 99},
        tags={"a": "b"},
    )
    job = spec.trial_job(12, {"lr": 0.15, "opt": "adam"})
    assert parse_canonical(job.to_json()) == job
    assert job.label == "digits-12"
    assert job.resolved_command({"o": "/o"}) == "train --lr 0.15 --m  /data /o"
    assert job.params == {"lr": 0.15, "opt": "adam"}
    assert job.inputs["opt"] == "adam", "an input of the same name has the trial's value"
    assert (job.queue, job.compute, job.experiment_name, job.priority) == ("research", "pool", "e", 7)
    assert (job.limits.timeout, job.limits.hang_timeout, job.retry.max_attempts) == (99, 60, 2)
    assert job.demand().per_task.gpu_milli == 500 and job.demand().instance_count == 2
    assert job.resolved_variables({}) == {
        "M": "m=",
        "LR": "0.15",
        "PACELINE_PARAMS": '{"lr": 0.15, "opt": "adam"}',
        "PACELINE_PARAM_lr": "0.15",
        "PACELINE_PARAM_opt": "adam",
    }
    other = spec.trial_job(0, {"lr": 0.1, "opt": None, "m": 0.5})
    assert other.resolved_command({"o": "/o"}) == "train --lr 0.1 --m 0.5 /data /o"
    assert other.inputs["opt"] == "" and other.param_variables()["PACELINE_PARAM_opt"] == ""
    assert json.loads(other.param_variables()["PACELINE_PARAMS"])["opt"] is None


def test_the_name_of_a_trial_fits() -> None:
    job = sweep(name="n" * 255).trial_job(123456, {"lr": 0.1})
    assert len(job.label) == 255 and job.label.endswith("n-123456")
    assert sweep().trial_job(1, {"lr": 0.1}).label == "sweep-1"
    assert sweep(display_name="My sweep!").label == "My-sweep"


def test_params_of_a_job_by_hand() -> None:
    text = "command: x ${{search_space.lr}} ${{ search_space.b }}\nparams: {lr: 0.1, b: true}\n"
    spec, _ = parse_document(text, "job.yaml", ["params.lr=0.2"])
    assert isinstance(spec, JobSpec) and spec.resolved_command({}) == "x 0.2 True"
    assert refused(text.replace("lr:", "lrr:")) == (
        "s.yaml:1:12: command: '${{search_space.lr}}': search_space has no 'lr'; did you mean 'lrr'?"
    )
    assert refused(text, None, "params.rl=1") == ("--set params.rl=1: params.rl: the job has no such value")
    assert refused("command: x\nparams: {a: [1]}").startswith(
        "s.yaml:2:13: params.a: expected a text, a number"
    )


TRIAL = """\
$schema: https://azuremlschemas.azureedge.net/latest/commandJob.schema.json
name: single
command: >-
  python train.py --lr ${{inputs.lr}} --data ${{inputs.data}}
  --model ${{outputs.model}}
code: ../src
inputs:
  lr: 0.1
  data: {path: ./images}
outputs:
  model: {type: uri_folder}
environment_variables: {VERSION: 1.10}
compute: gpus
"""
OVER_FILE = f"type: sweep\ntrial: file:./jobs/train.yaml\n{GOAL}{LIMITS}" + (
    "search_space: {lr: {type: uniform, min_value: 0, max_value: 1}}\n"
)


def reader(text: str, folder: str = "/work/jobs") -> Callable[[str], TrialFile]:
    return lambda path: TrialFile(text, path.removeprefix("./"), folder)


def test_any_job_file_is_a_trial() -> None:
    found, cautions = parse_document(OVER_FILE, "s.yaml", (), reader(TRIAL))
    spec = as_sweep(found)
    job = spec.trial_job(3, {"lr": 0.7})
    assert job.resolved_command({"model": "/o"}) == (
        "python train.py --lr 0.7 --data /work/jobs/images --model /o"
    )
    assert (job.code, job.environment_variables, job.label) == ("/work/src", {"VERSION": "1.10"}, "src-3")
    assert [str(caution) for caution in cautions] == [
        "jobs/train.yaml:13:1: compute: not used in a trial; say it in the sweep"
    ]
    rooted = spec.rooted("/elsewhere")
    assert rooted.trial.code == "/work/src" and parse_canonical_document(rooted.to_json()) == rooted


def test_what_the_sweep_says_goes_before_what_the_file_says() -> None:
    text = f"{OVER_FILE}inputs: {{data: /mine, more: 1}}\noutputs: {{other: }}\n"
    spec = as_sweep(parse_document(text, "s.yaml", ["trial.code=/there"], reader(TRIAL))[0])
    assert spec.input_values() == {"lr": "0.1", "data": "/mine", "more": "1"}
    assert spec.outputs.keys() == {"model", "other"} and spec.trial.code == "/there"


def test_another_file_by_override() -> None:
    paths = []

    def read(path: str) -> TrialFile:
        paths.append(path)
        return TrialFile(TRIAL, path, "/work/jobs")

    parse_document(OVER_FILE, "s.yaml", ["trial=other.yaml", "trial.grace_s=5"], read)
    assert paths == ["other.yaml"]


def test_problems_of_a_trial_file_name_it_and_its_lines() -> None:
    broken = TRIAL.replace("outputs.model", "outputs.modle").replace("VERSION: 1.10", "A B: x")
    broken = broken.replace("code:", "cdoe:").replace("path: ./images", "pth: ./images")
    assert refused(OVER_FILE.replace("max_total", "max_totl"), reader(broken)).splitlines() == [
        "jobs/train.yaml:5:11: trial.command: '${{outputs.modle}}': outputs has no 'modle';"
        " did you mean 'model'?",
        "jobs/train.yaml:6:1: trial.cdoe: unknown key; did you mean 'code'?",
        "jobs/train.yaml:9:9: inputs.data: required key 'path' is missing",
        "jobs/train.yaml:9:10: inputs.data.pth: unknown key; did you mean 'path'?",
        "jobs/train.yaml:12:25: trial.environment_variables.'A B': expected the name of an environment"
        " variable; found 'A B'",
        "s.yaml:4:10: limits.max_totl_trials: unknown key; did you mean 'max_total_trials'?",
    ]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[1]", "jobs/train.yaml:1:1: expected a mapping of keys; found a list of 1"),
        (
            "type: sweep",
            "jobs/train.yaml:1:7: type: sweep: this has to be one job, not a sweep; expected command",
        ),
        ("command: x\ninputs: [1]", "jobs/train.yaml:2:9: inputs: expected a mapping; found a list of 1"),
        ("a: [", "jobs/train.yaml:2:1: not valid YAML: did not find expected node content"),
    ],
)
def test_files_that_are_no_trial(text: str, message: str) -> None:
    assert refused(OVER_FILE, reader(text)).startswith(message)


def test_files_that_cannot_be_read() -> None:
    def nowhere(path: str) -> TrialFile:
        raise InvalidRequest(f"cannot read the file {path}: gone", hint="give the path of a YAML file")

    assert refused(OVER_FILE, nowhere) == (
        "s.yaml:2:8: trial: cannot read the file ./jobs/train.yaml: gone; give the path of a YAML file"
    )
    assert refused(OVER_FILE.replace("file:./jobs/train.yaml", "azureml:train@latest"), nowhere) == (
        "s.yaml:2:8: trial: components are not looked up here; give the path of a job file, or a mapping with"
        " its command"
    )
    assert refused(OVER_FILE) == (
        "s.yaml:2:8: trial: expected a mapping; found 'file:./jobs/train.yaml', and job files are read by"
        " clients only"
    )


def test_a_component_of_azure_is_a_trial() -> None:
    component = """\
name: train
version: 3
type: command
is_deterministic: false
inputs:
  lr: {type: number}
  epochs: {type: integer, default: 10}
  data: {type: uri_folder}
outputs:
  model: {type: mlflow_model}
code: .
environment: azureml:torch@latest
command: train ${{inputs.lr}} ${{inputs.epochs}} ${{inputs.data}} ${{outputs.model}}
"""
    text = f"{OVER_FILE}inputs: {{data: {{path: /data}}}}\n"
    found, cautions = parse_document(text, "s.yaml", (), reader(component))
    job = as_sweep(found).trial_job(0, {"lr": 0.5})
    assert job.resolved_command({"model": "/m"}) == "train 0.5 10 /data /m"
    assert cautions == () and job.demand().environment == "torch"


@settings(max_examples=150)
@given(sweep_documents(), st.integers(0, 10**6), st.floats(0, 1))
def test_every_trial_is_a_job_that_the_scheduler_takes(
    data: dict[str, Any], number: int, part: float
) -> None:
    spec = as_sweep(document_from_data(data, "sweep")[0]).running_in("/here").rooted("/here")
    longest = {name: dimension.longest() for name, dimension in spec.search_space.items()}
    some = {name: value for at, (name, value) in enumerate(longest.items()) if at < part * len(longest)}
    for params in (longest, some, {}):
        job = spec.trial_job(number, params)
        assert parse_canonical(job.to_json()) == job
        assert job.label.endswith(f"-{number}") and "${{" not in job.resolved_command({})
