"""A simulation drawn: who waits, how many GPUs are allocated, how long gangs of each size wait.

matplotlib is imported here alone, and installed by the extra `plots`.
"""

from pathlib import Path
from typing import Any

from ...spec.errors import InvalidRequest
from .. import answer_views

SUFFIXES = (".png", ".svg", ".pdf")


def check_plot(path: str) -> None:
    """Before anything is computed. Raises InvalidRequest."""
    import importlib.util

    if Path(path).suffix not in SUFFIXES:
        raise InvalidRequest(f"--plot {path}: expected a file that ends in {', '.join(SUFFIXES)}")
    if importlib.util.find_spec("matplotlib") is None:
        raise InvalidRequest("--plot needs matplotlib", hint="pip install 'paceline[plots]'")


def draw(found: answer_views.Simulated, path: str) -> None:
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot

    sides = [("as it is", found.as_is)]
    if found.changed is not None:
        sides.append(("changed", found.changed))
    figure, (queue, gpus, waits) = pyplot.subplots(3, 1, figsize=(8, 9), layout="constrained")
    for name, side in sides:
        hours = [point.at_s / 3600 for point in side.points]
        queue.step(hours, [point.queued for point in side.points], where="post", label=name)
        gpus.step(hours, [point.gpus for point in side.points], where="post", label=name)
    queue.set(ylabel="jobs in line", xlabel="hours")
    gpus.set(ylabel="GPUs allocated", xlabel="hours")
    _draw_waits(waits, sides)
    for axes in (queue, gpus, waits):
        axes.set_ylim(bottom=0)
        if len(sides) > 1:
            axes.legend()
    figure.savefig(path, dpi=120)
    pyplot.close(figure)


def _draw_waits(axes: Any, sides: list[tuple[str, answer_views.Outlook]]) -> None:
    names = list(dict.fromkeys(one.name for _, side in sides for one in side.classes))
    width = 0.8 / len(sides)
    for at, (label, side) in enumerate(sides):
        waits = {one.name: one.wait_mean_s / 3600 for one in side.classes}
        places = [place + at * width for place in range(len(names))]
        axes.bar(places, [waits.get(name, 0.0) for name in names], width, label=label)
    axes.set_xticks([place + 0.4 - width / 2 for place in range(len(names))], names)
    axes.set(ylabel="mean wait, hours")
