"""A file system that fills up for real: a small tmpfs. Needs root; test_gang_checkpoints does without."""

import os
from pathlib import Path
from typing import Any

import pytest
import torch
from paceline.training import notes
from paceline.training.errors import StorageFailed
from paceline.training.manifest import FileEntry
from support.fake_shim import FakeShim, FakeTask
from support.rank_scripts import saved
from torch import nn

MakeRun = Any


def big(value: float) -> nn.Linear:
    model = nn.Linear(50_000, 1, bias=False)
    nn.init.constant_(model.weight, value)
    return model


@pytest.mark.parametrize("room_bytes", [0, 4096, 120_000, 200_000, 208_000])
def test_a_full_disk_costs_one_checkpoint_and_leaves_no_litter(
    make_run: MakeRun, small_disk: Path, tmp_path: Path, room_bytes: int
) -> None:
    """With room for nothing, for a folder, for half the data, for the data only, for all but the manifest."""
    task = FakeTask(tmp_path)
    task.job_folder.rmdir()
    task.job_folder.symlink_to(small_disk)
    root = small_disk / "checkpoints"
    with FakeShim(task) as shim:
        run = make_run(task)
        assert saved(run, 1, model=big(1.0)).published
        ballast = fill_up(small_disk, room_bytes)

        outcome = saved(run, 2, model=big(2.0))
        assert not outcome.published
        assert "No space left on device" in outcome.error
        assert [path.name for path in root.iterdir()] == ["step-00000001.a1"]
        assert shim.of("checkpoint_failed")[0]["why"] == outcome.error

        ballast.unlink()
        assert saved(run, 3, model=big(3.0)).published
        told = shim.of("checkpoint")
    after = task.next_attempt(told)
    with FakeShim(after):
        model = big(0.0)
        assert make_run(after).restore(model=model).step == 3
        assert torch.all(model.weight == 3.0)


@pytest.mark.parametrize("error", ["", "No space left on device"])
def test_a_rank_that_has_no_room_for_its_word_is_not_waited_for(small_disk: Path, error: str) -> None:
    """Rank 0's persister would wait for ten minutes, and training with it."""
    aside = small_disk / "aside"
    aside.mkdir()
    fill_up(small_disk, 0)
    files = {} if error else {"__1_0.distcp": FileEntry(10, "hash")}
    assert "No space left on device" in notes.leave(aside, 1, error, files)
    with pytest.raises(StorageFailed, match="rank 1: no room for word of its part"):
        notes.gather(aside, {1}, os.getppid())


def fill_up(disk: Path, room_bytes: int) -> Path:
    """A file that leaves so many bytes."""
    ballast = disk / "ballast"
    status = os.statvfs(disk)
    with ballast.open("wb") as file:
        os.posix_fallocate(file.fileno(), 0, status.f_bavail * status.f_frsize - room_bytes)
    return ballast
