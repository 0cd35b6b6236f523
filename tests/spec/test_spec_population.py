"""`sampling_algorithm: {type: pbt, ...}`: its options, and what goes with it and what does not."""

import pytest
from paceline.spec.sweep_reading import parse_canonical_document, parse_document
from support.sweeps import GOAL, HEAD, LIMITS, SPACE, as_sweep, refused

PBT = "sampling_algorithm: {type: pbt, population_size: 4, perturbation_interval: 5}\n"


def test_population_based_training() -> None:
    spec = as_sweep(parse_document(HEAD + SPACE + GOAL + LIMITS + PBT, "s.yaml")[0])
    assert spec.sampling_algorithm.model_dump() == {
        "type": "pbt",
        "seed": None,
        "population_size": 4,
        "perturbation_interval": 5,
        "quantile_fraction": 0.25,
        "resample_probability": 0.25,
        "perturbation_factors": (1.2, 0.8),
    }
    assert parse_canonical_document(spec.to_json()) == spec


@pytest.mark.parametrize(
    "changed, text",
    [
        ("pbt", "s.yaml:6:21: sampling_algorithm: required key 'population_size' is missing"),
        (
            "{type: pbt, population_size: 3, perturbation_interval: 5}",
            "0.25 of 3 members is none; expected at least 4 members",
        ),
        (
            "{type: pbt, population_size: 10, perturbation_interval: 5}",
            "limits.max_total_trials: expected at least population_size (10); found 9",
        ),
        (
            "{type: pbt, population_size: 4, perturbation_interval: 0}",
            "sampling_algorithm.perturbation_interval",
        ),
        (
            "{type: pbt, population_size: 4, perturbation_interval: 5, perturbation_factors: [1.2, 0]}",
            "sampling_algorithm.perturbation_factors",
        ),
        (
            "{type: pbt, population_size: 4, perturbation_interval: 5, quantile_fraction: 0.6}",
            "sampling_algorithm.quantile_fraction",
        ),
    ],
)
def test_what_is_wrong_with_a_population(changed: str, text: str) -> None:
    assert text in refused(HEAD + SPACE + GOAL + LIMITS + f"sampling_algorithm: {changed}\n")


@pytest.mark.parametrize(
    "more, text",
    [
        ("early_termination: {type: asha}\n", "early_termination: not with pbt, which itself ends"),
        ("constraints: [size]\n", "constraints: not with pbt, which compares members by the objective"),
        ("warm_start: {sweep: 3}\n", "warm_start: not with pbt, which goes on from checkpoints"),
        (
            "enqueue: [{a: 1}, {a: 1}, {a: 1}, {a: 1}, {a: 1}]\n",
            "expected at most population_size (4) points",
        ),
    ],
)
def test_what_does_not_go_with_a_population(more: str, text: str) -> None:
    assert text in refused(HEAD + SPACE + GOAL + LIMITS + PBT + more)


def test_a_population_has_one_objective_and_is_trained_at_once() -> None:
    two = "objective: [{primary_metric: a, goal: minimize}, {primary_metric: b, goal: minimize}]\n"
    assert "objective: pbt seeks one objective; found 2" in refused(HEAD + SPACE + two + LIMITS + PBT)
    few = "limits: {max_total_trials: 9, max_concurrent_trials: 3}\n"
    text = "limits.max_concurrent_trials: expected at least population_size (4); found 3"
    assert text in refused(HEAD + SPACE + GOAL + few + PBT)
    by_function = "type: sweep\ntrial: {objective: 'a.b:c'}\n"
    assert "pbt needs trials that are jobs of their own" in refused(by_function + GOAL + LIMITS + PBT)
