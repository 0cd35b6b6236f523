"""`pace sweep plot`, `export`, `promote`: a sweep's trials drawn by Optuna, or as a table in a file; and the
files of the best one in a folder.

Optuna, matplotlib, plotly and pyarrow are imported here alone, each when it is needed.
"""

import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from ...spec.errors import InvalidRequest
from . import output as out
from .options import connection, json_option, open_client, sweep_argument

if TYPE_CHECKING:
    from ..settings import Settings
    from ..sweep_views import Sweep, Trial

KINDS: Final = {
    "history": "plot_optimization_history",
    "parallel": "plot_parallel_coordinate",
    "importance": "plot_param_importances",
    "slice": "plot_slice",
    "intermediate": "plot_intermediate_values",
    "pareto": "plot_pareto_front",
}
IMAGES: Final = (".png", ".svg", ".pdf")
TABLES: Final = (".csv", ".parquet")


@click.command(short_help="Draw a sweep: history, importance, Pareto front ...")
@sweep_argument
@click.argument("file", type=click.Path(dir_okay=False), metavar="FILE")
@click.option("--kind", type=click.Choice(list(KINDS)), default="history", help="What is drawn. [history]")
@click.option("--objective", default=0, type=click.IntRange(0, 100), help="Of several, which one. [0]")
@connection
def plot(settings: "Settings", number: int, file: str, kind: str, objective: int) -> None:
    """Draw a sweep into FILE: an image (.png, .svg, .pdf), or a page to look around in (.html)."""
    _check_plot(file)
    with open_client(settings) as client:
        found = client.sweep(number)
    if kind == "pareto" and len(found.objectives) < 2:
        raise InvalidRequest(f"sweep {number} has one objective: it has no Pareto front")
    if not found.complete:
        raise InvalidRequest(f"sweep {number} has no complete trial yet", hint=f"`pace sweep show {number}`")
    import optuna

    from ..optuna_storage import StudyStorage

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    study = optuna.load_study(study_name=found.name, storage=StudyStorage(config=settings))
    chosen: dict[str, Any] = {}
    if len(found.objectives) > 1 and kind not in ("pareto", "intermediate"):
        if objective >= len(found.objectives):
            raise InvalidRequest(f"--objective {objective}: sweep {number} has {len(found.objectives)}")
        name = found.objectives[objective].metric
        chosen = {"target": lambda trial: trial.values[objective], "target_name": name}
    elif kind == "pareto":
        chosen = {"target_names": [one.metric for one in found.objectives]}
    _draw(study, kind, file, chosen)
    out.show(f"{kind} of sweep {number} is drawn in {file}")


@click.command(short_help="Write a sweep's trials into a table, .csv or .parquet.")
@sweep_argument
@click.argument("file", type=click.Path(dir_okay=False), metavar="FILE")
@connection
def export(settings: "Settings", number: int, file: str) -> None:
    """Write a sweep's trials into FILE, a line each: number, state, job, params, objectives, times."""
    suffix = Path(file).suffix
    if suffix not in TABLES:
        raise InvalidRequest(f"{file}: expected a file that ends in {' or '.join(TABLES)}")
    if suffix == ".parquet":
        _needs("pyarrow", "parquet")
    with open_client(settings) as client:
        found = client.sweep(number)
        trials = list(client.trials(number))
    forked = any(one.fork for one in trials)
    rows = [_row(found, trial) | (_fork_row(trial) if forked else {}) for trial in trials]
    names = list(dict.fromkeys(name for row in rows for name in row))
    if suffix == ".csv":
        import csv

        with Path(file).open("w", newline="", encoding="utf-8") as into:
            writer = csv.DictWriter(into, names)
            writer.writeheader()
            writer.writerows(rows)
    else:
        import pyarrow
        from pyarrow import parquet

        parquet.write_table(
            pyarrow.Table.from_pylist([{**dict.fromkeys(names), **row} for row in rows]), file
        )
    out.show(f"{len(rows)} trials of sweep {number} are in {file}")


@click.command(short_help="Put the best trial's outputs and checkpoint into a folder.")
@sweep_argument
@click.option("--trial", type=click.IntRange(0), help="Which trial. [the best]")
@click.option("--to", required=True, type=click.Path(), metavar="DIR", help="A folder, new or empty.")
@json_option
@connection
def promote(settings: "Settings", number: int, to: str, output: str, *, trial: int | None) -> None:
    """Put the best trial's outputs and newest checkpoint into a folder, beside a promoted.json that says what
    they are. Files are linked where that is possible, else copied.

    \b
    JSON: what is in promoted.json: sweep, name, trial, job, params, values,
    outputs, checkpoint, step, git_commit, promoted_us, folder.
    """
    with open_client(settings) as client:
        made = client.promote(number, to, trial=trial)
    if output == "json":
        out.show_json(made)
        return
    values = ", ".join(f"{name} {value:.4g}" for name, value in made.values.items())
    out.show(out.clean(f"trial {made.trial} (job {made.job}) of sweep {made.sweep}: {values}"))
    if made.step is not None:
        out.show(f"  its checkpoint of step {made.step}{_of_commit(made.git_commit)}")
    for name in made.outputs:
        out.show(out.clean(f"  its output {name}"))
    out.show(f"  are in {made.folder}")


def _of_commit(commit: str) -> str:
    return f", of code at {commit[:12]}" if commit else ""


def _row(found: "Sweep", trial: "Trial") -> dict[str, Any]:
    values = dict(zip((one.metric for one in found.objectives), trial.values, strict=False))
    return {
        "number": trial.number,
        "state": trial.state,
        "job": trial.job,
        **{f"params.{name}": value for name, value in trial.params.items()},
        **{f"values.{one.metric}": values.get(one.metric) for one in found.objectives},
        "step": trial.step,
        "started_us": trial.started_us,
        "ended_us": trial.ended_us,
        "feasible": trial.feasible,
        "why": trial.why,
    }


def _fork_row(trial: "Trial") -> dict[str, Any]:
    names = ("member", "generation", "trial", "step")
    return {f"fork.{name}": getattr(trial.fork, name, None) for name in names}


def _check_plot(file: str) -> None:
    suffix = Path(file).suffix
    if suffix not in (*IMAGES, ".html"):
        raise InvalidRequest(f"{file}: expected a file that ends in {', '.join((*IMAGES, '.html'))}")
    _needs("optuna", "sweeps")
    _needs("plotly" if suffix == ".html" else "matplotlib", "plots")


def _needs(module: str, extra: str) -> None:
    if importlib.util.find_spec(module) is None:
        raise InvalidRequest(f"this needs {module}", hint=f"pip install 'paceline[{extra}]'")


def _draw(study: Any, kind: str, file: str, chosen: dict[str, Any]) -> None:
    import warnings

    warnings.simplefilter("ignore")  # Optuna's, of what is experimental there
    if Path(file).suffix == ".html":
        from optuna import visualization

        drawn: Callable[..., Any] = getattr(visualization, KINDS[kind])
        drawn(study, **chosen).write_html(file, include_plotlyjs=True)
        return
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot
    from optuna.visualization import matplotlib as visualization_mpl

    axes = getattr(visualization_mpl, KINDS[kind])(study, **chosen)
    first = axes if hasattr(axes, "figure") else axes.flat[0]
    first.figure.set_size_inches(9, 6)
    first.figure.savefig(file, dpi=120, bbox_inches="tight")
    pyplot.close(first.figure)
