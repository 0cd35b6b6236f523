"""Ranks, tasks and runs for the tests of the training room."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from paceline.spec.retention import Retention
from paceline.training.environment import read_environment
from paceline.training.run import Run
from support.fake_shim import FakeShim, FakeTask
from support.ranks import RankPool

MakeRun = Callable[..., Run]


@pytest.fixture(scope="session")
def ranks() -> Iterator[RankPool]:
    pool = RankPool()
    yield pool
    pool.close()


@pytest.fixture
def one_thread() -> Iterator[None]:
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def make_run(tmp_path: Path, one_thread: None) -> Iterator[MakeRun]:
    """A run of one process: of `task` inside Paceline, else in a folder of its own outside."""
    made: list[Run] = []

    def make(task: FakeTask | None = None, *, root: Path | None = None, keep_last: int = 0) -> Run:
        variables = task.variables() if task else {}
        run = Run(
            read_environment(variables), root or tmp_path / "checkpoints", Retention(keep_last=keep_last)
        )
        made.append(run)
        return run

    yield make
    for run in made:
        run.close()


@pytest.fixture
def task(tmp_path: Path) -> FakeTask:
    return FakeTask(tmp_path)


@pytest.fixture
def shim(task: FakeTask) -> Iterator[FakeShim]:
    with FakeShim(task) as shim:
        yield shim
