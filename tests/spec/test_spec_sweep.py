"""The sweep's document: exact errors with their lines, overrides, what survives every round trip."""

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from paceline.spec.job import InvalidDocument, JobSpec, parse_canonical
from paceline.spec.sweep import SweepSpec
from paceline.spec.sweep_reading import document_from_data, parse_canonical_document, parse_document
from support.spec_strategies import PLAIN
from support.sweep_strategies import sweep_documents
from support.sweeps import GOAL, HEAD, LIMITS, SPACE, as_sweep, refused, sweep


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
        " qmc, bruteforce, pbt; found 'bayesain'; did you mean 'bayesian'?",
        "s.yaml:10:52: search_space.lr.max_value: expected at least min_value (-1); found -5",
        f"s.yaml:11:17: search_space.batch.type: expected {kinds}; found 'choise'; did you mean 'choice'?",
        "s.yaml:14:5: search_space.layers.value: unknown key; did you mean 'values'?",
        "s.yaml:15:17: search_space.layers.values[1]: expected a text, a number, true, false or null;"
        " found a list of 2: give its parts dimensions of their own, with `when` where they depend on"
        " another",
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
            "sigma: expected mu and six sigma together at most 700, for floats to hold the value;"
            " found 1299.56",
        ),
        (
            "{type: int, low: -1, high: 9007199254740992}",
            "high: expected at most 9007199254740991, for floats to tell them apart; found 9007199254740992",
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
            "s.yaml:3:54: search_space.u: grid tries every value, and uniform has no end of them; take a kind"
            " with q or step, or choice",
        ),
        (
            f"{HEAD}search_space: {{n: {{type: randint, upper: 1000000}}}}\n{GOAL}"
            "sampling_algorithm: bruteforce\n",
            "s.yaml:1:1: limits: required key 'max_total_trials' is missing:"
            " there are more than 100000 points",
        ),
        (
            f"{HEAD}search_space: {{n: {{type: qloguniform, min_value: 0, max_value: 3, q: 2}}}}\n{GOAL}"
            "sampling_algorithm: bruteforce\n",
            "s.yaml:3:19: search_space.n: bruteforce cannot count the values of qloguniform; grid can",
        ),
        (
            f"{HEAD}{SPACE}{GOAL}limits: {{max_total_trials: 2, max_concurrent_trials: 3}}\n",
            "s.yaml:5:54: limits.max_concurrent_trials: expected at most max_total_trials (2); found 3",
        ),
        (
            f"{HEAD}{SPACE}{GOAL}limits: {{max_total_trials: 9, max_concurrent_trials: 3,"
            " min_concurrent_trials: 4}\n",
            "s.yaml:5:80: limits.min_concurrent_trials: expected at most max_concurrent_trials (3); found 4",
        ),
        (
            f"{HEAD}{SPACE}{GOAL}limits: {{max_total_trials: 1}}\nenqueue: [{{a: 1}}, {{a: 2}}]\n",
            "s.yaml:6:10: enqueue: expected at most limits.max_total_trials (1) points; found 2",
        ),
        (
            f"{HEAD}{SPACE}{GOAL}{LIMITS}enqueue: [{{a: 1}}, {{a: 3}}]\n",
            "s.yaml:6:23: enqueue[1].a: expected one of 1, 2; found 3",
        ),
        (
            f"{HEAD}{SPACE}{GOAL}{LIMITS}enqueue: [{{u: 0.5, v: 1}}]\n",
            "s.yaml:6:23: enqueue[0].v: the search space has no such name",
        ),
        (
            f"{HEAD}{GOAL}{LIMITS}search_space: {{a: {{type: choice, values: [1, 2]}},"
            " b: {type: randint, upper: 3, when: {a: 1}}}\nenqueue: [{a: 1, b: 2}, {a: 2, b: 2}]\n",
            "s.yaml:6:35: enqueue[1].b: not there with a: 2: see its `when`",
        ),
        (
            f"{HEAD}{GOAL}{LIMITS}search_space: {{a: {{type: randint, upper: 3, when: {{b: 1}}}},"
            " b: {type: randint, upper: 3, when: {a: 1}}}\n",
            "s.yaml:5:51: search_space.a.when: a depends on b, b depends on a:"
            " none of them can ever be there",
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
            f"{HEAD}{SPACE}{GOAL}{LIMITS}early_termination:"
            " {type: truncation_selection, truncation_percentage: 100}\n",
            "s.yaml:6:72: early_termination.truncation_percentage: expected at most 99; found 100",
        ),
        (
            f"{HEAD}{SPACE}{GOAL}{LIMITS}early_termination: {{type: median}}\n",
            "s.yaml:6:27: early_termination.type: expected bandit, median_stopping, truncation_selection,"
            " asha, hyperband, wilcoxon, threshold, patience; found 'median'",
        ),
        (
            f"{HEAD}{SPACE}{GOAL}{LIMITS}early_termination:"
            " {type: patience, patience: 3, policy: {type: ahsa}}\n",
            "s.yaml:6:65: early_termination.policy.type: expected bandit, median_stopping,"
            " truncation_selection, asha, hyperband, wilcoxon, threshold; found 'ahsa'; did you mean 'asha'?",
        ),
        (
            f"{HEAD}{SPACE}{GOAL}{LIMITS}early_termination: {{type: threshold}}\n",
            "s.yaml:6:20: early_termination: expected lower, upper or both",
        ),
        (
            f"{HEAD}{SPACE}{GOAL}{LIMITS}sampling_algorithm: {{type: random, logbase: 1}}\n",
            "s.yaml:6:45: sampling_algorithm.logbase: expected a number more than 1 and up to a million,"
            " or e; found 1",
        ),
        (
            f"{HEAD}{SPACE}{GOAL}{LIMITS}sampling_algorithm: {{type: grid, n_startup_trials: 1}}\n",
            "s.yaml:6:34: sampling_algorithm.n_startup_trials: unknown key",
        ),
        (
            f"{HEAD}{GOAL}{LIMITS}search_space: {{l: {{type: loguniform, min_value: 0, max_value: 600}}}}\n"
            "sampling_algorithm: {type: random, logbase: 10}\n",
            "s.yaml:6:45: sampling_algorithm.logbase: with it the bounds of the search space leave"
            " the range of floats",
        ),
        (
            "type: sweep\ntrial: {command: x, environment_variables: {PACELINE_X: 1}}\n"
            f"{SPACE}{GOAL}{LIMITS}",
            "s.yaml:2:57: trial.environment_variables.PACELINE_X: PACELINE_ variables are set by"
            " paceline alone",
        ),
        (
            f"type: sweep\ntrial: {{command: x, distribution: {{type: tensorflow}}}}\n{SPACE}{GOAL}{LIMITS}",
            "s.yaml:2:42: trial.distribution.type: tensorflow is not supported; expected pytorch,"
            " deepspeed, mpi, ray",
        ),
    ],
)
def test_refusals(text: str, message: str) -> None:
    assert refused(text) == message


def test_a_value_that_is_too_long_for_a_command_is_refused_before_any_trial() -> None:
    command = " ".join(["${{search_space.t}}"] * 20)
    text = f"type: sweep\ntrial:\n  command: {command}\n{GOAL}{LIMITS}"
    text += f"search_space: {{t: {{type: choice, values: [a, {'x' * 9000}]}}}}\n"
    assert refused(text).startswith("s.yaml:3:12: trial.command: gets up to 198408 bytes")


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
        "s.yaml:3:51: search_space.u: not in the command; only run.params and PACELINE_PARAMS have it"
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
        "--set search_space.u.max_value=-1: search_space.u.max_value: expected at least min_value (0);"
        " found -1"
    )


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
        with pytest.raises(InvalidDocument, match=r"^sweep: ") as caught:
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


@pytest.mark.parametrize(
    ("pattern", "message"),
    [
        (
            r"val_loss=(?P<value>\S+",
            "not a regular expression: missing ), unterminated subpattern at character 10",
        ),
        (r"val_loss=(\S+)", r"expected a group named value, as in loss=(?P<value>\S+)"),
        ("(?P<value>" + "a" * 500 + ")", "expected at most 500 characters; found 511"),
    ],
)
def test_patterns_that_cannot_be_used(pattern: str, message: str) -> None:
    goal = f"objective:\n  primary_metric: loss\n  goal: minimize\n  pattern: '{pattern}'\n"
    assert refused(HEAD + SPACE + goal + LIMITS) == f"s.yaml:7:12: objective.pattern: {message}"
    trial = f"type: command\ncommand: x\nmetric_patterns:\n  loss: '{pattern}'\n"
    assert refused(trial) == f"s.yaml:4:9: metric_patterns.loss: {message}"


def test_a_trial_has_the_patterns_of_its_objectives() -> None:
    pattern, other = r"loss=(?P<value>\S+)", r"size=(?P<value>\S+)"
    spec = sweep(
        objective=[
            {"primary_metric": "loss", "goal": "minimize", "pattern": pattern},
            {"primary_metric": "speed", "goal": "maximize"},
        ],
        trial={"command": "train", "metric_patterns": {"size": other}},
    )
    assert spec.trial_job(3, {"lr": 0.1}).metric_patterns == {"loss": pattern, "size": other}
    assert parse_canonical_document(spec.to_json()) == spec


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{trials: all}", "13: warm_start: required key 'sweep' is missing"),
        ("{sweep: 0}", "21: warm_start.sweep: expected the number or the name of a sweep; found 0"),
        ("{sweep: true}", "21: warm_start.sweep: expected the number or the name of a sweep; found true"),
        ("{sweep: 1, trials: some}", "32: warm_start.trials: expected all, best; found 'some'"),
        ("{sweep: 1, count: 0}", "31: warm_start.count: expected at least 1; found 0"),
        ("{sweep: 1, cuont: 3}", "24: warm_start.cuont: unknown key; did you mean 'count'?"),
    ],
)
def test_warm_starts_that_cannot_be(text: str, message: str) -> None:
    assert refused(HEAD + SPACE + GOAL + LIMITS + f"warm_start: {text}\n") == f"s.yaml:6:{message}"


def test_a_trial_may_be_an_elastic_gang() -> None:
    resources = {"instance_count": 1, "max_instance_count": 3, "gpus": 1}
    job = sweep(trial={"command": "train --lr ${{search_space.lr}}", "resources": resources}).trial_job(
        0, {"lr": 0.1}
    )
    assert (job.resources.instance_count, job.resources.max_instance_count) == (1, 3)
