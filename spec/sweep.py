"""The sweep as one frozen model: a trial, the space of its values, what is sought in it and how.

Shaped as Azure Machine Learning's CLI v2 has it; our own keys sit beside. What has to fit together is checked
in sweep_checks.py. Defaults are part of the canonical form, as they are of a job's.
"""

import re
import shlex
from collections.abc import Mapping
from math import log
from typing import Annotated, Any, Final, Literal, Self

from pydantic import (
    AfterValidator,
    BeforeValidator,
    ConfigDict,
    Discriminator,
    Field,
    Tag,
    ValidationError,
    model_validator,
)

from .code import CodeGit
from .dimensions import Dimension
from .early_termination import PolicyValue
from .expressions import without
from .fields import Command, Count, Identifier, Line, Lower, Metric, refusal
from .model import JobSpec
from .parts import TAG_ONE, TAG_SEVERAL, EnvironmentValue, Model
from .patterns import MetricPattern
from .policies import YEAR_S
from .problems import shown
from .real_dimensions import DimensionValue
from .sampling import RandomSampling, SamplingValue, TpeSampling
from .scalars import Scalar, ScalarValue, as_text
from .search_space import DIMENSIONS_MAX, SearchSpace
from .submission import Submission, absolute, canonical, slug
from .work import Work

TRIALS_MAX: Final = 1_000_000
GRID_MAX: Final = 100_000
"""Points of a grid that needs no limits.max_total_trials."""
OBJECTIVES_MAX: Final = 8
WORKER: Final = "python -m paceline.training.objectives"
"""What runs an objective's trials, one after the other; followed by the objective."""
_NAME_CHARS_MAX: Final = 255
_WARM_MAX: Final = 10_000
_OBJECTIVE: Final = re.compile(r"([\w./-]+\.py|[A-Za-z_]\w*(\.[A-Za-z_]\w*)*):[A-Za-z_]\w*\Z", re.ASCII)


class Objective(Model):
    """A metric and where it shall go."""

    primary_metric: Metric
    """Name of the metric, as the script reports it."""
    goal: Annotated[Literal["minimize", "maximize"], Lower]
    """minimize or maximize."""
    pattern: MetricPattern | None = None
    """A regular expression with a group `value`, and perhaps a group `step`: rank 0's output lines that match
    it tell the metric. Absent: the script reports it."""


def _how_many(value: Any) -> str:
    return TAG_SEVERAL if isinstance(value, list | tuple) else TAG_ONE


ObjectiveValue = Annotated[
    Annotated[Objective, Tag(TAG_ONE)]
    | Annotated[tuple[Objective, ...], Field(min_length=1, max_length=OBJECTIVES_MAX), Tag(TAG_SEVERAL)],
    Discriminator(_how_many),
]


def _function(value: str) -> str:
    if value and not _OBJECTIVE.match(value):
        raise refusal(f"expected FILE.py:FUNCTION or PACKAGE.MODULE:FUNCTION; found {shown(value)}")
    return value


class TrialWork(Work):
    """What each trial is: a command, or a call of a Python function."""

    command: Command = ""
    """What each process runs, by `sh -c` unless it is plainly a program with arguments."""
    objective: Annotated[Line, AfterValidator(_function)] = ""
    """In place of `command`: FILE.py:FUNCTION, below `code`, or PACKAGE.MODULE:FUNCTION. It is called with an
    `optuna.Trial`, of which it asks its values, and returns what is sought: a number, or one for each
    objective. A job calls it for one trial after the other."""

    @model_validator(mode="after")
    def _one_of_both(self) -> Self:
        if self.objective and self.command:
            raise refusal("given beside objective; keep one of them", "command")
        if not self.objective and not self.command:
            raise refusal("required key 'command' is missing")
        if self.objective and self.distribution is not None:
            raise refusal("an objective runs in one process; give a command instead", "distribution")
        if self.objective and max(self.resources.instance_count, self.resources.max_instance_count or 0) > 1:
            raise refusal(
                "an objective runs in one process; give a command instead", "resources", "instance_count"
            )
        return self


class SweepLimits(Model):
    """Bounds on the trials, together and each."""

    max_total_trials: Count | None = Field(default=None, ge=1, le=TRIALS_MAX)
    """Trials in all. Absent, with grid or bruteforce only: as many as there are points."""
    max_concurrent_trials: Count | None = Field(default=None, ge=1, le=TRIALS_MAX)
    """Trials at once; absent: as many as there is idle room for."""
    min_concurrent_trials: Count | None = Field(default=None, ge=1, le=TRIALS_MAX)
    """Trials that have the sweep's own priority; beyond them trials take only what is idle, and give way to
    any job of that priority. Absent: max_concurrent_trials, or 1 where that is absent, too."""
    timeout: Count | None = Field(default=None, ge=1, le=YEAR_S)
    """Seconds from the submit after which the sweep ends with the trials that it has; absent: no limit."""
    trial_timeout: Count | None = Field(default=None, ge=1, le=YEAR_S)
    """Seconds that a trial may run; absent: trial.limits.timeout."""
    max_failed_trials: Count = Field(default=5, ge=1, le=TRIALS_MAX)
    """Trials that may fail one after the other, as they end, before the sweep stops; one that completes or is
    pruned begins the count anew."""

    @property
    def firm_trials(self) -> int:
        """Trials at once that are not there only while something is idle."""
        return self.min_concurrent_trials or self.max_concurrent_trials or 1


def _sweep_reference(value: Any) -> Any:
    number = isinstance(value, int) and not isinstance(value, bool) and value >= 1
    if not number and not (isinstance(value, str) and 0 < len(value) <= _NAME_CHARS_MAX):
        raise refusal(f"expected the number or the name of a sweep; found {shown(value)}")
    return int(value) if isinstance(value, str) and value.isdecimal() else value


class WarmStart(Model):
    """Trials of an earlier sweep that are known from the start."""

    sweep: Annotated[int | str, BeforeValidator(_sweep_reference)]
    """Number or name of the earlier sweep, or of a study made through Optuna."""
    trials: Annotated[Literal["all", "best"], Lower] = "all"
    """`all` that are complete or pruned, the newest; or the `best` of those that are complete."""
    count: Count = Field(default=1000, ge=1, le=_WARM_MAX)
    """At most so many."""


def _no_path(value: Any) -> Any:
    if isinstance(value, str):
        raise refusal(f"expected a mapping; found {shown(value)}, and job files are read by clients only")
    return value


class SweepSpec(Submission):
    """Many trials of one job, each with other values."""

    model_config = ConfigDict(defer_build=False)

    type: Annotated[Literal["sweep"], Lower]
    """Kind of the document."""
    trial: Annotated[TrialWork, BeforeValidator(_no_path, json_schema_input_type=str | TrialWork)]
    """The job that each trial is: a mapping, or the path of a job file, relative to this one."""
    sampling_algorithm: SamplingValue = TpeSampling(type="tpe")
    """How values are chosen: a word, or a mapping with type and options. Absent: tpe."""
    search_space: dict[Identifier, DimensionValue] = Field(
        default={}, min_length=1, max_length=DIMENSIONS_MAX
    )
    """What may be chosen, by name: `${{search_space.NAME}}` in the command. An input of the same name has
    the chosen value, too. Not with trial.objective, which says itself what it needs."""
    objective: ObjectiveValue
    """What is sought: a metric and its goal, or a list of them. With trial.objective the metric is a name
    only; absent: value, value_1 ..."""
    early_termination: PolicyValue | None = None
    """When a trial is stopped before its end; absent: never."""
    limits: SweepLimits = SweepLimits()
    """Bounds on the trials, together and each."""
    enqueue: tuple[dict[Identifier, ScalarValue], ...] = Field(default=(), max_length=1000)
    """Values that are tried first, such as known good ones; what a point leaves out is chosen."""
    warm_start: WarmStart | None = None
    """An earlier sweep whose finished trials the sampler knows; they do not count in limits."""
    constraints: tuple[Metric, ...] = Field(default=(), max_length=64)
    """Metrics of which a trial must report at most 0 to count as feasible."""

    @model_validator(mode="before")
    @classmethod
    def _with_names(cls, data: Any) -> Any:
        """What an objective returns needs no name."""
        trial = data.get("trial") if isinstance(data, dict) else None
        if not isinstance(trial, dict) or not trial.get("objective"):
            return data
        sought = data.get("objective")
        if isinstance(sought, dict):
            return {**data, "objective": {"primary_metric": "value"} | sought}
        if isinstance(sought, list | tuple):
            named = (
                {"primary_metric": f"value_{at}" if at else "value"} | one if isinstance(one, dict) else one
                for at, one in enumerate(sought)
            )
            return {**data, "objective": list(named)}
        return data

    @property
    def by_function(self) -> bool:
        """Its trials are calls of a function: `trial_job` is a job that runs many of them."""
        return bool(self.trial.objective)

    @property
    def label(self) -> str:
        """What to call the sweep: its name, or else what comes nearest to one. A valid name, always."""
        words = (self.display_name, self.experiment_name, self.trial.folder_name)
        return self.name or next((found for found in map(slug, words) if found), "sweep")

    @property
    def objectives(self) -> tuple[Objective, ...]:
        return self.objective if isinstance(self.objective, tuple) else (self.objective,)

    @model_validator(mode="after")
    def _in_range(self) -> Self:
        try:
            self.dimensions()
        except ValidationError:
            text = "with it the bounds of the search space leave the range of floats"
            raise refusal(text, "sampling_algorithm", "logbase") from None
        return self

    def dimensions(self) -> dict[str, Dimension]:
        """The search space as it is meant: exponents are those of e."""
        sampling = self.sampling_algorithm
        scale = log(sampling.logbase) if isinstance(sampling, RandomSampling) else 1.0
        return {name: one if scale == 1.0 else one.scaled(scale) for name, one in self.search_space.items()}

    @property
    def space(self) -> SearchSpace:
        """Of a sweep that passed its checks. Made anew each time; keep it."""
        return SearchSpace(self.dimensions())

    def trials_max(self) -> int:
        """limits.max_total_trials, or the points of the grid. Counted anew each time; keep it."""
        return self.limits.max_total_trials or self.space.grid_size(GRID_MAX)

    def trial_job(self, number: int, params: Mapping[str, Scalar]) -> JobSpec:
        """A trial as an ordinary job. `params`: the values of the dimensions that are active in it; the
        others are an empty text in its command. `by_function`: the job that runs trials, by its number."""
        suffix = f"-worker-{number}" if self.by_function else f"-{number}"
        command = f"{WORKER} {shlex.quote(self.trial.objective)}" if self.by_function else self.trial.command
        absent = self.search_space.keys() - params.keys()
        work, variables = self.trial, self.trial.environment_variables
        timeout = self.limits.trial_timeout or work.limits.timeout
        patterns = {one.primary_metric: one.pattern for one in self.objectives if one.pattern}
        return JobSpec.model_validate(
            {name: getattr(work, name) for name in Work.model_fields}
            | {name: getattr(self, name) for name in _KEPT}
            | {
                "command": without(command, "search_space", absent),
                "environment_variables": {
                    name: without(text, "search_space", absent) for name, text in variables.items()
                },
                "name": self.label[: _NAME_CHARS_MAX - len(suffix)] + suffix,
                "inputs": {
                    name: _as_input(params[name]) if name in params else value
                    for name, value in self.inputs.items()
                },
                "limits": work.limits.model_copy(update={"timeout": timeout}),
                "metric_patterns": work.metric_patterns | patterns,
                "params": dict(params),
            }
        )

    def rooted(self, folder: str) -> "SweepSpec":
        """The same sweep with its local paths made absolute, those relative ones below `folder`."""
        code = absolute(folder, self.trial.code) if self.trial.code else None
        trial = self.trial.model_copy(update={"code": code})
        return self.model_copy(update={"inputs": self.rooted_inputs(folder), "trial": trial})

    def with_code(self, tree: str, git: CodeGit | None) -> "SweepSpec":
        """The same sweep, its trials running in that tree."""
        trial = self.trial.model_copy(update={"code_tree": tree, "code_git": git})
        return self.model_copy(update={"trial": trial})

    def with_environment(self, environment: EnvironmentValue) -> "SweepSpec":
        """The same sweep, its trials in that environment."""
        return self.model_copy(update={"trial": self.trial.model_copy(update={"environment": environment})})

    def running_in(self, folder: str) -> "SweepSpec":
        """The same sweep, its trials run in `folder` unless it says where."""
        trial = self.trial.model_copy(update={"code": folder, "code_in_place": True})
        return self if self.trial.code else self.model_copy(update={"trial": trial})

    def to_json(self) -> str:
        """Canonical JSON: equal sweeps have equal text, defaults included. The order of the search space is
        part of what it says."""
        plain = self.plain()
        del plain["trial"]["command" if self.by_function else "objective"]
        if not self.search_space:
            del plain["search_space"]
            return canonical(plain)
        dimensions = plain.pop("search_space").items()
        space = ",".join(f"{canonical(name)}:{canonical(one)}" for name, one in dimensions)
        return f'{{"search_space":{{{space}}},{canonical(plain)[1:]}'


_KEPT: Final = ("outputs", "compute", "queue", "priority", "queue_settings", "experiment_name", "identity")


def _as_input(value: Scalar) -> str | int | float | bool:
    """A value in the place of an input, of which there is none that is nothing."""
    return as_text(value) if value is None else value
