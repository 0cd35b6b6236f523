"""A task's folder is used again for the next, and nothing of the one is ever seen by the other."""

import json
import os
from pathlib import Path

from paceline.agent.claims import claim, forbid, owner
from paceline.agent.spare_folders import SPARE_MAX, SpareFolders
from paceline.agent.supervisor import Supervisor
from support.processes import key, of_kind, output, run, start_task, supervised, until


async def run_and_forget(
    supervisor: Supervisor, number: int, command: str, cwd: Path, **fields: object
) -> int:
    """Inode of the folder in which the task ran."""
    await run(supervisor, start_task(key(number), command, cwd, **fields))
    folder = supervisor._tasks[key(number)].folder
    inode = folder.stat().st_ino
    await until(lambda: supervisor._tasks[key(number)].is_left, "its shim has left")
    await supervisor.forget(key(number))
    assert not folder.exists()
    return inode


async def test_a_folder_is_used_again_and_tells_nothing_of_its_past(tmp_path: Path) -> None:
    state = tmp_path / "state"
    async with supervised(state, warm=False) as supervisor:
        secret = {"environment": {"SECRET": "of the first"}}
        first = await run_and_forget(supervisor, 1, "echo secret output; exit 3", tmp_path, **secret)
        [spare] = (state / "spare").iterdir()
        assert spare.stat().st_ino == first
        assert all(b"secret" not in file.read_bytes().lower() for file in spare.iterdir())
        entries = await run(supervisor, start_task(key(2), "ls -A $PACELINE_TASK_FOLDER | sort", tmp_path))
        folder = supervisor._tasks[key(2)].folder
        assert folder.stat().st_ino == first
        names = output(supervisor, key(2)).split()
        assert names == ["journal.jsonl", "rank-0.log", "shim.pid", "shim.sock", "task.json"]
        assert [entry.seq for entry in entries] == [1, 2, 3]
        assert list(of_kind(entries, "ended")[0].exit_codes) == [0]
        assert json.loads((folder / "task.json").read_text())["task"]["job"] == "2"


async def test_what_a_task_left_in_its_folder_does_not_stay(tmp_path: Path) -> None:
    async with supervised(tmp_path / "state", warm=False) as supervisor:
        leave = "echo mine > $PACELINE_TASK_FOLDER/mine; head -c 100000 /dev/zero"
        await run_and_forget(supervisor, 1, leave, tmp_path)
        [spare] = (tmp_path / "state" / "spare").iterdir()
        assert sorted(os.listdir(spare)) == ["claim", "journal.jsonl", "task.json"]  # noqa: PTH208
        folders = "mkdir -p $PACELINE_TASK_FOLDER/a/b; ln -s /etc $PACELINE_TASK_FOLDER/root"
        await run_and_forget(supervisor, 2, folders, tmp_path)
        assert list((tmp_path / "state" / "spare").iterdir()) == []


async def test_files_that_lead_out_of_the_folder_are_not_emptied(tmp_path: Path) -> None:
    kept, linked = tmp_path / "kept", tmp_path / "linked"
    kept.write_text("precious")
    lead_out = (
        f"echo words; cd $PACELINE_TASK_FOLDER; rm task.json; ln -s {kept} task.json; ln rank-0.log {linked}"
    )
    async with supervised(tmp_path / "state", warm=False) as supervisor:
        await run_and_forget(supervisor, 1, lead_out, tmp_path)
        assert (kept.read_text(), linked.read_text()) == ("precious", "words\n")
        [spare] = (tmp_path / "state" / "spare").iterdir()
        assert sorted(os.listdir(spare)) == ["claim", "journal.jsonl"]  # noqa: PTH208


async def test_the_next_agent_begins_without_spare_folders(tmp_path: Path) -> None:
    async with supervised(tmp_path / "state", warm=False) as supervisor:
        await run_and_forget(supervisor, 1, "true", tmp_path)
        assert list((tmp_path / "state" / "spare").iterdir())
    async with supervised(tmp_path / "state", warm=False):
        assert list((tmp_path / "state" / "spare").iterdir()) == []


def test_in_a_spare_folder_one_claims_the_task_and_all_others_are_too_late(tmp_path: Path) -> None:
    spares = SpareFolders(tmp_path / "spare")
    spares.begin()
    for late in (lambda folder: claim(folder) == -1, lambda folder: forbid(folder) is None):
        folder = tmp_path / "task"
        folder.mkdir() if not spares.take(folder) else None
        fd = claim(str(folder))
        assert fd >= 0
        assert late(str(folder))
        assert owner(str(folder)) is not None
        assert owner(str(folder))[0] == os.getpid()  # type: ignore[index]
        os.close(fd)
        spares.keep(folder)
    assert spares.take(folder)
    assert owner(str(folder)) is None
    forbid(str(folder))
    assert claim(str(folder)) == -1
    assert owner(str(folder)) == (0, 0)


def test_spare_folders_are_bounded(tmp_path: Path) -> None:
    spares = SpareFolders(tmp_path / "spare")
    spares.begin()
    for number in range(SPARE_MAX + 5):
        folder = tmp_path / str(number)
        folder.mkdir()
        os.close(claim(str(folder)))
        spares.keep(folder)
        assert not folder.exists()
    assert len(list((tmp_path / "spare").iterdir())) == SPARE_MAX
