"""When a trial ends early: Azure's three policies, which Optuna has not or not like this, and Optuna's own.

Azure counts intervals: each report of the objective is one. A policy looks at every `evaluation_interval`-th,
from `delay_evaluation` on. Source of their meanings: Azure Machine Learning's documentation, "Tune
hyperparameters", section "Early termination"; https://learn.microsoft.com/azure/machine-learning/.
"""

import math
from abc import abstractmethod
from collections.abc import Sequence
from statistics import fmean, median
from typing import Any

from optuna import pruners
from optuna.pruners import BasePruner
from optuna.study import Study, StudyDirection
from optuna.trial import FrozenTrial

from ..spec.sweep import SweepSpec


def pruner_of(spec: SweepSpec) -> BasePruner | None:
    """None: no trial ends early."""
    return _made(spec.early_termination)


def _made(policy: Any) -> BasePruner | None:
    if policy is None:
        return None
    match policy.type:
        case "bandit":
            return Bandit(policy)
        case "median_stopping":
            return MedianStopping(policy)
        case "truncation_selection":
            return Truncation(policy)
        case "asha":
            return pruners.SuccessiveHalvingPruner(
                min_resource=policy.min_resource or "auto",
                reduction_factor=policy.reduction_factor,
                min_early_stopping_rate=policy.min_early_stopping_rate,
            )
        case "hyperband":
            return pruners.HyperbandPruner(
                min_resource=policy.min_resource,
                max_resource=policy.max_resource or "auto",
                reduction_factor=policy.reduction_factor,
            )
        case "wilcoxon":
            return pruners.WilcoxonPruner(
                p_threshold=policy.p_threshold, n_startup_steps=policy.n_startup_steps
            )
        case "threshold":
            return pruners.ThresholdPruner(
                lower=policy.lower,
                upper=policy.upper,
                n_warmup_steps=policy.delay_evaluation,
                interval_steps=policy.evaluation_interval,
            )
        case "patience":
            return pruners.PatientPruner(
                _made(policy.policy), patience=policy.patience, min_delta=policy.min_delta
            )
    raise AssertionError(f"no policy {policy.type}")


class AzurePolicy(BasePruner):
    """Asked at each interval that counts, with what all trials have told. Less is better: goals to maximize
    are turned round."""

    def __init__(self, policy: Any) -> None:
        self._policy = policy

    def prune(self, study: Study, trial: FrozenTrial) -> bool:
        sign = -1.0 if study.direction == StudyDirection.MAXIMIZE else 1.0
        mine = _reports(trial, sign)
        count = len(mine)
        if count <= self._policy.delay_evaluation or count % self._policy.evaluation_interval:
            return False
        others = [
            reports
            for one in study.get_trials(deepcopy=False)
            if one.number != trial.number and len(reports := _reports(one, sign)) >= count
        ]
        return bool(others) and self.ends(mine, [reports[:count] for reports in others])

    @abstractmethod
    def ends(self, mine: Sequence[float], others: Sequence[Sequence[float]]) -> bool:
        """`others`: those that have come as far, up to the same interval."""


class Bandit(AzurePolicy):
    """Ends a trial whose best is not within the slack of the best of all at the same interval."""

    def ends(self, mine: Sequence[float], others: Sequence[Sequence[float]]) -> bool:
        best = min(map(min, others))
        amount: float | None = self._policy.slack_amount
        return min(mine) > (_slackened(best, self._policy.slack_factor) if amount is None else best + amount)


class MedianStopping(AzurePolicy):
    """Ends a trial whose best is worse than the median of the others' running means."""

    def ends(self, mine: Sequence[float], others: Sequence[Sequence[float]]) -> bool:
        return min(mine) > median(map(fmean, others))


class Truncation(AzurePolicy):
    """Ends a trial that is among the given percentage of the worst at the same interval."""

    def ends(self, mine: Sequence[float], others: Sequence[Sequence[float]]) -> bool:
        count = len(others) + 1
        percentage: int = self._policy.truncation_percentage
        worst = count * percentage // 100
        better = sum(one[-1] < mine[-1] for one in others)
        return worst > 0 and better >= count - worst


def _reports(trial: FrozenTrial, sign: float) -> list[float]:
    """In the order of their steps; what is no number is the worst."""
    told = (sign * value for _, value in sorted(trial.intermediate_values.items()))
    return [math.inf if math.isnan(value) else value for value in told]


def _slackened(best: float, factor: float) -> float:
    """The worst that is within the slack. To maximize, a metric of m may fall to m / (1 + factor); it is
    -best here."""
    return best / (1 + factor) if best < 0 else best * (1 + factor)
