"""The harness: what a ratio means, how pairs alternate, what the JSON holds; and how a run is compared."""

import json
import os
import sys
import time
from pathlib import Path

import psutil
import pytest

sys.path.append(str(Path(__file__).resolve().parents[2]))  # benchmarks are run from the checkout's root

from benchmarks import harness, records
from benchmarks.peers.processes import Crew, free_port, is_free, run
from benchmarks.peers.work.driver import Driver
from benchmarks.peers.work.waiting import wait_until


def sample(*values: float) -> harness.Sample:
    return harness.Sample(values)


def test_a_time_is_better_when_it_is_less() -> None:
    row = harness.Row("c", "m", "s", sample(0.5, 0.1, 0.2), "peer", sample(4.0), "floor", sample(0.05))
    assert row.ratio == pytest.approx(20)
    assert row.fraction == pytest.approx(0.25)


def test_a_rate_is_better_when_it_is_more() -> None:
    row = harness.Row("c", "m", "jobs/s", sample(300.0), "peer", sample(60.0), "floor", sample(600.0))
    assert row.ratio == pytest.approx(5)
    assert row.fraction == pytest.approx(0.5)


def test_without_a_peer_there_is_no_ratio() -> None:
    row = harness.Row("c", "m", "s", sample(1.0))
    assert row.ratio is None
    assert row.fraction is None


def test_measures_take_turns() -> None:
    order: list[str] = []

    def measure(name: str, value: float) -> float:
        order.append(name)
        return value

    taken = harness.alternate(3, lambda: measure("a", 1.0), lambda: measure("b", 2.0))
    assert order == ["a", "b"] * 3
    assert [each.values for each in taken] == [(1.0, 1.0, 1.0), (2.0, 2.0, 2.0)]


def test_quantiles_are_values_that_were_measured() -> None:
    values = [float(number) for number in range(100, 0, -1)]
    assert harness.quantile(values, 0.5) == 51
    assert harness.quantile(values, 0.99) == 100
    assert harness.quantile([7.0], 0.99) == 7


def test_quick_is_one_pair_and_pairs_are_checked(capsys: pytest.CaptureFixture[str]) -> None:
    assert harness.options("x", "about", ["--quick"]).pairs == 1
    assert harness.options("x", "about", []).pairs >= 5
    with pytest.raises(SystemExit):
        harness.options("x", "about", ["--pairs", "0"])
    assert "at least 1" in capsys.readouterr().err


def test_the_report_is_printed_and_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    row = harness.Row("case", "metric", "s", sample(1.0, 2.0, 3.0), "peer", sample(8.0), "floor", sample(1.0))
    report = harness.Report("name", [row], {"peer": "1.2"})
    report.left_out("another: not installed")
    given = harness.Options(quick=False, pairs=3, json=tmp_path / "out.json", plot=tmp_path / "out.png")
    report.finish(given)
    printed = capsys.readouterr().out
    assert "4.0 x" in printed
    assert "left out: another: not installed" in printed
    told = json.loads((tmp_path / "out.json").read_text())
    assert told["name"] == "name"
    assert told["versions"]["peer"] == "1.2"
    assert told["machine"]["cpus"] >= 1
    (line,) = told["rows"]
    wanted = {"case", "metric", "unit", "ours", "peer", "theirs", "ratio", "floor", "fraction"}
    assert wanted <= line.keys()
    assert (line["ours"], line["theirs"], line["ratio"], line["fraction"]) == (2.0, 8.0, 4.0, 0.5)
    assert (tmp_path / "out.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.0, "0"), (0.04412, "0.0441"), (12.345, "12.3"), (99.99, "100"), (1234.5, "1,234")],
)
def test_numbers_keep_three_digits(value: float, text: str) -> None:
    assert harness.number(value) == text


def put(folder: Path, process: str, *steps: tuple[int, float], rank: int = 0, world: int = 1) -> None:
    """A step has two samples, which two ranks share."""
    place = {"rank": rank, "world": world}
    lines = [{"kind": "ready", "at": 0.0, **place, "pid": 1, "start": 0}]
    for step, at in steps:
        samples = [2 * step, 2 * step + 1][rank : rank + 2 // world]
        lines.append({"kind": "step", "at": at, **place, "step": step, "loss": step / 2, "samples": samples})
    folder.mkdir(exist_ok=True)
    (folder / f"{process}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


def test_a_run_that_was_interrupted_and_went_on_is_the_same_run(tmp_path: Path) -> None:
    put(tmp_path / "whole", "p", (0, 1.0), (1, 2.0), (2, 3.0))
    put(tmp_path / "cut", "p", (0, 1.0), (1, 2.0))
    put(tmp_path / "cut", "q", (1, 7.0), (2, 8.0))
    assert records.differences(tmp_path / "cut", tmp_path / "whole") == []
    assert records.next_step_at(tmp_path / "cut", 2.5, frozenset({"p"})) == 7.0


def test_a_skipped_step_and_another_loss_are_found(tmp_path: Path) -> None:
    put(tmp_path / "whole", "p", (0, 1.0), (1, 2.0), (2, 3.0))
    put(tmp_path / "cut", "p", (0, 1.0), (2, 3.0))
    changed = (tmp_path / "cut" / "p.jsonl").read_text().replace('"loss": 1.0', '"loss": 1.5')
    (tmp_path / "cut" / "p.jsonl").write_text(changed)
    found = records.differences(tmp_path / "cut", tmp_path / "whole")
    assert len(found) == 2
    assert "step 1: only in one run" in found
    assert any("step 2: loss 1.5, expected 1.0" in line for line in found)


def test_a_run_that_grew_is_the_same_run(tmp_path: Path) -> None:
    put(tmp_path / "whole", "p", (0, 1.0), (1, 2.0), (2, 3.0))
    put(tmp_path / "grown", "p", (0, 1.0), (1, 2.0))
    assert records.growth(tmp_path / "grown", 2) is None
    put(tmp_path / "grown", "q", (1, 7.0), (2, 8.0), world=2)
    assert records.growth(tmp_path / "grown", 2) is None
    put(tmp_path / "grown", "r", (1, 7.5), (2, 8.5), rank=1, world=2)
    assert records.growth(tmp_path / "grown", 2) == records.Growth(
        stood_at=2.0, went_on_at=7.5, first=1, again=1
    )
    assert records.differences(tmp_path / "grown", tmp_path / "whole") == []
    put(tmp_path / "grown", "q", (1, 7.0), (2, 8.0), (3, 9.0), world=2)
    assert records.differences(tmp_path / "grown", tmp_path / "whole", until=3) == []
    assert records.differences(tmp_path / "grown", tmp_path / "whole") == ["step 3: only in one run"]


def test_a_skipped_sample_is_found(tmp_path: Path) -> None:
    put(tmp_path / "whole", "p", (0, 1.0))
    put(tmp_path / "cut", "p", (0, 1.0), rank=1, world=2)
    assert records.differences(tmp_path / "cut", tmp_path / "whole") == [
        "step 0: samples [1], expected [0, 1]"
    ]


def test_a_line_that_is_still_being_written_is_not_there_yet(tmp_path: Path) -> None:
    put(tmp_path / "run", "p", (0, 1.0))
    with (tmp_path / "run" / "p.jsonl").open("a") as file:
        file.write('{"kind": "step", "at": 2.0, "ra')
    assert [step.step for step in records.steps(tmp_path / "run")] == [0]


def test_a_crew_leaves_nobody_behind(tmp_path: Path) -> None:
    script = f"{sys.executable} -c 'import time; time.sleep(600)' & echo $! > {tmp_path}/child; wait"
    with Crew(tmp_path) as crew:
        process = crew.start("shell", ["sh", "-c", script])
        child = wait_until(
            lambda: (tmp_path / "child").exists() and (tmp_path / "child").read_text(), "child"
        )
        family = [psutil.Process(process.pid), psutil.Process(int(child))]
    assert process.returncode is not None
    assert not [each for each in family if each.is_running() and each.status() != psutil.STATUS_ZOMBIE]


def test_ports_that_are_given_are_free() -> None:
    first = free_port(3)
    assert all(is_free(first + number) for number in range(3))


def test_a_command_that_fails_says_what_it_said() -> None:
    with pytest.raises(RuntimeError, match=r"exit 3\nout\nbad"):
        run(["sh", "-c", "echo out; echo bad >&2; exit 3"])


def test_a_driver_answers_raises_and_ends(tmp_path: Path) -> None:
    work = Path(records.__file__).parent / "peers" / "work"
    server = tmp_path / "server.py"
    server.write_text(
        f"import sys; sys.path.insert(0, {str(work)!r})\n"
        "from driver import claim_stdout, serve\n"
        "answers = claim_stdout()\n"
        "print('not an answer')\n"
        "serve(answers, double=lambda value: 2 * value, fail=lambda: 1 / 0)\n"
    )
    with Driver("server", [sys.executable, str(server)], tmp_path, {}) as driver:
        assert driver.ask("double", value=21) == 42
        with pytest.raises(RuntimeError, match="ZeroDivisionError"):
            driver.ask("fail")
        pid = driver.pid
    assert not psutil.pid_exists(pid)


def test_waiting_has_a_deadline() -> None:
    began = time.monotonic()
    with pytest.raises(TimeoutError, match="never: not so after"):
        wait_until(lambda: False, "never", timeout_s=0.05)
    assert time.monotonic() - began < 60
    assert wait_until(os.getpid, "at once") == os.getpid()
