"""Operators are built once per node, whoever is killed in the middle: real builds, real kills."""

import fcntl
import os
import shutil
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from support.cluster import wait_until
from support.operators import needs_deepspeed, prepare_command, prepare_environment

pytestmark = [needs_deepspeed, pytest.mark.slow, pytest.mark.timeout(900)]
OPERATOR = "deepspeed_shm_comm"


class Rank:
    """The process of a rank, and below it the one that prepares its operators."""

    def __init__(self, ops: Path, task: str) -> None:
        self.log = ops.parent / f"{task}.log"
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                ["sh", "-c", '"$@"; code=$?; exit $code', "sh", *prepare_command()],
                env=prepare_environment(ops, task),
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def builder(self) -> psutil.Process:
        [child] = wait_until("the builder is there", psutil.Process(self.process.pid).children)
        return child

    def kill(self) -> None:
        """It, and all below it: as a task ends."""
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()


@pytest.fixture
def ranks() -> Iterator[list[Rank]]:
    started: list[Rank] = []
    yield started
    for rank in started:
        rank.kill()


def compiles(ops: Path) -> bool:
    return (ops / "building" / OPERATOR / "lock").exists()


def test_a_killed_builder_holds_up_nobody(tmp_path: Path, built_ops: Path, ranks: list[Rank]) -> None:
    """One is killed while it compiles and another waits for it; the other one builds."""
    ops = tmp_path / "ops"
    first = Rank(ops, "1.1.0")
    ranks.append(first)
    wait_until("it compiles", lambda: compiles(ops), 120)
    second = Rank(ops, "2.1.0")
    ranks.append(second)
    wait_until("the second one waits", lambda: "waiting for process" in second.log.read_text())
    builder = first.builder()
    assert f"waiting for process {builder.pid}." in second.log.read_text()
    inode = (ops / "building" / OPERATOR / "lock").stat().st_ino
    first.kill()
    wait_until("the second one compiles", lambda: compiles(ops) and locked_anew(ops, inode), 120)
    assert "building" in second.log.read_text()
    assert not (ops / "tasks" / "1.1.0").exists(), "what the dead one left is gone"


def locked_anew(ops: Path, inode: int) -> bool:
    return (ops / "building" / OPERATOR / "lock").stat().st_ino != inode


def test_a_folder_of_a_dead_task_with_a_lock_in_it_is_dropped_and_whole_operators_kept(
    tmp_path: Path, built_ops: Path, ranks: list[Rank]
) -> None:
    """As two ranks leave it that were killed while one of them compiled an operator of its own."""
    ops = tmp_path / "ops"
    shutil.copytree(built_ops / "built", ops / "built")
    [key] = (each.name for each in (ops / "built").iterdir())
    dead = ops / "tasks" / "1.1.0"
    for name in ("ranks", "fused_adam", "cpu_adam"):
        (dead / name).mkdir(parents=True)
    (dead / "ranks" / f"{os.getpid()}.1.{key}").touch()
    (dead / "fused_adam" / "fused_adam.so").touch()
    (dead / "cpu_adam" / "cpu_adam.so").touch()
    (dead / "cpu_adam" / "lock").touch()
    rank = Rank(ops, "1.2.0")
    ranks.append(rank)
    assert rank.process.wait(120) == 0, rank.log.read_text()
    assert not dead.exists()
    mine = {each.name for each in (ops / "tasks" / "1.2.0").iterdir()}
    assert mine == {"ranks", "fused_adam", OPERATOR}


def test_an_environment_without_deepspeed_says_so(tmp_path: Path) -> None:
    """The rank exits with that message, not with a traceback."""
    command = prepare_command()
    code = (
        "import importlib.metadata as m, runpy, sys; real = m.version\n"
        "def version(name):\n"
        "    if name == 'deepspeed': raise m.PackageNotFoundError(name)\n"
        "    return real(name)\n"
        "m.version = version; runpy.run_module('paceline.training.deepspeed_ops', run_name='__main__')\n"
    )
    done = subprocess.run(
        [command[0], "-P", "-c", code],
        env=prepare_environment(tmp_path / "ops", "1.1.0"),
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1
    assert "has no deepspeed, which distribution: deepspeed needs" in done.stderr
    assert "Traceback" not in done.stderr


def test_an_owner_that_is_stopped_is_named_and_waited_for_no_longer_than_the_bound(tmp_path: Path) -> None:
    ops = tmp_path / "ops"
    ops.mkdir()
    (ops / "lock").write_text("123.456")
    code = (
        "import paceline.training.deepspeed_ops as ops\n"
        "ops.LOCK_S_MAX, ops._LOCK_WAIT_WORTH_SAYING_S = 2, 1\n"
        "ops.main()\n"
    )
    with (ops / "lock").open() as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        done = subprocess.run(
            [prepare_command()[0], "-P", "-c", code],
            env=prepare_environment(ops, "1.1.0"),
            capture_output=True,
            text=True,
        )
    assert done.returncode == 1
    assert "waiting for process 123.456" in done.stderr
    assert "process 123.456 has held" in done.stderr
