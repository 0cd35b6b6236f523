"""The job document: exact errors with their lines, bounds, defaults, and what survives every round trip."""

import json
import time
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from paceline.spec.errors import InvalidRequest
from paceline.spec.failures import FAILURES, RETRY_CHOICES, FailureClass
from paceline.spec.job import (
    InvalidDocument,
    JobSpec,
    job_from_data,
    parse_canonical,
    parse_job,
    to_yaml,
)
from paceline.spec.resources import GangDemand, Resources
from support.spec_strategies import PLAIN, job_documents


def refused(text: str | bytes) -> str:
    with pytest.raises(InvalidDocument) as caught:
        parse_job(text, "job.yaml")
    return str(caught.value)


def job(**keys: Any) -> JobSpec:
    return job_from_data({"command": "x", **keys})[0]


def test_all_problems_at_once_each_with_its_place() -> None:
    text = """\
type: command
command: >
  python x.py ${{inputs.lrr}}
  ${{inputs.lr}} ${{output.model}}
inputs:
  lr: 0.1
  d: {type: uri_fil, path: ./x}
resources:
  instance_cuont: 3
  cpus: two
  gpus: {cout: 1}
environment_variables: {V: 1.10, 'A B': x}
name: ../x
process_count_per_instance: 2
limits: {timeout: .nan}
"""
    assert refused(text).splitlines() == [
        "job.yaml:3:15: command: '${{inputs.lrr}}': inputs has no 'lrr'; did you mean 'lr'?",
        "job.yaml:4:18: command: '${{output.model}}': there is no 'output'; did you mean 'outputs'?",
        "job.yaml:7:13: inputs.d.type: expected uri_file, uri_folder, mltable, mlflow_model, custom_model,"
        " triton_model; found 'uri_fil'; did you mean 'uri_file'?",
        "job.yaml:9:3: resources.instance_cuont: unknown key; did you mean 'instance_count'?",
        "job.yaml:10:9: resources.cpus: expected a number; found 'two'",
        "job.yaml:11:9: resources.gpus: required key 'count' is missing",
        "job.yaml:11:10: resources.gpus.cout: unknown key; did you mean 'count'?",
        "job.yaml:12:34: environment_variables.'A B': expected the name of an environment variable;"
        " found 'A B'",
        "job.yaml:13:7: name: expected a name of letters, digits, '.', '_' and '-' that begins with a letter"
        " or digit, at most 255 characters; found '../x'",
        "job.yaml:14:1: process_count_per_instance: unknown key;"
        " did you mean 'distribution.process_count_per_instance'?",
        "job.yaml:15:19: limits.timeout: expected a whole number; found nan",
    ]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "job.yaml:1:1: expected a mapping of keys; found nothing"),
        ("[1, 2]", "job.yaml:1:1: expected a mapping of keys; found a list of 2"),
        ("type: command", "job.yaml:1:1: required key 'command' is missing"),
        ("command:", "job.yaml:1:9: command: expected a text; found nothing"),
        ("command: '  '", "job.yaml:1:10: command: expected a command; found nothing to run"),
        ('command: "a\\0b"', "job.yaml:1:10: command: character U+0000 may not stand here"),
        ('command: "\\e[2J"', "job.yaml:1:10: command: character U+001B may not stand here"),
        (
            "command: x\ntype: comand",
            "job.yaml:2:7: type: expected command; found 'comand'; did you mean 'command'?",
        ),
        ("command: x\ntype: 5", "job.yaml:2:7: type: expected command; found 5"),
        (
            "command: x\ntype: Sweep",
            "job.yaml:2:7: type: sweep: this has to be one job, not a sweep; expected command",
        ),
        (
            "command: x\ncomponent: azureml:c@latest",
            "job.yaml:2:1: component: components are not supported yet;"
            " give command, code and environment here",
        ),
        ("command: x\nresources: 4", "job.yaml:2:12: resources: expected a mapping; found 4"),
        (
            "command: x\nresources: {instance_count: '4'}",
            "job.yaml:2:29: resources.instance_count: expected a whole number without quotes; found '4'",
        ),
        (
            "command: x\nresources: {instance_count: true}",
            "job.yaml:2:29: resources.instance_count: expected a whole number; found true",
        ),
        (
            "command: x\nresources: {instance_count: -1}",
            "job.yaml:2:29: resources.instance_count: expected at least 1; found -1",
        ),
        (
            "command: x\nresources: {instance_count: 9999999999}",
            "job.yaml:2:29: resources.instance_count: expected at most 100000; found 9999999999",
        ),
        (
            "command: x\nresources: {cpus: .inf}",
            "job.yaml:2:19: resources.cpus: expected a finite number; found inf",
        ),
        (
            "command: x\nresources: {cpus: -2}",
            "job.yaml:2:19: resources.cpus: expected more than 0; found -2",
        ),
        (
            "command: x\nresources: {cpus: true}",
            "job.yaml:2:19: resources.cpus: expected a number; found true",
        ),
        (
            "command: x\nresources: {memory: 16Gib2}",
            "job.yaml:2:21: resources.memory: expected a size such as 16Gi, 512Mi or 4000000; found '16Gib2'",
        ),
        (
            "command: x\nresources: {memory: -1}",
            "job.yaml:2:21: resources.memory: expected a size from 0 to 1024Ti; found -1",
        ),
        (
            "command: x\nresources: {gpus: many}",
            "job.yaml:2:19: resources.gpus.count: expected a whole number, or less than 1 for a share of"
            " one GPU, such as 0.5; found 'many'",
        ),
        (
            "command: x\nresources: {instance_count: 2, min_instance_count: 3}",
            "job.yaml:2:52: resources.min_instance_count: expected at most instance_count (2); found 3",
        ),
        (
            "command: x\nresources: {instance_count: 2, max_instance_count: 1}",
            "job.yaml:2:52: resources.max_instance_count: expected at least instance_count (2); found 1",
        ),
        (
            "command: x\ndistribution: {type: pytroch}",
            "job.yaml:2:22: distribution.type: expected pytorch, deepspeed, mpi, ray; found 'pytroch';"
            " did you mean 'pytorch'?",
        ),
        ("command: x\ndistribution: {type: mpi, port: 1}", "job.yaml:2:27: distribution.port: unknown key"),
        (
            "command: x\ndistribution: {type: ray, prot: 1}",
            "job.yaml:2:27: distribution.prot: unknown key; did you mean 'port'?",
        ),
        (
            "command: x\ndistribution: {type: ray, process_count_per_instance: 2}",
            "job.yaml:2:27: distribution.process_count_per_instance: unknown key",
        ),
        ("command: x\ndistribution: {}", "job.yaml:2:15: distribution: required key 'type' is missing"),
        (
            "command: x\ndistribution: {type: pytorch, process_count_per_instance: 2000}",
            "job.yaml:2:59: distribution.process_count_per_instance: expected at most 1024; found 2000",
        ),
        (
            "command: x\ndistribution: {type: pytorch, process_count_per_instance: 1024}\n"
            "resources: {instance_count: 1000}",
            "job.yaml:3:29: resources.instance_count: expected at most 1000000"
            " processes in all; found 1024000 (1000 instances of 1024)",
        ),
        (
            "command: x\npriority: 5\nqueue_settings: {priority: high}",
            "job.yaml:2:11: priority: given twice: here and as queue_settings.priority; keep one",
        ),
        (
            "command: x\ncheckpoint: {keep_best: 2}",
            "job.yaml:2:13: checkpoint.best_metric:"
            " required with keep_best: the metric to compare, such as -loss",
        ),
        (
            "command: x\nretry: {on: [signal, exit-cod]}",
            "job.yaml:2:22: retry.on[1]: expected one of out-of-memory, user-error, exception, exit-code,"
            " signal, hang, node-lost, preempted; found 'exit-cod'; did you mean 'exit-code'?",
        ),
        (
            "command: x\nretry: {on: timeout}",
            "job.yaml:2:13: retry.on[0]: expected one of out-of-memory, user-error, exception, exit-code,"
            " signal, hang, node-lost, preempted; found 'timeout': limits.timeout is for all"
            " attempts together",
        ),
        (
            "command: x\nretry: {on: [start-failed]}",
            "job.yaml:2:14: retry.on[0]: expected one of out-of-memory, user-error, exception, exit-code,"
            " signal, hang, node-lost, preempted; found 'start-failed', which is always tried elsewhere",
        ),
        (
            "command: x\nretry: {backof: {}}",
            "job.yaml:2:9: retry.backof: unknown key; did you mean 'backoff'?",
        ),
        (
            "command: x\nretry: {backoff: {start_s: 2, max_s: 1}}",
            "job.yaml:2:38: retry.backoff.max_s: expected at least start_s (2); found 1",
        ),
        (
            "command: x\ninputs: {a: [1]}",
            "job.yaml:2:13: inputs.a: expected a text, a finite number, true, false"
            " or a mapping with 'path'; found a list of 1",
        ),
        (
            "command: x\ninputs: {a: .nan}",
            "job.yaml:2:13: inputs.a: expected a text, a finite number, true, false"
            " or a mapping with 'path'; found nan",
        ),
        (
            "command: x\ninputs: {a: {type: uri_file}}",
            "job.yaml:2:13: inputs.a: required key 'path' is missing",
        ),
        (
            "command: x\ninputs: {../up: 1}",
            "job.yaml:2:10: inputs.'../up': expected a name of letters, digits, '_'"
            " and '-' that begins with a letter or '_', at most 128 characters; found '../up'",
        ),
        (
            "command: x\noutputs: {../up: }",
            "job.yaml:2:11: outputs.'../up': expected a name of letters, digits, '_'"
            " and '-' that begins with a letter or '_', at most 128 characters; found '../up'",
        ),
        (
            'command: x\nname: "a\\nb"',
            "job.yaml:2:7: name: expected a name of letters, digits, '.', '_' and '-' that"
            " begins with a letter or digit, at most 255 characters; found 'a\\nb'",
        ),
        (
            'command: x\ndisplay_name: "a\\e[31mb"',
            "job.yaml:2:15: display_name: expected one line without control or"
            " direction-changing characters; found 'a\\x1b[31mb'",
        ),
        (
            "command: x\ndisplay_name: a\u202eb",
            "job.yaml:2:15: display_name: expected one line without control or"
            " direction-changing characters; found 'a\\u202eb'",
        ),
        (
            "command: x\ndescription: a\u202eb",
            "job.yaml:2:14: description: character U+202E may not stand here",
        ),
        (
            "command: x\nservices: {a: {b: .inf}}",
            "job.yaml:2:15: services.a: expected texts, finite numbers, lists and mappings; found inf",
        ),
        (
            "command: x\nenvironment_variables: {PACELINE_JOB: 1}",
            "job.yaml:2:39: environment_variables.PACELINE_JOB:"
            " PACELINE_ variables are set by paceline alone",
        ),
        (
            "command: x\nenvironment: {description: none}",
            "job.yaml:2:14: environment: expected requirements, conda_file,"
            " an image, or a name that nodes map to an interpreter",
        ),
        (
            "command: x\nenvironment: {requirements: [./our]}",
            "job.yaml:2:29: environment.requirements: './our': nodes do not have this path;"
            " give an absolute one that they have, or an index",
        ),
        ("command: x\nexclusive: 1", "job.yaml:2:12: exclusive: expected true or false; found 1"),
        (
            "command: x ${{search_space.lr}}",
            "job.yaml:1:12: command: '${{search_space.lr}}' has a value only in a"
            " trial of a sweep, or where `params` gives one",
        ),
        ("command: x ${{inputs.a", "job.yaml:1:12: command: '${{' without its '}}'"),
        (
            "command: x ${{ 1+1 }}",
            "job.yaml:1:12: command: '${{ 1+1 }}' is not an expression; expected"
            " '${{inputs.NAME}}' or '${{outputs.NAME}}'",
        ),
        (
            "command: x\nenvironment_variables:\n  A: ${{outputs.m}}",
            "job.yaml:3:6: environment_variables.A: '${{outputs.m}}': outputs has no 'm'",
        ),
    ],
)
def test_refusals(text: str, message: str) -> None:
    assert refused(text) == message


def test_a_hundred_problems_are_not_all_shown() -> None:
    lines = refused("command: x\n" + "\n".join(f"bad{n}: 1" for n in range(100))).splitlines()
    assert lines[-1] == "... and perhaps more"
    assert len(lines) == 51


def test_errors_are_invalid_requests_with_fields() -> None:
    with pytest.raises(InvalidRequest) as caught:
        parse_job("command: x\nnam: y", "job.yaml")
    assert isinstance(caught.value, InvalidDocument)
    (problem,) = caught.value.problems
    assert (problem.source, problem.line, problem.column, problem.key) == ("job.yaml", 2, 1, "nam")
    assert (problem.nearest, caught.value.code, caught.value.retryable) == ("name", "invalid-document", False)


def test_a_problem_says_what_was_expected_and_found() -> None:
    with pytest.raises(InvalidDocument) as caught:
        parse_job("command: x\npriority: high\ndistribution: {type: tensorflow}", "job.yaml")
    assert [(problem.expected, problem.found) for problem in caught.value.problems] == [
        ("a whole number", "'high'"),
        ("pytorch, deepspeed, mpi, ray", ""),
    ]


def test_variables_have_room_for_keys_and_json() -> None:
    pem = "-----BEGIN-----\n" + "A" * 60_000 + "\n"
    assert job(environment_variables={"KEY": pem}).resolved_variables({}) == {"KEY": pem}
    with pytest.raises(
        InvalidDocument, match=r"environment_variables\.KEY: expected at most 100000 characters"
    ):
        job(environment_variables={"KEY": "x" * 100_001})


def test_what_linux_could_not_start_is_refused() -> None:
    long = {"a": "é" * 6000}
    with pytest.raises(
        InvalidDocument, match="command: gets up to 132144 bytes long when resolved; at most 120000"
    ):
        job_from_data({"command": "x" + "${{inputs.a}}" * 11, "inputs": long})
    variables = {f"V{n}": "${{inputs.a}}" * 9 for n in range(20)}
    with pytest.raises(
        InvalidDocument, match=r"environment_variables\.V9: gets up to 10\d+ bytes long together"
    ):
        job_from_data({"command": "x", "inputs": long, "environment_variables": variables})


def test_defaults() -> None:
    spec = job()
    assert spec.demand() == GangDemand(per_task=Resources(cpu_milli=1000))
    assert (spec.retry.max_attempts, spec.priority, spec.exclusive, spec.grace_s) == (4, 0, False, 30.0)
    assert (spec.limits.timeout, spec.limits.log_size) == (None, 256 << 20)
    assert (spec.limits.hang_timeout, spec.limits.hang_timeout_s) == (None, 0.0)
    assert (spec.checkpoint.keep_last, spec.checkpoint.keep_best) == (2, 0)
    assert spec.checkpoint.when_busy == "wait"


@pytest.mark.parametrize(
    ("gpus", "whole", "share_milli"),
    [(0, 0, 0), (2, 2, 0), (0.5, 0, 500), (0.001, 0, 1), ({"count": 0.47, "model": "H100"}, 0, 470)],
)
def test_gpus_are_whole_or_a_share_of_one(gpus: object, whole: int, share_milli: int) -> None:
    spec = job(resources={"gpus": gpus})
    need = spec.demand().per_task
    assert (need.gpus, need.gpu_milli) == (whole, share_milli)
    assert parse_canonical(spec.to_json()) == spec


@pytest.mark.parametrize(
    ("gpus", "why"),
    [
        ("1.5", "or less than 1 for a share of one GPU, such as 0.5; found 1.5: ask for 1 or 2"),
        ("-1", "from 0 to 1024; found -1"),
        ("2000", "from 0 to 1024; found 2000"),
        (".inf", "from 0 to 1024; found inf"),
        (".nan", "from 0 to 1024; found nan"),
        ("0.0001", "expected a share from 0.001 to 0.999, to three decimals; found 0.0001"),
        ("0.3333", "expected a share from 0.001 to 0.999, to three decimals; found 0.3333"),
        ("true", "such as 0.5; found true"),
    ],
)
def test_no_other_amounts_of_gpus(gpus: str, why: str) -> None:
    with pytest.raises(InvalidDocument) as caught:
        parse_job(f"command: x\nresources:\n  gpus: {gpus}", "job.yaml")
    [problem] = caught.value.problems
    assert str(problem).startswith("job.yaml:3:9: resources.gpus.count: expected ")
    assert str(problem).endswith(why)


def test_demand() -> None:
    spec = job(
        distribution={"type": "pytorch", "process_count_per_instance": 8},
        resources={
            "instance_count": 4,
            "min_instance_count": 2,
            "max_instance_count": 6,
            "cpus": 0.0001,
            "memory": "1.5Gi",
            "gpus": {"count": 8, "model": ["H100", "H200"]},
        },
        environment="torch",
        exclusive=True,
    )
    assert spec.demand() == GangDemand(
        per_task=Resources(cpu_milli=1, memory_bytes=3 << 29, gpus=8),
        instance_count=4,
        instance_count_min=2,
        instance_count_max=6,
        processes_per_task=8,
        gpu_models=("H100", "H200"),
        environment="torch",
        exclusive=True,
        rendezvous=True,
    )


@pytest.mark.parametrize(
    ("keys", "label"),
    [
        ({"name": "n"}, "n"),
        ({"display_name": " Größe: 1/2 "}, "Gr-e-1-2"),
        ({"experiment_name": "e"}, "e"),
        ({"code": "../my code/"}, "my-code"),
        ({"command": "/usr/bin/python3 x.py"}, "python3"),
        ({"command": "!!!"}, "job"),
    ],
)
def test_a_job_has_something_to_be_called_by(keys: dict[str, str], label: str) -> None:
    assert job(**keys).label == label


@pytest.mark.parametrize(
    ("size", "count"),
    [
        ("16Gi", 16 << 30),
        ("1k", 1000),
        ("1KiB", 1024),
        ("0.5M", 500_000),
        ("7", 7),
        (9, 9),
        ("2 TB", 2 * 10**12),
    ],
)
def test_sizes(size: object, count: int) -> None:
    assert job(resources={"memory": size}).resources.memory == count


def test_paths_are_rooted_at_the_job_file() -> None:
    inputs = {
        "a": {"path": "data"},
        "b": {"path": "file:///mnt/b"},
        "c": {"path": "s3://b/c", "mode": "direct"},
        "d": "x",
    }
    spec = job(code="../src/.", inputs=inputs).rooted("/home/me/jobs")
    assert spec.code == "/home/me/src"
    assert spec.input_values() == {"a": "/home/me/jobs/data", "b": "/mnt/b", "c": "s3://b/c", "d": "x"}
    assert parse_canonical(spec.to_json()) == spec


def test_the_wire_takes_no_relative_path() -> None:
    with pytest.raises(InvalidDocument) as caught:
        parse_canonical(job(code="src", inputs={"d": {"path": "x"}}).to_json(), "job 1 of 3")
    assert str(caught.value).splitlines() == [
        "job 1 of 3: code: expected an absolute path; found 'src'",
        "job 1 of 3: inputs.d.path: expected an absolute path; found 'x'",
    ]


@pytest.mark.parametrize(
    "text",
    [
        "",
        "null",
        "[]",
        "{",
        '{"command": 1}',
        '{"command": "x", "nam": 1}',
        '{"command": "x ${{inputs.a}}"}',
        '{"command": "x", "grace_s": NaN}',
        '{"command": "x", "services": {"a": Infinity}}',
        '{"command": "\\ud800"}',
        '{"command": "x", "environment_variables": {"PACELINE_JOB": ""}}',
        "[" * 100_000,
        '{"command": "x", "priority": 1' + "0" * 10_000 + "}",
        " " * ((1 << 20) + 1),
        '{"command": "x", "services": {"a": 1' + "0" * 5000 + "}}",
    ],
    ids=lambda text: text[:30],
)
def test_the_wire_is_checked_anew(text: str) -> None:
    with pytest.raises(InvalidDocument) as caught:
        parse_canonical(text)
    assert len(str(caught.value)) < 1000


def test_what_is_retried_is_a_list_in_one_order_or_one_word() -> None:
    listed = job(retry={"on": ["node-lost", "Exit-Code", "exit-code"]}).retry.on
    assert listed == (FailureClass.EXIT_CODE, FailureClass.NODE_LOST)
    assert job(retry={"on": "signal"}).retry.on == (FailureClass.SIGNAL,)
    assert job(retry={"on": []}).retry.on == ()
    assert FailureClass.USER_ERROR not in job().retry.on
    assert job().retry.on == tuple(kind for kind in RETRY_CHOICES if FAILURES[kind].retried)


def test_every_class_of_failure_has_a_rule_and_what_is_counted_may_be_named() -> None:
    assert set(FAILURES) == set(FailureClass)
    assert all(rule.meaning and rule.hint for rule in FAILURES.values())
    assert all(rule.choice for rule in FAILURES.values() if rule.counted)


def test_canonical_text_is_sorted_and_holds_the_defaults() -> None:
    text = job(tags={"b": 1, "a": 2}).to_json()
    assert text == json.dumps(json.loads(text), sort_keys=True, separators=(",", ":"))
    assert json.loads(text)["retry"] == {
        "max_attempts": 4,
        "on": ["out-of-memory", "exception", "exit-code", "signal", "hang", "node-lost", "preempted"],
        "backoff": {"start_s": 1.0, "max_s": 60.0},
    }
    assert text == job(tags={"a": "2", "b": "1"}).to_json()


@settings(max_examples=200)
@given(job_documents())
def test_document_to_text_to_document(data: dict[str, Any]) -> None:
    spec, _ = job_from_data(data)
    again, _ = parse_job(to_yaml(data), "job.yaml")
    assert again == spec
    written = spec.to_json()
    assert parse_job(to_yaml(json.loads(written)), "job.yaml")[0].to_json() == written
    rooted = spec.rooted("/jobs")
    assert parse_canonical(rooted.to_json()) == rooted
    assert parse_canonical(rooted.to_json()).to_json() == rooted.to_json()
    assert rooted.demand() == spec.demand()
    outputs = dict.fromkeys(spec.outputs, "/o")
    assert "${{ outputs." not in rooted.resolved_command(outputs)


KEYS = st.sampled_from(sorted(info.alias or name for name, info in JobSpec.model_fields.items()))


@settings(max_examples=400)
@given(st.dictionaries(st.one_of(KEYS, st.text(max_size=5)), PLAIN, max_size=6))
@example({"command": "x", "inputs": {"a": {"value": {"path": "p"}}}})
@example({"environment_variables": {"A": []}, "command": "x", "tags": [1]})
def test_no_data_raises_anything_but_its_own_error(data: dict[str, Any]) -> None:
    try:
        spec, _ = job_from_data({"command": "x", **data})
        assert JobSpec.model_validate_json(spec.to_json()) == spec
        parse_job(to_yaml(data), "job.yaml")
    except InvalidDocument as error:
        assert str(error).replace("\n", "").isprintable()


ODD = st.one_of(st.text(max_size=40), st.binary(max_size=40))


@settings(max_examples=200)
@given(ODD, st.lists(st.text(max_size=20), max_size=2))
@example("command: x", ["=", "a=b"])
@example("command: x\ninputs: 3", ["inputs.a=1"])
@example("", ["command=x"])
def test_no_text_raises_anything_but_its_own_error(text: str | bytes, overrides: list[str]) -> None:
    for read in (lambda: parse_job(text, "x", overrides), lambda: parse_canonical(text)):
        try:
            read()
        except InvalidDocument as error:
            assert error.problems


def test_data_that_refers_to_itself_is_refused() -> None:
    loop: dict[str, Any] = {}
    loop |= {"a": loop, "b": loop, "c": [loop, loop]}
    with pytest.raises(InvalidDocument, match=r"more than|nested"):
        job_from_data({"command": "x", "services": loop})


@pytest.mark.parametrize(
    "text",
    [
        "command: x\n" + "\n".join(f"instance_cuont{n}: 1" for n in range(9000)),
        "inputs: {"
        + ",".join(f"input_number_{n}: 1" for n in range(900))
        + "}\ncommand: "
        + " ".join(f"${{{{inputs.input_nubmer_{n}}}}}" for n in range(30_000)),
        "command: " + "${{" * 300_000,
        "command: " + "${{a}}" * 150_000,
    ],
    ids=["unknown keys", "unknown inputs", "open", "not expressions"],
)
def test_faults_buy_no_work(text: str) -> None:
    started = time.process_time()
    refused(text)
    assert time.process_time() - started < 2


def test_faults_on_the_wire_buy_no_work() -> None:
    data = {
        "command": "x " + "${{inputs.input_nubmer}}" * 4000,
        "inputs": {f"input_number_{n}": 1 for n in range(900)},
    }
    started = time.process_time()
    for body in (data, {f"instance_cuont{n}": 1 for n in range(50_000)}):
        with pytest.raises(InvalidDocument):
            parse_canonical(json.dumps(body))
    assert time.process_time() - started < 2


@pytest.mark.parametrize(
    ("written", "seconds"), [("600", 600.0), ("off", -1.0), ("'off'", -1.0), ("OFF", -1.0), ("0", -1.0)]
)
def test_a_hang_timeout_is_seconds_or_off(written: str, seconds: float) -> None:
    """YAML reads a bare `off` as false."""
    spec, _ = parse_job(f"command: x\nlimits: {{hang_timeout: {written}}}", "job.yaml")
    assert spec.limits.hang_timeout_s == seconds
    assert parse_canonical(spec.to_json()).limits == spec.limits
    with pytest.raises(InvalidDocument, match=r"limits\.hang_timeout"):
        parse_job("command: x\nlimits: {hang_timeout: soon}", "job.yaml")


@pytest.mark.parametrize(
    "url",
    [
        *("s3://bucket", "s3://bucket/prefix", "gs://b/p", "abfs://c@a/p", "oci://bucket@space/p"),
        *("hdfs://name:8020/runs", "sftp://user@host/runs", "smb://host/share/runs", "ftp://host/x"),
        *("file:///mnt/nfs", "local:///mnt/nfs", "/mnt/nfs/runs", ""),
    ],
)
def test_checkpoints_are_uploaded_to_what_something_opens(url: str) -> None:
    spec, _ = parse_job(f"command: x\ncheckpoint: {{storage: '{url}'}}", "job.yaml")
    assert spec.checkpoint.storage == url
    assert parse_canonical(spec.to_json()).checkpoint == spec.checkpoint


@pytest.mark.parametrize(
    ("url", "why"),
    [
        *((url, "") for url in ("s3://", "bucket/prefix", "file://mnt/nfs", "local://mnt", "s3:/b/x")),
        ("s4://bucket/x", "; fsspec opens no s4:"),
        ("https://host/x", "; what https: names cannot be written to"),
        ("github://o:r@main/x", "; what github: names cannot be written to"),
        ("memory://x", "; what memory: names is in one process or on one machine"),
        ("zip://a.zip", "; what zip: names lies within another place"),
        ("simplecache::s3://b/x", ", and no URL within another"),
    ],
)
def test_other_places_are_refused_with_the_reason(url: str, why: str) -> None:
    with pytest.raises(InvalidDocument) as caught:
        parse_job(f"command: x\ncheckpoint: {{storage: '{url}'}}", "job.yaml")
    expected = f"checkpoint.storage: expected a URL like s3://bucket/prefix or an absolute path{why}; found"
    assert expected in str(caught.value)


@pytest.mark.parametrize(
    ("written", "seconds"), [("", 86_400.0), ("scrub_interval: 60", 60.0), ("scrub_interval: off", 0.0)]
)
def test_a_scrub_interval_is_seconds_or_off(written: str, seconds: float) -> None:
    spec, _ = parse_job(f"command: x\ncheckpoint: {{{written}}}", "job.yaml")
    assert spec.checkpoint.scrub_s == seconds


@pytest.mark.parametrize(
    ("written", "wanted"), [("", True), ("peer_memory: off", False), ("peer_memory: true", True)]
)
def test_peers_memory_is_used_unless_it_is_turned_off(written: str, wanted: bool) -> None:
    spec, _ = parse_job(f"command: x\ncheckpoint: {{{written}}}", "job.yaml")
    assert spec.checkpoint.peer_memory is wanted
    assert parse_canonical(spec.to_json()).checkpoint == spec.checkpoint
    with pytest.raises(InvalidDocument, match=r"job\.yaml:2.*checkpoint\.peer_memory"):
        parse_job("command: x\ncheckpoint: {peer_memory: some}", "job.yaml")
