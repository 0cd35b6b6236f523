"""The mappings that say what is to happen to a job: limits, urgency, retries, checkpoints.

As in parts.py, every field's docstring becomes its description in the JSON Schema.
"""

from typing import Annotated, Any, Final, Literal, Self

from pydantic import AfterValidator, BeforeValidator, Field, WithJsonSchema, model_validator

from .every import parse_every
from .failures import RETRIED, RETRY_CHOICES, FailureClass
from .fields import Count, Line, Listed, Lower, Number, SizeBytes, refusal
from .parts import Model
from .problems import nearest, shown
from .retention import Retention
from .stores import why_not_kept

YEAR_S: Final = 366 * 24 * 3600


def _off(value: Any) -> Any:
    """YAML reads a bare `off` as false."""
    return 0 if value is False or (isinstance(value, str) and value.lower() == "off") else value


SecondsOrOff = Annotated[
    Annotated[Count, Field(ge=0, le=YEAR_S)] | None,
    BeforeValidator(_off),
    WithJsonSchema({"anyOf": [{"type": "integer", "minimum": 1}, {"enum": ["off", False]}]}),
]


class Limits(Model):
    """Bounds after which the job is stopped or its output cut."""

    timeout: Count | None = Field(default=None, ge=1, le=YEAR_S)
    """Seconds the job may run, waiting in the queue not counted; absent: no limit."""
    hang_timeout: SecondsOrOff = None
    """Seconds without a step of any process after which the job is taken for hung and goes on from its
    checkpoint; `off` (or 0): never. Absent: ten times the longest pause between two steps, at least 5 minutes
    when its processes are idle and 30 minutes when they are busy."""
    log_size: SizeBytes = Field(default=256 << 20, ge=64 << 10, le=64 << 30)
    """Size to which the log of each rank is kept; the oldest part goes first."""

    @property
    def hang_timeout_s(self) -> float:
        """As nodes are told: 0, as the steps suggest; below 0, never."""
        if self.hang_timeout is None:
            return 0.0
        return float(self.hang_timeout) if self.hang_timeout else -1.0


class QueueSettings(Model):
    """Azure's way of saying how urgent a job is."""

    job_tier: Annotated[Literal["null", "spot", "basic", "standard", "premium"] | None, Lower] = None
    """Not used here."""
    priority: Annotated[Literal["low", "medium", "high"] | None, Lower] = None
    """low, medium, high: priority -100, 0, 100."""


def _failure_class(value: Any) -> FailureClass:
    word = value.lower() if isinstance(value, str) else value
    if word in RETRY_CHOICES:
        return FailureClass(word)
    expected = f"expected one of {', '.join(RETRY_CHOICES)}; found {shown(value)}"
    if word == FailureClass.START_FAILED:
        raise refusal(f"{expected}, which is always tried elsewhere")
    if word == FailureClass.TIMEOUT:
        raise refusal(f"{expected}: limits.timeout is for all attempts together")
    guess = nearest(word, RETRY_CHOICES)
    raise refusal(expected + (f"; did you mean '{guess}'?" if guess else ""))


def _in_one_order(kinds: tuple[FailureClass, ...]) -> tuple[FailureClass, ...]:
    return tuple(kind for kind in RETRY_CHOICES if kind in kinds)


_ONE_CLASS: Final = {"type": "string", "enum": [kind.value for kind in RETRY_CHOICES]}
FailureClasses = Annotated[
    tuple[Annotated[FailureClass, BeforeValidator(_failure_class)], ...],
    Listed,
    Field(max_length=64),
    AfterValidator(_in_one_order),
    WithJsonSchema({"anyOf": [_ONE_CLASS, {"type": "array", "items": _ONE_CLASS, "maxItems": 64}]}),
]
"""Classes of failures, one or a list of them."""


class Backoff(Model):
    """How long a job that failed waits before it is tried again. The first retry comes at once; each further
    failure in a row waits twice as long as the one before. An attempt that published a checkpoint, or ran for
    longer than max_s, begins a new row."""

    start_s: Number = Field(default=1.0, ge=0, le=86_400)
    """Seconds before the second retry in a row; 0: no wait at all."""
    max_s: Number = Field(default=60.0, ge=0, le=86_400)
    """Seconds beyond which the wait does not grow."""

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.max_s < self.start_s:
            raise refusal(f"expected at least start_s ({self.start_s:g}); found {self.max_s:g}", "max_s")
        return self


class Retry(Model):
    """What happens when an attempt fails."""

    max_attempts: Count = Field(default=4, ge=1, le=1000)
    """Attempts in all that may end because a process of the job failed; attempts that end because a node
    was lost, the job was preempted or a start refused are not counted."""
    on: FailureClasses = RETRIED
    """After which failures there is another attempt, and after no other: out-of-memory, user-error (an error
    of syntax, an import, the command itself, or the same in the same line twice: it would only recur),
    exception, exit-code, signal, hang, node-lost, preempted. Absent: all but user-error. A refused start is
    always tried elsewhere."""
    backoff: Backoff = Backoff()
    """How long it waits before it is tried again."""


def _opened(url: str) -> str:
    if url and (why := why_not_kept(url)):
        raise refusal(f"{why}; found {shown(url)}")
    return url


CheckpointUrl = Annotated[Line, AfterValidator(_opened)]
_SCRUB_S: Final = 24 * 3600.0


def _on_or_off(value: Any) -> Any:
    """A bare `off` is a text in YAML 1.2, and false in 1.1."""
    found = {"on": True, "off": False}.get(value.lower()) if isinstance(value, str) else value
    if not isinstance(found, bool):
        raise refusal(f"expected on or off; found {shown(value)}")
    return found


OnOff = Annotated[
    bool,
    BeforeValidator(_on_or_off),
    WithJsonSchema({"anyOf": [{"type": "boolean"}, {"enum": ["on", "off"]}]}),
]


def _save_every(value: Any) -> str:
    try:
        return parse_every(value).text
    except ValueError as error:
        raise refusal(f"{error}; found {shown(value)}") from None


SaveEvery = Annotated[
    str,
    BeforeValidator(lambda value: value if value in ("", None) else _save_every(value)),
    BeforeValidator(lambda value: "" if value is None else value),
    WithJsonSchema({"type": "string", "examples": ["auto", "100 steps", "60 s"]}),
]


class Checkpoint(Model):
    """When checkpoints are made, which are kept, and what happens when one is wanted too soon."""

    keep_last: Count = Field(default=2, ge=1, le=1000)
    """The newest so many."""
    keep_best: Count = Field(default=0, ge=0, le=1000)
    """And the best so many by best_metric."""
    keep_every: Count = Field(default=0, ge=0, le=2**62)
    """And for ever the first at or after each multiple of so many steps; 0: none."""
    every: SaveEvery = ""
    """When `run.should_save(step)` says yes: `100 steps`, `60 s` (or min, h), or `auto`, which follows from
    what a save costs and how often gangs fail here. Absent: as the script says, else auto."""
    best_metric: Line = ""
    """Metric to compare; more is better, and with a minus sign before it, as in `-loss`, less is."""
    when_busy: Annotated[Literal["wait", "skip"], Lower] = "wait"
    """When the checkpoint before is not on disk yet: wait for it, or skip this one and go on training."""
    storage: CheckpointUrl = ""
    """Where checkpoints are uploaded, beside the job's folder: s3://bucket/prefix, gs://, abfs://, another
    URL of fsspec that can be written to, or the path of a shared folder. A restore reads from there what the
    nodes' memory and the job's folder lack."""
    peer_memory: OnOff = True
    """Whether each node's part is kept in the memory of another node of the gang, too, where that has room:
    there it outlives its node."""
    scrub_interval: SecondsOrOff = None
    """Seconds after which each checkpoint that is kept is read again and its hashes are compared, slowly and
    beside the training; `off` (or 0): never. Absent: a day."""

    @model_validator(mode="after")
    def _named(self) -> Self:
        if self.keep_best and not self.best_metric.lstrip("-"):
            raise refusal("required with keep_best: the metric to compare, such as -loss", "best_metric")
        return self

    @property
    def scrub_s(self) -> float:
        """0: never."""
        return _SCRUB_S if self.scrub_interval is None else float(self.scrub_interval)

    @property
    def retention(self) -> Retention:
        return Retention(self.keep_last, self.keep_best, self.best_metric, self.keep_every)
