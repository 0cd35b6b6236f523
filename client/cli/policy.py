"""`pace policy show`, `apply`: the rules by which the cluster is shared, changed while it runs."""

import json
from typing import TYPE_CHECKING

import click

from . import output as out
from .options import connection, json_option, open_client

if TYPE_CHECKING:
    from ..settings import Settings


@click.group(short_help="Show or change how the cluster is shared.")
def policy() -> None:
    """Show or change how the cluster is shared: queues, quotas, pools, the order of waiting."""


@policy.command(short_help="Print the policy that is in force.")
@json_option
@connection
def show(settings: "Settings", output: str) -> None:
    """Print the policy that is in force, as a file for `pace policy apply`; what is left out is the default.

    \b
    JSON: {"document": POLICY with all defaults, "by", "changed_us": null where
    nobody has ever applied one}.
    """
    with open_client(settings) as client:
        found = client.policy()
    if output == "json":
        document = json.loads(found.document)
        out.show_json({"document": document, "by": found.by, "changed_us": found.changed_us})
        return
    from ...spec.policy_reading import parse_canonical_policy, policy_yaml

    if found.changed_us is None:
        out.show("# no policy was ever applied: all is the default")
    else:
        ago = out.human_time(max(0, out.now_us() - found.changed_us))
        out.show(f"# applied by {out.clean(found.by)} {ago} ago")
    click.echo(policy_yaml(parse_canonical_policy(found.document, "the policy in force")), nl=False)


@policy.command(short_help="Put a policy file in force.")
@click.argument("file", type=click.Path(), metavar="FILE")
@click.option("--dry-run", is_flag=True, help="Check the file and say what would change; change nothing.")
@json_option
@connection
def apply(settings: "Settings", file: str, output: str, *, dry_run: bool) -> None:
    """Put a policy file in force, all of it: what it does not say goes back to its default.

    Waiting jobs are looked at again at once. What runs goes on, also above a limit that is lower now.

    \b
    JSON: {"changes": [TEXT, ...], "applied": BOOL}.
    """
    from ..policy_verbs import sent_policy

    policy = sent_policy(file)  # what is wrong with it is said whether a scheduler is there or not
    with open_client(settings) as client:
        changes = client.apply_policy(policy, dry_run=dry_run)
    if output == "json":
        out.show_json({"changes": changes, "applied": not dry_run})
        return
    for change in changes:
        out.show(out.wrapped(out.clean(change), 2))
    if not changes:
        out.show("nothing changes: this policy is in force already")
    elif dry_run:
        out.hint(f"put it in force: `pace policy apply {file}`")
