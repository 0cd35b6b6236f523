"""What reaches the screen: tables, colours, sizes, times, and nothing that could act on a terminal.

Colour, fitting to the width and progress only where stdout is a terminal; otherwise plain text that
no width cuts, for pipes. rich is imported only for a terminal. Every text that came from somebody else
goes through `clean`.
"""

import json
import shutil
import sys
import textwrap
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import IO, TYPE_CHECKING, Any, Literal

import click

if TYPE_CHECKING:
    from rich.console import Console

GAP = 2
FLEX_MIN = 12
"""Cells that a flexible column keeps; with fewer it would tell nothing."""

STATE_STYLES = {
    "QUEUED": "yellow",
    "STARTING": "cyan",
    "RUNNING": "bright_cyan",
    "SUCCEEDED": "green",
    "FAILED": "bold red",
    "CANCELLED": "magenta",
    "connected": "green",
    "unknown": "yellow",
    "lost": "bold red",
}


@dataclass(frozen=True, slots=True)
class Column:
    """One column. `drop` > 0: may go when the terminal is narrow, the highest first. `flex`: may be cut."""

    title: str
    right: bool = False
    flex: bool = False
    drop: int = 0


@dataclass(frozen=True, slots=True)
class Table:
    """Rows of text below named columns. Texts may be raw: rendering cleans them."""

    columns: Sequence[Column]
    rows: Sequence[Sequence[str]] = field(default=())


def clean(text: str) -> str:
    """`text` with every character that could act on a terminal (escape, bidi, newline ...) made visible."""
    if text.isprintable():
        return text
    return "".join(char if char.isprintable() else _visible(char) for char in text)


def _visible(char: str) -> str:
    return {"\n": "\\n", "\t": "\\t", "\r": "\\r"}.get(char) or char.encode("unicode_escape").decode("ascii")


def is_terminal(stream: IO[Any] | None = None) -> bool:
    """True where a person reads: colour and progress are for them alone."""
    stream = stream or sys.stdout
    return bool(getattr(stream, "isatty", lambda: False)())


def show_json(value: Any) -> None:
    """One JSON document on stdout."""
    from ..views import to_json

    click.echo(json.dumps(to_json(value), indent=2, ensure_ascii=True))


def show_table(table: Table) -> None:
    """A table, fitted to the terminal; complete where stdout is none."""
    if is_terminal():
        _show_rich(table)
    else:
        for line in plain_lines(table):
            click.echo(line)


def plain_lines(table: Table) -> Iterable[str]:
    """The table as aligned lines that nothing cuts."""
    rows = [
        [column.title for column in table.columns],
        *([clean(cell) for cell in row] for row in table.rows),
    ]
    widths = [max(len(row[i]) for row in rows) for i in range(len(table.columns))]
    for row in rows:
        cells = [
            cell.rjust(width) if column.right else cell.ljust(width)
            for cell, width, column in zip(row, widths, table.columns, strict=True)
        ]
        yield "  ".join(cells).rstrip()


def console() -> "Console":
    """rich's console on stdout: markup and emoji codes off, since texts are other people's."""
    from rich.console import Console

    return Console(markup=False, emoji=False, highlight=False, soft_wrap=False)


def _show_rich(table: Table) -> None:
    from rich.table import Table as RichTable
    from rich.text import Text

    out = console()
    widths = fitted_widths(table, out.width)
    rich = RichTable(box=None, pad_edge=False, padding=(0, GAP, 0, 0), header_style="bold", show_edge=False)
    for index, width in widths.items():
        column = table.columns[index]
        justify: Literal["left", "right"] = "right" if column.right else "left"
        rich.add_column(Text(column.title), justify=justify, no_wrap=True, overflow="ellipsis", width=width)
    for row in table.rows:
        rich.add_row(*(Text(clean(row[index]), style=STATE_STYLES.get(row[index], "")) for index in widths))
    out.print(rich)


def fitted_widths(table: Table, width: int) -> dict[int, int]:
    """Index and cells of each column that is shown, so that all fit into `width`.

    First the columns that may go do so, until the rest fits with its flexible ones at their least; then the
    widest flexible ones are cut until all fits.
    """
    widths = {index: _natural_width(table, index) for index in range(len(table.columns))}

    def excess(of: Mapping[int, int]) -> int:
        return sum(of.values()) + GAP * (len(of) - 1) - width

    def at_least() -> dict[int, int]:
        return {i: min(cells, FLEX_MIN) if table.columns[i].flex else cells for i, cells in widths.items()}

    while excess(at_least()) > 0:
        optional = [index for index in widths if table.columns[index].drop]
        if not optional:
            break
        del widths[max(optional, key=lambda index: table.columns[index].drop)]
    while excess(widths) > 0:
        flexible = [i for i in widths if table.columns[i].flex and widths[i] > FLEX_MIN]
        if not flexible:
            break
        widths[max(flexible, key=widths.__getitem__)] -= 1
    return widths


def _natural_width(table: Table, index: int) -> int:
    from rich.cells import cell_len

    texts = (table.columns[index].title, *(clean(row[index]) for row in table.rows))
    return max(map(cell_len, texts))


def show(text: str = "", *, style: str = "", err: bool = False) -> None:
    """One line; `style` (a colour, `bold` or `dim`) only on a terminal. The text must be clean."""
    stream = sys.stderr if err else sys.stdout
    click.echo(styled(text, style) if style and is_terminal(stream) else text, err=err)


def styled(text: str, style: str) -> str:
    """`text` in `style`: words of click.style, such as `bold red` or `dim`."""
    words = style.split()
    colours = [word for word in words if word not in ("bold", "dim")]
    return click.style(
        text,
        fg=colours[0] if colours else None,
        bold=True if "bold" in words else None,
        dim=True if "dim" in words else None,
    )


def hint(text: str, *, indent: int = 0) -> None:
    """What to do next: on stderr, so that pipes get data alone. Wrapped lines are indented by `indent`."""
    show(wrapped(text, indent, sys.stderr), style="dim", err=True)


def wrapped(text: str, indent: int, stream: IO[Any] | None = None) -> str:
    """A long line broken between words, on a terminal alone: further lines start after `indent` blanks."""
    width = shutil.get_terminal_size().columns
    if not is_terminal(stream) or len(text) <= width or width < indent + 20:
        return text
    lead = len(text) - len(text.lstrip())
    lines = textwrap.wrap(
        text[lead:], width, initial_indent=" " * lead, subsequent_indent=" " * indent, break_on_hyphens=False
    )
    return "\n".join(lines)


@contextmanager
def working(what: str) -> Iterator[Callable[[str], None]]:
    """While something takes its time: a spinner on a terminal. Gives what says a line meanwhile."""
    if not is_terminal():
        yield show
        return
    from rich.text import Text

    screen = console()
    with screen.status(Text(what)):
        yield lambda line: screen.print(Text(line))


def human_bytes(count: int) -> str:
    """1536 -> `1.5 KiB`."""
    if abs(count) < 1024:
        return f"{count} B"
    value, power = count / 1024, 0
    while abs(value) >= 1023.95 and power < 4:
        value, power = value / 1024, power + 1
    unit = ("KiB", "MiB", "GiB", "TiB", "PiB")[power]
    return f"{value:.1f} {unit}" if value < 100 else f"{value:.0f} {unit}"


def human_cpus(milli: int) -> str:
    """2500 -> `2.5`, 2000 -> `2`."""
    return f"{milli / 1000:g}"


def human_time(us: int) -> str:
    """A duration in at most two units: `0.21 s`, `12.3 s`, `3m 05s`, `2h 07m`, `5d 03h`."""
    seconds = us / 1_000_000
    if seconds < 0:
        return f"-{human_time(-us)}"
    if seconds < 10:
        return f"{seconds:.2f} s"
    if seconds < 60:
        return f"{seconds:.1f} s"
    whole = int(seconds)
    if whole < 3600:
        return f"{whole // 60}m {whole % 60:02d}s"
    if whole < 86400:
        return f"{whole // 3600}h {whole % 3600 // 60:02d}m"
    return f"{whole // 86400}d {whole % 86400 // 3600:02d}h"


def clock(us: int) -> str:
    """A time of day on this machine's clock, with the date."""
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(us / 1_000_000))


def now_us() -> int:
    """This machine's clock; the scheduler's may differ a little."""
    return time.time_ns() // 1000
