"""What a job failed of, for a person: which rank failed first, what it said at its end, and what to do."""

import re
from collections.abc import Iterator

from .. import views
from . import output as out

_LINES_MAX = 10
_TRACE_LINES_MAX = 30
_RANK_PREFIX = re.compile(r"^\[rank\d+\]: ?")


def failure_lines(job: views.Job, *, told_hint: str = "") -> Iterator[tuple[str, str]]:
    """Lines and their styles; none where nothing failed. `told_hint`: what has been shown already."""
    if job.failure is not None:
        yield from summary_lines(job, job.failure, told_hint)
        yield from output_lines(job.failure)


def summary_lines(job: views.Job, failure: views.Failure, told_hint: str = "") -> Iterator[tuple[str, str]]:
    """Who failed, of what, and what to do."""
    yield f"  {headline(job, failure)}", ""
    if said := ": ".join(filter(None, (failure.error_type, failure.message))):
        yield f"     {out.clean(said)}", "bold"
    if failure.hint and failure.hint != told_hint:
        yield f"     {out.clean(failure.hint)}", "dim"


def headline(job: views.Job, failure: views.Failure) -> str:
    """`first failure: rank 1 on n2, exit code 1 (exception)`."""
    what = "first failure" if job.world_size > 1 and failure.rank is not None else "failure"
    parts = [] if failure.rank is None else [f"rank {failure.rank}"]
    if failure.node:
        parts.append(f"on {out.clean(failure.node)}")
    where = " ".join(parts)
    how = "" if failure.exit_code is None else f"exit code {failure.exit_code}"
    text = ", ".join(part for part in (where, how) if part)
    of_attempt = f" of attempt {failure.attempt}" if failure.attempt != job.attempt or job.attempt > 1 else ""
    return f"{what}{of_attempt}: {text} ({failure.kind})" if text else f"{what}{of_attempt}: {failure.kind}"


def output_lines(failure: views.Failure) -> Iterator[tuple[str, str]]:
    """The end of the traceback, and of what else the rank said."""
    trace = failure.traceback.splitlines()
    shown = {line.strip() for line in trace}
    said = [line for line in failure.last_lines.splitlines() if _bare(line) not in shown]
    for title, lines in (("traceback", trace[-_TRACE_LINES_MAX:]), ("last lines", said[-_LINES_MAX:])):
        if lines:
            yield f"     {title}:", "dim"
            yield from ((f"       {out.clean(line.expandtabs())}".rstrip(), "") for line in lines)


def _bare(line: str) -> str:
    return _RANK_PREFIX.sub("", line).strip()
