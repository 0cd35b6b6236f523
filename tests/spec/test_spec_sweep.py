"""The sweep's document: exact errors with their lines, its trials as jobs, job files in its place, round trips."""

import json
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from paceline.spec.errors import InvalidRequest
from paceline.spec.job import InvalidDocument, JobSpec, parse_canonical
from paceline.spec.sweep import SweepSpec
from paceline.spec.sweep_reading import (
    Spec,
    TrialFile,
    document_from_data,
    parse_canonical_document,
    parse_document,
)
from support.spec_strategies import PLAIN
from support.sweep_strategies import sweep_documents

HEAD = "type: sweep\ntrial: {command: x}\n"
SPACE = "search_space: {a: {type: choice, values: [1, 2]}, u: {type: uniform, min_value: 0, max_value: 1}}\n"
GOAL = "objective: {primary_metric: loss, goal: minimize}\n"
LIMITS = "limits: {max_total_trials: 9}\n"


def refused(text: str, reader: Callable[[str], TrialFile] | None = None, *overrides: str) -> str:
    with pytest.raises(InvalidDocument) as caught:
        parse_document(text, "s.yaml", overrides, reader)
    return str(caught.value)


def sweep(**keys: Any) -> SweepSpec:
    base = {
        "type": "sweep",
        "trial": {"command": "train --lr ${{search_space.lr}}"},
        "search_space": {"lr": {"type": "uniform", "min_value": 0.1, "max_value": 0.2}},
        "objective": {"primary_metric": "loss", "goal": "minimize"},
        "limits": {"max_total_trials": 9},
    }
    return as_sweep(document_from_data({**base, **keys}, "sweep")[0])


def as_sweep(spec: Spec) -> SweepSpec:
    assert isinstance(spec, SweepSpec)
    return spec


def test_all_problems_at_once_each_with_its_place() -> None:
    text = """\
type: sweep
trial:
  command: >
    python x.py ${{search_space.lrr}}
    ${{search_space.lr}}
  resorces: {gpus: 1}
  resources: {cpus: two}
sampling_algorithm: bayesain
search_space:
  lr: {type: loguniform, min_value: -1, max_value: -5}
  batch: {type: choise, values: [16, 32]}
  layers:
    type: choice
    value: [1]
    values: [1, [2, 3]]
  depth: {upper: 4}
objective: {primary_metric: loss, goal: minimise}
early_termination: {type: bandit, slack_factor: 0.1, slack_amount: 1}
limits: {max_total_trials: 0, max_concurent_trials: 4}
command: x
"""
    kinds = (
        "choice, randint, int, float, uniform, quniform, loguniform, qloguniform, normal, qnormal, lognormal,"
        " qlognormal"
    )
    assert refused(text).splitlines() == [
        "s.yaml:4:17: trial.command: '${{search_space.lrr}}': search_space has no 'lrr'; did you mean 'lr'?",
        "s.yaml:6:3: trial.resorces: unknown key; did you mean 'resources'?",
        "s.yaml:7:21: trial.resources.cpus: expected a number; found 'two'",
        "s.yaml:8:21: sampling_algorithm.type: expected random, sobol, grid, tpe, bayesian, gp, cmaes, nsga2,"
        " qmc, bruteforce; found 'bayesain'; did you mean 'bayesian'?",
        "s.yaml:10:52: search_space.lr.max_value: expected at least min_value (-1); found -5",
        f"s.yaml:11:17: search_space.batch.type: expected {kinds}; found 'choise'; did you mean 'choice'?",
        "s.yaml:14:5: search_space.layers.value: unknown key; did you mean 'values'?",
        "s.yaml:15:17: search_space.layers.values[1]: expected a text, a number, true, false or null;"
        " found a list of 2: give its parts dimensions of their own, with `when` where they depend on another",
        "s.yaml:16:10: search_space.depth: required key 'type' is missing",
        "s.yaml:17:41: objective.goal: expected minimize, maximize; found 'minimise';"
        " did you mean 'minimize'?",
        "s.yaml:18:20: early_termination: expected slack_factor or slack_amount, and one of them only",
        "s.yaml:19:28: limits.max_total_trials: expected at least 1; found 0",
        "s.yaml:19:31: limits.max_concurent_trials: unknown key; did you mean 'max_concurrent_trials'?",
        "s.yaml:20:1: command: unknown key; did you mean 'trial.command'?",
    ]


@pytest.mark.parametrize(
    ("dimension", "message"),
    [
        ("5", "expected a mapping; found 5"),
        ("{type: choice, values: []}", "values: expected a list of values; found an empty one"),
        ("{type: choice, values: [a, b, a]}", "values[2]: expected different values; 'a' is there before"),
        (
            "{type: choice, values: [1, true]}",
            "values[1]: expected different values; true is there before (true is 1 to a sampler)",
        ),
        (
            "{type: choice, values: [.nan]}",
            "values[0]: expected a text of one line, a finite number, true, false or null; found nan",
        ),
        ("{type: randint, upper: 0}", "upper: expected at least 1; found 0"),
        (
            "{type: uniform, min_value: 1, max_value: 0}",
            "max_value: expected at least min_value (1); found 0",
        ),
        (
            "{type: uniform, min_value: -1.7e308, max_value: 1.7e308}",
            "the bounds are too far from each other for floats",
        ),
        ("{type: quniform, min_value: 0, max_value: 1, q: 0}", "q: expected more than 0; found 0"),
        (
            "{type: quniform, min_value: 0, max_value: 1, q: 1.0e-9}",
            "q: expected at least 1e-07, for floats to count them; found 1e-09",
        ),
        (
            "{type: loguniform, min_value: 0, max_value: 1000}",
            "max_value: expected at most 700; found 1000",
        ),
        ("{type: normal, mu: 0, sigma: 0}", "sigma: expected more than 0; found 0"),
        (
            "{type: lognormal, mu: 100, sigma: 200}",
            "sigma: expected mu and six sigma together at most 700, for floats to hold the value; found 1299.56",
        ),
        ("{type: int, low: 4, high: 3}", "high: expected at least low (4); found 3"),
        ("{type: int, low: 0, high: 3, log: true}", "low: expected more than 0 with log: true; found 0"),
        (
            "{type: int, low: 1, high: 3, log: true, step: 2}",
            "step: expected no step with log: true",
        ),
        ("{type: float, low: 0, high: 1, q: 0.1}", "q: unknown key"),
        (
            "{type: uniform, min_value: 0, max_value: 1, when: {b: 1}}",
            "when.b: the search space has no such name",
        ),
        ("{type: randint, upper: 2, when: {a: 3}}", "when.a: expected one of 1, 2; found 3"),
        (
            "{type: randint, upper: 2, when: {a: []}}",
            "when.a: expected a value or a list of them; found an empty list",
        ),
        (
            "{type: randint, upper: 2, when: {x: 1}}",
            "when: x depends on x: none of them can ever be there",
        ),
    ],
)
def test_what_a_dimension_cannot_be(dimension: str, message: str) -> None:
    text = f"{HEAD}search_space:\n  a: {{type: choice, values: [1, 2]}}\n  x: {dimension}\n{GOAL}{LIMITS}"
    (found,) = refused(text).splitlines()
    place, _, rest = found.partition(": search_space.x")
    assert place.startswith("s.yaml:5:") and rest.lstrip(".: ") == message


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (f"{HEAD}{GOAL}{LIMITS}", "s.yaml:1:1: required key 'search_space' is missing"),
        (
            f"{HEAD}search_space: {{}}\n{GOAL}{LIMITS}",
            "s.yaml:3:15: search_space: expected at least one entry; found a mapping of 0",
        ),
        (f"{HEAD}{SPACE}{LIMITS}", "s.yaml:1:1: required key 'objective' is missing"),
        (f"type: sweep\n{SPACE}{GOAL}{LIMITS}", "s.yaml:1:1: required key 'trial' is missing"),
        (
            f"{HEAD}{SPACE}objective: []\n{LIMITS}",
            "s.yaml:4:12: objective: expected at least one entry; found a list of 0",
        ),
        (
            f"{HEAD}{SPACE}objective: {{primary_metric: '', goal: minimize}}\n{LIMITS}",
            "s.yaml:4:29: objective.primary_metric: expected the name of a metric; found an empty text",
        ),
        (
            f"{HEAD}{SPACE}{LIMITS}objective:\n- {{primary_metric: a, goal: minimize}}\n"
            "- {primary_metric: a, goal: maximize}\n",
            "s.yaml:7:20: objective[1].primary_metric: 'a' is there before",
        ),
        (
            f"{HEAD}{SPACE}{LIMITS}objective: [{{primary_metric: a, goal: minimize}}, "
            "{primary_metric: b, goal: maximize}]\nearly_termination: {type: median_stopping}\n",
            "s.yaml:6:20: early_termination: expected one objective with it; found 2",
        ),
        (
            f"{HEAD}{SPACE}{LIMITS}objective: [{{primary_metric: a, goal: minimize}}, "
            "{primary_metric: b, goal: maximize}]\nsampling_algorithm: cmaes\n",
            "s.yaml:6:21: sampling_algorithm: cmaes seeks one objective; found 2: take tpe, gp or nsga2",
        ),
        (f"{HEAD}{SPACE}{GOAL}", "s.yaml:1:1: limits: required key 'max_total_trials' is missing"),
        (
            f"{HEAD}{SPACE}{GOAL}sampling_algorithm: grid\n",
            "s.yaml:3:49: search_space.u: grid tries every value, and uniform has no end of them; take a kind"
            " with q or step, or choice",
        ),
        (
            f"{HEAD}search_space: {{n: {{type: randint, upper: 1000000}}}}\n{GOAL}"
            "sampling_algorithm: bruteforce\n",
            "s.yaml:1:1: limits: required key 'max_total_trials' is missing: there are more than 100000 points",
        ),
        (
            f"{HEAD}{SPACE}{GOAL}limits: {{max_total_trials: 2, max_concurrent_trials: 3}}\n",
            "s.yaml:5:55: limits.max_concurrent_trials: expected at most max_total_trials (2); found 3",
        ),
        (
            f"{HEAD}{SPACE}{GOAL}limits: {{max_total_trials: 9, max_concurrent_trials: 3, min_concurrent_trials: 4}}\n",
            "s.yaml:5:81: limits.min_concurrent_trials: expected at most max_concurrent_trials (3); found 4",
        ),
        (
            f"{HEAD}{SPACE}{GOAL}limits: {{max_total_trials: 1}}\nenqueue: [{{a: 1}}, {{a: 2}}]\n",
            "s.yaml:6:10: enqueue: expected at most limits.max_total_trials (1) points; found 2",
        ),
        (
            f"{HEAD}{SPACE}{GOAL}{LIMITS}enqueue: [{{a: 1}}, {{a: 3}}]\n",
            "s.yaml:6:24: enqueue[1].a: expected one of 1, 2; found 3",
        ),
        (
            f"{HEAD}{SPACE}{GOAL}{LIMITS}enqueue: [{{u: 0.5, v: 1}}]\n",
            "s.yaml:6:20: enqueue[0].v: the search space has no such name",
        ),
        (
            f"{HEAD}{GOAL}{LIMITS}search_space: {{a: {{type: choice, values: [1, 2]}},"
            " b: {type: randint, upper: 3, when: {a: 1}}}\nenqueue: [{a: 1, b: 2}, {a: 2, b: 2}]\n",
            "s.yaml:6:35: enqueue[1].b: not there with a: 2: see its `when`",
        ),
        (
            f"{HEAD}{GOAL}{LIMITS}search_space: {{a: {{type: randint, upper: 3, when: {{b: 1}}}},"
            " b: {type: randint, upper: 3, when: {a: 1}}}\n",
            "s.yaml:5:53: search_space.a.when: a depends on b, b depends on a: none of them can ever be there",
        ),
        (
            f"{HEAD}{SPACE}{GOAL}{LIMITS}constraints: [over, loss, over]\n",
            "s.yaml:6:21: constraints[1]: 'loss' is the objective; it cannot be a constraint, too\n"
            "s.yaml:6:27: constraints[2]: 'over' is there before",
        ),
        (
            f"{HEAD}{SPACE}{GOAL}{LIMITS}early_termination: {{type: bandit}}\n",
            "s.yaml:6:20: early_termination: expected slack_factor or slack_amount, and one of them only",
        ),
        (
            f"{HEAD}{SPACE}{GOAL}{LIMITS}early_termination: {{type: truncation_selection, truncation_percentage: 100}}\n",
            "s.yaml:6:71: early_termination.truncation_percentage: expected at most 99; found 100",
        ),
        (
            f"{HEAD}{SPACE}{GOAL}{LIMITS}early_termination: {{type: median}}\n",
            "s.yaml:6:27: early_termination.type: expected bandit, median_stopping, truncation_selection, asha,"
            " hyperband, wilcoxon, threshold, patience; found 'median'",
        ),
        (
            f"{HEAD}{SPACE}{GOAL}{LIMITS}early_termination: {{type: patience, patience: 3, policy: {{type: ahsa}}}}\n",
            "s.yaml:6:64: early_termination.policy.type: expected bandit, median_stopping, truncation_selection,"
            " asha, hyperband, wilcoxon, threshold; found 'ahsa'; did you mean 'asha'?",
        ),
        (
            f"{HEAD}{SPACE}{GOAL}{LIMITS}early_termination: {{type: threshold}}\n",
            "s.yaml:6:20: early_termination: expected lower, upper or both",
        ),
        (
            f"{HEAD}{SPACE}{GOAL}{LIMITS}sampling_algorithm: {{type: random, logbase: 1}}\n",
            "s.yaml:6:45: sampling_algorithm.logbase: expected a number more than 1 and up to a million, or e;"
            " found 1",
        ),
        (
            f"{HEAD}{SPACE}{GOAL}{LIMITS}sampling_algorithm: {{type: grid, n_startup_trials: 1}}\n",
            "s.yaml:6:34: sampling_algorithm.n_startup_trials: unknown key",
        ),
        (
            f"{HEAD}{GOAL}{LIMITS}search_space: {{l: {{type: loguniform, min_value: 0, max_value: 600}}}}\n"
            "sampling_algorithm: {type: random, logbase: 10}\n",
            "s.yaml:6:45: sampling_algorithm.logbase: with it the bounds of the search space leave the range of"
            " floats",
        ),
        (
            f"type: sweep\ntrial: {{command: x, environment_variables: {{PACELINE_X: 1}}}}\n{SPACE}{GOAL}{LIMITS}",
            "s.yaml:2:45: trial.environment_variables.PACELINE_X: PACELINE_ variables are set by paceline alone",
        ),
        (
            f"type: sweep\ntrial: {{command: x, distribution: {{type: tensorflow}}}}\n{SPACE}{GOAL}{LIMITS}",
            "s.yaml:2:43: trial.distribution.type: tensorflow is not supported; expected pytorch, deepspeed, mpi,"
            " ray",
        ),
        (
            f"{HEAD}{GOAL}{LIMITS}search_space: {{t: {{type: choice, values: [{'x' * 9999}, {'y' * 9998}]}}}}\n"
            "inputs: {a: '${{search_space.t}}'}\n" + "sampling_algorithm: tpe\n" * 0,
            "",
        ),
    ],
)
def test_refusals(text: str, message: str) -> None:
    if message:
        assert refused(text) == message


def test_a_value_that_is_too_long_for_a_command_is_refused_before_any_trial() -> None:
    command = " ".join(["${{search_space.t}}"] * 20)
    text = f"type: sweep\ntrial:\n  command: {command}\n{GOAL}{LIMITS}"
    text += f"search_space: {{t: {{type: choice, values: [a, {'x' * 9000}]}}}}\n"
    assert refused(text).startswith("s.yaml:3:12: trial.command: gets up to 180")


def test_type_says_what_it_is() -> None:
    assert isinstance(parse_document("type: Command\ncommand: x", "x")[0], JobSpec)
    assert isinstance(
        parse_document(HEAD.replace("sweep", "Sweep") + SPACE + GOAL + LIMITS, "x")[0], SweepSpec
    )
    assert refused("type: sweeep") == (
        "s.yaml:1:7: type: expected command, sweep; found 'sweeep'; did you mean 'sweep'?"
    )
    assert refused("type: pipeline") == (
        "s.yaml:1:7: type: pipeline: pipelines are not supported yet; expected command"
    )
    assert refused("type: []") == "s.yaml:1:7: type: expected command, sweep; found a list of 0"
    assert refused("5") == "s.yaml:1:1: expected a mapping of keys; found 5"


def test_a_name_that_nothing_shows_is_a_caution_only() -> None:
    text = f"type: sweep\ntrial: {{command: 'x ${{{{search_space.a}}}}'}}\n{SPACE}{GOAL}{LIMITS}"
    (caution,) = parse_document(text, "s.yaml")[1]
    assert str(caution) == (
        "s.yaml:3:46: search_space.u: not in the command; only run.params and PACELINE_PARAMS have it"
    )


def test_cautions_of_the_trial_name_its_keys() -> None:
    text = "type: sweep\ntrial:\n  command: x ${{search_space.a}}${{search_space.u}}\n"
    text += f"  resources: {{shm_size: 1g}}\n  limits: {{timeout: 5}}\ncompute: azureml:gpus\n{SPACE}{GOAL}"
    text += "limits: {max_total_trials: 3, trial_timeout: 9}\n"
    assert [str(caution).removeprefix("s.yaml:") for caution in parse_document(text, "s.yaml")[1]] == [
        "6:1: compute: where the cluster has no pools, the job runs on any node that fits",
        "4:15: trial.resources.shm_size: not needed: processes share the node's /dev/shm, with no limit of"
        " their own",
        "5:12: trial.limits.timeout: not used: limits.trial_timeout goes before it",
    ]


def test_a_trial_is_an_ordinary_job() -> None:
    spec = sweep(
        name="digits",
        trial={
            "command": "train --lr ${{search_space.lr}} --m ${{search_space.m}} ${{inputs.data}} ${{outputs.o}}",
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
    assert refused(text, None, "params.rl=1") == (
        "--set params.rl=1: params.rl: the job has no such value; did you mean 'lr'?"
    )
    assert refused("command: x\nparams: {a: [1]}").startswith(
        "s.yaml:2:13: params.a: expected a text, a number"
    )


def test_a_grid_needs_no_total() -> None:
    spec = sweep(
        search_space={"lr": {"type": "choice", "values": [1, 2, 3]}, "n": {"type": "randint", "upper": 4}},
        sampling_algorithm="grid",
        limits={},
    )
    assert spec.trials_max() == 12
    assert sweep().trials_max() == 9


def test_words_for_samplers() -> None:
    assert sweep(sampling_algorithm="Bayesian") == sweep(sampling_algorithm={"type": "tpe"}) == sweep()
    assert sweep(sampling_algorithm={"type": "random", "logbase": "e"}) == sweep(sampling_algorithm="random")
    assert sweep(sampling_algorithm="sobol").sampling_algorithm.type == "sobol"


def test_exponents_and_known_points_of_another_base() -> None:
    spec = sweep(
        search_space={"lr": {"type": "loguniform", "min_value": -4, "max_value": -1}},
        sampling_algorithm={"type": "random", "logbase": 10},
        enqueue=[{"lr": 0.1}, {"lr": 0.0001}],
    )
    low, high = (spec.space.dimensions["lr"].distribution()["attributes"][key] for key in ("low", "high"))
    assert low <= spec.space.raws({"lr": 0.0001})["lr"] <= spec.space.raws({"lr": 0.1})["lr"] <= high


def test_overrides_reach_into_a_sweep() -> None:
    text = f"{HEAD}{SPACE}{GOAL}{LIMITS}sampling_algorithm: tpe\ninputs: {{x: 1}}\n"
    spec = as_sweep(
        parse_document(
            text,
            "s.yaml",
            [
                "limits.max_total_trials=5",
                "search_space.u.max_value=3",
                "sampling_algorithm.seed=7",
                "trial.command=y ${{inputs.x}} ${{search_space.u}}",
                "trial.environment_variables.A.B=1.10",
                "trial.resources.gpus.count=2",
                "objective.goal=maximize",
                "inputs.x=2",
            ],
        )[0]
    )
    assert spec.limits.max_total_trials == 5 and spec.search_space["u"].expected(2.5) == ""
    assert (spec.sampling_algorithm.type, spec.sampling_algorithm.seed) == ("tpe", 7)
    assert spec.trial.environment_variables == {"A.B": "1.10"} and spec.trial.resources.gpus.whole == 2
    assert spec.objectives[0].goal == "maximize"
    assert spec.trial_job(0, {"u": 1}).resolved_command({}) == "y 2 1"
    assert refused(text, None, "search_space.v.max_value=3") == (
        "--set search_space.v.max_value=3: search_space.v: the search space has no such name"
    )
    assert refused(text, None, "trial.comand=3") == (
        "--set trial.comand=3: trial.comand: unknown key; did you mean 'command'?"
    )
    assert refused(text, None, "search_space.u.max_value=-1") == (
        "--set search_space.u.max_value=-1: search_space.u.max_value: expected at least min_value (0); found -1"
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
        ("a: [", "jobs/train.yaml:1:5: not valid YAML: did not find expected node content"),
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


def test_canonical_text_is_checked_anew() -> None:
    spec = sweep(trial={"command": "x", "code": "/src"})
    data = json.loads(spec.to_json())
    for change, message in [
        ({"trial": {"command": "x", "code": "src"}}, "trial.code: expected an absolute path; found 'src'"),
        ({"limits": {}}, "limits: required key 'max_total_trials' is missing"),
        ({"trial": "x.yaml"}, "trial: expected a mapping; found 'x.yaml'"),
        (
            {"trial": {"command": "${{search_space.x}}"}},
            "trial.command: '${{search_space.x}}': search_space has",
        ),
    ]:
        with pytest.raises(InvalidDocument, match="^sweep: ") as caught:
            parse_canonical_document(json.dumps(data | change), "sweep")
        assert message in str(caught.value)
    with pytest.raises(InvalidDocument, match="expected command; found 'sweep'"):
        parse_canonical(spec.to_json())
    with pytest.raises(InvalidDocument):
        parse_canonical_document("{")


def test_the_order_of_the_search_space_is_kept() -> None:
    space = {name: {"type": "randint", "upper": 3} for name in ("zeta", "alpha", "mid")}
    spec = sweep(trial={"command": "x", "code": "/s"}, search_space=space)
    again = parse_canonical_document(spec.to_json())
    assert list(as_sweep(again).search_space) == ["zeta", "alpha", "mid"]
    assert again.to_json() == spec.to_json()


@settings(max_examples=150)
@given(sweep_documents())
def test_what_is_read_survives_its_canonical_form(data: dict[str, Any]) -> None:
    spec = as_sweep(document_from_data(data, "sweep")[0]).running_in("/here").rooted("/here")
    again = parse_canonical_document(spec.to_json())
    assert again == spec and again.to_json() == spec.to_json()
    assert list(as_sweep(again).space.dimensions) == list(spec.space.dimensions)


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


KEYS = [
    "type",
    "trial",
    "search_space",
    "objective",
    "limits",
    "sampling_algorithm",
    "early_termination",
    "enqueue",
]


@settings(max_examples=300)
@given(sweep_documents(), st.sampled_from(KEYS), PLAIN)
def test_nothing_but_its_own_error(data: dict[str, Any], key: str, value: Any) -> None:
    try:
        document_from_data({**data, key: value}, "sweep")
    except InvalidDocument as error:
        assert error.problems


@settings(max_examples=200)
@given(sweep_documents(), st.data())
def test_nothing_but_its_own_error_deeper(data: dict[str, Any], draw: st.DataObject) -> None:
    key = draw.draw(st.sampled_from([key for key in data if isinstance(data[key], dict)]))
    inner = draw.draw(st.sampled_from(sorted(data[key])))
    value = draw.draw(PLAIN)
    try:
        document_from_data({**data, key: {**data[key], inner: value}}, "sweep")
    except InvalidDocument as error:
        assert error.problems
