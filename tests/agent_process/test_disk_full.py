"""The state folder's disk is full: nothing hangs, exit codes are kept, and who asks hears why."""

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.processes import ended, key, of_kind, run, start_task, supervised, until

pytestmark = pytest.mark.skipif(os.getuid() != 0, reason="mounting a small tmpfs needs root")


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    folder = tmp_path / "small"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=2m", "none", str(folder)], capture_output=True, text=True
    )
    if mounted.returncode != 0:
        pytest.skip(mounted.stderr)
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def fill(folder: Path) -> Path:
    """Take all the space that is left."""
    filler = folder / "filler"
    with filler.open("ab", buffering=0) as file:
        try:
            while True:
                file.write(bytes(4096))
        except OSError:
            return filler


async def test_a_rank_that_fills_the_disk_ends_with_its_own_exit_code(
    small_disk: Path, tmp_path: Path
) -> None:
    async with supervised(small_disk / "state", warm=False) as supervisor:
        await supervisor.start(start_task(key(1), "sleep 600", tmp_path))
        entries = await run(supervisor, start_task(key(2), "yes; exit 6", tmp_path))
        assert list(of_kind(entries, "ended")[0].exit_codes) == [6]
        assert of_kind(entries, "ended")[0].log_bytes[0] > 500_000
        await supervisor.stop(key(1), 5.0, "cancelled")
        assert of_kind(await ended(supervisor, key(1)), "exited")[0].exit_code == -15


async def test_a_start_on_a_full_disk_is_refused_and_heard_of(small_disk: Path, tmp_path: Path) -> None:
    async with supervised(small_disk / "state", warm=False) as supervisor:
        filler = fill(small_disk)
        [refused] = of_kind(await run(supervisor, start_task(key(1), "true", tmp_path)), "refused")
        assert (refused.reason.code, refused.transient) == ("node-trouble", True)
        assert "No space left" in refused.reason.text
        await supervisor.forget(key(1))
        filler.unlink()
        entries = await run(supervisor, start_task(key(1, 2), "true", tmp_path))
        assert list(of_kind(entries, "ended")[0].exit_codes) == [0]


async def test_a_dead_shim_is_buried_on_a_full_disk(small_disk: Path, tmp_path: Path) -> None:
    async with supervised(small_disk / "state", warm=False) as supervisor:
        await supervisor.start(start_task(key(1), "sleep 600", tmp_path))
        begun = await until(lambda: of_kind(supervisor.entries(key(1), 0, 9), "started"), "started")
        fill(small_disk)
        os.kill(begun[0].shim_pid, 9)
        entries = await ended(supervisor, key(1))
        assert [entry.WhichOneof("kind") for entry in entries] == ["started", "exited", "ended"]
        assert of_kind(entries, "ended")[0].why == "shim died"
