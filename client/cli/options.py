"""The options that several verbs share, and the client that they lead to."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

import click

if TYPE_CHECKING:
    from ..sdk import Client
    from ..settings import Settings
    from ..submitter import Submitter

F = TypeVar("F", bound=Callable[..., Any])

PATIENCE_S = 2.0
"""A person waits for an answer: long enough for a scheduler that is restarting, no longer."""

DURATION_MAX_S = 86_400.0


class Number(click.ParamType[int]):
    """A number that a listing shows."""

    def __init__(self, name: str, listing: str) -> None:
        self.name = name
        self._listing = listing

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        text = str(value)
        if not (text.isascii() and text.isdigit() and 0 < int(text[:20]) < 2**63):
            self.fail(f"{value!r} is not a {self.name}'s number; `{self._listing}` lists them", param, ctx)
        return int(text)


class Duration(click.ParamType[float]):
    """A time with its unit, in seconds; at most a day."""

    name = "duration"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        from ...spec.every import parse_seconds

        try:
            seconds = parse_seconds(str(value))
        except ValueError as error:
            self.fail(f"{value!r}: {error}", param, ctx)
        if seconds > DURATION_MAX_S:
            self.fail(f"{value!r} is more than a day", param, ctx)
        return seconds


class Hours(click.ParamType[float]):
    """A number of hours, at most 30 days; in seconds."""

    name = "hours"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        try:
            hours = float(value)
        except (TypeError, ValueError):
            hours = -1.0
        if not 0 <= hours <= 720:
            self.fail(f"{value!r} is no number of hours from 0 to 720", param, ctx)
        return hours * 3600


class Moment(click.ParamType[int]):
    """A day, a time of a day, or how long ago; in microseconds since 1970, by this machine's clock."""

    name = "moment"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        import time
        from datetime import datetime

        from ...spec.every import parse_seconds

        text = str(value).strip()
        days = text.removesuffix(" days").removesuffix(" day").removesuffix(" d")
        try:
            if days != text:
                return round((time.time() - float(days) * 86_400) * 1e6)
            if text[:4].isdigit() and text[4:5] == "-":
                return round(datetime.fromisoformat(text).timestamp() * 1e6)
            return round((time.time() - parse_seconds(text)) * 1e6)
        except (ValueError, OverflowError):
            self.fail(
                f"{value!r} is no time; expected a day (2026-11-01), a time (2026-11-01T08:00), "
                "or how long ago (`90 min`, `12 h`, `7 d`)",
                param,
                ctx,
            )


JOB = Number("job", "pace jobs")
job_argument = click.argument("job", type=JOB, metavar="JOB")
sweep_argument = click.argument("number", type=Number("sweep", "pace sweep list"), metavar="SWEEP")

state_option = click.option(
    "--state", metavar="DIR", type=click.Path(file_okay=False), help="State folder. [$PACELINE_STATE]"
)

json_option = click.option(
    "-o",
    "--output",
    type=click.Choice(["text", "json"]),
    default="text",
    help="json: one document with stable keys.",
)


def connection(command: F) -> F:
    """Options that say where the scheduler is; the verb gets them as one `settings`."""
    import functools

    @click.option("--scheduler", metavar="HOST:PORT", help="Where it listens. [$PACELINE_SCHEDULER]")
    @state_option
    @click.option("--ca", metavar="FILE", type=click.Path(), help="Certificate of its TLS. [$PACELINE_CA]")
    @click.option("--insecure", is_flag=True, help="Call without TLS beyond this machine.")
    @functools.wraps(command)
    def with_settings(
        *args: Any, scheduler: str | None, state: str | None, ca: str | None, insecure: bool, **kwargs: Any
    ) -> Any:
        from .. import settings

        loaded = settings.load(scheduler=scheduler, state=state, ca_file=ca, insecure=insecure)
        return command(*args, settings=loaded, **kwargs)

    return with_settings  # type: ignore[return-value]


def open_client(settings: "Settings") -> "Client":
    """A client for one command. Raises Unavailable at once where no scheduler is known, or it is gone."""
    from ..sdk import Client
    from ..settings import check_alive

    check_alive(settings)
    return Client(config=settings, patience_s=PATIENCE_S)


def open_submitter(settings: "Settings") -> "Submitter":
    """As `open_client`, for a command that submits and asks nothing."""
    from ..settings import check_alive
    from ..submitter import Submitter

    check_alive(settings)
    return Submitter(config=settings, patience_s=PATIENCE_S)
