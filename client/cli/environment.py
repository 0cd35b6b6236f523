"""`pace environment`: what a job really ran with, and how two jobs differ in that."""

from collections.abc import Iterator, Sequence
from dataclasses import fields
from typing import TYPE_CHECKING, Any

import click

from ...spec.slices import index_text
from .. import views
from . import output as out
from .options import JOB, connection, job_argument, json_option, open_client

if TYPE_CHECKING:
    from ..ran_with import Change, Difference, RanWith
    from ..settings import Settings

SHOWN_MAX = 8
"""Nodes that `pace show` tells of."""

PACKAGE_COLUMNS = (
    out.Column("package", flex=True),
    out.Column("version"),
    out.Column("from", flex=True, drop=1),
)
CHANGE_COLUMNS = (
    out.Column("differs", flex=True),
    out.Column("in the other", flex=True),
    out.Column("here", flex=True),
)


@click.command(short_help="Show what a job ran with: Python, packages, driver, GPUs.")
@job_argument
@click.option("--attempt", type=click.IntRange(1), help="Of that attempt. [the last]")
@click.option("--against", type=JOB, metavar="JOB", help="Only what is another than in that job.")
@json_option
@connection
def environment(
    settings: "Settings", job: int, attempt: int | None, against: int | None, output: str
) -> None:
    """Show what JOB really ran with, as its nodes recorded it: Python, packages, system, driver, GPUs.

    \b
    JSON: {"job", "ran_with": [{"tasks", "node", "record", "problem",
    "paceline", "interpreter", "python", "implementation", "machine",
    "kernel", "os", "libc", "driver", "cuda", "gpus": [{"index", "name",
    "uuid", "serial", "slice_of"}], "packages_hash", "packages_count",
    "packages_left_out", "packages": [{"name", "version", "origin"}, ...]}, ...]}.
    With --against: {"job", "against", "system": [[NAME, OLD, NEW], ...],
    "packages": [[NAME, OLD, NEW], ...], "unknown": [WHY, ...]}; an empty
    text: not there.
    """
    if against is not None and attempt is not None:
        raise click.UsageError("--against compares last attempts; give it without --attempt")
    with open_client(settings) as client:
        if against is not None:
            _show_difference(client.differences(job, against), output)
            return
        found = client.ran_with(job, attempt=attempt or 0)
    if output == "json":
        out.show_json({"job": job, "ran_with": found})
        return
    if not found:
        out.hint(f"what job {job} ran with is not recorded: it has not started, or its agent is older")
    for one in found:
        _show_one(one)


def ran_with_lines(found: "Sequence[RanWith]") -> Iterator[tuple[str, str]]:
    """Of `pace show`: label and text; clean."""
    for one in found[:SHOWN_MAX]:
        where = f" on {one.node}" if len(found) > 1 else ""
        yield "ran with", out.clean(summary(one) + where)
    if len(found) > SHOWN_MAX:
        yield "", f"and on {len(found) - SHOWN_MAX} more nodes"


def summary(one: "RanWith") -> str:
    """`Python 3.11.7 (/opt/bin/python), 212 packages, torch 2.13.0, driver 550.54, GPU 0 NVIDIA H200
    serial 1654922006542`."""
    parts = [f"Python {one.python} ({one.interpreter})" if one.python else one.interpreter]
    if one.packages_hash:
        parts.append(f"{one.packages_count} packages")
    if torch := one.version_of("torch"):
        parts.append(f"torch {torch}")
    if one.driver:
        parts.append(f"driver {one.driver}")
    for gpu in one.gpus:
        serial = f"serial {gpu.serial}" if gpu.serial else gpu.uuid
        parts.append(f"GPU {index_text(gpu.index)} {gpu.name} {serial}")
    return ", ".join(filter(None, (*parts, one.problem)))


def as_json(found: "Sequence[RanWith]") -> list[dict[str, Any]]:
    """As `pace show -o json` has it: without the packages."""
    return [
        {name: value for name, value in views.to_json(one).items() if name != "packages"} for one in found
    ]


def _show_one(one: "RanWith") -> None:
    tasks = f"task {one.tasks[0]}" if len(one.tasks) == 1 else f"tasks {', '.join(map(str, one.tasks))}"
    out.show(out.clean(f"{tasks} on {one.node}"), style="bold")
    system = ", ".join(filter(None, (one.os, one.kernel, one.machine, one.libc)))
    driver = f"{one.driver}, CUDA {one.cuda}" if one.cuda else one.driver
    python = f"{one.implementation} {one.python}".strip()
    facts = [("interpreter", one.interpreter), ("python", python), ("system", system), ("driver", driver)]
    for gpu in one.gpus:
        serial = f", serial {gpu.serial}" if gpu.serial else ""
        part = f", of {gpu.slice_of}" if gpu.slice_of else ""
        facts.append((f"GPU {index_text(gpu.index)}", f"{gpu.name}, {gpu.uuid}{part}{serial}"))
    facts += [("agent", one.paceline), ("problem", one.problem)]
    for label, text in facts:
        if text:
            out.show(out.wrapped(f"  {label:<12} {out.clean(text)}", 15))
    if one.packages:
        rows = [(package.name, package.version, package.origin) for package in one.packages]
        out.show()
        out.show_table(out.Table(PACKAGE_COLUMNS, rows))
    if one.packages_left_out:
        out.hint(f"{one.packages_left_out} more packages were left out of the list")


def _show_difference(found: "Difference", output: str) -> None:
    if output == "json":
        out.show_json({field.name: getattr(found, field.name) for field in fields(found)})
        return
    changes = (*found.system, *found.packages)
    if changes:
        out.show_table(out.Table(CHANGE_COLUMNS, [_change_row(one) for one in changes]))
    elif not found.unknown:
        out.show(f"job {found.job} ran with what job {found.against} ran with")
    for line in found.unknown:
        out.hint(f"not compared: {out.clean(line)}")


def _change_row(one: "Change") -> tuple[str, ...]:
    return (one.name, one.old or "-", one.new or "-")
