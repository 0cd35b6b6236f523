"""`pace scheduler` and `pace agent`: become that process (same pid), as systemd runs them.

The client imports neither; their options are theirs, and so is their help.
"""

import os
import sys

import click

_PASS_ON = {"ignore_unknown_options": True, "allow_extra_args": True, "help_option_names": []}


@click.command(context_settings=_PASS_ON, short_help="Run the scheduler in the foreground.")
@click.argument("args", nargs=-1, type=click.UNPROCESSED)
def scheduler(args: tuple[str, ...]) -> None:
    """Run the scheduler in the foreground."""
    become("paceline.scheduler.main", args)


@click.command(context_settings=_PASS_ON, short_help="Run a node's agent in the foreground.")
@click.argument("args", nargs=-1, type=click.UNPROCESSED)
def agent(args: tuple[str, ...]) -> None:
    """Run a node's agent in the foreground."""
    become("paceline.agent.main", args)


def become(module: str, args: tuple[str, ...]) -> None:
    """Replace this process by `python -m module args`."""
    sys.stdout.flush()
    sys.stderr.flush()
    os.execv(sys.executable, [sys.executable, "-m", module, *args])
