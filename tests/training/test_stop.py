"""should_stop: every rank gets the same answer at the same call, whoever hears first, however they drift."""

import signal
from pathlib import Path

import pytest
from support import rank_scripts
from support.fake_shim import FakeTask, wait_until
from support.ranks import RankPool, RunningGang


def start(
    ranks: RankPool, tmp_path: Path, *, step_s: float, sync: bool
) -> tuple[RunningGang, list[FakeTask], list[Path]]:
    tasks = [FakeTask(tmp_path / f"node-{rank}", task=rank) for rank in (0, 1)]
    ready = [tmp_path / f"ready.{rank}" for rank in (0, 1)]
    variables = [task.variables() | {"READY": str(path)} for task, path in zip(tasks, ready, strict=True)]
    gang = ranks.start(
        rank_scripts.step_until_stop, step_s, 200_000, sync, folder=tmp_path, variables=variables
    )
    wait_until(lambda: all(path.exists() for path in ready), "both ranks have taken a step")
    return gang, tasks, ready


@pytest.mark.parametrize("hearer", [0, 1])
@pytest.mark.parametrize("step_s", [0.0, 0.004])
def test_notice_at_one_node_stops_all_at_the_same_step(
    ranks: RankPool, tmp_path: Path, hearer: int, step_s: float
) -> None:
    gang, tasks, _ = start(ranks, tmp_path, step_s=step_s, sync=False)
    tasks[hearer].give_notice()
    (first, *_), (second, *_) = gang.results()
    assert first == second
    assert first >= 0


def test_sigterm_to_one_rank_only_asks_and_stops_all_at_the_same_step(
    ranks: RankPool, tmp_path: Path
) -> None:
    gang, _, _ = start(ranks, tmp_path, step_s=0.002, sync=True)
    gang.kill(1, signal.SIGTERM)
    (first, *_), (second, *_) = gang.results()
    assert first == second
    assert first >= 0


def test_agreeing_costs_little_where_steps_are_short(ranks: RankPool, tmp_path: Path) -> None:
    gang, tasks, _ = start(ranks, tmp_path, step_s=0.002, sync=False)
    gang.processes[0].join(0.5)
    tasks[0].give_notice()
    (steps, agreements, seconds), _ = gang.results()
    assert steps > agreements
    assert agreements <= 5 + seconds / 0.02, "agreed at nearly every call"
