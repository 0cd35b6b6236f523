"""DeepSpeed engines through our checkpointer: real engines over real gloo, at each ZeRO stage."""

import os
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from support import resize_scripts
from support.operators import needs_deepspeed
from support.ranks import RankPool

pytestmark = [needs_deepspeed, pytest.mark.slow, pytest.mark.timeout(600)]

Train = Callable[..., list[Any]]


@pytest.fixture(scope="module")
def ranks() -> Iterator[RankPool]:
    pool = RankPool()
    yield pool
    pool.close()


@pytest.fixture
def train(ranks: RankPool, built_ops: Path, tmp_path: Path) -> Train:
    """Call a function in `world_size` ranks that have DeepSpeed's operators."""
    [built] = (built_ops / "built").iterdir()
    shutil.copytree(built, tmp_path / "ops")
    count = 0

    def run(function: Callable[..., Any], *arguments: Any, world_size: int = 2) -> list[Any]:
        nonlocal count
        count += 1
        variables = {
            "DS_ACCELERATOR": "cpu",
            "TORCH_EXTENSIONS_DIR": str(tmp_path / "ops"),
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
            "PACELINE_TEST_STORE": str(tmp_path / f"store-{count}"),
        }
        return ranks.run(
            function,
            *arguments,
            folder=tmp_path,
            world_size=world_size,
            variables=[variables] * world_size,
            deadline_s=180.0,
        )

    return run


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_losses_over_2_1_3_and_2_ranks_are_those_of_the_run_that_was_never_resized(
    train: Train, tmp_path: Path, stage: int
) -> None:
    kind = f"zero{stage}"
    [(_, whole), _] = train(resize_scripts.train, tmp_path / "whole", kind, 12)
    assert whole[-1] < whole[0] / 2
    for world_size, steps in ((2, 3), (1, 6), (3, 9), (2, 12)):
        for done, losses in train(
            resize_scripts.train, tmp_path / "resized", kind, steps, world_size=world_size
        ):
            assert done == steps - 3
            assert losses == pytest.approx(whole[done:steps], rel=1e-4)
