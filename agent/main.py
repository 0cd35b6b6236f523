"""`pace agent`: one node's agent in the foreground, as systemd would run it.

Options are parsed here, once, into one frozen AgentConfig; the exit code says what kind of end it was.
"""

import asyncio
import logging
import re
import sys
from pathlib import Path
from typing import Final

import click

from .. import __version__
from ..proto.auth import read_token
from ..proto.channels import Target, target
from ..spec.errors import Conflict, InvalidRequest, PacelineError
from .config import AgentConfig
from .folder import StateFolder, WrongCluster
from .node import Agent
from .session import Refused

EXIT_CODES: Final[dict[type[PacelineError], int]] = {
    InvalidRequest: 2,
    Conflict: 3,
    Refused: 4,
    WrongCluster: 5,
}
_UNITS: Final = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}


def run_agent(config: AgentConfig) -> int:
    """Run until SIGTERM or SIGINT; the exit code. What went wrong is said on standard error."""
    try:
        where = _target(config)
        with StateFolder(config.state) as folder:
            asyncio.run(Agent(config, folder, where).run())
    except PacelineError as error:
        click.echo(f"pace agent: {error}", err=True)
        return next((code for kind, code in EXIT_CODES.items() if isinstance(error, kind)), 1)
    return 0


def _target(config: AgentConfig) -> Target:
    if config.token_file is None:
        raise InvalidRequest(
            "no agent token is given",
            hint="Name it with --token-file: agent.token in the scheduler's state folder.",
        )
    token = read_token(config.token_file)
    return target(config.scheduler, token, ca_file=config.ca_file, insecure=config.insecure)


def _size(ctx: click.Context, param: click.Parameter, value: str | None) -> int | None:
    """Bytes, with K, M, G or T (powers of 1,024)."""
    if value is None:
        return None
    found = re.fullmatch(r"(\d{1,18})\s*([KMGT]?)(i?B)?", value, re.IGNORECASE)
    if not found:
        raise click.BadParameter(f"{value!r} is not a size; write 512M, 64G or a number of bytes")
    return int(found[1]) * _UNITS[found[2].upper()]


def _pairs(ctx: click.Context, param: click.Parameter, values: tuple[str, ...]) -> dict[str, str]:
    """NAME=VALUE, the last of a name counts."""
    for value in values:
        if not all(value.partition("=")[:2]):
            raise click.BadParameter(f"{value!r} is not NAME=VALUE")
    return {value.partition("=")[0]: value.partition("=")[2] for value in values}


def _taints(ctx: click.Context, param: click.Parameter, values: tuple[str, ...]) -> dict[str, str]:
    """KEY or KEY=VALUE, the last of a key counts."""
    return {key: value for key, _, value in (one.partition("=") for one in values)}


@click.command(
    name="pace agent",
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
    epilog="""\b
Exit codes:
  0  stopped by SIGTERM or SIGINT; its tasks go on
  2  an option is wrong
  3  another agent runs with this state folder
  4  the scheduler refuses the token
  5  the scheduler keeps another cluster than this node's
  1  anything else; trying again may help""",
)
@click.option("--scheduler", required=True, metavar="HOST:PORT", help="Where the scheduler listens.")
@click.option(
    "--state",
    required=True,
    type=click.Path(file_okay=False, path_type=Path),
    help="This agent's own state folder.",
)
@click.option("--name", default="", help="Of the node.  [default: the host's name]")
@click.option("--address", default="", help="At which peers reach this node.  [default: found out]")
@click.option("--slots", type=float, help="Cpus to offer.  [default: what this process may use]")
@click.option(
    "--memory", callback=_size, metavar="SIZE", help="To offer.  [default: what is there, less a head room]"
)
@click.option("--gpus", default="all", show_default=True, help="all, none, or indices and uuids: 0,1")
@click.option(
    "--gpu-test",
    default="",
    metavar="COMMAND",
    help="Tests a GPU that was out of service, in CUDA_VISIBLE_DEVICES; exit 0: well.  [default: ours]",
)
@click.option(
    "--gpu-test-after",
    type=float,
    default=60.0,
    show_default=True,
    metavar="SECONDS",
    help="The wait before a GPU's first test; longer after each that fails.",
)
@click.option(
    "--label",
    "labels",
    callback=_pairs,
    metavar="KEY=VALUE",
    multiple=True,
    help="What the node is or where it stands, as rack=r3.  May be repeated.",
)
@click.option(
    "--taint",
    "taints",
    callback=_taints,
    metavar="KEY[=VALUE]",
    multiple=True,
    help="Only jobs that tolerate it come here.  May be repeated.",
)
@click.option(
    "--environment",
    "environments",
    callback=_pairs,
    metavar="NAME=INTERPRETER",
    multiple=True,
    help="Jobs that name this environment run in that interpreter.  May be repeated.",
)
@click.option("--token-file", type=click.Path(dir_okay=False, path_type=Path), help="Holds the agent token.")
@click.option(
    "--ca", type=click.Path(dir_okay=False, path_type=Path), help="The scheduler's certificate or its CA's."
)
@click.option("--insecure", is_flag=True, help="Speak to a scheduler beyond this machine without TLS.")
@click.option(
    "--log-bound",
    callback=_size,
    metavar="SIZE",
    default="1G",
    show_default=True,
    help="Of a rank's output here.",
)
@click.option(
    "--cache",
    callback=_size,
    metavar="SIZE",
    default="50G",
    show_default=True,
    help="Of code and data that are kept here for the next jobs.",
)
@click.option("--cold", is_flag=True, help="Keep no warm processes: jobs start more slowly.")
@click.option("--rendezvous-ports", type=int, default=8, show_default=True, help="To hold ready for gangs.")
@click.option(
    "--stop-tasks", is_flag=True, help="On SIGTERM end the tasks, too: their jobs save and go on elsewhere."
)
@click.option("-v", "--verbose", is_flag=True, help="Say more.")
@click.version_option(__version__)
def command(
    *,
    scheduler: str,
    state: Path,
    name: str,
    address: str,
    slots: float | None,
    memory: int | None,
    gpus: str,
    gpu_test: str,
    gpu_test_after: float,
    labels: dict[str, str],
    taints: dict[str, str],
    environments: dict[str, str],
    token_file: Path | None,
    ca: Path | None,
    insecure: bool,
    log_bound: int,
    cache: int,
    cold: bool,
    rendezvous_ports: int,
    stop_tasks: bool,
    verbose: bool,
) -> None:
    """Offer this node to a scheduler, and run what it sends, until stopped."""
    logging.basicConfig(
        level=logging.DEBUG if verbose else logging.INFO,
        format="%(asctime)s %(levelname).1s %(name)s: %(message)s",
    )
    try:
        config = AgentConfig(
            scheduler=scheduler,
            state=state.absolute(),
            **({"name": name} if name else {}),
            address=address,
            cpus=slots,
            memory_bytes=memory,
            gpus=gpus,
            gpu_test=gpu_test,
            gpu_test_after_s=gpu_test_after,
            labels=labels,
            taints=taints,
            environments=environments,
            token_file=token_file,
            ca_file=ca,
            insecure=insecure,
            log_bytes_max=log_bound,
            cache_bytes=cache,
            warm=not cold,
            rendezvous_ports=rendezvous_ports,
            stop_tasks=stop_tasks,
        )
    except InvalidRequest as error:
        click.echo(f"pace agent: {error}", err=True)
        sys.exit(EXIT_CODES[InvalidRequest])
    sys.exit(run_agent(config))


if __name__ == "__main__":
    command()
