"""code: submit a project of 10,000 small files: for the first time, unchanged, and with one file changed.

Ours is `Client.submit` of a job with `code:`, to a scheduler on loopback (`pace submit`: the same with a
Python that starts), from the look at each file until the job's number is there: what is new is then durable.
Beside it, what people do by hand: `tar` of the folder and a copy of that file to the storage, which is not
synced. The project is a git repository with one commit, as most are. What was written before is on the disk
when a timed run begins: else ours, which waits for the disk, would wait for the peer's bytes, too.
"""

import itertools
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from paceline import Client

from .cluster import PACE
from .cluster import version as our_version
from .harness import Options, Report, Row, alternate, options
from .storage import scheduler

FILES, FOLDERS = 10_000, 200
QUICK_FILES = 200
FILE_BYTES = 3_000
"""The median of the files in a Python project, about."""
TICK_S = 2.5
"""A file that was changed a shorter time before it was packed is read again the next time."""


def main(argv: Sequence[str] | None = None) -> None:
    given = options("code", "Submit a project of 10,000 small files, beside tar and copy.", argv)
    report = Report("code", versions={"paceline": our_version()})
    with tempfile.TemporaryDirectory(prefix="bench-code-") as name, scheduler(Path(name)) as state:
        folder = Path(name)
        os.environ["XDG_CACHE_HOME"] = str(folder / "cache")
        project = make_project(folder / "project", QUICK_FILES if given.quick else FILES)
        with Client(state=state) as client:
            measure(report, given, Place(folder, project, state, client))
    report.finish(given)


@dataclass(frozen=True, slots=True)
class Place:
    """Where it is measured."""

    folder: Path
    project: Path
    state: Path
    client: Client


def measure(report: Report, given: Options, place: Place) -> None:
    folder, project = place.folder, place.project
    job = {"command": "true", "code": str(project)}
    count = itertools.count(1)

    def submit() -> None:
        place.client.submit(job)

    def command() -> None:
        (folder / "job.yaml").write_text(f"command: 'true'\ncode: {project}\n")
        environment = {**os.environ, "PACELINE_STATE": str(place.state)}
        arguments = [PACE, "submit", str(folder / "job.yaml")]
        subprocess.run(arguments, env=environment, check=True, capture_output=True)

    def tar() -> None:
        packed, stored = folder / "project.tar", folder / "stored.tar"
        subprocess.run(["tar", "-C", str(project), "-cf", str(packed), "."], check=True)
        subprocess.run(["cp", str(packed), str(stored)], check=True)

    def change_one() -> None:
        (project / "f0" / "0.py").write_text(f"{next(count)}\n")

    def change_all() -> None:
        for path in project.glob("f*/*.py"):
            path.write_text(f"{next(count)}" + "x" * FILE_BYTES)
        git(project, "commit", "-qam", "all anew")

    def unchanged() -> None:
        time.sleep(TICK_S)
        submit()

    cases: tuple[tuple[str, Callable[[], None], Callable[[], None]], ...] = (
        ("all of it new", change_all, submit),
        ("unchanged", unchanged, submit),
        ("one file changed", change_one, submit),
        ("one file changed, the command", change_one, command),
    )
    for case, before, ours in cases:
        mine, theirs = alternate(given.pairs, timed(before, ours), timed(before, tar))
        report.rows.append(Row(case, "submit", "s", mine, "tar + cp", theirs))


def timed(before: Callable[[], None], what: Callable[[], None]) -> Callable[[], float]:
    def once() -> float:
        before()
        os.sync()
        began = time.perf_counter()
        what()
        return time.perf_counter() - began

    return once


def git(project: Path, *arguments: str) -> None:
    # Without gc.auto it would pack the repository in the background, while the runs are timed.
    said = ("-c", "user.name=b", "-c", "user.email=b@b", "-c", "gc.auto=0")
    subprocess.run(["git", "-C", str(project), *said, *arguments], check=True)


def make_project(project: Path, files: int) -> Path:
    for number in range(files):
        path = project / f"f{number % FOLDERS}" / f"{number}.py"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{number}" + "x" * FILE_BYTES)
    git(project, "init", "-q")
    git(project, "add", ".")
    git(project, "commit", "-qm", "first")
    return project


if __name__ == "__main__":
    main(sys.argv[1:])
