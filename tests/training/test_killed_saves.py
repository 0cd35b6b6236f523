"""kill -9 in the middle of saves: what is restored is always one complete checkpoint, and never
older than what was said.

Each round is named by its seed; `pytest -k seed-3` repeats one.
"""

import random
import time
from pathlib import Path

import pytest
from support import rank_scripts
from support.fake_shim import wait_until
from support.ranks import RankPool

ELEMENTS = 60_000


@pytest.mark.parametrize("seed", range(8), ids=lambda seed: f"seed-{seed}")
def test_killed_in_the_middle_of_a_save(ranks: RankPool, tmp_path: Path, seed: int) -> None:
    dice = random.Random(seed)
    root = tmp_path / "c"
    root.mkdir()
    gang = ranks.start(rank_scripts.save_forever, root, ELEMENTS, folder=tmp_path)
    try:
        wait_until(lambda: _progress(root) >= 2, "two saves have returned")
        time.sleep(dice.uniform(0, 0.03))  # not for luck: any moment will do, each seed takes another one
        victims = dice.choice([[0], [1], [0, 1], [1, 0]])
        for victim in victims:
            gang.kill(victim)
        codes = gang.wait()
    finally:
        gang.close()
    assert all(codes[victim] == -9 for victim in victims), gang.output(0) + gang.output(1)

    for step, count, weights in ranks.run(rank_scripts.restored_weights, root, ELEMENTS, folder=tmp_path):
        assert step >= _progress(root), "a save that had returned is lost"
        assert count == step
        assert weights == [float(step)], "a mixture of two checkpoints"


def test_a_rank_that_dies_ends_the_others_save_with_an_error(ranks: RankPool, tmp_path: Path) -> None:
    root = tmp_path / "c"
    root.mkdir()
    gang = ranks.start(rank_scripts.save_forever, root, ELEMENTS, folder=tmp_path)
    try:
        wait_until(lambda: _progress(root) >= 1, "a save has returned")
        gang.kill(1)
        assert gang.wait(20.0) == [1, -9]
    finally:
        gang.close()
    assert "Connection closed by peer" in gang.output(0) or "Connection reset" in gang.output(0)


def _progress(root: Path) -> int:
    """The last step whose save has returned somewhere."""
    texts = [path.read_text() for path in root.glob("progress.*")]
    return max((int(text) for text in texts if text), default=0)


@pytest.mark.parametrize("victim", ["rank", "persister"])
def test_killed_at_every_file_operation_of_a_save(ranks: RankPool, tmp_path: Path, victim: str) -> None:
    """In turn, until the save survives: after each death there is a good checkpoint, whole, and the run goes
    on where only its persister died.
    """
    seen = set()
    hook = tmp_path / "hook"
    hook.mkdir()
    (hook / "sitecustomize.py").write_text(KILLED_AT)
    for number in range(1, 200):
        root = tmp_path / f"c-{number}"
        variables = {"PYTHONPATH": str(hook), "KILL_UNDER": str(root), "KILL_AT": str(number)}
        gang = ranks.start(
            rank_scripts.killed_at_file_operation,
            root,
            number,
            victim,
            folder=tmp_path,
            world_size=1,
            variables=[variables if victim == "persister" else {}],
        )
        try:
            survived = gang.wait() == [0] and gang.results() == ["survived"]
        finally:
            gang.close()
        scratch = Path((tmp_path / "scratch").read_text())  # an orphan finishes what was ordered, and goes
        wait_until(lambda at=scratch: not at.exists(), "shared memory is given back")  # type: ignore[misc]
        [found] = ranks.run(rank_scripts.restored_weights, root, 100, folder=tmp_path, world_size=1)
        step, count, weights = found
        assert (count, weights) == (step, [float(step)]), f"file operation {number}"
        seen.add(step)
        if survived:
            break
    assert survived
    assert number > 8, "hardly any operation was seen: the hook looks at the wrong ones"
    assert seen == {1, 2}


KILLED_AT = """
import os, signal, sys
if "paceline.training.persister" in sys.orig_argv:
    left, under = int(os.environ["KILL_AT"]), os.environ["KILL_UNDER"]
    armed = False

    def on_event(event, arguments):
        global left, armed
        if event in {"open", "os.rename", "os.mkdir", "os.remove", "os.rmdir", "os.listdir", "os.scandir"}:
            path = str(arguments[0])
            armed = armed or "step-00000002" in path
            if armed and path.startswith(under):
                left -= 1
                if left == 0:
                    os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(on_event)
"""
"""The persister's own end, in each of its file operations from the first about step 2 on."""
