"""When a job is expected to start, or to end, and what that is judged by: as typed reasons beside the others.

Texts say how long from now; the fields have the times. Codes: `expected` (start), `before` (who starts before
it while both wait), `not-expected`, `not-yet-known`, `expected-end`.
"""

from collections.abc import Sequence
from typing import Final

from ...spec.ids import JobId, Micros
from ...spec.lifecycle import JobState
from ..core.amounts import duration_text
from ..core.job import Job
from ..core.order import why_before
from ..core.predict import basis_text, predict
from ..core.reason import Reason
from ..core.state import ClusterState
from ..forecast import Expected, Forecast

SHOWN_BEFORE: Final = 3


def expected_reasons(state: ClusterState, job: Job, told: Forecast | None, now_us: Micros) -> list[Reason]:
    """`told`: the standing forecast, if there is one by now."""
    if job.state is JobState.RUNNING and job.course.stop is None:
        return [_end_reason(state, job, now_us)]
    if job.state is not JobState.QUEUED:
        return []
    if told is None:
        text = "its start is not forecast yet"
        return [Reason("not-yet-known", text, "ask again in a few seconds: the forecast is being made")]
    expected = told.jobs.get(job.number)
    if expected is None:
        return [_not_looked_at(told)] if told.left_out else []
    reason = start_reason(told, expected, now_us)
    before = [number for number in told.order[: _rank(told.order, job.number)] if number in state.jobs]
    before = [number for number in before if not state.jobs[number].placed]
    return [reason, *_before(state, job, before, now_us)]


def start_reason(told: Forecast, expected: Expected, now_us: Micros) -> Reason:
    fields: dict[str, str | int] = {"draws": told.draws, "started": expected.started}
    cut = f"; the forecast was {told.cut}" if told.cut else ""
    if not expected.at_us:
        text = "no start is expected within the forecast's bounds"
        return Reason("not-expected", f"{text}{cut}", "", fields)
    fields |= {"start_us": expected.at_us, "early_us": expected.early_us, "late_us": expected.late_us}
    when, spread = _from_now(expected.at_us, now_us), _spread(expected, now_us)
    text = f"expected to start {when}{spread}"
    if expected.after:
        end_us, judged = told.ends[JobId(expected.after)]
        fields |= {"after": expected.after, "after_end_us": end_us, "judged": judged}
        text += f": job {expected.after} makes room then, {judged}"
    return Reason("expected", text + cut, "", fields)


def _not_looked_at(told: Forecast) -> Reason:
    text = f"no start is forecast: it is one of {told.left_out:,} waiting jobs that stand too far back"
    return Reason("not-expected", text, "", {"left_out": told.left_out})


def _end_reason(state: ClusterState, job: Job, now_us: Micros) -> Reason:
    found = predict(state, job, now_us)
    low, middle, high = found.p10_us, found.median_us, found.p90_us
    text = (
        f"expected to end in {duration_text(middle)} ({duration_text(low)} to {duration_text(high)}): "
        f"{basis_text(found, job)}"
    )
    fields: dict[str, str | int] = {
        "end_us": now_us + middle,
        "early_us": now_us + low,
        "late_us": now_us + high,
        "basis": found.basis.value,
        "runs": found.runs,
    }
    return Reason("expected-end", text, "", fields)


def _before(state: ClusterState, job: Job, before: Sequence[JobId], now_us: Micros) -> tuple[Reason, ...]:
    if not before:
        return ()
    shown = [
        f"job {number} ({why_before(state, state.jobs[number], job, now_us)})"
        for number in before[:SHOWN_BEFORE]
    ]
    more = f" and {len(before) - SHOWN_BEFORE} more" if len(before) > SHOWN_BEFORE else ""
    start = "1 job that waits starts" if len(before) == 1 else f"{len(before)} jobs that wait start"
    text = f"{start} before it: {', '.join(shown)}{more}"
    return (Reason("before", text, "", {"before": len(before), "first": before[0]}),)


def _rank(order: Sequence[JobId], number: JobId) -> int:
    return order.index(number) if number in order else len(order)


def _spread(expected: Expected, now_us: Micros) -> str:
    if expected.early_us == expected.at_us == expected.late_us:
        return ""
    early = _from_now(expected.early_us, now_us).removeprefix("in ")
    late = (
        _from_now(expected.late_us, now_us).removeprefix("in ") if expected.late_us else "later than foreseen"
    )
    return f" ({early} to {late})"


def _from_now(at_us: int, now_us: Micros) -> str:
    return "now" if at_us - now_us < 1_000_000 else f"in {duration_text(at_us - now_us)}"
