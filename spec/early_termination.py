"""`early_termination`: when a trial is stopped before its end, one model per policy.

Steps are those of `run.report`; a policy looks at the objective's metric. As in parts.py, every field's
docstring becomes its description in the JSON Schema.
"""

from typing import Annotated, Final, Literal, Self, get_args

from pydantic import Field, model_validator

from .by_type import ByType
from .fields import Count, Number, refusal
from .parts import Model

STEPS_MAX: Final = 1 << 53


class IntervalPolicy(Model):
    """A policy that looks at some steps only."""

    evaluation_interval: Count = Field(default=1, ge=1, le=STEPS_MAX)
    """It looks at each so many-th step that is reported."""
    delay_evaluation: Count = Field(default=0, ge=0, le=STEPS_MAX)
    """And only after so many steps."""


class BanditPolicy(IntervalPolicy):
    """By the distance from the best trial."""

    type: Literal["bandit"]
    """`bandit`: trials that are worse than the best one by more than a slack."""
    slack_factor: Annotated[Number | None, Field(ge=0, le=1e9)] = None
    """As a ratio: with 0.2 and a best of 0.8, those below 0.8 / 1.2 (to minimize: above 0.8 * 1.2)."""
    slack_amount: Annotated[Number | None, Field(ge=0)] = None
    """As an amount: with 0.2 and a best of 0.8, those below 0.6 (to minimize: above 1.0)."""

    @model_validator(mode="after")
    def _one_slack(self) -> Self:
        if (self.slack_factor is None) == (self.slack_amount is None):
            raise refusal("expected slack_factor or slack_amount, and one of them only")
        return self


class MedianStoppingPolicy(IntervalPolicy):
    """By the median of the other trials."""

    type: Literal["median_stopping"]
    """`median_stopping`: trials whose best is worse than the median of the others' averages so far."""


class TruncationSelectionPolicy(IntervalPolicy):
    """The worst ones of each step."""

    type: Literal["truncation_selection"]
    """`truncation_selection`: the worst part of the trials at each step that is looked at."""
    truncation_percentage: Count = Field(ge=1, le=99)
    """How large that part is."""


class AshaPolicy(Model):
    """Asynchronous successive halving."""

    type: Literal["asha"]
    """`asha`: asynchronous successive halving: only the best part of the trials goes on from each rung."""
    min_resource: Count | None = Field(default=None, ge=1, le=STEPS_MAX)
    """Steps to the first rung; absent: as the first trials' lengths suggest."""
    reduction_factor: Count = Field(default=4, ge=2, le=1_000_000)
    """One in so many goes on, for so many times the steps."""
    min_early_stopping_rate: Count = Field(default=0, ge=0, le=50)
    """Rungs that are left out at the beginning."""


class HyperbandPolicy(Model):
    """Successive halving from several beginnings."""

    type: Literal["hyperband"]
    """`hyperband`: several ashas beside each other, from the eager to the patient one."""
    min_resource: Count = Field(default=1, ge=1, le=STEPS_MAX)
    """Steps to the first rung of the most eager one."""
    max_resource: Count | None = Field(default=None, ge=1, le=STEPS_MAX)
    """Steps of a whole trial; absent: as many as the first that completes has."""
    reduction_factor: Count = Field(default=3, ge=2, le=1_000_000)
    """One in so many goes on, for so many times the steps."""

    @model_validator(mode="after")
    def _bounds(self) -> Self:
        if self.max_resource is not None and self.max_resource < self.min_resource:
            why = f"expected at least min_resource ({self.min_resource}); found {self.max_resource}"
            raise refusal(why, "max_resource")
        return self


class WilcoxonPolicy(Model):
    """By a signed-rank test."""

    type: Literal["wilcoxon"]
    """`wilcoxon`: trials that a signed-rank test finds worse than the best one, step by step: for an
    objective that is a mean over problems, each a step."""
    p_threshold: Annotated[Number, Field(ge=0, le=1)] = 0.1
    """The p value below which a trial is stopped."""
    n_startup_steps: Count = Field(default=2, ge=0, le=STEPS_MAX)
    """Steps before the first test."""


class ThresholdPolicy(IntervalPolicy):
    """By fixed bounds."""

    type: Literal["threshold"]
    """`threshold`: trials whose metric leaves these bounds, or is no number."""
    lower: Number | None = None
    """The lowest that it may be; absent: any."""
    upper: Number | None = None
    """The highest that it may be; absent: any."""

    @model_validator(mode="after")
    def _bounds(self) -> Self:
        if self.lower is None and self.upper is None:
            raise refusal("expected lower, upper or both")
        if self.lower is not None and self.upper is not None and self.lower > self.upper:
            raise refusal(f"expected at least lower ({self.lower:g}); found {self.upper:g}", "upper")
        return self


PlainPolicy = (
    BanditPolicy
    | MedianStoppingPolicy
    | TruncationSelectionPolicy
    | AshaPolicy
    | HyperbandPolicy
    | WilcoxonPolicy
    | ThresholdPolicy
)


class PatiencePolicy(Model):
    """By the time without progress."""

    type: Literal["patience"]
    """`patience`: trials that have not become better for so many steps; with `policy`, of those only the ones
    that it would stop."""
    patience: Count = Field(ge=0, le=STEPS_MAX)
    """Steps reported without progress."""
    min_delta: Annotated[Number, Field(ge=0)] = 0.0
    """Less than this is no progress."""
    policy: Annotated[PlainPolicy, ByType(*get_args(PlainPolicy))] | None = None
    """Another policy that is not heard as long as there is progress."""


AnyPolicy = PlainPolicy | PatiencePolicy
PolicyValue = Annotated[AnyPolicy, ByType(*get_args(AnyPolicy))]
