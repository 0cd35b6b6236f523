"""What is remembered of each GPU, when it is tested, and what the test itself finds."""

import asyncio
import json
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from paceline.agent import gpu_tests
from paceline.agent.folder import BrokenFolder
from paceline.agent.gpu import Gpu, GpuReport, Slice
from paceline.agent.gpu_health import HealthBook, state_after
from paceline.agent.gpu_tests import GpuTester
from paceline.agent.inventory import GpuWatch
from paceline.spec.gpu_health import GpuState
from paceline.spec.xids import SYMPATHETIC, XIDS, Blame, Remedy, xid_of

OK, DRAINED, QUARANTINED = GpuState.OK, GpuState.DRAINED, GpuState.QUARANTINED
WELL = Gpu(0, uuid="GPU-a", ecc_uncorrected=0)
LOST = replace(WELL, state=QUARANTINED, health="lost: reboot", needs="lost: reboot")


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "gpus.json"


@pytest.mark.parametrize(
    ("xid", "blame", "state"),
    [
        (13, Blame.PROGRAM, OK),
        (31, Blame.PROGRAM, OK),
        (43, Blame.PROGRAM, OK),
        (45, Blame.PROGRAM, OK),
        (63, Blame.DEVICE, OK),
        (92, Blame.DEVICE, OK),
        (154, Blame.DEVICE, OK),
        (48, Blame.DEVICE, QUARANTINED),
        (79, Blame.DEVICE, QUARANTINED),
        (94, Blame.DEVICE, QUARANTINED),
        (95, Blame.DEVICE, QUARANTINED),
        (119, Blame.DEVICE, QUARANTINED),
        (74, Blame.LINK, DRAINED),
        (12345, Blame.UNKNOWN, DRAINED),
    ],
)
def test_xids_by_whose_fault_they_are(xid: int, blame: Blame, state: GpuState) -> None:
    assert (xid_of(xid).blame, state_after(xid_of(xid))) == (blame, state)
    assert xid_of(xid).meaning


def test_the_table_holds_together() -> None:
    assert all(number == xid.number and xid.meaning for number, xid in XIDS.items())
    assert XIDS.keys() >= SYMPATHETIC
    assert xid_of(79).remedy is Remedy.REBOOT and xid_of(95).remedy is Remedy.RESET
    assert not [xid for xid in XIDS.values() if xid.blame is Blame.PROGRAM and xid.remedy is Remedy.RESET]


def test_the_first_fault_is_the_reason_and_a_worse_one_takes_its_place(file: Path) -> None:
    book = HealthBook(file)
    assert book.judge(WELL, [31], 1) == WELL
    first = book.judge(WELL, [74, 12345], 5)
    assert (first.state, first.since_us, first.quarantines) == (DRAINED, 5, 1)
    assert first.health.startswith("XID 74: NVLink error") and "needs a reset" in first.health
    worse = book.judge(WELL, [95, 45], 9)
    assert (worse.state, worse.since_us, worse.quarantines) == (QUARANTINED, 5, 1)
    assert worse.health.startswith("XID 95")
    assert book.judge(WELL, [74], 12).health == worse.health


def test_what_only_the_driver_shows_stays_until_a_test(file: Path) -> None:
    book = HealthBook(file)
    assert book.judge(LOST, [], 3).state is QUARANTINED
    back = book.judge(WELL, [], 4)
    assert (back.state, back.health, back.needs, back.since_us) == (QUARANTINED, "lost: reboot", "", 3)


def test_ecc_errors_are_new_when_there_are_more_of_them(file: Path) -> None:
    book = HealthBook(file)
    old = replace(WELL, ecc_uncorrected=7)
    assert book.judge(old, [], 1).state is OK, "how old those are is not known"
    assert book.judge(replace(WELL, ecc_uncorrected=2), [], 2).state is OK, "the driver was loaded anew"
    book.save()
    book = HealthBook(file)
    bad = book.judge(replace(WELL, ecc_uncorrected=4), [], 3)
    assert bad.state is QUARANTINED and bad.health.startswith("2 new uncorrected ECC errors (4 ")


def test_it_outlives_the_agent_and_counts(file: Path) -> None:
    book = HealthBook(file)
    out = book.judge(WELL, [48], 10)
    book.save()
    outage = book.outage(WELL)
    assert outage is not None
    again = HealthBook(file)
    assert again.judge(WELL, [], 20) == out
    again.on_tested(WELL, outage, "")
    back = again.judge(WELL, [], 30)
    assert (back.state, back.health, back.since_us, back.quarantines) == (OK, "ok", 0, 1)
    assert again.judge(WELL, [48], 40).quarantines == 2


def test_one_that_cannot_tell_its_uuid_is_known_by_its_index(file: Path) -> None:
    book = HealthBook(file)
    book.judge(WELL, [79], 10)
    nameless = Gpu(0, state=QUARANTINED, health="lost", needs="lost")
    found = book.judge(nameless, [], 20)
    assert found.since_us == 10 and found.health.startswith("XID 79")


def test_what_is_heard_during_a_test_counts_more_than_the_test(file: Path) -> None:
    book = HealthBook(file)
    book.judge(WELL, [48], 10)
    outage = book.outage(WELL)
    assert outage is not None
    book.judge(WELL, [95], 11)
    book.on_tested(WELL, outage, "")
    assert book.judge(WELL, [], 12).state is QUARANTINED


def test_a_damaged_file_is_not_taken_for_good_health(file: Path) -> None:
    file.write_text('{"GPU-a": {"index": 0, "strange": 1}}')
    with pytest.raises(BrokenFolder, match="does not hold"):
        HealthBook(file)
    file.write_text("[")
    with pytest.raises(BrokenFolder):
        HealthBook(file)


def test_a_disk_that_takes_nothing_is_tried_again(file: Path, tmp_path: Path) -> None:
    book = HealthBook(tmp_path / "gone" / "gpus.json")
    book.judge(WELL, [48], 10)
    book.save()
    (tmp_path / "gone").mkdir()
    book.save()
    assert json.loads((tmp_path / "gone" / "gpus.json").read_text())["GPU-a"]["outage"]["why"]


# The tester.


class Seen(GpuWatch):
    """What the driver shows is what the test says; who looks is counted."""

    def __init__(self, book: HealthBook) -> None:
        super().__init__(lambda: None, book)
        self._seen_book = book
        self.gpu = WELL
        self.looks = 0

    def report(self) -> GpuReport:
        self.looks += 1
        return GpuReport("ok", gpus=(self._seen_book.judge(self.gpu, [], 1),))


class Bench:
    """A tester, and what it sees."""

    def __init__(self, file: Path, command: str, *, first_wait_s: float = 0.02) -> None:
        self.book = HealthBook(file)
        self.watch = Seen(self.book)
        self.busy, self.asked = False, 0
        self.book.judge(WELL, [48], 1)
        self.tester = GpuTester(
            self.watch, self.book, self._in_use, command=command, first_wait_s=first_wait_s
        )

    def _in_use(self, index: int) -> bool:
        self.asked += 1
        return self.busy

    def told(self) -> Gpu:
        return self.watch.report().gpus[0]

    async def until(self, what: Callable[[], bool]) -> None:
        until_s = time.monotonic() + 20
        while not what():
            assert time.monotonic() < until_s, self.told()
            await asyncio.sleep(0.005)


async def test_tested_when_free_and_when_the_driver_asks_for_nothing(
    file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gpu_tests, "LOOK_S", 0.02)
    seen = tmp_path / "seen"
    bench = Bench(file, f"sh -c 'echo $CUDA_VISIBLE_DEVICES >> {seen}'")
    bench.busy = True
    running = asyncio.create_task(bench.tester.run())
    try:
        await bench.until(lambda: bench.asked >= 3)
        assert not seen.exists(), "a task has it"
        bench.watch.gpu = LOST
        bench.busy = False
        looks = bench.watch.looks
        await bench.until(lambda: bench.watch.looks >= looks + 5)
        assert not seen.exists(), "it is lost"
        bench.watch.gpu = WELL
        await bench.until(lambda: bench.told().state is OK)
        assert seen.read_text() == "GPU-a\n"
    finally:
        running.cancel()
        await asyncio.wait([running])


async def test_in_mig_mode_each_slice_is_tested_and_the_first_that_fails_is_told(
    file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gpu_tests, "LOOK_S", 0.02)
    seen, gate = tmp_path / "seen", tmp_path / "gate"
    test = f"echo $CUDA_VISIBLE_DEVICES >> {seen}; test -e {gate} -o $CUDA_VISIBLE_DEVICES = MIG-a"
    bench = Bench(file, f"sh -c '{test} || {{ echo no gate; exit 1; }}'")
    divided = replace(WELL, mig_enabled=True)
    bench.watch.gpu = divided
    running = asyncio.create_task(bench.tester.run())
    try:
        looks = bench.watch.looks
        await bench.until(lambda: bench.watch.looks >= looks + 5)
        assert not seen.exists(), "without slices there is nothing to test"
        slices = tuple(Slice(at, 0, f"MIG-{uuid}", "A100 MIG 1g.5gb") for at, uuid in enumerate("abc"))
        bench.watch.gpu = replace(divided, slices=slices)
        await bench.until(lambda: "failed its test once: no gate" in bench.told().health)
        assert seen.read_text().split()[:2] == ["MIG-a", "MIG-b"]
        gate.touch()
        await bench.until(lambda: bench.told().state is OK)
        assert seen.read_text().split()[-3:] == ["MIG-a", "MIG-b", "MIG-c"]
    finally:
        running.cancel()
        await asyncio.wait([running])


@pytest.mark.parametrize(
    ("command", "says"),
    [
        ("sh -c 'echo first; echo 3 bytes are wrong; exit 1'", "3 bytes are wrong"),
        ("sh -c 'exit 9'", "it ended with 9"),
        ("/no/such/command", "could not be started"),
        ("sleep 600", "did not end within 0.3 s"),
    ],
)
async def test_a_test_that_fails_says_why_and_is_tried_later(
    file: Path, command: str, says: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gpu_tests, "TEST_S", 0.3 if "sleep" in command else 30.0)
    monkeypatch.setattr(gpu_tests, "LOOK_S", 0.02)
    bench = Bench(file, command)
    running = asyncio.create_task(bench.tester.run())
    try:
        await bench.until(lambda: "failed its test" in bench.told().health)
        assert says in bench.told().health and bench.told().state is QUARANTINED
    finally:
        running.cancel()
        await asyncio.wait([running])


def test_the_wait_doubles_up_to_an_hour(file: Path) -> None:
    bench = Bench(file, "true", first_wait_s=60)
    outage = bench.book.outage(WELL)
    assert outage is not None
    waits = [bench.tester._wait_s(replace(outage, failed_tests=failed), 1) for failed in (0, 1, 2, 50)]
    assert waits == [60, 120, 240, 3600]
    assert bench.tester._wait_s(outage, 3) == 240, "one that keeps going out of service waits longer"


# The test of a device, on the CPU, in a process of its own as agents run it.

BROKEN = """
import torch
from paceline.training import gpu_test
whole = torch.{name}
def broken(*args, **more):
    result = whole(*args, **more)
    result.view(-1)[5] += 1
    return result
torch.{name} = broken
import sys
sys.argv = ["gpu_test", "--device", "cpu"]
gpu_test.main()
"""


def python(*arguments: str) -> tuple[int, str]:
    """Its exit code and the last line that it said."""
    ended = subprocess.run(
        [sys.executable, "-P", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=120,
    )
    return ended.returncode, (ended.stdout.splitlines() or [""])[-1]


def test_a_device_that_works_passes() -> None:
    assert python("-m", "paceline.training.gpu_test", "--device", "cpu") == (0, "")


@pytest.mark.parametrize(
    ("broken", "says"),
    [
        ("mm", "product"),
        ("Tensor.clone", "1 of 67108864 bytes came back other"),
        ("Tensor.fill_", "1 bytes of its memory do not hold"),
    ],
)
def test_a_device_that_errs_fails(broken: str, says: str) -> None:
    code, said = python("-c", BROKEN.format(name=broken))
    assert code == 1 and says in said
