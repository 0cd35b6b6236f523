"""`pace jobs`, `show`, `why`, `cancel`: what the scheduler knows of jobs, on one screen each."""

import json
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import click

from ...spec.errors import Conflict, NotFound, PacelineError
from ...spec.lifecycle import JobState
from ...spec.slices import index_text
from .. import views
from . import output as out
from .clocks import at_clock
from .code import code_lines
from .environment import as_json, ran_with_lines
from .failures import failure_lines
from .main import EXIT_CODES, tell
from .options import JOB, connection, job_argument, json_option, open_client
from .places import place_lines

if TYPE_CHECKING:
    from ..ran_with import RanWith
    from ..settings import Settings

LIMIT_MAX = 100_000
PATIENCE_S = 2.0
"""For a forecast that is not made yet."""

JOBS_COLUMNS = (
    out.Column("job", right=True),
    out.Column("name", flex=True),
    out.Column("state"),
    out.Column("try", right=True, drop=3),
    out.Column("gang", right=True, drop=4),
    out.Column("step", right=True, drop=2),
    out.Column("time", right=True, drop=1),
    out.Column("user", drop=5),
    out.Column("queue", flex=True, drop=7),
    out.Column("reason", flex=True, drop=6),
)


@click.command(short_help="List jobs, newest first.")
@click.option(
    "-s",
    "--state-is",
    "states",
    multiple=True,
    type=click.Choice([state.value for state in JobState], case_sensitive=False),
    help="Only in this state; may be given more than once.",
)
@click.option("--active", is_flag=True, help="Only those that are not over.")
@click.option("--user", default="", help="Only this user's.")
@click.option("--name", default="", help="Only those with this in their name.")
@click.option("-n", "--limit", type=click.IntRange(1, LIMIT_MAX), default=20, show_default=True)
@json_option
@connection
def jobs(
    *,
    settings: "Settings",
    states: tuple[str, ...],
    active: bool,
    user: str,
    name: str,
    limit: int,
    output: str,
) -> None:
    """List jobs, newest first.

    \b
    JSON: {"jobs": [JOB, ...]}, each JOB as `pace show -o json` gives it,
    its "document" empty.
    """
    wanted = states or (("QUEUED", "STARTING", "RUNNING") if active else ())
    with open_client(settings) as client:
        # One more than asked for tells whether there are more.
        found = client.jobs(states=wanted, user=user, name_contains=name, limit=limit + 1)
    shown = found[:limit]
    if output == "json":
        out.show_json({"jobs": shown})
        return
    if not shown:
        out.hint("no such job" if wanted or user or name else "no jobs yet: `pace submit job.yaml`")
        return
    out.show_table(out.Table(JOBS_COLUMNS, [_row(job) for job in shown]))
    if len(found) > limit:
        out.hint(f"... and older ones: `pace jobs -n {limit * 5}`")


@click.command(short_help="Show all about one job.")
@job_argument
@json_option
@connection
def show(settings: "Settings", job: int, output: str) -> None:
    """Show all about one job: where it runs, what it reported, what it keeps.

    \b
    JSON keys: job, name, user, state, attempt, priority, submitted_us,
    started_us, finished_us, reason, exit_code, instance_count,
    processes_per_task, per_task, tasks, checkpoints, outputs, metrics, step,
    cancel_requested, warnings, pace, document, parent_job, parent_step (of a
    fork), instances (of the attempt), min_instance_count, max_instance_count,
    queue, pool, gpu_models, gpu_memory_bytes, size (of a gang that is smaller
    than it may be: when it grows), failure (of the attempt that failed last:
    kind, attempt, hint, node_id, node, rank, exit_code, at_us, error_type,
    message, traceback, last_lines), ran_with (as `pace environment`, without
    the packages). Times are microseconds since 1970; null: not yet.
    """
    with open_client(settings) as client:
        found = client.job(job)
        ran_with = client.ran_with(found)
    if output == "json":
        document = json.loads(found.document or "null")
        out.show_json({**views.to_json(found), "document": document, "ran_with": as_json(ran_with)})
        return
    _show_job(found, ran_with)


@click.command(short_help="Say why a job waits, or how it ended.")
@job_argument
@json_option
@connection
def why(settings: "Settings", job: int, output: str) -> None:
    """Say why a job waits, the weightiest reason first, or how it ended: of what it failed first.

    \b
    JSON keys: job (with failure, as in `show`), reasons (code, text, hint,
    fields), never (true: no node of this cluster could ever run it).
    """
    with open_client(settings) as client:
        found = client.why(job, patience_s=PATIENCE_S)
    if output == "json":
        out.show_json(found)
        return
    for text, style in why_lines(found):
        out.show(out.wrapped(text, 5), style=style)


@click.command(short_help="Cancel jobs.")
@click.argument("jobs", type=JOB, nargs=-1, required=True, metavar="JOB...")
@click.option(
    "--grace",
    "grace_s",
    type=click.FloatRange(0, 3600),
    default=0.0,
    help="Seconds between SIGTERM and SIGKILL. [default: the job's own]",
)
@json_option
@connection
def cancel(settings: "Settings", jobs: tuple[int, ...], grace_s: float, output: str) -> int:
    """Cancel jobs. Each gets SIGTERM and, after its grace period, SIGKILL; nothing of it stays behind.

    \b
    JSON: {"jobs": [JOB, ...], "errors": [{"job", "code", "text"}, ...]}.
    """
    done: list[views.Job] = []
    failed: list[tuple[int, PacelineError]] = []
    with open_client(settings) as client:
        for job in dict.fromkeys(jobs):
            try:
                done.append(client.cancel(job, grace_s=grace_s))
            except (NotFound, Conflict) as error:
                failed.append((job, error))
    if output == "json":
        errors = [{"job": job, "code": error.code, "text": error.message} for job, error in failed]
        out.show_json({"jobs": done, "errors": errors})
    else:
        _tell_cancelled(done, failed)
    return EXIT_CODES[failed[0][1].code] if failed else 0


def _tell_cancelled(done: list[views.Job], failed: list[tuple[int, PacelineError]]) -> None:
    for job in done:
        if not job.is_over:
            out.show(
                f"job {job.job} ({out.clean(job.name)}) is asked to stop; see it go: `pace logs -f {job.job}`"
            )
        else:
            out.show(f"job {job.job} ({out.clean(job.name)}) is {job.state}")
    for _, error in failed:
        tell(error)


def why_lines(found: views.Why) -> Iterator[tuple[str, str]]:
    """Lines and their styles: what the job is, then each reason with what would have to change."""
    job = found.job
    yield f"job {job.job} ({out.clean(job.name)}) is {job.state}", out.STATE_STYLES.get(job.state, "")
    if found.never:
        yield "  never: no node of this cluster could ever run it", "bold red"
    elif job.state is JobState.QUEUED and found.reasons:
        yield "  not now: it will run when what it waits for is there", ""
    for rank, reason in enumerate(found.reasons, start=1):
        yield f"  {rank}. {out.clean(reason.text)}{at_clock(reason)}", ""
        if reason.hint:
            yield f"     {out.clean(reason.hint)}", "dim"
    if not found.reasons:
        yield "  nothing holds it up", ""
    yield from failure_lines(job, told_hint=found.reasons[0].hint if found.reasons else "")


def _row(job: views.Job) -> tuple[str, ...]:
    return (
        str(job.job),
        job.name,
        job.state + ("*" if job.cancel_requested and not job.is_over else ""),
        str(job.attempt or "-"),
        gang(job),
        "-" if job.step is None else str(job.step),
        out.human_time((job.finished_us or out.now_us()) - job.submitted_us),
        job.user,
        job.queue or "-",
        job.reason.text if job.reason else "",
    )


def gang(job: views.Job) -> str:
    """Instances x processes, as in `2x4`; `1/2x4` where the attempt has fewer (or more) than asked for."""
    count = f"{job.instances}/" if job.instances not in (0, job.instance_count) else ""
    return f"{count}{job.instance_count}x{job.processes_per_task}"


def _show_job(job: views.Job, ran_with: "Sequence[RanWith]") -> None:
    out.show(f"job {job.job}  {out.clean(job.name)}  {job.state}", style=out.STATE_STYLES.get(job.state, ""))
    for label, text in (*facts(job), *ran_with_lines(ran_with)):
        out.show(out.wrapped(f"  {label:<12} {text}", 15))
    if job.failure is not None:
        out.show()
    for text, style in failure_lines(job, told_hint=job.reason.hint if job.reason else ""):
        out.show(text, style=style)
    if job.tasks:
        out.show()
        out.show_table(out.Table(TASK_COLUMNS, [_task_row(task) for task in job.tasks]))
    if job.checkpoints:
        out.show()
        out.show_table(out.Table(CHECKPOINT_COLUMNS, [_checkpoint_row(item) for item in job.checkpoints]))
    out.hint(next_step(job))


def facts(job: views.Job) -> Iterator[tuple[str, str]]:
    """Label and text of each line of `pace show`; clean."""
    yield "user", out.clean(job.user)
    yield "submitted", f"{out.clock(job.submitted_us)}"
    if job.started_us is not None:
        yield (
            "started",
            f"{out.clock(job.started_us)}, after {out.human_time(job.started_us - job.submitted_us)}",
        )
    if job.finished_us is not None:
        yield (
            "finished",
            f"{out.clock(job.finished_us)}, after {out.human_time(job.finished_us - job.submitted_us)}",
        )
    if job.reason is not None:
        yield "reason", out.clean(job.reason.text)
        if job.reason.hint:
            yield "", out.clean(job.reason.hint)
    if job.exit_code is not None:
        yield "exit code", str(job.exit_code)
    if job.cancel_requested and not job.is_over:
        yield "cancel", "asked to stop"
    yield "attempt", str(job.attempt) if job.attempt else "none yet"
    yield "gang", f"{gang(job)}, each with {resources(job)}"
    yield from _size(job)
    yield from _saves(job)
    yield from code_lines(job.document)
    yield from place_lines(job)
    if job.step is not None:
        values = "  ".join(f"{out.clean(name)}={value:.6g}" for name, value in sorted(job.metrics.items()))
        yield "step", f"{job.step}  {values}".rstrip()
    for line in job.pace:
        yield "pace", out.clean(line)
    for line in _damaged_lines(job):
        yield "checkpoint", line
    for name, path in sorted(job.outputs.items()):
        yield "output", f"{out.clean(name)}: {out.clean(path)}"
    for warning in job.warnings:
        yield "warning", f"{out.clean(warning.key)}: {out.clean(warning.text)}"


def _damaged_lines(job: views.Job) -> Iterator[str]:
    newest = next((item.step for item in job.checkpoints if item.good), None)
    good = "no checkpoint is good" if newest is None else f"step {newest} is the newest good one"
    for item in job.checkpoints:
        for copy, why in sorted(item.damaged.items()):
            yield f"that of step {item.step} is damaged in {copy}: {out.clean(why)}; {good}"


def _saves(job: views.Job) -> Iterator[tuple[str, str]]:
    if job.parent_job is not None:
        yield "fork", f"of job {job.parent_job}, from its checkpoint of step {job.parent_step}"
    if job.checkpoints and job.checkpoints[0].why:
        yield "last save", out.clean(f"step {job.checkpoints[0].step}, {job.checkpoints[0].why}")


def _size(job: views.Job) -> Iterator[tuple[str, str]]:
    if job.size:
        yield "size", out.clean(job.size)
    elif job.min_instance_count < job.max_instance_count:
        yield "size", f"{job.min_instance_count} to {job.max_instance_count} instances"


def resources(job: views.Job) -> str:
    """What each task takes, for a person."""
    want = job.per_task
    parts = [f"{out.human_cpus(want.cpu_milli)} cpu{'s' if want.cpu_milli != 1000 else ''}"]
    if want.memory_bytes:
        parts.append(f"{out.human_bytes(want.memory_bytes)} memory")
    if want.gpus:
        parts.append(f"{want.gpus} GPU{'s' if want.gpus != 1 else ''}{_kind(job)}")
    if want.gpu_milli:
        parts.append(f"{want.gpu_milli / 1000:g} of a GPU{_kind(job)}")
    return ", ".join(parts)


def _kind(job: views.Job) -> str:
    """` (H100 or H200, 80 GiB or more)`."""
    least = f"{out.human_bytes(job.gpu_memory_bytes)} or more" if job.gpu_memory_bytes else ""
    told = ", ".join(filter(None, (out.clean(" or ".join(job.gpu_models)), least)))
    return f" ({told})" if told else ""


def next_step(job: views.Job) -> str:
    """What a person would type next."""
    if job.state is JobState.QUEUED:
        return f"next: `pace why {job.job}`"
    if not job.is_over:
        return f"next: `pace logs -f {job.job}`"
    if job.state is JobState.SUCCEEDED:
        return f"next: `pace timeline {job.job}`"
    return f"next: `pace logs {job.job}`, `pace timeline {job.job}`"


TASK_COLUMNS = (
    out.Column("task", right=True),
    out.Column("node", flex=True),
    out.Column("state"),
    out.Column("ranks"),
    out.Column("pids", flex=True, drop=2),
    out.Column("exit codes", drop=1),
    out.Column("GPUs", drop=3),
    out.Column("start", flex=True, drop=4),
)

CHECKPOINT_COLUMNS = (
    out.Column("checkpoint at step", right=True),
    out.Column("attempt", right=True),
    out.Column("size", right=True),
    out.Column("accepted"),
    out.Column("copies", drop=2),
    out.Column("path", flex=True, drop=1),
)


def _task_row(task: views.Task) -> tuple[str, ...]:
    last = task.first_rank + max(len(task.pids), len(task.exit_codes), 1) - 1
    return (
        str(task.task),
        task.node,
        task.state,
        str(task.first_rank) if last == task.first_rank else f"{task.first_rank}-{last}",
        " ".join(map(str, task.pids)),
        " ".join(map(str, task.exit_codes)),
        " ".join(map(index_text, task.gpu_indices)),
        task.start_mode,
    )


def _checkpoint_row(item: views.Checkpoint) -> tuple[str, ...]:
    return (
        str(item.step),
        str(item.attempt),
        out.human_bytes(item.size_bytes),
        out.clock(item.accepted_us),
        _copies(item),
        item.path,
    )


def _copies(item: views.Checkpoint) -> str:
    there = ["storage", "upload"] if item.url else ["storage"]
    return ", ".join(f"{copy} (damaged)" if copy in item.damaged else copy for copy in there)
