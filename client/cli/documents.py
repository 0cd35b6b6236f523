"""`pace validate` and `pace schema`: files without a scheduler."""

import json

import click

from ...spec.errors import PacelineError
from . import output as out
from .options import json_option


@click.command(short_help="Check files of jobs and sweeps without submitting them.")
@click.argument("files", nargs=-1, required=True, metavar="FILE...", type=click.Path())
@click.option("--set", "overrides", multiple=True, metavar="KEY=VALUE", help="As in submit.")
@json_option
def validate(files: tuple[str, ...], overrides: tuple[str, ...], output: str) -> int:
    """Check files of jobs and sweeps without submitting them: every problem with its file, line and column.

    \b
    JSON: {"files": [{"file", "valid", "kind" (job or sweep), "name",
    "problems", "warnings"}, ...]}; keys of a problem or a warning: source,
    line, column (0 where there is none), key, text, and of a problem also
    nearest.
    """
    results = [_checked(file, overrides) for file in files]
    if output == "json":
        out.show_json({"files": results})
    else:
        for result in results:
            _tell(result)
    return 0 if all(result["valid"] for result in results) else 2


@click.command(short_help="Print the JSON Schema of job files, sweeps or the policy, for editors.")
@click.argument(
    "kind",
    default="job",
    type=click.Choice(("job", "sweep", "deployment", "policy")),
    metavar="[job|sweep|deployment|policy]",
)
def schema(kind: str) -> None:
    """Print the JSON Schema of job files, of sweeps or of the policy file, for editors."""
    from ...spec.schema import SCHEMAS

    click.echo(json.dumps(SCHEMAS[kind](), indent=2))
    if out.is_terminal():
        out.hint(f"keep it: `pace schema {kind} > {kind}.schema.json`, and in the file's first line:")
        out.hint(f"# yaml-language-server: $schema={kind}.schema.json")


def _checked(file: str, overrides: tuple[str, ...]) -> dict[str, object]:
    from pathlib import Path

    from ...spec.problems import InvalidDocument
    from ..documents import prepare

    try:
        prepared = prepare(Path(file), overrides=overrides)
    except InvalidDocument as error:
        return _result(file, problems=[_problem(problem) for problem in error.problems])
    except PacelineError as error:
        text = f"{error.message}; {error.hint}" if error.hint else error.message
        return _result(
            file, problems=[{"source": file, "line": 0, "column": 0, "key": "", "text": text, "nearest": ""}]
        )
    warnings = [
        {"source": item.source, "line": item.line, "column": item.column, "key": item.key, "text": item.text}
        for item in prepared.cautions
    ]
    kind = "sweep" if prepared.spec.type == "sweep" else "job"
    return _result(file, kind=kind, name=prepared.spec.label, warnings=warnings)


def _result(
    file: str,
    *,
    kind: str = "",
    name: str = "",
    problems: list[dict[str, object]] | None = None,
    warnings: list[dict[str, object]] | None = None,
) -> dict[str, object]:
    return {
        "file": file,
        "valid": problems is None,
        "kind": kind,
        "name": name,
        "problems": problems or [],
        "warnings": warnings or [],
    }


def _problem(problem: object) -> dict[str, object]:
    names = ("source", "line", "column", "key", "text", "nearest")
    return {name: getattr(problem, name) for name in names}


def _tell(result: dict[str, object]) -> None:
    for kind in ("problems", "warnings"):
        items = result[kind]
        assert isinstance(items, list)
        for item in items:
            click.echo(place_line(item, warning=kind == "warnings"), err=True)
    if result["valid"]:
        out.show(f"{out.clean(str(result['file']))}: ok, {result['kind']} {result['name']!r}")


def place_line(item: dict[str, object], *, warning: bool = False) -> str:
    """`file:line:col: key: text; did you mean 'x'?`, as compilers write it."""
    place = f"{item['source']}:{item['line']}:{item['column']}" if item["line"] else str(item["source"])
    key = f"{item['key']}: " if item["key"] else ""
    guess = f"; did you mean '{item['nearest']}'?" if item.get("nearest") else ""
    return out.clean(f"{place}: {'warning: ' if warning else ''}{key}{item['text']}{guess}")
