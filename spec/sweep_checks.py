"""What has to fit together in a sweep, beyond what each of its parts says of itself; and what has no effect.

A trial is checked as the job that it will be, with the longest values that it can get.
"""

from collections.abc import Iterator, Sequence
from math import ceil
from typing import Final

from .compat import refusals_of, warnings_of
from .dimensions import Dimension
from .expressions import references
from .model import JobSpec
from .problems import Path
from .reading import Kind
from .sampling import PbtSampling, whole_part
from .search_space import point_refusals, space_refusals
from .sweep import GRID_MAX, SweepSpec, TrialWork

_GRIDS: Final = ("grid", "bruteforce")


def sweep_refusals(spec: SweepSpec) -> Iterator[tuple[Path, str, str]]:
    """Path, text and nearest valid word of each thing that makes the sweep impossible, or not what was
    meant."""
    dimensions = spec.dimensions()
    space = list(space_refusals(dimensions))
    yield from ((("search_space", *path), text, near) for path, text, near in space)
    for path, text in (
        *_kind(spec),
        *_grid(spec, sound=not space),
        *_objectives(spec),
        *_limits(spec),
        *_constraints(spec),
        *_population(spec),
    ):
        yield path, text, ""
    for index, point in enumerate(() if spec.by_function else spec.enqueue):
        for path, text, near in point_refusals(dimensions, point):
            yield ("enqueue", index, *path), text, near
    if not space:
        for path, text in refusals_of(_longest_trial(spec)):
            yield _in_sweep(path), text, ""


def sweep_warnings(spec: SweepSpec) -> Iterator[tuple[Path, str]]:
    """Path and text of each thing that has no effect here, or perhaps not the one that was meant."""
    for path, text in warnings_of(_longest_trial(spec)):
        yield _in_sweep(path), text
    if spec.limits.trial_timeout and spec.trial.limits.timeout:
        yield ("trial", "limits", "timeout"), "not used: limits.trial_timeout goes before it"
    used = _used(spec)
    for name in spec.search_space:
        if name not in used:
            yield ("search_space", name), "not in the command; only run.params and PACELINE_PARAMS have it"


def _trial(spec: SweepSpec) -> TrialWork:
    return spec.trial


SWEEP: Final = Kind(SweepSpec, ("trial",), _trial, "search_space", sweep_refusals, sweep_warnings)


def _kind(spec: SweepSpec) -> Iterator[tuple[Path, str]]:
    """What goes with a command, and what with an objective."""
    if not spec.by_function:
        if not spec.search_space:
            yield (), "required key 'search_space' is missing"
        return
    if spec.search_space:
        yield (
            ("search_space",),
            "not with trial.objective, which asks its trial for values: trial.suggest_float(...)",
        )
    if spec.sampling_algorithm.type in _GRIDS:
        yield (
            ("sampling_algorithm",),
            f"{spec.sampling_algorithm.type} needs a search_space; trial.objective has none",
        )
    if spec.sampling_algorithm.type == "pbt":
        yield ("sampling_algorithm",), "pbt needs trials that are jobs of their own; give a command instead"
    if spec.constraints:
        yield ("constraints",), "not with trial.objective yet"
    if spec.warm_start:
        yield ("warm_start",), "not with trial.objective yet"
    if spec.limits.trial_timeout:
        yield ("limits", "trial_timeout"), "not with trial.objective: its trials share a process"


def _grid(spec: SweepSpec, *, sound: bool) -> Iterator[tuple[Path, str]]:
    word = spec.sampling_algorithm.type
    if word not in _GRIDS:
        if spec.limits.max_total_trials is None:
            yield ("limits",), "required key 'max_total_trials' is missing"
        return
    endless = [name for name, one in spec.search_space.items() if one.points() is None]
    for name in endless:
        text = f"{word} tries every value, and {spec.search_space[name].type} has no end of them"
        yield ("search_space", name), f"{text}; take a kind with q or step, or choice"
    if word == "bruteforce":
        for name, one in spec.search_space.items():
            if one.points() is not None and not _counted(one):
                yield ("search_space", name), f"bruteforce cannot count the values of {one.type}; grid can"
    if endless or not sound or spec.limits.max_total_trials is not None:
        return
    if spec.space.grid_size(GRID_MAX + 1) > GRID_MAX:
        yield (
            ("limits",),
            f"required key 'max_total_trials' is missing: there are more than {GRID_MAX} points",
        )


def _counted(dimension: Dimension) -> bool:
    """Optuna, too, sees that its values have an end."""
    attributes = dimension.distribution()["attributes"]
    return attributes.get("step", 1) is not None or attributes["low"] == attributes["high"]


def _objectives(spec: SweepSpec) -> Iterator[tuple[Path, str]]:
    names = [objective.primary_metric for objective in spec.objectives]
    for index in _repeated(names):
        yield ("objective", index, "primary_metric"), f"'{names[index]}' is there before"
    if len(names) > 1 and spec.early_termination:
        yield ("early_termination",), f"expected one objective with it; found {len(names)}"
    if len(names) > 1 and spec.sampling_algorithm.type == "cmaes":
        text = f"cmaes seeks one objective; found {len(names)}: take tpe, gp or nsga2"
        yield ("sampling_algorithm",), text


def _limits(spec: SweepSpec) -> Iterator[tuple[Path, str]]:
    limits = spec.limits
    total, high, low = limits.max_total_trials, limits.max_concurrent_trials, limits.min_concurrent_trials
    if total is not None and high is not None and high > total:
        text = f"expected at most max_total_trials ({total}); found {high}"
        yield ("limits", "max_concurrent_trials"), text
    bounds = [("max_total_trials", total), ("max_concurrent_trials", high)]
    least = min(((bound, key) for key, bound in bounds if bound is not None), default=None)
    if least is not None and low is not None and low > least[0]:
        yield ("limits", "min_concurrent_trials"), f"expected at most {least[1]} ({least[0]}); found {low}"
    if total is not None and len(spec.enqueue) > total:
        yield (
            ("enqueue",),
            f"expected at most limits.max_total_trials ({total}) points; found {len(spec.enqueue)}",
        )


def _constraints(spec: SweepSpec) -> Iterator[tuple[Path, str]]:
    for index in _repeated(spec.constraints):
        yield ("constraints", index), f"'{spec.constraints[index]}' is there before"
    metrics = {objective.primary_metric for objective in spec.objectives}
    for index, name in enumerate(spec.constraints):
        if name in metrics:
            yield ("constraints", index), f"'{name}' is the objective; it cannot be a constraint, too"


def _population(spec: SweepSpec) -> Iterator[tuple[Path, str]]:
    """What goes with population based training: its members are trained, and compared, at once."""
    sampling, limits = spec.sampling_algorithm, spec.limits
    if not isinstance(sampling, PbtSampling):
        return
    size, fraction = sampling.population_size, sampling.quantile_fraction
    if whole_part(size, fraction) < 1:
        text = f"{fraction:g} of {size} members is none; expected at least {ceil(1 / fraction)} members"
        yield ("sampling_algorithm", "population_size"), text
    for key in ("max_total_trials", "max_concurrent_trials"):
        most = getattr(limits, key)
        if most is not None and most < size:
            yield ("limits", key), f"expected at least population_size ({size}); found {most}"
    if len(spec.enqueue) > size:
        yield ("enqueue",), f"expected at most population_size ({size}) points; found {len(spec.enqueue)}"
    if len(spec.objectives) > 1:
        yield ("objective",), f"pbt seeks one objective; found {len(spec.objectives)}"
    for key, there, why in (
        ("early_termination", spec.early_termination, "not with pbt, which itself ends what falls behind"),
        ("constraints", spec.constraints, "not with pbt, which compares members by the objective alone"),
        ("warm_start", spec.warm_start, "not with pbt, which goes on from checkpoints of its own trials"),
    ):
        if there:
            yield (key,), why


def _repeated(names: Sequence[str]) -> Iterator[int]:
    return (index for index, name in enumerate(names) if name in names[:index])


def _longest_trial(spec: SweepSpec) -> JobSpec:
    longest = {name: one.longest() for name, one in spec.search_space.items()}
    return spec.trial_job(10**6, longest)


def _in_sweep(path: Path) -> Path:
    """Where something stands in the sweep that a trial's job has at `path`."""
    if path[0] == "params":
        return ("search_space", *path[1:])
    return ("trial", *path) if path[0] in TrialWork.model_fields else path


def _used(spec: SweepSpec) -> set[str]:
    """The names whose values reach the command, its variables or an input, or decide about other names."""
    texts = (spec.trial.command, *spec.trial.environment_variables.values())
    named = {name for text in texts for name in references(text, "search_space")}
    return named.union(spec.inputs, *(one.when for one in spec.search_space.values()))
