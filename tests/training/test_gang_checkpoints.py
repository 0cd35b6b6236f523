"""Checkpoints of a gang: two real ranks with DistributedDataParallel over gloo."""

from pathlib import Path

import pytest
from support import rank_scripts, resize_scripts
from support.ranks import RankPool


def test_resumed_losses_are_those_of_the_uninterrupted_run(ranks: RankPool, tmp_path: Path) -> None:
    whole = ranks.run(rank_scripts.loss_curve, tmp_path / "a", 12, 0, folder=tmp_path)
    ranks.run(rank_scripts.loss_curve, tmp_path / "b", 5, 5, folder=tmp_path)
    resumed = ranks.run(rank_scripts.loss_curve, tmp_path / "b", 12, 0, folder=tmp_path)

    for (_, all_losses), (done, losses) in zip(whole, resumed, strict=True):
        assert done == 5
        assert losses == pytest.approx(all_losses[5:], rel=1e-6)
    assert whole[0][1] != whole[1][1], "each rank draws its own samples, or the test shows nothing"


def test_all_ranks_write_and_all_agree_on_what_to_restore(ranks: RankPool, tmp_path: Path) -> None:
    root = tmp_path / "c"
    said = ranks.run(rank_scripts.save_and_restore, root, 40_000, folder=tmp_path)

    assert [one.step for one in said[0][:3]] == [1, 2, 3]
    assert said[0][3].path == said[1][3].path == root / "step-00000003.a1"
    names = {path.name for path in (root / "step-00000003.a1").iterdir()}
    assert {"__0_1.distcp", "__1_0.distcp", "__1_1.distcp"} <= names


def test_damage_that_one_rank_finds_is_every_ranks_verdict(ranks: RankPool, tmp_path: Path) -> None:
    root = tmp_path / "c"
    ranks.run(rank_scripts.save_and_restore, root, 1000, folder=tmp_path)
    for name in ("__0_1.distcp", "__1_1.distcp"):
        path = root / "step-00000003.a1" / name
        data = bytearray(path.read_bytes())
        data[len(data) // 2] ^= 0x10
        path.write_bytes(data)
        restored = ranks.run(rank_scripts.restore_only, root, 1000, folder=tmp_path)
        assert [one.step for one in restored] == [2, 2]
        assert restored[0].rejected == restored[1].rejected
        assert "hash differs" in restored[0].rejected[0]
        data[len(data) // 2] ^= 0x10
        path.write_bytes(data)
    assert [one.step for one in ranks.run(rank_scripts.restore_only, root, 1000, folder=tmp_path)] == [3, 3]


@pytest.mark.parametrize("poor_rank", [0, 1])
def test_a_rank_without_space_costs_all_ranks_that_checkpoint_and_no_more(
    ranks: RankPool, tmp_path: Path, poor_rank: int
) -> None:
    root = tmp_path / "c"
    gang = ranks.start(rank_scripts.save_with_one_rank_out_of_space, root, 20_000, poor_rank, folder=tmp_path)
    said = gang.results()

    for of_rank in said:
        assert [one.published for one in of_rank] == [True, False, True]
        assert of_rank[1].error == said[0][1].error
        assert f"rank {poor_rank}: File too large" in of_rank[1].error
    assert sorted(path.name for path in root.iterdir()) == ["step-00000001.a1", "step-00000003.a1"]
    assert "checkpoint of step 2 FAILED, training goes on" in gang.output(0)
    assert gang.output(1) == ""


def test_what_cannot_be_saved_is_the_same_error_at_all_ranks(ranks: RankPool, tmp_path: Path) -> None:
    first, second = ranks.run(rank_scripts.save_what_one_rank_cannot, tmp_path / "c", folder=tmp_path)
    assert first == second
    assert first.startswith("rank 0: thing is a object: cannot be kept")


def test_a_checkpoint_that_does_not_fit_is_the_same_error_at_all_ranks(
    ranks: RankPool, tmp_path: Path
) -> None:
    first, second = ranks.run(rank_scripts.restore_of_other_shape, tmp_path / "c", folder=tmp_path)
    assert first == second
    assert "Size mismatch" in first


def test_a_checkpoint_of_two_ranks_is_restored_by_one_and_by_three(ranks: RankPool, tmp_path: Path) -> None:
    root = tmp_path / "c"
    ranks.run(rank_scripts.save_and_restore, root, 1000, folder=tmp_path)
    for world_size in (1, 3):
        restored = ranks.run(rank_scripts.restore_only, root, 1000, folder=tmp_path, world_size=world_size)
        assert [one.step for one in restored] == [3] * world_size


def test_a_rank_that_was_not_there_has_random_generators_of_its_own(ranks: RankPool, tmp_path: Path) -> None:
    """The same at each restore, whatever was drawn before it and however many ranks there are."""
    root = tmp_path / "c"
    saved = ranks.run(rank_scripts.save_and_draw, root, folder=tmp_path)
    of_three, of_four = (
        ranks.run(rank_scripts.restore_and_draw_twice, root, folder=tmp_path, world_size=world_size)
        for world_size in (3, 4)
    )
    for first, second in (*of_three, *of_four):
        assert first == second
    drawn = [first for first, _ in of_four]
    assert [first for first, _ in of_three] == drawn[:3]
    assert saved == drawn[:2]
    for of_generator in zip(*drawn, strict=True):
        assert len(set(of_generator)) == 4


def test_sharded_states_are_saved_in_parts_and_come_back_on_more_or_fewer_ranks(
    ranks: RankPool, tmp_path: Path
) -> None:
    """FSDP2 on two ranks; what it saved goes on on two, on one without FSDP, and on three."""
    root = tmp_path / "c"
    [(_, whole, weights), _] = ranks.run(rank_scripts.train_sharded, tmp_path / "w", 8, 0, folder=tmp_path)
    ranks.run(rank_scripts.train_sharded, root, 4, 4, folder=tmp_path)
    for world_size in (2, 1, 3):
        for step, losses, new_weights in ranks.run(
            rank_scripts.train_sharded, root, 8, 0, folder=tmp_path, world_size=world_size
        ):
            assert step == 4
            assert losses == pytest.approx(whole[4:], rel=1e-4)
            assert new_weights == pytest.approx(weights, rel=1e-3, abs=1e-5)


def test_a_group_that_ranks_agreed_over_is_never_ended_by_a_models_reducer(
    ranks: RankPool, tmp_path: Path
) -> None:
    """The reducer would join gloo's thread with the GIL held; that thread may be waiting for the GIL."""
    assert ranks.run(rank_scripts.gloo_threads_after_letting_go, False, folder=tmp_path) == [0, 0]
    kept = ranks.run(rank_scripts.gloo_threads_after_letting_go, True, folder=tmp_path)
    assert all(threads > 0 for threads in kept)


@pytest.mark.parametrize("kind", ["ddp", "fsdp"])
def test_losses_over_2_1_3_and_2_ranks_are_those_of_the_run_that_was_never_resized(
    ranks: RankPool, tmp_path: Path, kind: str
) -> None:
    [(_, whole), _] = ranks.run(resize_scripts.train, tmp_path / "whole", kind, 12, folder=tmp_path)
    assert whole[-1] < whole[0] / 2
    for world_size, steps in ((2, 3), (1, 6), (3, 9), (2, 12)):
        for done, losses in ranks.run(
            resize_scripts.train, tmp_path / "resized", kind, steps, folder=tmp_path, world_size=world_size
        ):
            assert done == steps - 3
            assert losses == pytest.approx(whole[done:steps], rel=1e-5)
