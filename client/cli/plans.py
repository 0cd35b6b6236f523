"""`pace plan` and `pace simulate`: what would be."""

import json
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ...spec.errors import InvalidRequest, PacelineError
from ...spec.slices import index_text
from .. import answer_views
from . import output as out
from .clocks import at_clock
from .options import Hours, connection, json_option, open_client
from .submit import prepare_file

if TYPE_CHECKING:
    from ..documents import Prepared
    from ..settings import Settings

QUOTA_COLUMNS = (
    out.Column("queue", flex=True),
    out.Column("what"),
    out.Column("of"),
    out.Column("in use", right=True),
    out.Column("with it", right=True),
    out.Column("guaranteed", right=True),
    out.Column("at most", right=True),
)
STOPS_SHOWN = 5
NODES_SHOWN = 8


@click.command(short_help="Say where job files would go and when they would start.")
@click.argument("files", nargs=-1, required=True, metavar="FILE...", type=click.Path())
@click.option("--set", "overrides", multiple=True, metavar="KEY=VALUE", help="Such as inputs.lr=0.1.")
@click.option("--seed", type=click.IntRange(0, 2**32 - 1), default=0, show_default=True)
@json_option
@connection
def plan(
    settings: "Settings", files: tuple[str, ...], overrides: tuple[str, ...], seed: int, output: str
) -> None:
    """Say where job files would go, when they would start and whom they would preempt. The scheduler checks
    them as in a submit; nothing is kept. The same as `pace submit --dry-run`.

    \b
    JSON keys: jobs (name, start (at_us, early_us, late_us, draws, started;
    null: no start is expected), tasks (node, gpu_indices), reasons, never,
    stops (job, name, user, outcome, why), warnings, quota (queue, user, what,
    in_use, with_job, guaranteed, at_most; null: not said)), cut.
    """
    show_plan(settings, [prepare_file(file, overrides, "") for file in files], seed, output)


def show_plan(settings: "Settings", prepared: "list[Prepared]", seed: int, output: str) -> None:
    from ..documents import planned

    with open_client(settings) as client:
        found = client.plan([planned(one) for one in prepared], seed=seed)
    if output == "json":
        out.show_json(found)
        return
    for job in found.jobs:
        for line in plan_lines(job):
            out.show(out.wrapped(line, 5))
        if job.quota:
            out.show()
            out.show_table(out.Table(QUOTA_COLUMNS, [_quota_row(one) for one in job.quota]))
            out.show()
    out.hint("nothing was submitted")


def plan_lines(job: answer_views.PlannedJob) -> list[str]:
    lines = [f"{out.clean(job.name)} would be accepted"]
    if job.never:
        lines.append("  never: no node of this cluster could ever run it")
    lines += [f"  {out.clean(reason.text)}{at_clock(reason)}" for reason in job.reasons]
    if job.tasks:
        places = [f"{task.node}{_gpus(task)}" for task in job.tasks[:NODES_SHOWN]]
        more = f" and {len(job.tasks) - NODES_SHOWN} more" if len(job.tasks) > NODES_SHOWN else ""
        lines.append(f"  would go to {out.clean(', '.join(places))}{more}")
    for stop in job.stops[:STOPS_SHOWN]:
        why = f": {stop.why}" if stop.why else ""
        lines.append(
            out.clean(f"  would stop job {stop.job} ({stop.user}'s {stop.name}), {stop.outcome}{why}")
        )
    if len(job.stops) > STOPS_SHOWN:
        lines.append(f"  and {len(job.stops) - STOPS_SHOWN} more")
    lines += [out.clean(f"  warning: {warning.key}: {warning.text}") for warning in job.warnings]
    return lines


def _quota_row(one: answer_views.PlannedQuota) -> tuple[str, ...]:
    what = "GPUs" if one.what == "gpus" else one.what
    amounts = (one.in_use, one.with_job, one.guaranteed, one.at_most)
    return (
        one.queue or "(all)",
        what,
        one.user or "all",
        *("-" if amount is None else f"{amount:g}" for amount in amounts),
    )


def _gpus(task: answer_views.PlannedTask) -> str:
    numbers = ", ".join(map(index_text, task.gpu_indices))
    return f" (GPU{'s' if len(task.gpu_indices) > 1 else ''} {numbers})" if numbers else ""


@click.command(short_help="Run the live queue, or a trace, forward under a change.")
@click.option("--add", "adds", multiple=True, metavar="FILE", help="A job that is submitted now.")
@click.option("--remove", "removes", multiple=True, metavar="NODE", help="A node that is drained now.")
@click.option(
    "--until", "until_s", type=Hours(), default=0.0, metavar="HOURS", help="At most so far.  [default: 720]"
)
@click.option("--seed", type=click.IntRange(0, 2**32 - 1), default=0, show_default=True)
@click.option("--policy", metavar="FILE", type=click.Path(), help="A policy that is in force from now on.")
@click.option(
    "--trace", metavar="FILE", type=click.Path(), help="CSV: submit_s,duration_s,gpus[,user,name,queue]."
)
@click.option("--nodes", type=click.IntRange(1, 20_000), help="With --trace: so many nodes ...")
@click.option("--gpus", type=click.IntRange(1, 64), help="... of so many GPUs.")
@click.option(
    "--plot", metavar="FILE", type=click.Path(), help="Draw queue, allocation and waits (.png, .svg)."
)
@json_option
@connection
def simulate(
    *,
    settings: "Settings",
    adds: tuple[str, ...],
    removes: tuple[str, ...],
    until_s: float,
    seed: int,
    policy: str | None,
    trace: str | None,
    nodes: int | None,
    gpus: int | None,
    plot: str | None,
    output: str,
) -> None:
    """Run the live queue and cluster forward, as they are and with jobs added (--add), nodes removed
    (--remove) or another policy in force (--policy); or a trace (--trace) on a described cluster (--nodes,
    --gpus), without and with a policy, which needs no scheduler.

    The scheduler's own code decides; run times are drawn from what is predicted of them. The same seed gives
    the same result, as long as nothing has happened meanwhile.

    \b
    JSON keys: as_is, changed (null: no change was asked for); each with jobs,
    started, ended, stops, wait_mean_s, wait_median_s, wait_p95_s, jct_mean_s,
    gpu_allocation, span_s, draws, cut, classes (name, jobs, wait_mean_s,
    wait_p95_s), points (at_s, queued, gpus).
    """
    if (trace is None) != (nodes is None) or (nodes is None) != (gpus is None):
        raise click.UsageError("--trace, --nodes and --gpus go together")
    if trace is not None and (adds or removes):
        raise click.UsageError("--add and --remove change the live cluster, not a trace's")
    if plot is not None:
        from .plots import check_plot

        check_plot(plot)
    if trace is not None:
        found = _of_trace(trace, (nodes or 0, gpus or 0), until_s, policy)
    else:
        from ..documents import planned
        from ..policy_verbs import sent_policy

        prepared = [planned(prepare_file(file, (), "")) for file in adds]
        changed = None if policy is None else sent_policy(policy)
        with open_client(settings) as client, out.working("simulating"):
            found = client.simulate(add=prepared, remove=removes, policy=changed, until_s=until_s, seed=seed)
    if plot is not None:
        from .plots import draw

        draw(found, plot)
    if output == "json":
        out.show_json(found)
        return
    show_simulated(found)
    if plot is not None:
        out.hint(f"drawn: {plot}")


def show_simulated(found: answer_views.Simulated) -> None:
    sides = [found.as_is] if found.changed is None else [found.as_is, found.changed]
    titles = ["as it is", "changed"] if found.changed is not None else ["result"]
    columns = (out.Column(""), *(out.Column(title, right=True) for title in titles))
    rows = [(label, *(text(side) for side in sides)) for label, text in _FIGURES]
    for name in dict.fromkeys(one.name for side in sides for one in side.classes):
        rows.append((f"mean wait, {name}", *(_class_wait(side, name) for side in sides)))
    out.show_table(out.Table(columns, rows))
    for title, side in zip(titles, sides, strict=True):
        if side.cut:
            out.hint(f"{title}: {side.cut}")


def _seconds(value: float) -> str:
    return out.human_time(round(value * 1e6))


_FIGURES: tuple[tuple[str, Any], ...] = (
    ("jobs", lambda side: str(side.jobs)),
    ("ended", lambda side: str(side.ended)),
    ("mean wait", lambda side: _seconds(side.wait_mean_s)),
    ("median wait", lambda side: _seconds(side.wait_median_s)),
    ("95 % wait at most", lambda side: _seconds(side.wait_p95_s)),
    ("mean completion", lambda side: _seconds(side.jct_mean_s)),
    ("GPUs allocated", lambda side: f"{side.gpu_allocation:.1%}"),
    ("stopped to make way", lambda side: str(side.stops)),
    ("span", lambda side: _seconds(side.span_s)),
    ("draws", lambda side: str(side.draws)),
)


def _class_wait(side: answer_views.Outlook, name: str) -> str:
    found = next((one for one in side.classes if one.name == name), None)
    return (
        "-"
        if found is None
        else f"{_seconds(found.wait_mean_s)} ({found.jobs} job{'s' if found.jobs != 1 else ''})"
    )


def _of_trace(
    trace: str, cluster: tuple[int, int], until_s: float, policy: str | None
) -> answer_views.Simulated:
    """In a process of its own: the client does not import the scheduler."""
    from ..policy_verbs import sent_policy

    args = [str(Path(trace).absolute()), *map(str, cluster), str(until_s), *([] if policy is None else ["-"])]
    done = subprocess.run(
        [sys.executable, "-P", "-m", "paceline.scheduler.trace", *args],
        input="" if policy is None else sent_policy(policy).document,
        stdout=subprocess.PIPE,
        stderr=None,
        text=True,
        check=False,
    )
    if done.returncode:
        raise PacelineError("the simulation ended without a result", hint="see the lines above")
    told = json.loads(done.stdout)
    if "error" in told:
        raise InvalidRequest(told["error"], hint=told["hint"])
    changed = told.get("changed")
    return answer_views.Simulated(_outlook(told["as_is"]), None if changed is None else _outlook(changed))


def _outlook(told: dict[str, Any]) -> answer_views.Outlook:
    classes = tuple(answer_views.ClassWait(**one) for one in told.pop("classes"))
    points = tuple(answer_views.Point(**one) for one in told.pop("points"))
    return answer_views.Outlook(**told, classes=classes, points=points)
