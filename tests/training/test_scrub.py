"""Kept checkpoints are read again in the background; what is damaged is told once, and fills no place."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from support.fake_shim import FakeShim, FakeTask, wait_until
from support.rank_scripts import saved
from support.s3 import BUCKET, S3Server
from torch import nn

MakeRun = Any
EVERY_S = 0.2


@pytest.fixture
def task(tmp_path: Path) -> FakeTask:
    return FakeTask(tmp_path, scrub_s=EVERY_S)


def net(value: float = 0.0) -> nn.Linear:
    model = nn.Linear(30_000, 1)
    nn.init.constant_(model.weight, value)
    return model


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 3] ^= 4
    path.write_bytes(data)


DAMAGES: dict[str, tuple[Callable[[Path], None], str]] = {
    "a flipped bit": (lambda folder: flip(folder / "__0_1.distcp"), "__0_1.distcp: hash differs"),
    "truncated": (
        lambda folder: os.truncate(folder / "__0_0.distcp", 5),
        "__0_0.distcp: 5 bytes, expected",
    ),
    "missing": (lambda folder: (folder / ".metadata").unlink(), ".metadata: missing"),
    "another manifest": (lambda folder: flip(folder / "manifest.json"), "is not the one that was accepted"),
    "no manifest": (lambda folder: (folder / "manifest.json").unlink(), "manifest.json: missing"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_what_is_damaged_after_it_was_good_is_told_once(
    make_run: MakeRun, task: FakeTask, damage: str
) -> None:
    change, expected = DAMAGES[damage]
    with FakeShim(task) as shim:
        run = make_run(task)
        for step in (1, 2):
            saved(run, step, model=net(step))
        first = Path(shim.of("checkpoint")[0]["path"])
        change(first)
        wait_until(lambda: bool(shim.of("damaged")), "the scrub finds it")
        flip(Path(shim.of("checkpoint")[1]["path"], "__0_1.distcp"))
        wait_until(lambda: len(shim.of("damaged")) > 1, "it has looked at all again")
        run.close()
        told, other = shim.of("damaged")
    assert (told["step"], told["path"], told["copy"]) == (1, str(first), "storage")
    assert expected in told["why"]
    assert other["step"] == 2


def test_those_of_the_attempt_before_are_looked_at_at_once(make_run: MakeRun, tmp_path: Path) -> None:
    """An attempt whose own are good for a day."""
    task = FakeTask(tmp_path, scrub_s=86_400.0)
    with FakeShim(task) as shim:
        run = make_run(task)
        for step in (1, 2):
            saved(run, step, model=net(step))
        run.close()
        told = shim.of("checkpoint")
    flip(Path(told[0]["path"], "__0_1.distcp"))
    after = task.next_attempt(told)
    with FakeShim(after) as shim:
        run = make_run(after)
        assert run.restore(model=net()).step == 2
        saved(run, 3, model=net(3))
        wait_until(lambda: bool(shim.of("damaged")), "the scrub finds it")
        run.close()
        [found] = shim.of("damaged")
    assert (found["step"], found["why"]) == (1, "__0_1.distcp: hash differs")


def test_a_damaged_one_fills_no_place(make_run: MakeRun, tmp_path: Path) -> None:
    """keep_last: 2, and the newest but one is damaged: the one before it stays."""
    task = FakeTask(tmp_path, scrub_s=EVERY_S, keep_last=2)
    with FakeShim(task, auto_ack=True) as shim:
        run = make_run(task)
        for step in (1, 2):
            saved(run, step, model=net(step))
        flip(Path(shim.of("checkpoint")[1]["path"], "__0_1.distcp"))
        wait_until(lambda: bool(shim.of("damaged")), "the scrub finds it")
        saved(run, 3, model=net(3))
        saved(run, 4, model=net(4))
        run.close()
    names = {path.name for path in (task.job_folder / "checkpoints").iterdir()}
    assert names == {f"step-0000000{step}.a1" for step in (1, 3, 4)}


def test_storage_that_is_away_is_no_damage(make_run: MakeRun, task: FakeTask) -> None:
    root, aside = task.job_folder / "checkpoints", task.job_folder / "aside"
    with FakeShim(task) as shim:
        run = make_run(task)
        saved(run, 1, model=net(1))
        root.rename(aside)
        with pytest.raises(AssertionError, match="damage is told"):
            wait_until(lambda: bool(shim.of("damaged")), "damage is told", 3 * EVERY_S)
        aside.rename(root)
        flip(root / "step-00000001.a1" / "__0_1.distcp")
        wait_until(lambda: bool(shim.of("damaged")), "the scrub finds it")
        run.close()
        assert [one["why"] for one in shim.of("damaged")] == ["__0_1.distcp: hash differs"]


def test_uploads_are_looked_at_too(make_run: MakeRun, tmp_path: Path, s3: S3Server) -> None:
    task = FakeTask(tmp_path, scrub_s=EVERY_S, checkpoint_url=f"s3://{BUCKET}/scrub/7")
    key = "scrub/7/step-00000001.a1/__0_1.distcp"
    with FakeShim(task) as shim:
        run = make_run(task)
        saved(run, 1, model=net(1))
        wait_until(lambda: bool(shim.of("uploaded")), "it is uploaded")
        data = bytearray(s3.read(key))
        data[77] ^= 1
        s3.write(key, bytes(data))
        wait_until(lambda: bool(shim.of("damaged")), "the scrub finds it")
        run.close()
        assert [(one["copy"], one["why"]) for one in shim.of("damaged")] == [
            ("upload", "__0_1.distcp: hash differs")
        ]
