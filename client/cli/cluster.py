"""`pace up` and `pace down`: a cluster on this machine."""

from pathlib import Path

import click

from ...spec.errors import InvalidRequest
from . import output as out
from .options import state_option


@click.command(short_help="Start a scheduler and agents on this machine.")
@click.option("--agents", type=click.IntRange(0, 64), help="How many. [default: as before, else 1]")
@click.option(
    "--slots",
    type=click.FloatRange(0.1, 100_000),
    help="Cpus that each agent offers. [default: an equal share]",
)
@click.option("--ephemeral", is_flag=True, help="A temporary state folder, which `pace down` removes.")
@click.option(
    "--port", type=click.IntRange(0, 65535), help="Of the scheduler. [default: 7223, else a free one]"
)
@state_option
def up(agents: int | None, slots: float | None, ephemeral: bool, port: int | None, state: str | None) -> None:
    """Start a scheduler and agents on this machine, in the background.

    Harmless when repeated: what is up stays, what died is started again. State, logs and tokens are in the
    state folder.
    """
    _check_platform()
    from .. import local, settings

    folder = settings.state_folder(state)
    if ephemeral and not state and folder == settings.default_state():
        folder = local.new_ephemeral(folder)
    plan = local.Plan(agents=agents, cpus_per_agent=slots, ephemeral=ephemeral, port=port)
    with out.working("starting ...") as tell:
        current = local.up(folder, plan, tell)
    out.show(f"state is in {current.state}" + (" (temporary)" if current.ephemeral else ""))
    _hint_next(current.state)


@click.command(short_help="Stop what `pace up` started.")
@click.option("--kill-jobs", is_flag=True, help="End the jobs too; by default they go on.")
@click.option(
    "--grace",
    "grace_s",
    type=click.FloatRange(0.1, 3600),
    default=5.0,
    show_default=True,
    help="With --kill-jobs: seconds between SIGTERM and SIGKILL.",
)
@state_option
def down(kill_jobs: bool, grace_s: float, state: str | None) -> None:
    """Stop what `pace up` started, and nothing else.

    Jobs go on, and the next `pace up` takes them over, unless --kill-jobs says otherwise or the cluster is
    ephemeral.
    """
    _check_platform()
    from .. import local, settings

    folder = settings.state_folder(state)
    with out.working("stopping ...") as tell:
        stopped = local.down(folder, tell, kill_jobs=kill_jobs, grace_s=grace_s)
    if not stopped:
        out.show(f"nothing to stop: `pace up` has started nothing in {folder}")


def _check_platform() -> None:
    from ..process import processes_are_visible

    if not processes_are_visible():
        raise InvalidRequest(
            "`pace up` and `pace down` need Linux, as agents do",
            hint="run `pace scheduler` here and `pace agent --scheduler HOST:PORT` on Linux nodes",
        )


def _hint_next(state: Path) -> None:
    from .. import settings

    if settings.state_folder(None) != state:
        out.hint(f"for the commands to find it: export PACELINE_STATE={state}")
    out.hint("next: `pace submit job.yaml --follow`; `pace nodes`; `pace down`")
