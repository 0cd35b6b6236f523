"""The jobs' folders in shared memory: kept while a job may come back, and no longer."""

import asyncio
from pathlib import Path

import pytest
from paceline.agent.memory import MemoryFolders
from paceline.spec.ids import JobId
from paceline.training.images import make_private

ONE, TWO = JobId(1), JobId(2)


def made(tmp_path: Path, linger_s: float = 60.0) -> MemoryFolders:
    (tmp_path / "tasks").mkdir(exist_ok=True)
    folders = MemoryFolders(tmp_path / "tasks", linger_s, tmp_path)
    folders.begin()
    return folders


def filled(folders: MemoryFolders, job: JobId) -> Path:
    """As its ranks do."""
    folder = Path(folders.folder(job))
    make_private(folder / "0")
    (folder / "0" / "__0_0.distcp").write_bytes(b"image")
    return folder


async def test_it_goes_with_the_job(tmp_path: Path) -> None:
    folders = made(tmp_path)
    folders.hold(ONE)
    folders.hold(ONE)
    folder = filled(folders, ONE)
    assert folder.parent.stat().st_mode & 0o777 == 0o700
    folders.release(ONE, over=True)
    assert folder.exists(), "another task of it is here"
    folders.release(ONE, over=True)
    assert not folder.exists()


async def test_it_waits_for_the_next_attempt_and_not_for_ever(tmp_path: Path) -> None:
    folders = made(tmp_path, linger_s=0.2)
    folders.hold(ONE)
    folder = filled(folders, ONE)
    folders.release(ONE, over=False)
    folders.hold(ONE)
    await asyncio.sleep(0.4)  # longer than it would have stayed
    assert folder.exists()
    folders.release(ONE, over=False)
    assert folder.exists()
    async with asyncio.timeout(10):
        while folder.exists():  # noqa: ASYNC110
            await asyncio.sleep(0.01)


async def test_a_restart_keeps_only_what_is_running(tmp_path: Path) -> None:
    before = made(tmp_path)
    first, second = filled(before, ONE), filled(before, TWO)
    after = made(tmp_path)
    after.hold(ONE)
    after.sweep()
    assert first.exists()
    assert not second.exists()
    after.close()
    assert first.exists(), "its task goes on without the agent"
    after.release(ONE, over=True)
    after.close()
    assert not first.parent.exists()


async def test_a_restart_waits_for_the_next_attempt_of_what_died_with_the_agent(tmp_path: Path) -> None:
    """It finds the task here, and then that it is dead."""
    folder = filled(made(tmp_path), ONE)
    after = made(tmp_path)
    after.hold(ONE)
    after.release(ONE, over=False)
    after.sweep()
    assert folder.exists()
    after.close()
    assert not folder.exists()


async def test_two_agents_of_one_machine_never_meet(tmp_path: Path) -> None:
    one, other = made(tmp_path), MemoryFolders(tmp_path / "other" / "tasks", 60, tmp_path)
    other.begin()
    assert one.folder(ONE) != other.folder(ONE)
    folder = filled(one, ONE)
    other.sweep()
    other.close()
    assert folder.exists()


def test_somebody_elses_folder_is_not_used(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folders = MemoryFolders(tmp_path / "tasks", 60, tmp_path)
    root = Path(folders.folder(ONE)).parent
    (tmp_path / "elsewhere").mkdir(mode=0o700)
    root.symlink_to(tmp_path / "elsewhere")
    assert folders.folder(ONE) == ""
    root.unlink()
    root.mkdir(mode=0o777)
    root.chmod(0o777)
    (root / "1").mkdir()
    assert folders.folder(ONE) == ""
    assert "is not this agent's own" in caplog.text
    folders.sweep()
    folders.close()
    assert (root / "1").exists()


async def test_the_agents_own_goes_with_it(tmp_path: Path) -> None:
    folders = made(tmp_path)
    folders.hold(ONE)
    root = filled(folders, ONE).parent
    folders.release(ONE, over=True)
    assert root.exists()
    folders.close()
    assert not root.exists()


def test_what_a_killed_agent_left_goes_with_the_next_one_when_its_state_is_gone(tmp_path: Path) -> None:
    tasks = tmp_path / "killed" / "tasks"
    tasks.mkdir(parents=True)
    killed = MemoryFolders(tasks, 60, tmp_path)
    killed.begin()
    folder = filled(killed, ONE)
    for strange in ("paceline-run-x", "paceline-aa"):  # a run without an agent locks its own; nobody's
        (tmp_path / strange).mkdir(mode=0o700)
    made(tmp_path)
    assert folder.exists(), "it may come back for them"
    tasks.rmdir()
    made(tmp_path)
    assert not folder.parent.exists()
    assert (tmp_path / "paceline-run-x").exists()
    assert (tmp_path / "paceline-aa").exists()


def test_no_shared_memory_is_no_reason_to_stop(tmp_path: Path) -> None:
    folders = MemoryFolders(tmp_path / "tasks", 60, tmp_path / "missing")
    folders.begin()
    assert folders.folder(ONE) == ""
    folders.close()


async def test_a_removal_that_was_cut_short_is_made_up_for(tmp_path: Path) -> None:
    """A folder has another name while it is removed, so that nobody makes anything in it meanwhile."""
    folder = filled(made(tmp_path), ONE)
    folder.rename(folder.with_name("1.gone"))
    again = filled(made(tmp_path), ONE)
    made(tmp_path).sweep()
    assert not again.exists()
    assert not again.with_name("1.gone").exists()
