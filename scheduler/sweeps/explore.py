"""Values near those of another trial, for the next generation of a population (population.py). Pure."""

import math
from collections.abc import Mapping
from random import Random

from ...spec.dimensions import Choice, Dimension, RandInt
from ...spec.sampling import PbtSampling
from ...spec.scalars import Scalar, number, same
from ...spec.search_space import Point, SearchSpace


def explored(space: SearchSpace, values: Mapping[str, Scalar], how: PbtSampling, random: Random) -> Point:
    """Raw values: each near that in `values`, or drawn anew, as is one that is not in `values` but is there
    with the others."""
    raws: Point = {}
    found: Point = {}
    for name, one in space.dimensions.items():
        if not one.active(found):
            continue
        if name not in values or random.random() < how.resample_probability:
            raws[name] = _drawn(one, random)
        else:
            raws[name] = _perturbed(one, values[name], how.perturbation_factors, random)
        found[name] = one.value(raws[name])
    return raws


def _drawn(dimension: Dimension, random: Random) -> Scalar:
    """From what a sampler would draw it from."""
    distribution = dimension.distribution()
    within = distribution["attributes"]
    if distribution["name"] == "CategoricalDistribution":
        drawn: Scalar = random.choice(within["choices"])
        return drawn
    low: float = within["low"]
    high: float = within["high"]
    step: float | None = within["step"]
    whole = distribution["name"] == "IntDistribution"
    if within["log"]:
        margin = 0.5 if whole else 0.0  # the ends are as likely as what lies between
        real = math.exp(random.uniform(math.log(low - margin), math.log(high + margin)))
        return min(max(round(real) if whole else real, low), high)
    if step is None:
        return random.uniform(low, high)
    steps = random.randint(0, round((high - low) / step))
    return int(low + steps * step) if whole else dimension.raw(low + steps * step)


def _perturbed(dimension: Dimension, value: Scalar, factors: tuple[float, float], random: Random) -> Scalar:
    """Of a choice the one before it or after it; a number becomes so many times as large, and changes by one
    step at least; neither leaves its bounds."""
    if isinstance(dimension, Choice):
        at = next(at for at, one in enumerate(dimension.values) if same(one, value))
        choice: Scalar = dimension.values[min(max(at + random.choice((-1, 1)), 0), len(dimension.values) - 1)]
        return choice
    change = number(value) * (random.choice(factors) - 1.0)
    if change:
        change = math.copysign(max(abs(change), _step(dimension)), change)
    real = number(value) + change
    distribution = dimension.distribution()
    if distribution["name"] != "IntDistribution":
        return dimension.raw(real)
    within = distribution["attributes"]
    low, high, step = int(within["low"]), int(within["high"]), int(within["step"])
    return low + min(max(round((real - low) / step), 0), (high - low) // step) * step


def _step(dimension: Dimension) -> float:
    """From one value to the next; 0: any number is one."""
    if isinstance(dimension, RandInt):
        return 1.0
    return float(getattr(dimension, "step", None) or getattr(dimension, "q", None) or 0.0)
