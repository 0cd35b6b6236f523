"""Restoring from this node's memory: only what is byte for byte an accepted checkpoint, else from storage."""

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from paceline.training.images import find
from support import rank_scripts
from support.fake_shim import FakeShim, FakeTask, wait_until
from support.rank_scripts import saved
from support.ranks import RankPool
from torch import nn

MakeRun = Any
NAMES = ("__0_0.distcp", "__0_1.distcp", ".metadata", "manifest.json")


def net(value: float = 0.0, elements: int = 30_000) -> nn.Linear:
    """Its weight is large enough to be mapped, its bias is not."""
    model = nn.Linear(elements, 1)
    nn.init.constant_(model.weight, value)
    nn.init.constant_(model.bias, value)
    return model


def save_steps(make_run: MakeRun, task: FakeTask, steps: list[int]) -> list[dict[str, Any]]:
    with FakeShim(task) as shim:
        run = make_run(task)
        for step in steps:
            assert saved(run, step, model=net(step), count=step).published
        run.close()
        return shim.of("checkpoint")


def restore(make_run: MakeRun, task: FakeTask) -> tuple[Any, list[dict[str, Any]]]:
    """The weights must be those of the step that is said."""
    model = net()
    with FakeShim(task) as shim:
        restored = make_run(task).restore(model=model)
        assert restored is not None
        assert torch.all(model.weight == float(restored.step))
        assert torch.all(model.bias == float(restored.step))
        assert restored["count"] == restored.step
        return restored, shim.of("restored")


def images_of(task: FakeTask, folder: str) -> dict[str, Path]:
    from paceline.spec.folder_names import FolderName

    name = FolderName.parse(Path(folder).name)
    assert name is not None
    return find(task.memory_folder, name)


def test_the_next_attempt_on_this_node_needs_no_storage(
    make_run: MakeRun, task: FakeTask, capfd: pytest.CaptureFixture[str]
) -> None:
    told = save_steps(make_run, task, [1, 2, 3])
    shutil.rmtree(task.job_folder / "checkpoints")
    restored, [said] = restore(make_run, task.next_attempt(told, same_node=True))
    assert (restored.step, restored.tier, restored.rejected) == (3, "memory", ())
    assert said["tier"] == "memory"
    assert "restored step 3 from memory in" in capfd.readouterr().err


def test_the_one_before_is_there_too(make_run: MakeRun, task: FakeTask) -> None:
    told = save_steps(make_run, task, [1, 2, 3])
    after = task.next_attempt(told[:2], same_node=True)
    shutil.rmtree(task.job_folder / "checkpoints")
    restored, _ = restore(make_run, after)
    assert (restored.step, restored.tier) == (2, "memory")


def test_what_was_staged_but_not_accepted_is_never_taken(make_run: MakeRun, task: FakeTask) -> None:
    """Memory holds steps 2 and 3; the scheduler knows of 1."""
    told = save_steps(make_run, task, [1, 2, 3])
    restored, [said] = restore(make_run, task.next_attempt(told[:1], same_node=True))
    assert restored.step == 1
    assert said["tier"] == "storage (__0_0.distcp and 1 more: not in memory here)"


def test_a_node_without_it_says_so(make_run: MakeRun, task: FakeTask) -> None:
    told = save_steps(make_run, task, [1])
    restored, _ = restore(make_run, task.next_attempt(told))
    assert restored.tier == "storage (__0_0.distcp and 1 more: not in memory here)"


@pytest.mark.parametrize("noted", [True, False])
def test_what_a_dying_shim_may_have_noted_stays_beside_the_one_before(
    make_run: MakeRun, tmp_path: Path, capfd: pytest.CaptureFixture[str], *, noted: bool
) -> None:
    """Killed as it writes its journal: the scheduler hears of step 2 or not, and the rank does not know."""
    task = FakeTask(tmp_path, when_busy="skip")
    with FakeShim(task) as shim:
        run = make_run(task)
        assert saved(run, 1, model=net(1), count=1).published
        shim.mode = "dying"
        run.save(2, model=net(2), count=2)
        stderr = list[str]()

        def is_given_up() -> bool:
            stderr.append(capfd.readouterr().err)
            return "checkpoint of step 2 FAILED" in "".join(stderr)

        wait_until(is_given_up, "step 2 is given up")
        assert "skipped: that of step 2" in run.save(3, model=net(3), count=3).error
        told = shim.of("checkpoint")
    assert [one["step"] for one in told] == [1, 2]
    after = task.next_attempt(told if noted else told[:1], same_node=True)
    restored, _ = restore(make_run, after)
    assert (restored.step, restored.tier) == (2 if noted else 1, "memory")


@pytest.mark.parametrize("name", NAMES)
def test_every_single_bit_matters_in_memory_too(make_run: MakeRun, task: FakeTask, name: str) -> None:
    """Storage has it whole: nothing is lost but time. Bits all over the file."""
    told = save_steps(make_run, task, [1, 2])
    after = task.next_attempt(told, same_node=True)
    image = images_of(task, told[-1]["path"])[name]
    good = image.read_bytes()
    for number in range(0, len(good) * 8, max(1, len(good) * 8 // 29)):
        bad = bytearray(good)
        bad[number // 8] ^= 1 << number % 8
        image.write_bytes(bad)
        restored, _ = restore(make_run, after)
        assert restored.step == 2
        if name.startswith("__"):
            why = f"memory, and storage for 1 of 2 files ({name}: hash differs in memory)"
            assert restored.tier == why, number
    image.write_bytes(good)
    assert restore(make_run, after)[0].tier == "memory"


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("length", [0, 1, -1])
def test_truncated_in_memory(make_run: MakeRun, task: FakeTask, name: str, length: int) -> None:
    told = save_steps(make_run, task, [1, 2])
    image = images_of(task, told[-1]["path"])[name]
    image.write_bytes(image.read_bytes()[:length])
    restored, _ = restore(make_run, task.next_attempt(told, same_node=True))
    assert restored.step == 2
    if name.startswith("__"):
        assert "bytes, expected" in restored.tier


def test_damaged_in_memory_and_in_storage_is_passed_over(make_run: MakeRun, task: FakeTask) -> None:
    told = save_steps(make_run, task, [1, 2])
    for path in (images_of(task, told[-1]["path"])["__0_0.distcp"], Path(told[-1]["path"], "__0_0.distcp")):
        data = bytearray(path.read_bytes())
        data[1000] ^= 1
        path.write_bytes(data)
    restored, [said] = restore(make_run, task.next_attempt(told, same_node=True))
    assert (restored.step, restored.tier) == (1, "memory")
    assert said["rejected"] == ["step 2 (attempt 1): __0_0.distcp: hash differs"]


def test_another_jobs_images_are_never_taken(make_run: MakeRun, tmp_path: Path) -> None:
    """Put where ours would be, under our checkpoint's name: the hash tells."""
    ours, theirs = FakeTask(tmp_path, job=7), FakeTask(tmp_path, job=8)
    told, _ = save_steps(make_run, ours, [1, 2]), save_steps(make_run, theirs, [1, 2])
    assert ours.memory_folder != theirs.memory_folder
    with FakeShim(theirs) as shim:
        run = make_run(theirs)
        saved(run, 3, model=net(9.0), count=9)
        strange = shim.of("checkpoint")[-1]["path"]
        run.close()
    strangers = images_of(theirs, strange)
    for name, image in images_of(ours, told[-1]["path"]).items():
        image.write_bytes(strangers[name].read_bytes())
    restored, _ = restore(make_run, ours.next_attempt(told, same_node=True))
    assert restored.step == 2
    assert restored.tier == "storage (__0_0.distcp and 1 more: hash differs in memory)"


def test_the_image_that_was_restored_from_is_kept_until_a_newer_one_is_published(
    make_run: MakeRun, task: FakeTask
) -> None:
    """Attempt 2 dies in its first save, at any moment: attempt 3 finds what attempt 2 found."""
    told = save_steps(make_run, task, [1, 2, 3])
    second = task.next_attempt(told, same_node=True)
    with FakeShim(second, mode="silent") as shim:
        run = make_run(second)
        shim.mode = "answer"
        assert run.restore(model=net()).step == 3
        shim.mode = "refuse"
        assert not saved(run, 4, model=net(4), count=4).published
        run.close()
    third = second.next_attempt([], same_node=True)
    shutil.rmtree(task.job_folder / "checkpoints")
    restored, _ = restore(make_run, third)
    assert (restored.step, restored.tier) == (3, "memory")


@pytest.mark.parametrize("nodes", [1, 2])
def test_shards_of_fsdp_come_back_from_each_nodes_memory(ranks: RankPool, tmp_path: Path, nodes: int) -> None:
    """FSDP2 on two ranks: storage has lost all shards, and nobody misses them. What all ranks need, and one
    has written, is read from there by the other node.
    """
    [(_, whole, weights), _] = ranks.run(rank_scripts.train_sharded, tmp_path / "w", 8, 0, folder=tmp_path)
    first = FakeTask(tmp_path)
    _, told, _ = run_sharded(ranks, tmp_path, first, nodes, save_at=4)
    for path in Path(told[0]["path"]).glob("*_0.distcp"):
        path.unlink()
    after = first.next_attempt(told, same_node=True)
    results, _, said = run_sharded(ranks, tmp_path, after, nodes, save_at=0)
    for step, losses, new_weights in results:
        assert step == 4
        assert losses == pytest.approx(whole[4:], rel=1e-6)
        assert new_weights == pytest.approx(weights, rel=1e-6)
    [tier] = [one["tier"] for one in said]
    assert tier == "memory" if nodes == 1 else tier.startswith("memory")


def run_sharded(
    ranks: RankPool, tmp_path: Path, task: FakeTask, nodes: int, save_at: int
) -> tuple[list[Any], list[dict[str, Any]], list[dict[str, Any]]]:
    """What the ranks return, and what the shim heard of saves and of restores."""
    variables = [
        {
            **task.variables(),
            "PACELINE_MEMORY_FOLDER": str(task.memory_folder / str(rank % nodes)),
            "GROUP_RANK": str(rank % nodes),
            "LOCAL_RANK": str(rank // nodes),
            "LOCAL_WORLD_SIZE": str(2 // nodes),
        }
        for rank in (0, 1)
    ]
    end = save_at or 8
    with FakeShim(task) as shim:
        results = ranks.run(
            rank_scripts.train_sharded,
            tmp_path / "unused",
            end,
            save_at,
            folder=tmp_path,
            variables=variables,
        )
        return results, shim.of("checkpoint"), shim.of("restored")


def test_images_of_ranks_that_have_left_go(make_run: MakeRun, task: FakeTask) -> None:
    told = save_steps(make_run, task, [1])
    stranger = task.memory_folder / "0" / "__5_0.distcp"
    stranger.parent.mkdir(exist_ok=True)
    stranger.write_bytes(b"x")
    after = task.next_attempt(told, same_node=True)
    with FakeShim(after):
        run = make_run(after)
        run.restore(model=net())
        assert stranger.exists()
        saved(run, 2, model=net(2))
    assert not stranger.exists()


def test_what_is_kept_for_another_node_is_an_image_like_others(make_run: MakeRun, task: FakeTask) -> None:
    """Of a rank that is here now. It goes with this run's first save: nobody brings anything newer."""
    told = save_steps(make_run, task, [1, 2, 3])
    shutil.rmtree(task.job_folder / "checkpoints")
    after = task.next_attempt(told)
    kept = after.memory_folder / "peers" / Path(told[-1]["path"]).name
    kept.mkdir(parents=True)
    for name, path in images_of(task, told[-1]["path"]).items():
        shutil.copyfile(path, kept / name)
    restored, _ = restore(make_run, after)
    assert (restored.step, restored.tier) == (3, "memory")
    with FakeShim(after):
        run = make_run(after)
        assert saved(run, 4, model=net(4), count=4).published
        run.close()
    assert not kept.parent.exists()
