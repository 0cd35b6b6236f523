"""`pace timeline`: what happened to a job, and where its time went, as parts that add up to the whole."""

import itertools
from collections.abc import Iterator
from typing import TYPE_CHECKING

import click

from .. import views
from . import output as out
from .options import connection, job_argument, json_option, open_client

if TYPE_CHECKING:
    from ..settings import Settings

STYLES = {
    "queued": "yellow",
    "starting": "cyan",
    "productive": "green",
    "checkpoint": "blue",
    "lost": "red",
    "restarting": "magenta",
    "hung": "bright_red",
}
LETTERS = {
    "queued": "q",
    "starting": "s",
    "productive": "#",
    "checkpoint": "c",
    "lost": "x",
    "restarting": "r",
    "hung": "h",
}
BAR_CELLS_MAX = 60
FOLD_FROM = 8
TEXT_AT = 19
"""Column at which an entry's text begins."""


@click.command(short_help="Show what happened to a job and where its time went.")
@job_argument
@click.option("-a", "--all", "fold", flag_value=False, default=True, help="Show repeated events one by one.")
@json_option
@connection
def timeline(*, settings: "Settings", job: int, fold: bool, output: str) -> None:
    """Show what happened to a job and where its time went.

    \b
    JSON keys: job, entries (seq, at_us, attempt, kind, text, body), ledger
    (wall_us and its parts queued_us, starting_us, productive_us,
    checkpoint_us, lost_us, restarting_us, hung_us, which add up to it exactly).
    """
    with open_client(settings) as client:
        found = client.timeline(job)
    if output == "json":
        out.show_json(found)
        return
    job_ = found.job
    out.show(
        f"job {job_.job}  {out.clean(job_.name)}  {job_.state}, submitted {out.clock(job_.submitted_us)}"
    )
    out.show()
    for line in entry_lines(found, FOLD_FROM if fold else len(found.entries) + 1):
        out.show(out.wrapped(line, TEXT_AT))
    out.show()
    _show_ledger(found.ledger)


def entry_lines(found: views.Timeline, fold_from: int = FOLD_FROM) -> Iterator[str]:
    """One line per entry: time since the submit, attempt, text.

    Of `fold_from` or more of one kind in a row (checkpoints of a long run), the first and the last.
    """
    start_us = found.entries[0].at_us if found.entries else 0

    def line(entry: views.TimelineEntry) -> str:
        attempt = f"a{entry.attempt}" if entry.attempt else "-"
        return f"{seconds(entry.at_us - start_us):>12}  {attempt:<4} {out.clean(entry.text)}"

    for _, group in itertools.groupby(found.entries, key=lambda entry: (entry.kind, entry.attempt)):
        entries = list(group)
        if len(entries) < fold_from:
            yield from map(line, entries)
            continue
        yield line(entries[0])
        yield f"{'':>{TEXT_AT}}... {len(entries) - 2} more of this kind (--all shows them)"
        yield line(entries[-1])


def seconds(us: int) -> str:
    """`+12.345` below an hour, `+1:02:03.45` above."""
    if us < 3_600_000_000:
        return f"+{us / 1e6:.3f}"
    whole, rest_us = divmod(us, 1_000_000)
    return f"+{whole // 3600}:{whole % 3600 // 60:02d}:{whole % 60:02d}.{rest_us // 10_000:02d}"


def goodput_line(ledger: views.Ledger) -> str:
    """The ledger in one line, for the end of a followed job."""
    parts = ", ".join(f"{name} {out.human_time(us)}" for name, us in ledger.parts if us)
    held = out.human_time(ledger.wall_us - ledger.queued_us)
    return f"goodput {ledger.goodput:.0%} of {held}: {parts or 'nothing yet'}"


def cells(ledger: views.Ledger, width: int) -> list[tuple[str, int]]:
    """How many of `width` cells each part gets: they add up to `width`, and every part has at least one."""
    parts = [(name, us) for name, us in ledger.parts if us > 0]
    total_us = sum(us for _, us in parts)
    if not parts or width < len(parts):
        return []
    counts = {name: 1 for name, _ in parts}
    shares = {name: us * (width - len(parts)) / total_us for name, us in parts}
    for name, share in shares.items():
        counts[name] += int(share)
    # The largest remainders get the cells that rounding down left over.
    for name in sorted(shares, key=lambda name: int(shares[name]) - shares[name])[
        : width - sum(counts.values())
    ]:
        counts[name] += 1
    return list(counts.items())


def _show_ledger(ledger: views.Ledger) -> None:
    if not ledger.wall_us:
        return
    coloured = out.is_terminal()
    width = min(BAR_CELLS_MAX, (out.console().width if coloured else 80) - 20)
    bar = "".join(
        out.styled("█" * count, STYLES[name]) if coloured else LETTERS[name] * count
        for name, count in cells(ledger, width)
    )
    out.show(f"  {'where the time went':<20} {out.human_time(ledger.wall_us)}")
    out.show(f"  {bar}")
    for name, us in ledger.parts:
        if us:
            mark = out.styled("█", STYLES[name]) if coloured else LETTERS[name]
            out.show(f"  {mark} {name:<12} {out.human_time(us):>10}  {us / ledger.wall_us:6.1%}")
    held = out.human_time(ledger.wall_us - ledger.queued_us)
    out.show(f"  goodput {ledger.goodput:.1%} of the {held} off the queue")
