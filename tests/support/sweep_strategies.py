"""Hypothesis strategies for sweeps: dimensions of every kind, and whole documents as plain data."""

from typing import Any

from hypothesis import strategies as st

from .spec_strategies import IDENTIFIERS, NAMES, SCALARS, mapping

REALS = st.floats(-1e9, 1e9, allow_subnormal=False)
EXPONENTS = st.floats(-60, 60)


def between(low_key: str, high_key: str, numbers: Any) -> Any:
    return st.tuples(numbers, numbers).map(lambda two: {low_key: min(two), high_key: max(two)})


@st.composite
def choices(draw: st.DrawFn) -> dict[str, Any]:
    values: list[Any] = []
    for value in draw(st.lists(SCALARS, min_size=1, max_size=6)):
        if value not in values:
            values.append(value)
    return {"type": "choice", "values": values}


def steps_of(dimension: dict[str, Any], low: str, high: str) -> Any:
    """A quantum that floats can count."""
    reach = max(abs(dimension[low]), abs(dimension[high]), 1e-3)
    common = [step for step in (0.1, 1, 5, 32) if reach / step < 1e7]
    return st.one_of(st.floats(reach * 1.1e-7, reach * 2), *(st.just(step) for step in common))


@st.composite
def quantised(draw: st.DrawFn) -> dict[str, Any]:
    kind = draw(st.sampled_from(["quniform", "qloguniform", "qnormal", "qlognormal"]))
    if kind == "quniform":
        bounds = draw(between("min_value", "max_value", REALS))
        q = draw(steps_of(bounds, "min_value", "max_value"))
    elif kind == "qloguniform":
        bounds, q = draw(between("min_value", "max_value", st.floats(-10, 10))), draw(st.floats(0.001, 100))
    else:
        bounds = {"mu": draw(st.floats(-3, 3)), "sigma": draw(st.floats(0.001, 2))}
        q = draw(st.floats(0.001, 100))
    return {"type": kind, **bounds, "q": q}


@st.composite
def plain_ranges(draw: st.DrawFn) -> dict[str, Any]:
    if draw(st.booleans()):
        log = draw(st.booleans())
        numbers = st.integers(1, 10**9) if log else st.integers(-(2**52), 2**52)
        more = {"log": True} if log else {"step": draw(st.integers(1, 1000))}
        return {"type": "int", **draw(between("low", "high", numbers)), **more}
    if draw(st.booleans()):
        positive = st.floats(1e-9, 1e9)
        return {"type": "float", **draw(between("low", "high", positive)), "log": True}
    bounds = draw(between("low", "high", REALS))
    step = draw(st.one_of(st.none(), steps_of(bounds, "low", "high")))
    return {"type": "float", **bounds, "step": step}


DIMENSIONS = st.one_of(
    choices(),
    plain_ranges(),
    quantised(),
    st.integers(1, 2**53).map(lambda upper: {"type": "randint", "upper": upper}),
    between("min_value", "max_value", REALS).map(lambda bounds: {"type": "uniform", **bounds}),
    between("min_value", "max_value", EXPONENTS).map(lambda bounds: {"type": "loguniform", **bounds}),
    st.builds(
        lambda kind, mu, sigma: {"type": kind, "mu": mu, "sigma": sigma},
        st.sampled_from(["normal", "lognormal"]),
        st.floats(-10, 10),
        st.floats(1e-3, 10),
    ),
)
SAMPLINGS = st.one_of(
    st.sampled_from(["random", "sobol", "bayesian", "tpe", "gp", "qmc", "nsga2"]),
    st.just({"type": "random", "rule": "sobol", "logbase": 10, "seed": 7}),
    st.just({"type": "tpe", "n_startup_trials": 3}),
    st.just({"type": "nsga2", "population_size": 8}),
)
POLICIES = st.sampled_from(
    [
        {"type": "bandit", "slack_factor": 0.1, "evaluation_interval": 2},
        {"type": "median_stopping", "delay_evaluation": 5},
        {"type": "truncation_selection", "truncation_percentage": 20},
        {"type": "asha", "min_resource": 2, "reduction_factor": 3},
        {"type": "hyperband", "max_resource": 9},
        {"type": "wilcoxon"},
        {"type": "threshold", "upper": 2.5},
        {"type": "patience", "patience": 3, "policy": {"type": "asha"}},
    ]
)
OBJECTIVES = mapping({"primary_metric": NAMES, "goal": st.sampled_from(["minimize", "maximize"])}, {})


@st.composite
def sweep_documents(draw: st.DrawFn) -> dict[str, Any]:
    """A valid sweep as plain data, expressions and conditions included."""
    space = draw(st.dictionaries(IDENTIFIERS, DIMENSIONS, min_size=1, max_size=4))
    first, *others = space
    if others and space[first]["type"] == "choice":
        space[others[-1]] = {**space[others[-1]], "when": {first: space[first]["values"][0]}}
    command = "run " + " ".join(f"--{name} ${{{{search_space.{name}}}}}" for name in space)
    optional = {
        "name": NAMES,
        "sampling_algorithm": SAMPLINGS,
        "early_termination": POLICIES,
        "constraints": st.just(["memory_over"]),
        "priority": st.integers(-1000, 1000),
        "outputs": st.just({"model": None}),
    }
    limits = mapping(
        {"max_total_trials": st.integers(10, 1000)},
        {"max_concurrent_trials": st.integers(1, 10), "timeout": st.integers(1, 10**6)},
    )
    required = {
        "type": st.just("sweep"),
        "trial": mapping({"command": st.just(command)}, {"code": st.just("src")}),
        "search_space": st.just(space),
        "objective": st.one_of(OBJECTIVES, st.lists(OBJECTIVES, min_size=1, max_size=1)),
        "limits": limits,
    }
    return draw(mapping(required, optional))
