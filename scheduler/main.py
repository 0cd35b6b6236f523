"""The scheduler's process: `python -m paceline.scheduler.main`, which `pace scheduler` becomes.

Stops cleanly on SIGTERM and SIGINT, and stops no job. Exit codes: 0 stopped as asked, 2 the options make no
sense, 3 the store refused, 4 cannot listen, 1 a bug of ours.
"""

import asyncio
import gc
import logging
import signal
import sys
from pathlib import Path
from typing import Any, Final

import click

from ..spec.errors import InvalidRequest, PacelineError, StoreFailure, Unavailable
from ..spec.labels import KEY_RULE, is_key
from .collector import collecting
from .config import DEFAULT_LISTEN, SchedulerConfig, default_state
from .opening import open_state

_log = logging.getLogger(__name__)

EXIT_OPTIONS: Final = 2
EXIT_STORE: Final = 3
EXIT_LISTEN: Final = 4

LEVELS_MAX: Final = 16


def main(config: SchedulerConfig) -> int:
    """Run until told to stop; returns the exit code."""
    _set_up_logging(config.verbose)
    try:
        asyncio.run(run_scheduler(config))
    except PacelineError as error:
        _log.error("%s", error)
        return _exit_code(error)
    return 0


async def run_scheduler(config: SchedulerConfig) -> None:
    """Serve until SIGTERM or SIGINT. Raises what `serving` raises."""
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    _log.info("starting on %s, store %s", config.state, config.store_location)
    gc.disable()  # until a million objects that stay are made
    opening = loop.run_in_executor(None, open_state, config)
    from .server import serving  # here: the store is being checked meanwhile

    async with serving(config, opening) as made, collecting():
        how = "TLS" if config.encrypted else "no TLS"
        _log.info("serving on %s (%s), cluster %s", made.address, how, made.cluster_id)
        await stop.wait()
        _log.info("stopping; jobs go on")
    _log.info("stopped")


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option(
    "--state",
    type=click.Path(path_type=Path, file_okay=False),
    help="State folder.  [default: $PACELINE_STATE]",
)
@click.option("--listen", default=DEFAULT_LISTEN, show_default=True, help="HOST:PORT; port 0: any.")
@click.option("--store", default="", help="File or postgresql:// URL.  [default: STATE/paceline.db]")
@click.option(
    "--storage",
    type=click.Path(path_type=Path, file_okay=False),
    help="Job folders; the same path on every node.  [default: STATE/storage]",
)
@click.option("--tls", is_flag=True, help="TLS with a certificate made in STATE/tls.")
@click.option("--tls-cert", type=click.Path(path_type=Path, dir_okay=False), help="TLS certificate (PEM).")
@click.option("--tls-key", type=click.Path(path_type=Path, dir_okay=False), help="Its key (PEM).")
@click.option("--insecure", is_flag=True, help="Listen beyond loopback without TLS.")
@click.option("--heartbeat", "heartbeat_s", type=click.FloatRange(0.05, 60), default=1.0, show_default=True)
@click.option("--missed-heartbeats", type=click.IntRange(1, 1000), default=3, show_default=True)
@click.option(
    "--lease-exclusive", "lease_exclusive_s", type=click.FloatRange(1), default=20.0, show_default=True
)
@click.option(
    "--replace-exclusive", "replace_exclusive_s", type=click.FloatRange(2), default=45.0, show_default=True
)
@click.option("--lease-fenced", "lease_fenced_s", type=click.FloatRange(1), default=600.0, show_default=True)
@click.option(
    "--drain-stragglers",
    "straggler_reports_max",
    type=click.IntRange(0, 1000),
    default=0,
    show_default=True,
    help="After so many reports of slow ranks, give a node no new gang for an hour; 0: never.",
)
@click.option(
    "--topology-levels",
    default="block,rack",
    show_default=True,
    metavar="KEY,...",
    help="Labels of nodes that say where they stand, the widest level first.",
)
@click.option("--verbose", "-v", is_flag=True, help="Log more.")
def command(**options: Any) -> None:
    """Run the scheduler in the foreground."""
    try:
        config = config_of(**options)
    except (PacelineError, ValueError) as error:
        click.echo(f"pace scheduler: {error}", err=True)
        sys.exit(EXIT_OPTIONS)
    sys.exit(main(config))


def config_of(
    *,
    state: Path | None,
    listen: str,
    store: str,
    storage: Path | None,
    tls: bool,
    tls_cert: Path | None,
    tls_key: Path | None,
    insecure: bool,
    heartbeat_s: float,
    missed_heartbeats: int,
    lease_exclusive_s: float,
    replace_exclusive_s: float,
    lease_fenced_s: float,
    straggler_reports_max: int,
    topology_levels: str,
    verbose: bool,
) -> SchedulerConfig:
    """The options as one checked object. Raises InvalidRequest or ValueError."""
    from ..proto.tls import TlsFiles
    from .core.settings import SECOND_US, Settings

    if (tls_cert is None) != (tls_key is None):
        raise InvalidRequest("--tls-cert and --tls-key go together")
    lease_us = round(lease_exclusive_s * SECOND_US)
    return SchedulerConfig(
        state=_absolute(state) if state is not None else default_state(),
        listen=listen,
        store=store,
        storage=None if storage is None else _absolute(storage),
        tls_files=TlsFiles(_absolute(tls_cert), _absolute(tls_key)) if tls_cert and tls_key else None,
        tls_generated=tls,
        insecure=insecure,
        settings=Settings(
            heartbeat_us=round(heartbeat_s * SECOND_US),
            missed_heartbeats=missed_heartbeats,
            lease_exclusive_us=lease_us,
            replace_exclusive_us=round(replace_exclusive_s * SECOND_US),
            stop_and_drift_us=min(Settings().stop_and_drift_us, lease_us // 2),
            lease_fenced_us=round(lease_fenced_s * SECOND_US),
            straggler_reports_max=straggler_reports_max,
            topology_levels=_levels(topology_levels),
        ),
        verbose=verbose,
    )


def _levels(text: str) -> tuple[str, ...]:
    """Empty: nodes stand nowhere in particular."""
    levels = tuple(level.strip() for level in text.split(",")) if text else ()
    for level in levels:
        if not is_key(level):
            raise InvalidRequest(f"--topology-levels: {level!r} is not the key of a label: {KEY_RULE}")
    if len(set(levels)) < len(levels) or len(levels) > LEVELS_MAX:
        raise InvalidRequest(
            f"--topology-levels: expected at most {LEVELS_MAX} different keys, found {text!r}"
        )
    return levels


def _absolute(path: Path) -> Path:
    return path.expanduser().absolute()


def _exit_code(error: PacelineError) -> int:
    if isinstance(error, StoreFailure):
        return EXIT_STORE
    if isinstance(error, Unavailable):
        return EXIT_LISTEN
    return EXIT_OPTIONS if isinstance(error, InvalidRequest) else 1


def _set_up_logging(verbose: bool) -> None:
    logging.basicConfig(
        level=logging.DEBUG if verbose else logging.INFO,
        format="%(asctime)s.%(msecs)03d %(levelname)s %(name)s: %(message)s",
        datefmt="%Y-%m-%dT%H:%M:%S",
        stream=sys.stderr,
        force=True,
    )
    for name in ("grpc", "asyncio", "alembic"):
        logging.getLogger(name).setLevel(logging.WARNING)


if __name__ == "__main__":
    command()
