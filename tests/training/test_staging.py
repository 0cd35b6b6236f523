"""A save costs a copy; what comes after it is another process's, and whatever happens to either is known."""

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from paceline.spec.folder_names import FolderName
from paceline.spec.retention import Retention
from paceline.training import manifest, notes, persister
from paceline.training.images import Image, Places, find
from paceline.training.orders import Order, Publish, Setting
from paceline.training.publishing import Publisher
from paceline.training.staging import Stager
from support import rank_scripts
from support.fake_shim import FakeShim, FakeTask, wait_until
from support.rank_scripts import persisters_of, saved
from support.ranks import RankPool
from torch import nn

MakeRun = Any


def net(value: float = 0.0, elements: int = 30_000) -> nn.Linear:
    model = nn.Linear(elements, 1, bias=False)
    nn.init.constant_(model.weight, value)
    return model


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The slots for which ranks agreed on a layout."""
    slots: list[int] = []
    lay_out = Stager.lay_out

    def counting(self: Stager, prepared: Any, slot: int) -> None:
        slots.append(slot)
        lay_out(self, prepared, slot)

    monkeypatch.setattr(Stager, "lay_out", counting)
    return slots


def test_the_layout_holds_while_shapes_do(make_run: MakeRun, counted: list[int]) -> None:
    """Values may grow, and tensors change; another shape or name means a new layout."""
    run, model, optimizer = make_run(), net(1.0), None
    for step in range(5):
        saved(run, step, model=model, optimizer=optimizer, note="x" * 10**step, extra=torch.full((3,), step))
    assert len(counted) == 1
    saved(run, 5, model=model, extra=torch.full((4,), 5))
    assert len(counted) == 2
    saved(run, 6, model=model, extra=torch.full((4,), 6), more=torch.ones(2, dtype=torch.bfloat16))
    assert len(counted) == 3
    restored = make_run().restore(model=model)
    assert restored.step == 6
    assert torch.equal(restored["extra"], torch.full((4,), 6))
    assert restored["more"].dtype == torch.bfloat16


def test_two_images_take_turns_and_stay(
    make_run: MakeRun, task: FakeTask, shim: FakeShim, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The files of one save are those of the next but one: no memory is asked for again. Links to them keep
    their inodes from being given anew.
    """
    made: list[int] = []
    make = Places.make

    def counting(self: Places, slot: int, name: str, size_bytes: int) -> Image:
        made.append(slot)
        return make(self, slot, name, size_bytes)

    monkeypatch.setattr(Places, "make", counting)
    run, inodes = make_run(task), {}
    for step in range(1, 6):
        assert saved(run, step, model=net(step), note="x" * 10**step).published
        images = find(task.memory_folder, FolderName(1, step))
        inodes[step] = {name: image.stat().st_ino for name, image in images.items()}
        for name, image in images.items():
            (tmp_path / f"link-{step}-{name}").hardlink_to(image)
    assert inodes[1].keys() == {"__0_0.distcp", "__0_1.distcp", ".metadata", manifest.NAME}
    assert inodes[1] == inodes[3] == inodes[5]
    assert inodes[2] == inodes[4]
    assert not set(inodes[1].values()) & set(inodes[2].values())
    assert sorted(made) == [0, 0, 1, 1]


def test_all_of_it_is_on_disk_before_it_has_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each file of both ranks as it stays, the manifest, and the folder with all their names: fsynced, then
    renamed, and then the folder above fsynced.
    """
    root = tmp_path / "c"
    orders = []
    for rank in (1, 0):
        names = [f"__{rank}_0.distcp", f"__{rank}_1.distcp"] + [".metadata"] * (rank == 0)
        files = {name: str(tmp_path / name) for name in names}
        for path in files.values():
            Path(path).write_bytes(os.urandom(10_000))
        publish = Publish(7, world_size=2, stall_s=0.0, code_folder=str(tmp_path)) if rank == 0 else None
        orders.append(Order(str(root), rank, attempt=1, step=3, files=files, publish=publish))
    final, fsync, rename = root / "step-00000003.a1", os.fsync, os.rename
    synced: dict[Path, object] = {}
    at_rename: list[tuple[dict[Path, object], dict[Path, object]]] = []

    def content(path: Path) -> object:
        return sorted(path.iterdir()) if path.is_dir() else path.read_bytes()

    def seen_fsync(fd: int) -> None:
        path = Path(f"/proc/self/fd/{fd}").readlink()
        synced[path] = content(path)
        fsync(fd)

    def seen_rename(old: Path, new: Path) -> None:
        if new == final:
            at_rename.append(({path: content(path) for path in (old, *old.iterdir())}, dict(synced)))
        rename(old, new)

    monkeypatch.setattr(os, "fsync", seen_fsync)
    monkeypatch.setattr(os, "rename", seen_rename)
    publisher = Publisher(Setting(str(root), "", "", Retention(), attempt=1, continues=False))
    assert [persister._carry_out(order, publisher, (), os.getppid()) for order in orders] == ["", ""]
    publisher.close()

    [(there, synced_then)] = at_rename
    assert {path.name for path in there} == {
        *(".tmp-step-00000003.a1", ".metadata", manifest.NAME),
        *("__0_0.distcp", "__0_1.distcp", "__1_0.distcp", "__1_1.distcp"),
    }
    assert {path: synced_then.get(path) for path in there} == there
    assert synced[root] == [final]


@pytest.mark.parametrize("thing", [
    torch.ones(70, 1000).t(),
    torch.ones(8, 3, 64, 64).to(memory_format=torch.channels_last),
    torch.arange(40_000, dtype=torch.float64)[::2],
    torch.complex(torch.ones(20_000), torch.ones(20_000)).conj(),
    torch.zeros(0, 5),
    torch.tensor(3),
    torch.rand(50_000) > 0.5,
    torch.ones(300, 300).to(torch.float8_e4m3fn),
    nn.Parameter(torch.rand(100_000)),
], ids=lambda thing: f"{thing.dtype}-{tuple(thing.shape)}")  # fmt: skip
def test_tensors_of_many_kinds(make_run: MakeRun, task: FakeTask, thing: torch.Tensor) -> None:
    """From memory and from storage, twice over: the second save only copies."""
    with FakeShim(task) as shim:
        run = make_run(task)
        saved(run, 1, thing=torch.zeros_like(thing))
        assert saved(run, 2, thing=thing).published
        told = shim.of("checkpoint")
    for same_node in (True, False):
        after = task.next_attempt(told, same_node=same_node)
        with FakeShim(after):
            restored = make_run(after).restore(thing=torch.zeros_like(thing, requires_grad=False))
        assert restored.tier.startswith("memory" if same_node else "storage")
        assert torch.equal(_bits(restored["thing"]), _bits(thing))
        shutil.rmtree(after.folder)


def _bits(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.detach().resolve_conj().contiguous().view(-1).view(torch.uint8)


@pytest.fixture
def stopped(make_run: MakeRun, task: FakeTask, shim: FakeShim) -> Iterator[tuple[Any, psutil.Process]]:
    """A run whose persister stands still with step 1 under way."""
    run = make_run(task)
    saved(run, 0, model=net())
    [pid] = persisters_of(os.getpid())
    persister = psutil.Process(pid)
    persister.suspend()
    run.save(1, model=net(1.0))
    yield run, persister
    if persister.is_running():
        persister.resume()
    run.close()


def test_busy_is_waited_for(stopped: tuple[Any, psutil.Process], shim: FakeShim) -> None:
    run, persister = stopped
    began_s = time.monotonic()
    threading.Timer(0.7, persister.resume).start()
    outcome = run.save(2, model=net(2.0))
    assert time.monotonic() - began_s >= 0.6
    assert outcome.error == ""
    assert run.flush().published
    assert [one["step"] for one in shim.of("checkpoint")] == [0, 1, 2]
    told = shim.of("checkpoint")[-1]
    assert told["stall_s"] >= told["waited_s"] >= 0.6, "the wait is part of the stall"
    assert shim.of("checkpoint")[0]["waited_s"] < 0.6


def test_busy_is_skipped_where_the_job_file_says_so(
    make_run: MakeRun, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    task = FakeTask(tmp_path, when_busy="skip")
    with FakeShim(task) as shim:
        run = make_run(task)
        saved(run, 0, model=net())
        [pid] = persisters_of(os.getpid())
        os.kill(pid, signal.SIGSTOP)
        try:
            run.save(1, model=net(1.0))
            outcome = run.save(2, model=net(2.0))
            assert outcome.path is None
            assert outcome.error.startswith("skipped: that of step 1 is not on disk yet, ")
            [told] = shim.of("checkpoint_failed")
            assert (told["step"], told["why"]) == (2, outcome.error)
        finally:
            os.kill(pid, signal.SIGCONT)
        assert run.flush() is not None
        assert saved(run, 3, model=net(3.0)).published
        assert [one["step"] for one in shim.of("checkpoint")] == [0, 1, 3]
    assert "checkpoint of step 2 FAILED, training goes on without it: skipped" in capfd.readouterr().err


def test_a_persister_that_is_killed_costs_one_checkpoint(
    stopped: tuple[Any, psutil.Process], task: FakeTask, shim: FakeShim
) -> None:
    run, persister = stopped
    persister.kill()
    outcome = run.flush()
    assert outcome.error == "rank 0: the process that writes it ended with -9"
    assert [(one["step"], one["why"]) for one in shim.of("checkpoint_failed")] == [(1, outcome.error)]
    assert saved(run, 2, model=net(2.0)).published
    left = sorted(path.name for path in (task.job_folder / "checkpoints").iterdir())
    assert left == ["step-00000000.a1", "step-00000002.a1"]


WITH_SUPPORT = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
SCRIPT = """
import os, signal, sys, torch, paceline
run = paceline.init(checkpoints=sys.argv[1])
run.save(1, model=torch.nn.Linear(1000, 1000), data={"epoch": 3, "seen": 17})
from support.rank_scripts import scratch_of
print(scratch_of(os.getpid()), flush=True)
if sys.argv[2] == "killed":
    os.kill(os.getpid(), signal.SIGKILL)
if sys.argv[2] == "raises":
    raise RuntimeError("the script's own")
"""


@pytest.mark.parametrize("end", ["exits", "raises", "killed"])
def test_what_save_has_taken_outlives_the_worker(tmp_path: Path, end: str) -> None:
    """However it ends; and nothing stays in shared memory."""
    root = tmp_path / "c"
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(root), end],
        stdout=subprocess.PIPE,
        text=True,
        check=False,
        env=WITH_SUPPORT,
    )
    assert done.returncode == {"exits": 0, "raises": 1, "killed": -9}[end]
    if end == "killed":
        wait_until((root / "step-00000001.a1").exists, "the persister has published it")
    found = manifest.read(root / "step-00000001.a1", None)
    assert found.data == {"epoch": 3, "seen": 17}
    assert done.stdout.startswith("/dev/shm/paceline-run-")
    wait_until(lambda: not Path(done.stdout.strip()).exists(), "shared memory is given back")


def test_a_script_that_failed_does_not_wait_long_for_its_peers(tmp_path: Path) -> None:
    """One rank of two fails; the part of the other never comes. The next attempt waits for our end alone."""
    code = """
import os, sys, time, torch, paceline
from torch import distributed
rank = int(os.environ["RANK"])
distributed.init_process_group("gloo", init_method="file://" + sys.argv[2], rank=rank, world_size=2)
run = paceline.init(checkpoints=sys.argv[1])
if run.rank == 1:
    from paceline.training.persisting import Persister
    Persister.begin = lambda self, order: os._exit(9)
run.save(1, model=torch.nn.Linear(10, 10))
open(sys.argv[2] + ".failed", "w").write(str(time.monotonic()))
raise RuntimeError("connection closed by peer")
"""
    outputs = [tmp_path / f"output.{rank}" for rank in (0, 1)]
    gang = [
        subprocess.Popen(
            [sys.executable, "-c", code, str(tmp_path / "c"), str(tmp_path / "store")],
            env={**os.environ, "RANK": str(rank), "WORLD_SIZE": "2"},
            stderr=output.open("w"),
        )
        for rank, output in enumerate(outputs)
    ]
    assert gang[0].wait(180) == 1, outputs[0].read_text()
    took_s = time.monotonic() - float((tmp_path / "store.failed").read_text())
    assert gang[1].wait(60) == 9, outputs[1].read_text()
    assert "leaves the checkpoint of step 1 unfinished: the script has failed" in outputs[0].read_text()
    assert took_s < notes.GANG_S / 10, "far less than a part that never comes is waited for"
    assert not (tmp_path / "c" / "step-00000001.a1").exists()


def test_what_a_killed_run_left_in_shared_memory_is_removed_by_the_next(tmp_path: Path) -> None:
    code = SCRIPT + "\nrun.flush(); print('on disk', flush=True); import time; time.sleep(60)"
    with subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path / "a"), "stays"],
        stdout=subprocess.PIPE,
        text=True,
        env=WITH_SUPPORT,
    ) as process:
        assert process.stdout is not None
        left = Path(process.stdout.readline().strip())
        assert process.stdout.readline() == "on disk\n"
        assert left.exists()
        [persister] = persisters_of(process.pid)
        os.kill(persister, signal.SIGKILL)
        process.kill()
    command = [sys.executable, "-c", SCRIPT, str(tmp_path / "b"), "exits"]
    subprocess.run(command, check=True, env=WITH_SUPPORT)
    assert not left.exists()


def checkout(folder: Path) -> str:
    """Makes one there; its commit."""
    folder.mkdir()
    for command in (["init", "-q"], ["-c", "user.name=a", "-c", "user.email=a@b", "commit", "-q",
                                     "--allow-empty", "-m", "x"]):  # fmt: skip
        subprocess.run(["git", *command], cwd=folder, check=True)
    commit = subprocess.run(
        ["git", "-C", str(folder), "rev-parse", "HEAD"], capture_output=True, text=True, check=True
    )
    return commit.stdout.strip()


@pytest.mark.parametrize("beside", ["no checkout", "another checkout"])
def test_packed_code_is_of_the_commit_that_it_was_packed_from(
    make_run: MakeRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, beside: str
) -> None:
    """As the task was told it: where the code is unpacked there is no checkout, or a chance one."""
    code = tmp_path / "code"
    if beside == "no checkout":
        code.mkdir()
    else:
        assert checkout(code) != "c0de" * 10
    monkeypatch.chdir(code)
    task = FakeTask(tmp_path, git_commit="c0de" * 10)
    with FakeShim(task):
        outcome = saved(make_run(task), 1, model=net())
    assert outcome.path is not None
    assert manifest.read(outcome.path, None).git_commit == "c0de" * 10


def test_the_manifest_says_where_it_came_from(make_run: MakeRun, task: FakeTask, monkeypatch: Any) -> None:
    code = task.root / "code"
    commit = checkout(code)
    monkeypatch.chdir(code)
    with FakeShim(task) as shim:
        run = make_run(task)
        saved(run, 1, model=net(), data={"epoch": 1})
        told = shim.of("checkpoint")
    after = task.next_attempt(told)
    with FakeShim(after):
        run = make_run(after)
        run.restore(model=net())
        outcome = saved(run, 2, model=net())
    first, second = (manifest.read(Path(path), None) for path in (told[0]["path"], outcome.path))
    assert first.git_commit == second.git_commit == commit
    assert (first.data, first.parents, second.data) == ({"epoch": 1}, (), None)
    [parent] = second.parents
    assert (parent.step, parent.attempt, parent.path) == (1, 1, told[0]["path"])
    assert json.loads(Path(told[0]["path"], "manifest.json").read_bytes())["format"] == 2


def test_no_room_in_memory_costs_time_and_not_the_checkpoint(
    make_run: MakeRun, task: FakeTask, small_disk: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    task.memory_folder = small_disk / "memory"
    with FakeShim(task) as shim:
        run = make_run(task)
        assert saved(run, 1, model=net(1.0, elements=1_000_000)).published
        assert saved(run, 2, model=net(2.0, elements=1_000_000)).published
        told = shim.of("checkpoint")
    said = capfd.readouterr().err
    assert "checkpoints are staged on disk" in said
    assert "No space left on device (4.0 MB wanted, " in said
    assert list((small_disk / "memory").rglob("*_0.distcp")) == []
    after = task.next_attempt(told, same_node=True)
    with FakeShim(after):
        assert make_run(after).restore(model=net(0.0, elements=1_000_000)).step == 2


def test_no_room_anywhere_costs_that_checkpoint(
    make_run: MakeRun, task: FakeTask, small_disk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    task.memory_folder = small_disk / "memory"
    images = small_disk / "disk"
    images.mkdir()
    (task.folder / "images").symlink_to(images)
    with FakeShim(task) as shim:
        run = make_run(task)
        outcome = run.save(1, model=net(1.0, elements=1_000_000))
        assert outcome.error == "rank 0: No space left on device (the image in memory)"
        assert shim.of("checkpoint_failed")[0]["why"] == outcome.error
        assert saved(run, 2, model=net(2.0, elements=1000)).published


def test_an_image_takes_its_room_at_once(small_disk: Path) -> None:
    """Else a full tmpfs would be a SIGBUS in the middle of a copy."""
    with pytest.raises(OSError, match="No space left"):
        Image(small_disk / "0" / "x", 4_000_000)
    assert not (small_disk / "0" / "x").exists()


def test_ranks_agree_when_one_of_them_has_something_new(ranks: RankPool, tmp_path: Path) -> None:
    for layouts, step, values in ranks.run(
        rank_scripts.save_with_changing_shapes, tmp_path / "c", folder=tmp_path
    ):
        assert layouts == [1, 0, 1, 0]
        assert step == 4
        assert values == [4.0, 4.0]
