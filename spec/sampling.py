"""`sampling_algorithm`: how the values of a sweep's trials are chosen, one model per algorithm.

As in parts.py, every field's docstring becomes its description in the JSON Schema.
"""

import math
from typing import Annotated, Any, Final, Literal, get_args

from pydantic import BeforeValidator, Field, PlainValidator, WithJsonSchema

from .by_type import ByType, as_type
from .fields import Count, Lower, Number, refusal
from .parts import Model
from .problems import shown

_TRIALS_MAX: Final = 1_000_000
_STEPS_MAX: Final = 1 << 53
Factor = Annotated[Number, Field(gt=0, le=1e6)]


def _logbase(value: Any) -> float:
    base = math.e if value in ("e", "E") else value
    if isinstance(base, bool) or not isinstance(base, int | float) or not 1 < base <= 1e6:
        raise refusal(f"expected a number more than 1 and up to a million, or e; found {shown(value)}")
    return float(base)


LogBase = Annotated[
    float,
    PlainValidator(_logbase),
    WithJsonSchema({"anyOf": [{"type": "number", "exclusiveMinimum": 1}, {"enum": ["e"]}]}),
]


class Sampling(Model):
    """What all algorithms have in common."""

    seed: Count | None = Field(default=None, ge=0, lt=1 << 32)
    """With the same seed and one trial at a time the same values are chosen; absent: others each time."""


class RandomSampling(Sampling):
    """Values at random."""

    type: Literal["random"]
    """`random`: values at random, whatever came of the trials before."""
    rule: Annotated[Literal["random", "sobol"], Lower] = "random"
    """`sobol`: a sequence that covers the space more evenly."""
    logbase: LogBase = math.e
    """The base whose exponents the bounds of loguniform and the other log kinds are."""


class SobolSampling(Sampling):
    """A sequence that covers the space evenly."""

    type: Literal["sobol"]
    """`sobol`: a scrambled Sobol' sequence, which covers the space more evenly than random values."""


class GridSampling(Sampling):
    """Every point of a discrete space."""

    type: Literal["grid"]
    """`grid`: every combination of the values of choice, randint, int and the kinds with q or step."""


class TpeSampling(Sampling):
    """The tree-structured Parzen estimator."""

    type: Literal["tpe", "bayesian"]
    """`tpe` (Azure's `bayesian`): values like those of the better trials so far."""
    n_startup_trials: Count = Field(default=10, ge=0, le=_TRIALS_MAX)
    """Trials with random values before that."""


class GpSampling(Sampling):
    """Gaussian processes."""

    type: Literal["gp"]
    """`gp`: where a Gaussian process promises most; slow beyond a few hundred trials; needs torch."""
    n_startup_trials: Count = Field(default=10, ge=0, le=_TRIALS_MAX)
    """Trials with random values before that."""


class CmaEsSampling(Sampling):
    """Evolution of a covariance matrix."""

    type: Literal["cmaes"]
    """`cmaes`: CMA-ES, for numbers; values of choice are random. One objective only; needs cmaes."""
    n_startup_trials: Count = Field(default=1, ge=0, le=_TRIALS_MAX)
    """Trials with random values before that."""


class Nsga2Sampling(Sampling):
    """Evolution of a population."""

    type: Literal["nsga2"]
    """`nsga2`: NSGA-II, for several objectives."""
    population_size: Count = Field(default=50, ge=2, le=_TRIALS_MAX)
    """Trials of one generation."""


class QmcSampling(Sampling):
    """A sequence of low discrepancy."""

    type: Literal["qmc"]
    """`qmc`: a sequence of low discrepancy, which covers the space more evenly than random values."""
    sequence: Annotated[Literal["sobol", "halton"], Lower] = "sobol"
    """Which one."""
    scramble: bool = Field(default=True, strict=True)
    """Whether it is made random by the seed."""


class BruteForceSampling(Sampling):
    """Every point of a discrete space, in a random order."""

    type: Literal["bruteforce"]
    """`bruteforce`: as grid, in a random order."""


class PbtSampling(Sampling):
    """Population based training."""

    type: Literal["pbt"]
    """`pbt`: population based training. Members are trained at once; one that falls behind goes on from the
    checkpoint of one that is ahead, with values near those of that one."""
    population_size: Count = Field(ge=2, le=1000)
    """Members: trials that are trained at once."""
    perturbation_interval: Count = Field(ge=1, le=_STEPS_MAX)
    """Steps between two looks at a member."""
    quantile_fraction: Annotated[Number, Field(gt=0, le=0.5)] = 0.25
    """This part of the members falls behind, and as large a part is ahead."""
    resample_probability: Annotated[Number, Field(ge=0, le=1)] = 0.25
    """How often a value is drawn anew instead."""
    perturbation_factors: tuple[Factor, Factor] = (1.2, 0.8)
    """A number becomes so many times as large, by the one or the other."""


AnySampling = (
    RandomSampling
    | SobolSampling
    | GridSampling
    | TpeSampling
    | GpSampling
    | CmaEsSampling
    | Nsga2Sampling
    | QmcSampling
    | BruteForceSampling
    | PbtSampling
)
Word = Literal["random", "sobol", "grid", "tpe", "bayesian", "gp", "cmaes", "nsga2", "qmc", "bruteforce"]
SamplingValue = Annotated[
    AnySampling,
    ByType(*get_args(AnySampling), words={"bayesian": "tpe"}),
    BeforeValidator(as_type, json_schema_input_type=Word | AnySampling),
]


def whole_part(members: int, fraction: float) -> int:
    """How many of them that part is, rounded down but for the noise of floats."""
    return int(members * fraction + 1e-9)
