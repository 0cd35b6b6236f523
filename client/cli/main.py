"""The `pace` command: names, one-line helps and exit codes; each verb's code is loaded when it is used.

`pace --help` must stay below 150 ms of CPU: this file imports click and nothing that is heavier.
No input of a user's ends in a traceback: errors are told with what to do next.

Exit codes: 0 done; 1 the operation or the job failed; 2 wrong usage or an invalid document; 3 not found;
4 no scheduler reachable; 5 not allowed (token, TLS); 6 the state or a limit does not allow it; 130
interrupted. `pace submit --follow` returns the job's own: 128 + N when signal N ended it, 1 when it ended
otherwise without a code (cancelled, never started).
"""

import gc
import os
import sys
from collections.abc import Sequence
from importlib import import_module

import click

from ... import __version__
from ...spec.errors import PacelineError

EXIT_FAILED, EXIT_USAGE, EXIT_NOT_FOUND, EXIT_UNREACHABLE, EXIT_DENIED, EXIT_REFUSED = range(1, 7)
EXIT_INTERRUPTED = 130

_GARBAGE_FROM = 100_000
"""New objects until some are looked at: nearly all that a command makes it needs until it is over."""

EXIT_CODES = {
    "invalid": EXIT_USAGE,
    "invalid-document": EXIT_USAGE,
    "not-found": EXIT_NOT_FOUND,
    "unavailable": EXIT_UNREACHABLE,
    "unauthenticated": EXIT_DENIED,
    "conflict": EXIT_REFUSED,
    "limit": EXIT_REFUSED,
    "stale-attempt": EXIT_REFUSED,
}

SECTIONS: dict[str, dict[str, tuple[str, str]]] = {
    "Jobs": {
        "submit": ("submit", "Submit a job file, and follow it if asked."),
        "jobs": ("jobs", "List jobs, newest first."),
        "show": ("jobs", "Show all about one job."),
        "logs": ("logs", "Print a job's output, or follow it."),
        "why": ("jobs", "Say why a job waits, or how it ended."),
        "timeline": ("timeline", "Show what happened to a job and where its time went."),
        "environment": ("environment", "Show what a job ran with: Python, packages, driver, GPUs."),
        "cancel": ("jobs", "Cancel jobs."),
        "hold": ("holds", "Keep jobs from starting until they are released."),
        "release": ("holds", "Let jobs start that were held."),
        "priority": ("holds", "Give a job another priority."),
        "preempt": ("checkpoints", "Have a job save and make way; it goes on later."),
    },
    "Sweeps": {
        "sweep": ("sweeps", "Show a sweep, its trials and plots; pause, extend, stop it."),
    },
    "Endpoints": {
        "deploy": ("endpoints", "Have a model answer requests under an endpoint's name."),
        "endpoints": ("endpoints", "List endpoints, or show all about one."),
        "traffic": ("endpoints", "Say which share of the requests each deployment gets."),
        "invoke": ("endpoints", "Send a request to an endpoint, and print the answer."),
        "rollback": ("endpoints", "Bring an endpoint back to what it was before its last change."),
        "undeploy": ("endpoints", "End an endpoint, or one of its deployments."),
        "score": ("scores", "Have a model answer all rows of some data, as a job."),
    },
    "Data and models": {
        "data": ("assets", "Register data, list and show its versions."),
        "model": ("assets", "Register models, list and show versions, move aliases, download."),
        "reproduce": ("reproduce", "Run a job again from its recorded code, data and parameters."),
        "lineage": ("lineage", "Show what something was made of, and what was made of it."),
    },
    "Answers": {
        "plan": ("plans", "Say where job files would go and when they would start."),
        "simulate": ("plans", "Run the live queue, or a trace, forward under a change."),
        "decision": ("decisions", "Take a decision of the past again, and show what it saw."),
        "usage": ("usage", "Sum up GPU hours by user, queue or project."),
    },
    "Checkpoints": {
        "checkpoints": ("checkpoints", "List a job's checkpoints, and what became of them."),
        "checkpoint": ("checkpoints", "Have a running job save now."),
        "restore": ("checkpoints", "Send a job back to a checkpoint."),
        "fork": ("checkpoints", "Start a new job from another's checkpoint."),
    },
    "Cluster": {
        "up": ("cluster", "Start a scheduler and agents on this machine."),
        "down": ("cluster", "Stop what `pace up` started."),
        "nodes": ("nodes", "List nodes: what they have, what is free."),
        "cordon": ("cordons", "Place no new tasks on nodes; what runs there goes on."),
        "drain": ("cordons", "Empty nodes: what runs there saves and goes on elsewhere."),
        "uncordon": ("cordons", "Put nodes back into service."),
        "queues": ("queues", "Show the tree of queues: quotas, use, whose turn it is."),
        "quota": ("queues", "Show what a user or a queue may have, and has."),
        "pools": ("queues", "Show the pools of nodes: what is free, who may use them."),
        "policy": ("policy", "Show or change how the cluster is shared."),
        "scheduler": ("services", "Run the scheduler in the foreground."),
        "agent": ("services", "Run a node's agent in the foreground."),
    },
    "Job files": {
        "validate": ("documents", "Check files of jobs and sweeps without submitting them."),
        "schema": ("documents", "Print the JSON Schema of job files, sweeps or the policy, for editors."),
    },
}
COMMANDS = {name: where for section in SECTIONS.values() for name, where in section.items()}


class LazyGroup(click.Group):
    """Knows its commands' names and helps; imports one when it is run."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        module = import_module(f".{COMMANDS[cmd_name][0]}", __package__)
        command: click.Command = getattr(module, cmd_name)
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args[0] not in COMMANDS and not args[0].startswith("-"):
            raise click.UsageError(f"no command {args[0]!r}.{_nearest(args[0])}", ctx)
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        for section, commands in SECTIONS.items():
            with formatter.section(section):
                formatter.write_dl([(name, text) for name, (_, text) in commands.items()], col_max=12)


def _nearest(word: str) -> str:
    from difflib import get_close_matches

    near = get_close_matches(word, COMMANDS, n=1, cutoff=0.5)
    return f" Did you mean `pace {near[0]}`?" if near else ""


@click.group(
    cls=LazyGroup,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog="\b\nFirst steps:\n  pace up                       a scheduler and an agent on this machine\n"
    "  pace submit job.yaml --follow\n  pace down\n\n"
    "\b\nExit codes:\n  0  done\n  1  the operation or the job failed\n"
    "  2  wrong usage, or an invalid document\n"
    "  3  not found\n  4  no scheduler reachable\n  5  not allowed: token or TLS\n"
    "  6  the state or a limit does not allow it\n  130  interrupted (a followed job rides on)\n"
    "  `submit --follow` returns the job's own; 128 + N when signal N ended it.\n\n"
    "\b\nWhere the scheduler is: --scheduler HOST:PORT, $PACELINE_SCHEDULER, or the state folder\n"
    "(--state DIR, $PACELINE_STATE, ~/.local/state/paceline). Token: $PACELINE_TOKEN,\n"
    "$PACELINE_TOKEN_FILE, or the state folder's client.token. CA: $PACELINE_CA.",
)
@click.version_option(__version__, "-V", "--version", message="pace %(version)s")
def pace() -> None:
    """Train on your own machines: submit jobs, watch them, ride on when a worker falls."""


def main(argv: Sequence[str] | None = None) -> None:
    """Entry point: runs a command and turns what it raises into a message and an exit code."""
    gc.set_threshold(_GARBAGE_FROM)
    code = run(argv)
    gc.freeze()  # nothing is collected on the way out: the process ends
    sys.exit(code)


def run(argv: Sequence[str] | None = None) -> int:
    """Run one command line; the exit code."""
    try:
        result = pace.main(args=argv, prog_name="pace", standalone_mode=False)
        sys.stdout.flush()
        return result if isinstance(result, int) else 0
    except click.exceptions.Exit as end:
        return end.exit_code
    except click.ClickException as error:
        context = getattr(error, "ctx", None)
        where = context.command_path if context is not None else "pace"
        tell(PacelineError(error.format_message(), hint=f"see `{where} --help`"))
        return EXIT_USAGE
    except (KeyboardInterrupt, click.Abort):
        click.echo("interrupted", err=True)
        return EXIT_INTERRUPTED
    except PacelineError as error:
        tell(error)
        return EXIT_CODES.get(error.code, EXIT_FAILED)
    except BrokenPipeError:
        # The reader (`| head`) went away: nobody is left to tell, and the flush at exit must not complain.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 128 + 13
    except OSError as error:
        tell(PacelineError(f"{error.filename}: {error.strerror}" if error.filename else str(error)))
        return EXIT_FAILED


def tell(error: PacelineError) -> None:
    """An error as a person reads it: what is wrong, then what to do."""
    from .output import clean, is_terminal, styled

    head = styled("error:", "bold red") if is_terminal(sys.stderr) else "error:"
    lines = [clean(line) for line in error.message.splitlines()] or ["?"]
    click.echo(f"{head} {lines[0]}", err=True)
    for line in lines[1:]:
        click.echo(f"  {line}", err=True)
    for line in error.hint.splitlines():
        click.echo(f"  {clean(line)}", err=True)


if __name__ == "__main__":
    main()
