"""Inside Paceline: what the shim is told, which checkpoints count, and when older ones may go."""

import os
import shutil
from pathlib import Path
from typing import Any

import pytest
from paceline.training.errors import RestoreFailed
from paceline.training.manifest import hash_bytes
from support import rank_scripts
from support.fake_shim import FakeShim, FakeTask
from support.rank_scripts import saved
from support.ranks import RankPool
from torch import nn

MakeRun = Any


def net(value: float = 0.0) -> nn.Linear:
    model = nn.Linear(3, 1, bias=False)
    nn.init.constant_(model.weight, value)
    return model


def names(task: FakeTask) -> list[str]:
    return sorted(path.name for path in (task.job_folder / "checkpoints").iterdir())


def save_steps(make_run: MakeRun, task: FakeTask, steps: list[int], **more: Any) -> list[dict[str, Any]]:
    """Each weight is the step. What the shim was told."""
    with FakeShim(task) as shim:
        run = make_run(task)
        for step in steps:
            assert saved(run, step, model=net(step), **more).published
        return shim.of("checkpoint")


def test_the_shim_is_told_what_was_published(make_run: MakeRun, task: FakeTask, shim: FakeShim) -> None:
    run = make_run(task)
    run.report(4, loss=0.5, wild=float("nan"))
    outcome = saved(run, 4, model=net())

    [told] = shim.of("checkpoint")
    assert (told["step"], told["path"], told["removed_steps"]) == (4, str(outcome.path), [])
    assert outcome.path == task.job_folder / "checkpoints" / "step-00000004.a1"
    assert told["manifest_hash"] == hash_bytes((outcome.path / "manifest.json").read_bytes())
    files = [path for path in outcome.path.iterdir() if path.name != "manifest.json"]
    assert told["size_bytes"] == sum(path.stat().st_size for path in files)
    assert told["metrics"]["loss"] == 0.5
    assert 0 < told["stall_s"] < 30


def test_a_first_start_restores_nothing_and_says_nothing(
    make_run: MakeRun, task: FakeTask, shim: FakeShim
) -> None:
    assert make_run(task).restore(model=net()) is None
    assert shim.messages == []


def test_the_next_attempt_goes_on_from_the_newest_accepted(make_run: MakeRun, task: FakeTask) -> None:
    told = save_steps(make_run, task, [1, 2])
    after = task.next_attempt(told)
    model = net()
    with FakeShim(after) as shim:
        restored = make_run(after).restore(model=model)
        [said] = shim.of("restored")

    assert restored.step == 2
    assert model.weight.tolist() == [[2.0, 2.0, 2.0]]
    assert (said["step"], said["path"], said["rejected"]) == (2, told[-1]["path"], [])
    assert said["seconds"] > 0


def test_what_was_never_accepted_is_never_restored(make_run: MakeRun, task: FakeTask) -> None:
    told = save_steps(make_run, task, [1, 2, 3])
    after = task.next_attempt(told[:1])
    with FakeShim(after):
        assert make_run(after).restore(model=net()).step == 1


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 3] ^= 0x04
    path.write_bytes(data)


def truncate(path: Path) -> None:
    os.truncate(path, path.stat().st_size - 1)


def grow(path: Path) -> None:
    path.write_bytes(path.read_bytes() + b"\0")


def replace_by_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


DAMAGES = {
    "a flipped bit in the data": lambda folder: flip(folder / "__0_1.distcp"),
    "a flipped bit in the metadata": lambda folder: flip(folder / ".metadata"),
    "a flipped bit in the manifest": lambda folder: flip(folder / "manifest.json"),
    "truncated data": lambda folder: truncate(folder / "__0_1.distcp"),
    "truncated metadata": lambda folder: truncate(folder / ".metadata"),
    "truncated manifest": lambda folder: truncate(folder / "manifest.json"),
    "a byte too much": lambda folder: grow(folder / "__0_1.distcp"),
    "data missing": lambda folder: (folder / "__0_1.distcp").unlink(),
    "metadata missing": lambda folder: (folder / ".metadata").unlink(),
    "manifest missing": lambda folder: (folder / "manifest.json").unlink(),
    "empty manifest": lambda folder: (folder / "manifest.json").write_bytes(b""),
    "data is a folder": lambda folder: replace_by_folder(folder / "__0_1.distcp"),
    "all gone": shutil.rmtree,
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_one_is_passed_over_by_name(
    make_run: MakeRun, task: FakeTask, capfd: pytest.CaptureFixture[str], damage: str
) -> None:
    told = save_steps(make_run, task, [1, 2])
    after = task.next_attempt(told)
    DAMAGES[damage](Path(told[-1]["path"]))
    model = net()
    with FakeShim(after) as shim:
        restored = make_run(after).restore(model=model)
        [said] = shim.of("restored")
        damaged = shim.of("damaged")

    assert restored.step == 1
    assert model.weight.tolist() == [[1.0, 1.0, 1.0]]
    assert said["step"] == 1
    if Path(told[-1]["path"]).is_dir():
        [one] = damaged
        assert (one["step"], one["path"], one["copy"]) == (2, told[-1]["path"], "storage")
        assert one["why"] in said["rejected"][0]
    assert said["rejected"] == list(restored.rejected)
    assert said["rejected"][0].startswith("step 2 (attempt 1): ")
    stderr = capfd.readouterr().err
    assert f"checkpoint passed over: {said['rejected'][0]}" in stderr
    assert "going on from step 1" in stderr


def test_every_single_bit_matters(make_run: MakeRun, task: FakeTask) -> None:
    """Bits all over each file, not only where it is convenient."""
    told = save_steps(make_run, task, [1, 2])
    after = task.next_attempt(told)
    with FakeShim(after):
        for path in sorted(Path(told[-1]["path"]).iterdir()):
            good = path.read_bytes()
            for number in range(0, len(good) * 8, max(1, len(good) * 8 // 23)):
                bad = bytearray(good)
                bad[number // 8] ^= 1 << number % 8
                path.write_bytes(bad)
                assert make_run(after).restore(model=net()).step == 1, f"{path.name} bit {number}"
            path.write_bytes(good)
        assert make_run(after).restore(model=net()).step == 2


def test_swapped_between_jobs_attempts_and_steps(make_run: MakeRun, tmp_path: Path) -> None:
    ours, theirs = FakeTask(tmp_path, job=7), FakeTask(tmp_path, job=8)
    told, strange = save_steps(make_run, ours, [1, 2]), save_steps(make_run, theirs, [1, 2])
    shutil.rmtree(told[-1]["path"])
    shutil.copytree(strange[-1]["path"], told[-1]["path"])
    after = ours.next_attempt(told)
    with FakeShim(after):
        restored = make_run(after).restore(model=net())
        assert restored.step == 1
        assert "is not the one that was accepted" in restored.rejected[0]

    # Even with a hash that fits, as if the scheduler had been told so: the manifest says whose it is.
    after.accepted[0]["manifest_hash"] = strange[-1]["manifest_hash"]
    after.write()
    with FakeShim(after):
        assert "is of job 8, this is job 7" in make_run(after).restore(model=net()).rejected[0]
    after.accepted[0] |= {"path": told[0]["path"], "manifest_hash": told[0]["manifest_hash"]}
    after.write()
    with FakeShim(after):
        assert "the folder was swapped" in make_run(after).restore(model=net()).rejected[0]


def test_a_reading_that_fails_falls_back_or_leaves_no_half_written_state(
    make_run: MakeRun, task: FakeTask, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An I/O error between the check and the reading, after the model was touched."""
    from paceline.training.dcp import SafeReader

    told = save_steps(make_run, task, [1, 2])
    bad = {told[1]["path"]}
    read_data = SafeReader.read_data

    def failing(reader: SafeReader, plan: Any, planner: Any) -> Any:
        done = read_data(reader, plan, planner)
        if str(reader.path) in bad:
            raise OSError(5, "Input/output error")
        return done

    monkeypatch.setattr(SafeReader, "read_data", failing)
    after = task.next_attempt(told)
    model = net()
    with FakeShim(after):
        restored = make_run(after).restore(model=model)
        assert restored.step == 1
        assert "Input/output error" in restored.rejected[0]
        assert model.weight.tolist() == [[1.0, 1.0, 1.0]]
        bad.add(told[0]["path"])
        with pytest.raises(RestoreFailed, match="the state is half written"):
            make_run(after).restore(model=model)


def test_when_none_is_good_the_run_starts_anew_and_says_so(
    make_run: MakeRun, task: FakeTask, capfd: pytest.CaptureFixture[str]
) -> None:
    told = save_steps(make_run, task, [1, 2])
    after = task.next_attempt(told)
    for one in told:
        flip(Path(one["path"]) / "__0_1.distcp")
    model = net(5.0)
    with FakeShim(after) as shim:
        assert make_run(after).restore(model=model) is None
        [said] = shim.of("restored")
    assert said["step"] == -1
    assert len(said["rejected"]) == 2
    assert model.weight.tolist() == [[5.0, 5.0, 5.0]]
    assert "the run starts anew" in capfd.readouterr().err


def test_a_fork_does_not_start_anew_where_its_origin_is_damaged(make_run: MakeRun, task: FakeTask) -> None:
    [origin] = save_steps(make_run, task, [1])
    fork = task.next_attempt([origin])
    fork.accepted[0]["job"] = str(task.job)
    fork.write()
    flip(Path(origin["path"]) / "__0_1.distcp")
    with (
        FakeShim(fork) as shim,
        pytest.raises(RestoreFailed, match=f"begins from step 1 of job {task.job}.*: hash differs"),
    ):
        make_run(fork).restore(model=net())
    assert [told["step"] for told in shim.of("damaged")] == [1]
    assert not shim.of("restored"), "it does not start anew"


def test_a_shim_that_refuses_or_is_away_costs_the_checkpoint_and_not_the_run(
    make_run: MakeRun, task: FakeTask, capfd: pytest.CaptureFixture[str]
) -> None:
    run = make_run(task)
    away = saved(run, 1, model=net())
    assert not away.published
    assert "does not answer" in away.error
    assert names(task) == ["step-00000001.a1"], "the shim may have noted it before it fell silent"
    with FakeShim(task, mode="refuse"):
        refused = saved(run, 2, model=net())
    assert "refused it: superseded" in refused.error
    assert names(task) == ["step-00000001.a1"], "what was refused is never accepted"
    with FakeShim(task) as shim:
        assert saved(run, 3, model=net()).published
        assert [one["step"] for one in shim.of("checkpoint")] == [3]
    stderr = capfd.readouterr().err
    assert "checkpoint of step 1 FAILED, training goes on without it" in stderr
    assert "checkpoint of step 2 FAILED" in stderr


def test_storage_that_fails_is_told_to_the_timeline(
    make_run: MakeRun, task: FakeTask, shim: FakeShim
) -> None:
    run = make_run(task)
    (task.job_folder / "checkpoints").write_text("a file where the folder should be")
    outcome = saved(run, 1, model=net())
    assert not outcome.published
    [told] = shim.of("checkpoint_failed")
    assert (told["step"], told["why"]) == (1, outcome.error)
    assert "Not a directory" in told["why"]


def test_nothing_is_deleted_until_a_newer_one_is_acknowledged(make_run: MakeRun, tmp_path: Path) -> None:
    task = FakeTask(tmp_path, keep_last=2)
    with FakeShim(task) as shim:
        run = make_run(task)
        for step in range(1, 6):
            saved(run, step, model=net())
        assert len(names(task)) == 5, "a cut-off attempt must delete nothing"
        task.ack(shim.of("checkpoint")[3]["seq"])
        saved(run, 6, model=net())
        assert names(task) == [f"step-0000000{step}.a1" for step in (3, 4, 5, 6)]
        assert shim.of("checkpoint")[-1]["removed_steps"] == [1, 2]
        task.ack(shim.seq)
        saved(run, 7, model=net())
        assert names(task) == [f"step-0000000{step}.a1" for step in (5, 6, 7)]
        assert shim.of("checkpoint")[-1]["removed_steps"] == [3, 4]


def test_nothing_is_deleted_once_the_attempt_was_told_to_stop(make_run: MakeRun, tmp_path: Path) -> None:
    """It may have a successor by then, which restores from what the scheduler accepted before."""
    task = FakeTask(tmp_path, keep_last=1)
    with FakeShim(task, auto_ack=True):
        run = make_run(task)
        for step in (1, 2, 3):
            saved(run, step, model=net())
        assert names(task) == ["step-00000002.a1", "step-00000003.a1"]
        task.give_notice()
        for step in (4, 5):
            saved(run, step, model=net())
    assert names(task) == [f"step-0000000{step}.a1" for step in (2, 3, 4, 5)]


def test_a_new_attempt_deletes_its_forerunners_only_when_its_own_is_acknowledged(
    make_run: MakeRun, tmp_path: Path
) -> None:
    task = FakeTask(tmp_path, keep_last=2)
    told = save_steps(make_run, task, [1, 2, 3])
    root = task.job_folder / "checkpoints"
    (root / ".tmp-step-00000009.a1").mkdir()
    (root / ".gone-step-00000000.a1").mkdir()
    (root / "my-notes").mkdir()
    after = task.next_attempt(told[:2])  # step 3 was published, but the scheduler never heard of it in time
    flip(Path(told[1]["path"]) / ".metadata")
    with FakeShim(after) as shim:
        run = make_run(after)
        assert run.restore(model=net()).step == 1
        saved(run, 2, model=net())
        saved(run, 3, model=net())
        assert len(names(after)) == 8, "nothing of ours is acknowledged yet"
        after.ack(shim.of("checkpoint")[0]["seq"])
        saved(run, 4, model=net())

    left = ["my-notes", "step-00000001.a1", "step-00000002.a2", "step-00000003.a2", "step-00000004.a2"]
    assert names(after) == left, "the damaged one fills no place; what was never accepted is swept"
    assert shim.of("checkpoint")[-1]["removed_steps"] == [], "step 2 is there, of this attempt"


def test_the_best_by_metric_stay(make_run: MakeRun, tmp_path: Path) -> None:
    task = FakeTask(tmp_path, keep_last=1, keep_best=1, best_metric="-loss")
    losses = [0.9, 0.2, 0.5, float("nan"), 0.4]
    with FakeShim(task, auto_ack=True):
        run = make_run(task)
        for step, loss in enumerate(losses, 1):
            run.report(step, loss=loss)
            saved(run, step, model=net())
    assert names(task) == ["step-00000002.a1", "step-00000004.a1", "step-00000005.a1"]


def test_the_best_of_earlier_attempts_stay_too(make_run: MakeRun, tmp_path: Path) -> None:
    task = FakeTask(tmp_path, keep_last=1, keep_best=1, best_metric="accuracy")
    told = save_steps(make_run, task, [1], metrics={"accuracy": 0.9})
    told += save_steps(make_run, task, [2], metrics={"accuracy": 0.5})
    after = task.next_attempt(told)
    with FakeShim(after, auto_ack=True):
        run = make_run(after)
        run.restore(model=net())
        for step in (3, 4, 5):
            saved(run, step, model=net(), metrics={"accuracy": 0.1})
    assert names(after) == ["step-00000001.a1", "step-00000004.a2", "step-00000005.a2"]


def test_two_ranks_of_two_tasks_tell_once(ranks: RankPool, tmp_path: Path) -> None:
    tasks = [FakeTask(tmp_path, task=0), FakeTask(tmp_path, task=1)]
    with FakeShim(tasks[0]) as first, FakeShim(tasks[1]) as second:
        variables = [task.variables() for task in tasks]
        said = ranks.run(
            rank_scripts.save_and_restore, tmp_path / "unused", 100, folder=tmp_path, variables=variables
        )
        assert [one["step"] for one in first.of("checkpoint")] == [1, 2, 3]
        assert second.messages == []
    assert said[0][3] is said[1][3] is None, "nothing was accepted when this attempt began"
    assert not (tmp_path / "unused").exists()


def test_a_checkpoint_cannot_run_code(make_run: MakeRun, tmp_path: Path) -> None:
    """One that verifies in all its hashes, but whose metadata is somebody's pickle; outside, where
    no list protects.
    """
    import json
    import pickle

    from paceline.training.manifest import hash_file

    run, model = make_run(), net(1.0)
    saved(run, 1, model=model)
    outcome = saved(run, 2, model=model)
    proof = tmp_path / "code-ran"

    class Evil:
        def __reduce__(self) -> Any:
            return os.mkdir, (str(proof),)

    (outcome.path / ".metadata").write_bytes(pickle.dumps(Evil()))
    document = json.loads((outcome.path / "manifest.json").read_bytes())
    entry = hash_file(outcome.path / ".metadata")
    document["files"][".metadata"] = {"size": entry.size_bytes, "xxh3": entry.xxh3}
    (outcome.path / "manifest.json").write_text(json.dumps(document))

    restored = make_run().restore(model=model)
    assert restored is not None
    assert restored.step == 1
    assert "which metadata has no need of" in restored.rejected[0]
    assert not proof.exists()


def test_a_manifest_cannot_point_elsewhere(make_run: MakeRun, tmp_path: Path) -> None:
    import json

    run, model = make_run(), net(1.0)
    outcome = saved(run, 1, model=model)
    document = json.loads((outcome.path / "manifest.json").read_bytes())
    document["files"]["../../secret"] = {"size": 1, "xxh3": "0"}
    (outcome.path / "manifest.json").write_text(json.dumps(document))
    again = make_run()
    assert again.restore(model=model) is None
