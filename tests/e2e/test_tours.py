"""`make demo` and `make faults` as a person runs them: what they show is true of a run of today, they end
well, and nothing of them is left.
"""

import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from paceline.client import process
from paceline.client.process import Identity
from support.cluster import wait_until

ROOT = Path(__file__).resolve().parents[2]
MARK = "PACELINE_TEST_TOUR"
TOUR_S = 250
Tour = Callable[[str], str]

pytestmark = [pytest.mark.slow, pytest.mark.serial]
"""They meet faults on purpose, and a hang is told from slowness by 5 s."""


@pytest.fixture
def tour(tmp_path: Path) -> Iterator[Tour]:
    """What a script of scripts/ has shown, in a home of its own; at the end nothing of it may be left."""
    clean = {key: value for key, value in os.environ.items() if not key.startswith(("PACELINE_", "XDG_"))}
    environment = {**clean, "HOME": str(tmp_path), "TMPDIR": str(tmp_path), MARK: str(tmp_path)}

    def run(name: str) -> str:
        shown = tmp_path / "shown"
        with shown.open("w") as file:  # not a pipe: whatever holds it open, we wait for the script alone
            started = subprocess.Popen(
                [sys.executable, str(ROOT / "scripts" / name)],
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=file,
                env=environment,
                cwd=tmp_path,
            )
            try:
                code = started.wait(TOUR_S)
            finally:
                if started.poll() is None:
                    started.send_signal(signal.SIGTERM)  # it takes down what it has started
                    started.wait(60)
        text = shown.read_text()
        assert code == 0, text
        return text

    yield run

    def left() -> list[Identity]:
        folder = str(tmp_path)
        return [
            *process.with_environment(MARK, lambda value: value == folder),
            *process.with_environment("PACELINE_TASK_FOLDER", lambda value: value.startswith(folder)),
        ]

    try:
        wait_until("nothing of it is left", lambda: not left(), 10)
    finally:
        process.kill_all(lambda: iter(left()), 10)
    assert not list(tmp_path.glob("paceline-*")), "its state is gone"


def told(shown: str) -> list[tuple[str, str]]:
    """The timeline: attempt and text of each entry."""
    return re.findall(r"^ +\+[\d:.]+  (a\d+|-) +(.*)$", shown, re.MULTILINE)


def ends(shown: str) -> list[tuple[str, str, str, str]]:
    """How attempts ended: number, class, "a" or "no" (retry used), why."""
    form = re.compile(r"attempt (\d+) ended \(([\w-]+), uses (a|no) retry\): (.*)")
    return [found.groups() for _, text in told(shown) if (found := form.match(text))]


def texts(shown: str, attempt: int) -> str:
    return "\n".join(text for at, text in told(shown) if at == f"a{attempt}")


def check_ledger(shown: str) -> set[str]:
    """Its parts' names. Rounded: what takes minutes is shown in whole seconds, without the rest."""
    whole = re.search(r"^  where the time went +(\S.*)$", shown, re.MULTILINE)
    parts = re.findall(r"^  [a-z#] (\w+) +(\S.*?) +([\d.]+)%$", shown, re.MULTILINE)
    assert whole and parts, shown
    whole_s, sum_s = seconds(whole[1]), sum(seconds(time) for _, time, _ in parts)
    assert sum_s == pytest.approx(whole_s, rel=0.01, abs=2), shown
    assert sum(float(share) for _, _, share in parts) == pytest.approx(100, abs=0.05 * len(parts) + 1e-6)
    productive = next(share for name, _, share in parts if name == "productive")
    assert f"goodput {productive}% of the " in shown or "queued" in {name for name, _, _ in parts}
    return {name for name, _, _ in parts}


def seconds(text: str) -> float:
    """Of "22.0 s", "34 ms", "1m 05s"."""
    units = {"ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0, "us": 1e-6, "µs": 1e-6}
    found = re.findall(r"([\d.]+) ?(ms|us|µs|s|m|h)", text)
    assert found, text
    return sum(float(number) * units[unit] for number, unit in found)


def test_faults_are_five_each_of_its_class_and_the_run_succeeds(tour: Tour) -> None:
    shown = tour("faults.py")
    for number in range(1, 6):
        assert re.search(rf"^{number}\. ", shown, re.MULTILINE), shown
    found = ends(shown)[:6]  # where cores are short, a hang of its own may come after them
    assert [(outcome, uses) for _, outcome, uses, _ in found] == [
        ("signal", "a"),
        ("hang", "a"),
        ("signal", "a"),
        ("node-lost", "no"),
        ("resized", "no"),
        ("preempted", "no"),
    ], shown
    killed, hung, fallen, lost, grown, preempted = (why for *_, why in found)
    assert re.match(r"rank 1 on local-\d was killed by signal 9 \(SIGKILL\)", killed)
    assert re.search(r"no step for .*: rank 1 on local-\d is stopped by a signal", hung)
    assert re.match(r"rank 0 on local-\d was killed by signal 9 \(SIGKILL\)", fallen)
    rotten = re.search(r"^3\. Step (\d+)'s checkpoint rots", shown, re.MULTILINE)
    assert rotten, shown
    restored = re.search(r"goes on from the checkpoint of step (\d+), read from storage.*", texts(shown, 4))
    assert restored and f"not good: step {rotten[1]} (attempt 3): " in restored[0], shown
    assert "hash differs" in restored[0] and int(restored[1]) < int(rotten[1])
    assert "local-1 is silent" in lost
    assert "goes on with 1 of 2 instances (min 1): local-1 lost" in texts(shown, 5)
    assert "to grow from 1 to 2 instances" in grown
    assert "goes on with 2 instances" in texts(shown, 6)
    assert preempted.startswith("preempted by ")
    assert told(shown)[-1][1] == "SUCCEEDED: all ranks exited with code 0"
    wanted = {"starting", "productive", "checkpoint", "lost", "restarting", "hung"}
    assert check_ledger(shown) >= wanted, shown


def test_the_demo_s_killed_worker_resumes_and_its_model_answers(tour: Tour) -> None:
    shown = tour("demo.py")
    assert re.search(r"^Killing rank 1 \(kill -9 \d+\) after checkpoint \d+$", shown, re.MULTILINE), shown
    [(_, outcome, _, why)] = ends(shown)
    assert outcome == "signal" and re.match(r"rank 1 on local-\d was killed by signal 9", why)
    assert re.search(r"goes on from the checkpoint of step \d+, read from ", texts(shown, 2)), shown
    assert told(shown)[-1] == ("a2", "SUCCEEDED: all ranks exited with code 0")
    assert check_ledger(shown) >= {"starting", "productive", "lost", "restarting"}
    assert re.search(r"^\d+ of 360 are right \(9\d\.\d%\)$", shown, re.MULTILINE), shown
    assert "endpoint:digits" in shown
