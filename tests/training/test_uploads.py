"""Checkpoints at a URL: a real S3 server, real persisters. What is there counts only with its hashes."""

import shutil
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from paceline.spec.stores import REFUSED, SCHEMES, opener_of
from paceline.training import remote as remote_module
from paceline.training.errors import InvalidEnvironment, StorageFailed
from paceline.training.remote import Remote, check_opener
from support import rank_scripts
from support.fake_shim import FakeShim, FakeTask
from support.ftp import FtpServer
from support.rank_scripts import saved
from support.ranks import RankPool
from support.s3 import BUCKET, S3Server
from torch import nn

MakeRun = Any
FILES = ("__0_0.distcp", "__0_1.distcp", ".metadata", "manifest.json")


@pytest.fixture
def task(tmp_path: Path, s3: S3Server) -> FakeTask:
    return FakeTask(tmp_path, checkpoint_url=f"s3://{BUCKET}/here/7")


def net(value: float = 0.0, elements: int = 30_000) -> nn.Linear:
    model = nn.Linear(elements, 1)
    nn.init.constant_(model.weight, value)
    nn.init.constant_(model.bias, value)
    return model


def save_steps(
    make_run: MakeRun, task: FakeTask, steps: list[int], **shim_options: Any
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """What was told of them, and of their uploads."""
    with FakeShim(task, **shim_options) as shim:
        run = make_run(task)
        for step in steps:
            assert saved(run, step, model=net(step), count=step).published
        run.close()
        return shim.of("checkpoint"), shim.of("uploaded")


def upload_each(make_run: MakeRun, task: FakeTask, steps: list[int]) -> list[dict[str, Any]]:
    """None is left out: each is the last of a run."""
    told = []
    for step in steps:
        [checkpoint], [upload] = save_steps(make_run, task, [step])
        assert upload["why"] == ""
        told.append(checkpoint)
    return told


def restore(make_run: MakeRun, task: FakeTask) -> tuple[Any, list[dict[str, Any]]]:
    model = net()
    with FakeShim(task) as shim:
        restored = make_run(task).restore(model=model)
        if restored is not None:
            assert torch.all(model.weight == float(restored.step))
            assert restored["count"] == restored.step
        return restored, shim.of("restored")


def test_what_was_published_is_uploaded_with_its_manifest_last(
    make_run: MakeRun, task: FakeTask, s3: S3Server
) -> None:
    told, uploads = save_steps(make_run, task, [1])
    [one] = uploads
    assert (one["step"], one["path"], one["why"]) == (1, told[0]["path"], "")
    assert one["url"] == f"s3://{BUCKET}/here/7/step-00000001.a1"
    assert 0 < one["seconds"] < 60
    folder = Path(told[0]["path"])
    for name in FILES:
        assert s3.read(f"here/7/{folder.name}/{name}") == (folder / name).read_bytes()
    assert not list(folder.parent.glob(".up-*"))


def test_restored_from_there_when_the_node_and_the_folder_are_gone(
    make_run: MakeRun, task: FakeTask, s3: S3Server, capfd: pytest.CaptureFixture[str]
) -> None:
    told, _ = save_steps(make_run, task, [1])
    shutil.rmtree(told[0]["path"])
    restored, [said] = restore(make_run, task.next_attempt(told))
    assert restored.step == 1
    url = f"s3://{BUCKET}/here/7"
    why = "__0_0.distcp and 1 more: not in memory here, missing in storage"
    assert restored.tier == said["tier"] == f"{url} ({why})"
    assert not list(task.root.glob("tasks/*/fetched/*/*")), "nothing is left of what was fetched"


def flip(data: bytes) -> bytes:
    return data[: len(data) // 3] + bytes([data[len(data) // 3] ^ 4]) + data[len(data) // 3 + 1 :]


DAMAGES = {
    "bit-flip": flip,
    "truncated": lambda data: data[:-1],
    "empty": lambda data: b"",
    "longer": lambda data: data + b"\0",
    "missing": None,
}


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_upload_is_never_loaded_and_the_one_before_is(
    make_run: MakeRun, task: FakeTask, s3: S3Server, name: str, damage: str
) -> None:
    """The job's folder is gone, so that all that is left of steps 1 and 2 is at the URL."""
    told = upload_each(make_run, task, [1, 2])
    shutil.rmtree(task.job_folder / "checkpoints")
    key = f"here/7/step-00000002.a1/{name}"
    change = DAMAGES[damage]
    if change is None:
        s3.delete(key)
    else:
        s3.write(key, change(s3.read(key)))
    restored, [said] = restore(make_run, task.next_attempt(told))
    assert restored.step == 1
    [why] = said["rejected"]
    assert why.startswith("step 2 (attempt 1): ")
    assert name in why


def test_another_jobs_upload_under_our_name_is_never_loaded(
    make_run: MakeRun, task: FakeTask, s3: S3Server, tmp_path: Path
) -> None:
    told, _ = save_steps(make_run, task, [1])
    theirs = FakeTask(tmp_path, job=8, checkpoint_url=f"s3://{BUCKET}/here/8")
    save_steps(make_run, theirs, [1])
    for name in FILES:
        s3.write(f"here/7/step-00000001.a1/{name}", s3.read(f"here/8/step-00000001.a1/{name}"))
    shutil.rmtree(task.job_folder / "checkpoints")
    restored, [said] = restore(make_run, task.next_attempt(told))
    assert restored is None
    assert "is not the one that was accepted" in said["rejected"][0]


def test_what_a_stale_attempt_has_uploaded_is_never_restored(make_run: MakeRun, task: FakeTask) -> None:
    """It was never accepted: newer, whole, ours by its manifest, and not looked at."""
    told = upload_each(make_run, task, [1, 2])
    shutil.rmtree(task.job_folder / "checkpoints")
    restored, [said] = restore(make_run, task.next_attempt(told[:1]))
    assert (restored.step, said["rejected"]) == (1, [])


def test_a_damaged_file_alone_comes_from_there(make_run: MakeRun, task: FakeTask, s3: S3Server) -> None:
    told, _ = save_steps(make_run, task, [1])
    path = Path(told[0]["path"], "__0_1.distcp")
    path.write_bytes(flip(path.read_bytes()))
    restored, _ = restore(make_run, task.next_attempt(told))
    assert restored.step == 1
    assert restored.tier == (
        "storage (__0_0.distcp: not in memory here), and "
        f"s3://{BUCKET}/here/7 for 1 of 2 files (__0_1.distcp: not in memory here, hash differs in storage)"
    )


def test_old_uploads_go_with_the_checkpoints(make_run: MakeRun, tmp_path: Path, s3: S3Server) -> None:
    """Also what an attempt before had begun and not committed; never what is newer."""
    task = FakeTask(tmp_path, checkpoint_url=f"s3://{BUCKET}/here/7", keep_last=1)
    s3.write("here/7/step-00000001.a0/__0_0.distcp", b"begun")
    s3.write("here/7/step-00000009.a9/__0_0.distcp", b"of a later attempt")
    with FakeShim(task, auto_ack=True) as shim:
        run = make_run(task)
        for step in (1, 2, 3, 4):
            saved(run, step, model=net(step), count=step)
        run.close()
        uploads = shim.of("uploaded")
    assert (uploads[0]["step"], uploads[-1]["step"]) == (1, 4)
    assert {one["why"] for one in uploads} == {""}
    there = {key.split("/")[2] for key in s3.keys("here/7/")}
    on_disk = {path.name for path in (task.job_folder / "checkpoints").iterdir()}
    assert there == {"step-00000009.a9", *(on_disk & there)}
    assert "step-00000004.a1" in there


def test_an_unreachable_server_costs_the_upload_and_not_the_checkpoint(
    make_run: MakeRun, task: FakeTask, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")  # nobody listens there
    told, [upload] = save_steps(make_run, task, [1])
    assert "Could not connect" in upload["why"]
    assert "was NOT uploaded, and stays where it was" in capfd.readouterr().err
    assert restore(make_run, task.next_attempt(told))[0].step == 1


def test_no_save_waits_for_an_upload_and_the_last_is_made_up_for(
    make_run: MakeRun, task: FakeTask, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A server that takes connections and never answers, until it goes."""
    with socket.create_server(("127.0.0.1", 0)) as mute, FakeShim(task) as shim:
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{mute.getsockname()[1]}")
        run = make_run(task)
        for step in (1, 2, 3):
            assert saved(run, step, model=net(step), count=step).published
        assert shim.of("uploaded") == [], "that of step 1 is under way all the time"
        mute.close()
        run.close()
        told = [(one["step"], one["why"] != "") for one in shim.of("uploaded")]
    assert told == [(1, True), (3, True)]


def test_a_bucket_that_is_not_there_says_so(make_run: MakeRun, tmp_path: Path, s3: S3Server) -> None:
    task = FakeTask(tmp_path, checkpoint_url="s3://no-such-bucket/x")
    _, [upload] = save_steps(make_run, task, [1])
    assert "bucket" in upload["why"]


def test_a_shared_folder_is_a_url_too(make_run: MakeRun, tmp_path: Path) -> None:
    task = FakeTask(tmp_path, checkpoint_url=str(tmp_path / "nfs" / "7"))
    told, [upload] = save_steps(make_run, task, [1])
    assert upload["why"] == ""
    shutil.rmtree(task.job_folder / "checkpoints")
    assert restore(make_run, task.next_attempt(told))[0].step == 1


@pytest.fixture
def ftp(tmp_path: Path) -> Iterator[FtpServer]:
    root = tmp_path / "served"
    root.mkdir()
    with FtpServer(root) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def test_what_has_folders_and_connections_is_a_place_too(
    make_run: MakeRun, tmp_path: Path, ftp: FtpServer
) -> None:
    """By a protocol without a package of its own: put, listed, removed, restored."""
    task = FakeTask(tmp_path, checkpoint_url=f"{ftp.url}/runs/7")
    told = upload_each(make_run, task, [1, 2])
    served = ftp.root / "runs" / "7"
    assert {path.name for path in (served / "step-00000001.a1").iterdir()} == set(FILES)
    remote = Remote(f"{ftp.url}/runs/7")
    remote.keep_only([], before=max(remote.names()))
    assert [path.name for path in served.iterdir()] == ["step-00000002.a1"]
    shutil.rmtree(task.job_folder / "checkpoints")
    restored, [said] = restore(make_run, task.next_attempt(told))
    assert (restored.step, said["rejected"]) == (2, [])


def test_a_server_that_has_hung_up_is_dialled_again(ftp: FtpServer, monkeypatch: pytest.MonkeyPatch) -> None:
    remote = Remote(f"{ftp.url}/runs")
    assert remote.names() == []
    ftp.hang_up()
    with pytest.raises(StorageFailed, match="listing"):
        remote.names()
    assert remote.names() == [], "after a failure"
    ftp.hang_up()
    monkeypatch.setattr(remote_module, "_IDLE_S", 0.0)
    assert remote.names() == [], "after a while"


def test_a_full_shared_folder_costs_the_upload_alone(
    make_run: MakeRun, tmp_path: Path, small_disk: Path
) -> None:
    task = FakeTask(tmp_path, checkpoint_url=str(small_disk / "7"))
    with FakeShim(task) as shim:
        run = make_run(task)
        assert saved(run, 1, model=net(1, elements=400_000)).published
        run.close()
        [upload] = shim.of("uploaded")
    assert "No space left" in upload["why"]
    assert (tmp_path / "job-7" / "checkpoints" / "step-00000001.a1" / "manifest.json").exists()


def test_each_rank_uploads_its_own_and_all_restore(ranks: RankPool, tmp_path: Path, s3: S3Server) -> None:
    task = FakeTask(tmp_path, checkpoint_url=f"s3://{BUCKET}/gang/7")
    variables = [task.variables() | s3.variables] * 2
    with FakeShim(task) as shim:
        ranks.run(rank_scripts.save_and_close, tmp_path, 20_000, folder=tmp_path, variables=variables)
        told, uploads = shim.of("checkpoint"), shim.of("uploaded")
    assert uploads[-1]["step"] == told[-1]["step"]
    assert uploads[-1]["why"] == ""
    shutil.rmtree(task.job_folder / "checkpoints")
    after = task.next_attempt(told[-1:])
    with FakeShim(after) as shim:
        found = ranks.run(
            rank_scripts.restored_weights,
            tmp_path,
            20_000,
            folder=tmp_path / "after",
            variables=[after.variables() | s3.variables] * 2,
        )
        [said] = shim.of("restored")
    assert found == [(3, 3, [3.0])] * 2
    assert said["tier"].startswith(f"s3://{BUCKET}/gang/7 (")


def test_what_is_not_used_is_not_imported() -> None:
    code = "import sys, paceline.training.persister; sys.exit('fsspec' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_a_package_that_is_missing_is_said_at_the_start(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InvalidEnvironment, match=r"needs gcsfs") as told:
        check_opener("gs://bucket/prefix")
    assert "pip install 'paceline[gs]'" in str(told.value.hint)
    check_opener("s3://bucket/prefix")
    check_opener("/mnt/shared")
    check_opener("ftp://somewhere/x")
    with pytest.raises(InvalidEnvironment, match=r"needs fsspec-xrootd") as told:
        check_opener("root://somewhere/x")
    assert "pip install fsspec-xrootd" in str(told.value.hint)
    with pytest.raises(InvalidEnvironment, match="expected a URL"):
        check_opener("https://somewhere/x")


def test_each_protocol_that_fsspec_knows_is_opened_or_refused_by_name() -> None:
    from fsspec.registry import known_implementations

    assert set(known_implementations) <= {*SCHEMES, *REFUSED}
    assert not {*SCHEMES} & {*REFUSED}
    for scheme in SCHEMES:
        known = known_implementations.get(scheme, {"class": "adlfs", "err": ""})
        opener = opener_of(f"{scheme}:///x" if scheme in ("file", "local") else f"{scheme}://x")
        assert opener is not None
        module = known["class"].partition(".")[0]
        assert module in ("fsspec", opener.module.partition(".")[0])
