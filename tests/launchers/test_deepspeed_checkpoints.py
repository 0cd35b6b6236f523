"""DeepSpeed engines through our checkpointer: real engines over real gloo, at each ZeRO stage."""

import os
import shutil
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from paceline.training import manifest, universal
from paceline.training.converting import Ahead
from support import resize_scripts
from support.cluster import wait_until
from support.operators import needs_deepspeed
from support.ranks import RankFailed, RankPool

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

    def run(
        function: Callable[..., Any], *arguments: Any, world_size: int = 2, more: Sequence[Any] = ()
    ) -> list[Any]:
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
            variables=[variables | extra for extra in more or [{}] * world_size],
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


@pytest.mark.parametrize("stage", [2, 3])
def test_the_folder_is_a_tag_that_deepspeed_reads_alone_and_memory_serves_the_restore(
    train: Train, tmp_path: Path, stage: int
) -> None:
    memory = [{"PACELINE_MEMORY_FOLDER": str(tmp_path / "memory")}] * 2
    for tier, ours, theirs in train(resize_scripts.weights_by_both_ways, tmp_path / "c", stage, more=memory):
        assert tier == "memory"
        assert ours == theirs


def test_a_damaged_file_of_the_engine_is_found_and_the_checkpoint_before_it_taken(
    train: Train, tmp_path: Path
) -> None:
    root = tmp_path / "c"
    for steps in (3, 6):
        train(resize_scripts.train, root, "zero2", steps)
    path = root / "step-00000006.a2" / "zero_pp_rank_1_mp_rank_00_optim_states.pt"
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 0x10
    path.write_bytes(data)
    assert [done for done, _ in train(resize_scripts.train, root, "zero2", 9)] == [3, 3]


def test_a_conversion_that_was_killed_or_damaged_is_made_again_and_leaves_nothing(
    train: Train, tmp_path: Path
) -> None:
    root = tmp_path / "c"
    train(resize_scripts.train, root, "zero2", 3)
    checkpoint = root / "step-00000003.a1"
    with pytest.raises(RankFailed, match="ended with -9"):
        train(resize_scripts.die_converting, root, world_size=1)
    assert len(list(checkpoint.glob(".universal-*"))) == 1
    [(_, losses)] = train(resize_scripts.train, root, "zero2", 6, world_size=1)
    assert not list(checkpoint.glob(".universal-*"))
    shutil.rmtree(root / "step-00000006.a2")
    converted = checkpoint / "universal" / "zero" / "0.weight" / "fp32.pt"
    converted.write_bytes(converted.read_bytes()[:-1])
    [(done, again)] = train(resize_scripts.train, root, "zero2", 6, world_size=1)
    assert (done, again) == (3, losses)


def test_a_conversion_ahead_that_is_stopped_leaves_nothing_and_the_next_one_is_whole(
    train: Train, tmp_path: Path
) -> None:
    train(resize_scripts.train, tmp_path / "c", "zero2", 3)
    checkpoint = tmp_path / "c" / "step-00000003.a1"
    manifest_hash = manifest.hash_bytes((checkpoint / manifest.NAME).read_bytes())
    for stopped in (True, False):
        ahead = Ahead(tmp_path / "c")
        ahead.convert(checkpoint, manifest_hash)
        wait_until("it is at work", lambda: any(checkpoint.glob("*universal*")))
        if not stopped:
            wait_until("it is converted", lambda: not universal.damage_of(checkpoint))
        ahead.stop()
        assert not list(checkpoint.glob(".universal-*"))


def test_a_rank_without_room_for_the_engine_costs_that_checkpoint_and_nobody_hangs(
    train: Train, tmp_path: Path, small_disk: Path
) -> None:
    more = [{"PACELINE_MEMORY_FOLDER": str(folder)} for folder in (tmp_path / "memory", small_disk)]
    for first, second in train(resize_scripts.save_engine_twice, tmp_path / "c", more=more):
        for outcome in (first, second):
            assert not outcome.published
            assert "rank 1: zero_pp_rank_1_mp_rank_00_optim_states.pt: No space left" in outcome.error


def test_what_the_engine_owns_is_not_taken_beside_it(train: Train, tmp_path: Path) -> None:
    for said in train(resize_scripts.give_optimizer_too, tmp_path / "c"):
        assert "optimizer is part of model, a DeepSpeed engine" in said
