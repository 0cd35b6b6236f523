"""`pace sweep`: what a sweep does, its trials, the best of them, plots; and changing it while it runs."""

import json
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import click

from . import output as out
from .options import connection, json_option, open_client, sweep_argument
from .sweep_files import export, plot, promote

if TYPE_CHECKING:
    from ..sdk import Client
    from ..settings import Settings
    from ..sweep_views import Sweep, Trial

ROUND = 4
"""Digits of a number that is shown; JSON has all."""


@click.group(short_help="Show a sweep, its trials and plots; pause, extend, stop it.")
def sweep() -> None:
    """Sweeps: show them, their trials and the best; pause, resume, extend and stop them.

    Submit one with `pace submit sweep.yaml`.
    """


sweep.add_command(plot)
sweep.add_command(export)
sweep.add_command(promote)


@sweep.command(name="list", short_help="List sweeps, newest first.")
@click.option("-n", "--limit", default=30, type=click.IntRange(1, 10_000), help="How many. [30]")
@json_option
@connection
def list_(settings: "Settings", limit: int, output: str) -> None:
    """List sweeps, newest first.

    \b
    JSON: {"sweeps": [SWEEP, ...]} as `pace sweep show`, without counts and best.
    """
    with open_client(settings) as client:
        found = client.sweeps(limit=limit)
    if output == "json":
        out.show_json({"sweeps": found})
        return
    columns = (
        out.Column("SWEEP", right=True),
        out.Column("NAME", flex=True),
        out.Column("USER", drop=2),
        out.Column("STATE"),
        out.Column("SAMPLER", drop=1),
        out.Column("OBJECTIVE", flex=True),
        out.Column("AGE", right=True, drop=3),
    )
    rows = [
        (
            str(one.sweep),
            one.name,
            one.user,
            one.state,
            one.sampler,
            ", ".join(f"{each.goal} {each.metric}" for each in one.objectives),
            out.human_time(max(0, out.now_us() - one.submitted_us)),
        )
        for one in found
    ]
    out.show_table(out.Table(columns, rows))


@sweep.command(short_help="Show all about one sweep; with --follow until it is over.")
@sweep_argument
@click.option("-f", "--follow", is_flag=True, help="Show its progress until it is over.")
@json_option
@connection
def show(settings: "Settings", number: int, output: str, *, follow: bool) -> int:
    """Show all about one sweep: how far it is, and its best trials.

    \b
    JSON: the sweep; its keys as in the SDK's Sweep.
    Exit code: 1 when it has failed.
    """
    with open_client(settings) as client:
        found = follow_sweep(client, number) if follow else client.sweep(number)
    if output == "json":
        out.show_json(found)
    else:
        show_sweep(found)
    return 1 if found.state == "FAILED" else 0


@sweep.command(short_help="List a sweep's trials.")
@sweep_argument
@click.option("--sort", is_flag=True, help="The best first, by the first objective.")
@json_option
@connection
def trials(settings: "Settings", number: int, output: str, *, sort: bool) -> None:
    """List a sweep's trials: their params, their results, and their jobs.

    \b
    JSON: {"trials": [TRIAL, ...]}; keys as in the SDK's Trial.
    """
    with open_client(settings) as client:
        found = client.sweep(number)
        every = list(client.trials(number))
    if sort:
        sign = 1 if found.objectives[0].goal == "minimize" else -1
        every.sort(key=lambda one: (not one.values, sign * one.values[0] if one.values else 0.0))
    if output == "json":
        out.show_json({"trials": every})
        return
    show_trials(found, every)


@sweep.command(short_help="Show the best trial, or the Pareto front.")
@sweep_argument
@json_option
@connection
def best(settings: "Settings", number: int, output: str) -> None:
    """Show the best trial; of several objectives those that no other dominates.

    \b
    JSON: {"trials": [TRIAL, ...]}.
    """
    with open_client(settings) as client:
        found = client.sweep(number)
    if output == "json":
        out.show_json({"trials": found.best})
        return
    if not found.best:
        out.show(f"sweep {number} has no complete trial yet")
        return
    for one in found.best:
        for line in _trial_lines(found, one):
            out.show(line)


@sweep.command(short_help="Add trials, also to a sweep that is over.")
@sweep_argument
@click.option("--trials", "count", required=True, type=click.IntRange(1, 1_000_000), help="How many more.")
@json_option
@connection
def extend(settings: "Settings", number: int, count: int, output: str) -> None:
    """Add trials to a sweep; one that is over goes on.

    \b
    JSON: the sweep.
    """
    with open_client(settings) as client:
        _show_changed(client.extend_sweep(number, count), output)


@sweep.command(short_help="Start no further trials for now.")
@sweep_argument
@json_option
@connection
def pause(settings: "Settings", number: int, output: str) -> None:
    """Start no further trials; those that run go on.

    \b
    JSON: the sweep.
    """
    with open_client(settings) as client:
        _show_changed(client.pause_sweep(number), output)


@sweep.command(short_help="Go on with a sweep that was paused.")
@sweep_argument
@json_option
@connection
def resume(settings: "Settings", number: int, output: str) -> None:
    """Go on with a sweep that was paused.

    \b
    JSON: the sweep.
    """
    with open_client(settings) as client:
        _show_changed(client.resume_sweep(number), output)


@sweep.command(short_help="End a sweep; its running trials are cancelled.")
@sweep_argument
@json_option
@connection
def stop(settings: "Settings", number: int, output: str) -> None:
    """End a sweep: trials that run are told to stop, and it ends with the last of them.

    \b
    JSON: the sweep.
    """
    with open_client(settings) as client:
        _show_changed(client.stop_sweep(number), output)


@sweep.command(short_help="Have points tried next.")
@sweep_argument
@click.argument("points", nargs=-1, required=True, metavar="NAME=VALUE,...")
@json_option
@connection
def enqueue(settings: "Settings", number: int, points: tuple[str, ...], output: str) -> None:
    """Have points tried next, such as `lr=0.1,optimizer=sgd`; what is left out is sampled.

    \b
    JSON: {"trials": [NUMBER, ...]}.
    """
    with open_client(settings) as client:
        numbers = client.enqueue(number, *map(_point, points))
    if output == "json":
        out.show_json({"trials": numbers})
        return
    out.show(f"to be tried next: trial {', '.join(map(str, numbers))}")


def _point(text: str) -> dict[str, Any]:
    from ...spec.yaml_scalars import plain_scalar

    point = {}
    for part in text.split(","):
        name, equals, value = part.partition("=")
        if not equals or not name.strip():
            raise click.UsageError(f"{text!r}: expected NAME=VALUE, separated by commas")
        point[name.strip()] = plain_scalar(value.strip())
    return point


def follow_sweep(client: "Client", number: int) -> "Sweep":
    """Its progress on a terminal, until it is over; the sweep as it ended."""
    found = client.sweep(number)
    if not out.is_terminal():
        return client.wait_sweep(number)
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[counts]}"))
    with Progress(*columns, TimeElapsedColumn(), console=out.console()) as progress:
        task = progress.add_task(f"sweep {number}", total=found.trials_max, counts="")
        for found in client.watch_sweep(number):
            progress.update(
                task, completed=found.done, total=found.trials_max, counts=f"{_counts(found)}{_best(found)}"
            )
    return found


def show_sweep(found: "Sweep") -> None:
    """As a person reads it."""
    out.show(f"sweep {found.sweep}  {out.clean(found.name)}  {found.state}", style="bold")
    if found.why:
        out.show(out.wrapped(f"  {out.clean(found.why)}", 2))
    goals = ", ".join(f"{one.goal} {one.metric}" for one in found.objectives)
    ends_early = f", ends trials early by {found.early_termination}" if found.early_termination else ""
    out.show(out.wrapped(f"  {goals}; sampled by {found.sampler}{ends_early}", 2))
    done = f"{found.done} of {found.trials_max} trials are over: {_counts(found)}"
    out.show(out.wrapped(f"  {done}; at most {found.concurrent_max} at once", 2))
    if found.warm_start:
        out.show(out.wrapped(f"  {out.clean(found.warm_start)}", 4))
    took_us = max(0, (found.ended_us or out.now_us()) - found.submitted_us)
    out.show(f"  {out.human_time(took_us)} since {out.clock(found.submitted_us)}")
    if found.first_failure:
        out.show(out.wrapped(f"  first failure: {out.clean(found.first_failure)}", 4), style="yellow")
    for one in found.best[:5]:
        for line in _trial_lines(found, one):
            out.show(f"  {line}")
    if len(found.best) > 5:
        out.hint(f"and {len(found.best) - 5} more that no other dominates: `pace sweep best {found.sweep}`")


def show_trials(found: "Sweep", trials: Iterable["Trial"]) -> None:
    trials = list(trials)
    forked = any(one.fork for one in trials)
    columns = (
        out.Column("TRIAL", right=True),
        out.Column("STATE"),
        out.Column("JOB", right=True),
        *(out.Column(one.metric, right=True) for one in found.objectives),
        out.Column("PARAMS", flex=True),
        out.Column("STEP", right=True, drop=2),
        *((out.Column("FROM", drop=2),) if forked else ()),
        out.Column("TIME", right=True, drop=1),
        out.Column("WHY", flex=True, drop=3),
    )
    rows = [
        (
            str(one.number),
            one.job_state if one.state == "RUNNING" and one.job_state else one.state,
            "" if one.job is None else str(one.job),
            *(_number(value) for value in _values(found, one)),
            params_text(one),
            "" if one.step is None else str(one.step),
            *((_fork_text(one),) if forked else ()),
            _duration(one),
            one.why,
        )
        for one in trials
    ]
    out.show_table(out.Table(columns, rows))


def _fork_text(trial: "Trial") -> str:
    fork = trial.fork
    return f"trial {fork.trial} at {fork.step}, member {fork.member}.{fork.generation}" if fork else ""


def params_text(trial: "Trial") -> str:
    return "  ".join(f"{name}={_number(value)}" for name, value in trial.params.items())


def _values(found: "Sweep", trial: "Trial") -> list[float | str]:
    if trial.values:
        return [*trial.values, *[""] * (len(found.objectives) - len(trial.values))]
    return [trial.told.get(one.metric, "") for one in found.objectives]


def _trial_lines(found: "Sweep", trial: "Trial") -> Iterable[str]:
    told = ", ".join(
        f"{one.metric} {_number(value)}" for one, value in zip(found.objectives, trial.values, strict=False)
    )
    yield out.clean(f"best: trial {trial.number} (job {trial.job}): {told}")
    yield out.clean(f"      {params_text(trial)}")


def _counts(found: "Sweep") -> str:
    parts = {
        "complete": found.complete,
        "pruned": found.pruned,
        "failed": found.failed,
        "running": found.running,
        "queued": found.queued,
        "waiting": found.waiting,
    }
    return ", ".join(f"{count} {name}" for name, count in parts.items() if count) or "none"


def _best(found: "Sweep") -> str:
    if not found.best or len(found.objectives) > 1:
        return ""
    return f"; best {found.objectives[0].metric} {_number(found.best[0].values[0])}"


def _number(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.{ROUND}g}"
    return value if isinstance(value, str) else json.dumps(value)


def _duration(trial: "Trial") -> str:
    if trial.started_us is None:
        return ""
    return out.human_time(max(0, (trial.ended_us or out.now_us()) - trial.started_us))


def _show_changed(found: "Sweep", output: str) -> None:
    if output == "json":
        out.show_json(found)
        return
    show_sweep(found)
