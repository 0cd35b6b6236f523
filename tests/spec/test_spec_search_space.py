"""Dimensions: what Optuna draws from, what the script gets for it, the way back; conditions and grids."""

import json
import math
import warnings
from statistics import NormalDist
from typing import Any

import optuna
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from paceline.spec.dimensions import Dimension
from paceline.spec.parts import Model
from paceline.spec.real_dimensions import DimensionValue
from paceline.spec.scalars import as_text, same
from paceline.spec.search_space import SearchSpace
from support.sweep_strategies import DIMENSIONS

BELLS = ("normal", "lognormal", "qnormal", "qlognormal")


class Space(Model):
    """As a sweep has it."""

    of: dict[str, DimensionValue]


def space(**dimensions: Any) -> SearchSpace:
    return SearchSpace(Space.model_validate({"of": dimensions}).of)


def one(**keys: Any) -> Dimension:
    return space(x=keys).dimensions["x"]


def distribution(dimension: Dimension) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it warns where a bound is no float
        return optuna.distributions.json_to_distribution(json.dumps(dimension.distribution()))


def drawn(of: Any, part: float) -> Any:
    """A raw value from what Optuna says it draws from, at a part of the way."""
    if isinstance(of, optuna.distributions.CategoricalDistribution):
        return of.choices[min(int(part * len(of.choices)), len(of.choices) - 1)]
    if isinstance(of, optuna.distributions.IntDistribution):
        return of.low + int(part * ((of.high - of.low) // of.step)) * of.step
    if of.step:
        return min(of.low + int(part * round((of.high - of.low) / of.step)) * of.step, of.high)
    if of.log:
        found = math.exp(math.log(of.low) + part * (math.log(of.high) - math.log(of.low)))
    else:
        found = of.low + part * (of.high - of.low)
    return min(max(found, of.low), of.high)


@settings(max_examples=400)
@given(DIMENSIONS, st.floats(0, 1))
@example({"type": "quniform", "min_value": 0.05, "max_value": 0.35, "q": 0.1}, 1.0)
@example({"type": "float", "low": 0.1, "high": 1, "step": 0.3}, 0.7)
@example({"type": "qlognormal", "mu": -3, "sigma": 1, "q": 100}, 0.0)
def test_what_optuna_draws_is_a_value_and_leads_back_to_it(data: dict[str, Any], part: float) -> None:
    dimension = one(**data)
    of = distribution(dimension)
    value = dimension.value(drawn(of, part))
    assert dimension.expected(value) == ""
    raw = dimension.raw(value)
    assert of._contains(of.to_internal_repr(raw))
    again = dimension.value(raw)
    if data["type"] in BELLS:  # near 1 floats tell few quantiles apart
        assert again == pytest.approx(value, rel=1e-5, abs=1e-5 * data["sigma"])
    else:
        assert same(again, value)


@settings(max_examples=2000)
@given(DIMENSIONS)
def test_the_points_of_a_grid_are_raw_values_each_with_its_own_value(data: dict[str, Any]) -> None:
    dimension = one(**data)
    points = dimension.points()
    if points is None:
        assert data["type"] in BELLS or ("q" not in data and data["type"] not in ("choice", "randint", "int"))
        return
    of = distribution(dimension)
    ends = [*points[:3], *points[-3:]] if len(points) > 6 else list(points)
    assert all(of._contains(of.to_internal_repr(raw)) for raw in ends)
    values = [dimension.value(raw) for raw in ends]
    assert all(not same(a, b) for n, a in enumerate(values) for b in values[:n])
    assert all(dimension.expected(value) == "" for value in values)


@settings(max_examples=2000)
@given(DIMENSIONS)
def test_no_value_takes_more_room_than_the_longest(data: dict[str, Any]) -> None:
    dimension = one(**data)
    of = distribution(dimension)
    values = [dimension.value(drawn(of, part)) for part in (0, 0.3, 1)]
    longest = len(as_text(dimension.longest()).encode())
    assert all(len(as_text(value).encode()) <= longest for value in values)


@pytest.mark.parametrize(
    ("keys", "expected"),
    [
        ({"type": "randint", "upper": 4}, ("Int", {"low": 0, "high": 3, "log": False, "step": 1})),
        (
            {"type": "int", "low": 1, "high": 10, "step": 4},
            ("Int", {"low": 1, "high": 9, "log": False, "step": 4}),
        ),
        (
            {"type": "quniform", "min_value": 1, "max_value": 9.6, "q": 2},
            ("Float", {"low": 0, "high": 10, "log": False, "step": 2.0}),
        ),
        (
            {"type": "loguniform", "min_value": 0, "max_value": 1},
            ("Float", {"low": 1.0, "high": math.e, "log": True, "step": None}),
        ),
        ({"type": "choice", "values": [1, "a", None]}, ("Categorical", {"choices": [1, "a", None]})),
    ],
)
def test_the_distributions_by_azures_definitions(
    keys: dict[str, Any], expected: tuple[str, dict[str, Any]]
) -> None:
    name, attributes = expected
    assert one(**keys).distribution() == {"name": f"{name}Distribution", "attributes": attributes}


def test_values_by_azures_definitions() -> None:
    bell = NormalDist(3, 2)
    assert one(type="normal", mu=3, sigma=2).value(0.9) == bell.inv_cdf(0.9)
    assert one(type="lognormal", mu=3, sigma=2).value(0.9) == math.exp(bell.inv_cdf(0.9))
    assert one(type="qnormal", mu=3, sigma=2, q=0.5).value(0.9) == round(bell.inv_cdf(0.9) / 0.5) * 0.5
    assert one(type="qloguniform", min_value=0, max_value=5, q=0.25).value(7.3) == 7.25


def test_optuna_asks_for_a_whole_space() -> None:
    found = space(
        opt={"type": "choice", "values": ["sgd", "adam", None]},
        momentum={"type": "uniform", "min_value": 0, "max_value": 1, "when": {"opt": "sgd"}},
        lr={"type": "loguniform", "min_value": -9, "max_value": -1},
        batch={"type": "qloguniform", "min_value": 2, "max_value": 6, "q": 8},
        width={"type": "qnormal", "mu": 64, "sigma": 16, "q": 8},
        depth={"type": "int", "low": 1, "high": 64, "log": True},
    )
    study = optuna.create_study(sampler=optuna.samplers.TPESampler(seed=0, n_startup_trials=5))
    for _ in range(20):
        trial = study.ask({name: distribution(one) for name, one in found.dimensions.items()})
        values = found.values(trial.params)
        assert all(found.dimensions[name].expected(value) == "" for name, value in values.items())
        assert ("momentum" in values) == (values["opt"] == "sgd")
        study.tell(trial, values["lr"])


@pytest.mark.parametrize("q", [0.1, 0.05, 0.001, 1, 2.5, 1e-6, 3])
def test_optuna_takes_the_bounds_of_common_steps_as_they_are(q: float) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for keys in (
            {"type": "quniform", "min_value": 0.02, "max_value": 9.97, "q": q},
            {"type": "float", "low": 0.02, "high": 9.97, "step": q},
        ):
            optuna.distributions.json_to_distribution(json.dumps(one(**keys).distribution()))


def test_multiples_have_no_noise_and_are_whole_where_q_is() -> None:
    tenths = one(type="quniform", min_value=0, max_value=1, q=0.1)
    assert [tenths.value(raw) for raw in tenths.points() or ()] == [n / 10 for n in range(11)]
    batch = one(type="quniform", min_value=16, max_value=64, q=16)
    assert [repr(batch.value(raw)) for raw in batch.points() or ()] == ["16", "32", "48", "64"]


def test_exponents_of_another_base() -> None:
    dimensions = Space.model_validate(
        {
            "of": {
                "lr": {"type": "loguniform", "min_value": -4, "max_value": -1},
                "scale": {"type": "lognormal", "mu": 2, "sigma": 0.1},
                "plain": {"type": "uniform", "min_value": -4, "max_value": -1},
            }
        }
    ).of
    scaled = {name: dimension.scaled(math.log(10)) for name, dimension in dimensions.items()}
    attributes = scaled["lr"].distribution()["attributes"]
    assert (attributes["low"], attributes["high"]) == (pytest.approx(1e-4), pytest.approx(0.1))
    assert scaled["scale"].value(0.5) == pytest.approx(100)
    assert scaled["plain"] == dimensions["plain"]


CONDITIONAL = {
    "momentum": {"type": "uniform", "min_value": 0, "max_value": 1, "when": {"optimizer": "sgd"}},
    "optimizer": {"type": "choice", "values": ["sgd", "adam"]},
    "nesterov": {
        "type": "choice",
        "values": [True, False],
        "when": {"optimizer": ["sgd", "x"], "momentum": 0.5},
    },
}


def test_dimensions_come_after_those_that_they_depend_on() -> None:
    found = space(**CONDITIONAL, lr={"type": "uniform", "min_value": 0, "max_value": 1})
    assert list(found.dimensions) == ["optimizer", "momentum", "nesterov", "lr"]


def test_what_is_not_active_is_absent() -> None:
    found = space(**CONDITIONAL)
    raw = {"optimizer": "adam", "momentum": 0.5, "nesterov": True}
    assert found.values(raw) == {"optimizer": "adam"}
    assert found.values(raw | {"optimizer": "sgd"}) == {
        "optimizer": "sgd",
        "momentum": 0.5,
        "nesterov": True,
    }
    assert list(found.values(raw | {"optimizer": "sgd", "momentum": 0.6})) == ["optimizer", "momentum"]
    with pytest.raises(KeyError):
        found.values({"optimizer": "sgd"})


def test_a_truth_value_is_no_number() -> None:
    found = space(
        flag={"type": "choice", "values": [True, False]},
        n={"type": "randint", "upper": 2},
        x={"type": "randint", "upper": 2, "when": {"flag": [True]}},
        y={"type": "randint", "upper": 2, "when": {"n": [1]}},
    )
    raw = {"flag": False, "n": 1, "x": 0, "y": 0}
    assert list(found.values(raw)) == ["flag", "n", "y"]
    assert found.dimensions["flag"].expected(1) == "one of true, false"
    assert found.dimensions["n"].expected(True) == "a whole number from 0 to 1"


def test_a_grid_has_each_point_once_and_counts_them() -> None:
    found = space(
        kind={"type": "choice", "values": ["a", "b"]},
        depth={"type": "int", "low": 1, "high": 3, "when": {"kind": "b"}},
        rate={"type": "quniform", "min_value": 0, "max_value": 1, "q": 0.5},
        deeper={"type": "choice", "values": [1, 2], "when": {"depth": [2, 3]}},
    )
    points = [tuple(sorted(found.values(raw).items())) for raw in found.grid()]
    assert len(points) == len(set(points)) == 3 + 3 * (1 + 2 + 2)
    assert found.grid_size(1000) == len(points)
    assert found.grid_size(7) == 7
    assert dict(points[0]) == {"kind": "a", "rate": 0} and dict(points[1]) == {"kind": "a", "rate": 0.5}


def test_a_huge_grid_is_counted_at_once() -> None:
    found = space(**{f"x{n}": {"type": "randint", "upper": 10**9} for n in range(50)})
    assert found.grid_size(10**6) == 10**6
    assert next(found.grid()) == {f"x{n}": 0 for n in range(50)}


def test_enqueued_points_have_raw_values() -> None:
    found = space(
        lr={"type": "loguniform", "min_value": -5, "max_value": 0},
        width={"type": "qnormal", "mu": 64, "sigma": 16, "q": 8},
    )
    raws = found.raws({"lr": 0.1, "width": 48})
    assert raws["lr"] == 0.1 and found.dimensions["width"].value(raws["width"]) == 48
