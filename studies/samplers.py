"""The samplers that a sweep may name, as Optuna's: one for each trial, seeded by the sweep and the trial."""

import hashlib
from collections.abc import Sequence
from typing import Final

from optuna import samplers
from optuna.samplers import BaseSampler
from optuna.trial import FrozenTrial

from ..spec.sampling import (
    BruteForceSampling,
    CmaEsSampling,
    GpSampling,
    GridSampling,
    Nsga2Sampling,
    PbtSampling,
    QmcSampling,
    RandomSampling,
    SobolSampling,
    TpeSampling,
)
from ..spec.sweep import SweepSpec

_CONSTRAINTS: Final = "constraints"


_SEARCH_SPACES: Final = ("_search_space", "_intersection_search_space")


def sampler_of(spec: SweepSpec, number: int, before: BaseSampler | None = None) -> BaseSampler:
    """For trial `number`. What a sampler knows of other trials it reads from the study; of that, `before` (of
    another trial of the same study) has counted already which names all trials have in common: the next one
    need not look at all of them again."""
    made = _new_sampler(spec, number)
    for name in _SEARCH_SPACES:
        if hasattr(made, name) and hasattr(before, name):
            setattr(made, name, getattr(before, name))
    return made


def _new_sampler(spec: SweepSpec, number: int) -> BaseSampler:
    made = spec.sampling_algorithm
    own = made.seed or 0
    seed = trial_seed(own, number)
    constraints = _constraints_of if spec.constraints else None
    match made:
        case RandomSampling(rule="sobol") | SobolSampling():
            return _sequence("sobol", own, seed)
        case RandomSampling() | GridSampling() | PbtSampling():
            return samplers.RandomSampler(seed)
        case QmcSampling():
            return _sequence(made.sequence, own, seed, scramble=made.scramble)
        case BruteForceSampling():
            return samplers.BruteForceSampler(seed)
        case TpeSampling():
            return samplers.TPESampler(
                n_startup_trials=made.n_startup_trials,
                constant_liar=spec.limits.max_concurrent_trials != 1,
                constraints_func=constraints,
                seed=seed,
            )
        case GpSampling():
            return samplers.GPSampler(
                n_startup_trials=made.n_startup_trials, constraints_func=constraints, seed=seed
            )
        case CmaEsSampling():
            return samplers.CmaEsSampler(
                n_startup_trials=made.n_startup_trials, seed=seed, warn_independent_sampling=False
            )
        case Nsga2Sampling():
            return samplers.NSGAIISampler(
                population_size=made.population_size, constraints_func=constraints, seed=seed
            )


def _sequence(kind: str, own: int, seed: int, *, scramble: bool = True) -> BaseSampler:
    """One sequence for the whole sweep; only what lies outside it is drawn by the trial."""
    return samplers.QMCSampler(
        qmc_type=kind,
        scramble=scramble,
        seed=own,
        independent_sampler=samplers.RandomSampler(seed),
        warn_independent_sampling=False,
    )


def trial_seed(seed: int, number: int) -> int:
    """31 bits of SHA-256 of both: neighbouring trials must not draw alike."""
    return int.from_bytes(hashlib.sha256(f"{seed}/{number}".encode()).digest()[:4], "big") >> 1


def _constraints_of(trial: FrozenTrial) -> Sequence[float]:
    """As told with the trial's end; one that did not tell them all is infeasible."""
    told = trial.system_attrs.get(_CONSTRAINTS)
    return tuple(told) if told else (1.0,)
