"""Ranks that are still: stacks by whatever can take them, and slow work that is no hang; real processes."""

import asyncio
import os
import pickle
import select
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from paceline.agent import flight_recorder, kernel
from paceline.agent.ranks import Worker
from paceline.agent.stacks import CAPTURE_S, Capture
from paceline.agent.stillness import Patience
from paceline.proto.beats import NAME, RANKS_MAX, SLOT_BYTES, read_beats
from support.processes import ended, key, of_kind, output, start_task, supervised, until

STUCK = """
import sys, time
from paceline.proto.beats import answer_stack_signal
if "deaf" not in sys.argv:
    answer_stack_signal()
def waits_here():
    print("ready", flush=True)
    time.sleep(1e6)
def on_the_way():
    waits_here()
on_the_way()
"""

BEATS = """
import multiprocessing, os, sys, time
from paceline.proto.beats import BEAT, SAVES
def burn(seconds):
    end = time.monotonic() + seconds
    while time.monotonic() < end: pass
def step(): BEAT.stepped(); time.sleep(0.02)
def steps():
    for _ in range(20): step()
"""
SLOW = {
    "a long first step": "time.sleep(9); steps()",
    "a long evaluation": "steps(); burn(9); steps()",
    "an evaluation by a child": (
        "steps(); fork = multiprocessing.get_context('fork')\n"
        "child = fork.Process(target=burn, args=(9,)); child.start(); child.join()"
    ),
    "a long save": "steps()\nwith BEAT.phase(SAVES): time.sleep(9)\nsteps()",
    "as slow as before": "step(); time.sleep(2.5); step(); time.sleep(9); step()",
    "no step at all": "time.sleep(9)",
}
STILL = {
    "idle": "steps(); time.sleep(1e6)",
    "idle after work": "steps(); burn(3); time.sleep(1e6)",
}


class Stuck:
    """A process that is stuck, with its log, as the shim has a rank."""

    def __init__(self, folder: Path, *args: str) -> None:
        script = folder / "stuck.py"
        script.write_text(STUCK)
        self.worker = Worker(0, 3, str(folder / "rank-3.log"))
        log = self.worker.log_fd
        self.process = subprocess.Popen([sys.executable, script, *args], stdout=log, stderr=log)
        self.worker.pid = self.process.pid

    def stop(self) -> None:
        os.kill(self.process.pid, signal.SIGSTOP)
        os.waitpid(self.process.pid, os.WUNTRACED)

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        os.close(self.worker.log_fd)


def spy() -> str:
    found = shutil.which("py-spy", path=os.path.dirname(sys.executable))  # noqa: PTH120
    assert found, "py-spy is among the packages for development"
    return found


def captured(stuck: Any, interpreter: str, variables: dict[str, str] | None = None) -> dict[str, Any]:
    """As the shim does it: on its clock, hearing of its children."""
    launch = {"executable": interpreter, "environment": {"PATH": "/nowhere", **(variables or {})}}
    begun = time.monotonic()
    capture = Capture(launch, begun, "no step for long")
    capture.begin([stuck.worker], [], os.getpid(), begun)
    while not capture.poll(time.monotonic()):
        for child in kernel.children(os.getpid()):
            if child != stuck.process.pid:
                pid, status = os.waitpid(child, os.WNOHANG)
                if pid:
                    capture.on_exit(pid, os.waitstatus_to_exitcode(status), time.monotonic())
        time.sleep(0.01)
    assert time.monotonic() - begun < CAPTURE_S + 20
    [found] = capture.finish(2000)
    return found


@pytest.fixture
def stuck(tmp_path: Path, request: pytest.FixtureRequest) -> Any:
    made = Stuck(tmp_path, *getattr(request, "param", ()))
    deadline = time.monotonic() + 20
    while b"ready" not in Path(made.worker.log).read_bytes():
        assert time.monotonic() < deadline
        time.sleep(0.01)
    yield made
    made.close()


def test_a_rank_shows_where_it_is_by_itself(stuck: Stuck) -> None:
    found = captured(stuck, "/nowhere/python")
    assert (found["rank"], found["how"], found["state"]) == (3, "faulthandler", "sleeping")
    frames = found["stack"].splitlines()
    assert frames[0].startswith("waits_here (") and frames[1].startswith("on_the_way ("), frames
    assert stuck.process.poll() is None, "it goes on as before"
    log = Path(stuck.worker.log).read_text()
    assert "where rank 3 is, by faulthandler" in log and "in waits_here" in log


def test_py_spy_sees_also_what_is_stopped(stuck: Stuck) -> None:
    spy()
    stuck.stop()
    found = captured(stuck, sys.executable)
    assert found["state"] == "stopped by a signal"
    assert found["how"] == "py-spy" and found["stack"].startswith("waits_here (")
    assert "where rank 3 is, by py-spy" in Path(stuck.worker.log).read_text()


def test_a_stopped_rank_is_not_waited_for(stuck: Stuck) -> None:
    stuck.stop()
    begun = time.monotonic()
    found = captured(stuck, "/nowhere/python")
    assert time.monotonic() - begun < CAPTURE_S
    assert (found["state"], found["how"], found["stack"]) == ("stopped by a signal", "", "")


@pytest.mark.parametrize("stuck", [("deaf",)], indirect=True)
def test_a_process_that_does_not_catch_the_signal_never_gets_it(stuck: Stuck) -> None:
    """It would die of it."""
    found = captured(stuck, "/nowhere/python")
    assert (found["how"], found["stack"]) == ("", "")
    assert stuck.process.poll() is None


def test_a_flight_recorder_is_asked_and_its_file_is_named(stuck: Stuck, tmp_path: Path) -> None:
    """Its side is played as torch's source has it: a named pipe, read now and then, and a file."""
    variables = flight_recorder.variables(str(tmp_path), str(tmp_path), 2, {}, old_names=False)
    assert "trace" not in captured(stuck, "/nowhere/python", variables), "no pipe: no group"
    folder = Path(flight_recorder.trace_folder(str(tmp_path), 2))
    folder.mkdir(parents=True)
    ring = [
        collective("0", 0, 90, ended=False),  # of a group that was made again
        collective("0", 2, 40, ended=True),
        collective("0", 2, 41, ended=True),
        collective("1", 1, 2, ended=False),
        collective("1", 1, 9, ended=False, p2p=True),
    ]
    pipe = f"{variables['TORCH_NCCL_DEBUG_INFO_PIPE_FILE']}3.pipe"
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    trace = folder / "collectives-3"
    trace.write_bytes(pickle.dumps({"entries": []}))
    os.utime(trace, (1, 1))  # of an earlier time

    def play() -> None:
        ready, _, _ = select.select([reader], [], [], 20)
        assert ready and os.read(reader, 128)
        trace.write_bytes(pickle.dumps({"entries": ring})[:-1])
        time.sleep(0.2)  # it is being written
        trace.write_bytes(pickle.dumps({"entries": ring}))

    recorder = threading.Thread(target=play)
    recorder.start()
    found = captured(stuck, "/nowhere/python", variables)
    recorder.join()
    os.close(reader)
    assert found["trace"] == str(trace) and found["how"] == "faulthandler"
    assert [(each["group"], each["last"], each["waiting"]) for each in found["groups"]] == [
        ("1", 2, 2),
        ("0", 41, 0),
    ]


def collective(group: str, made: int, number: int, *, ended: bool, p2p: bool = False) -> dict[str, Any]:
    """As torch 2.13 tells one, without what is not read."""
    return {
        "process_group": (group, "default_pg"),
        "pg_id": made,
        "collective_seq_id": number,
        "profiling_name": "nccl:all_reduce",
        "state": "completed" if ended else "started",
        "retired": False,
        "is_p2p": p2p,
    }


def test_a_trace_that_would_call_something_is_not_read(tmp_path: Path) -> None:
    class Harm:
        def __reduce__(self) -> Any:
            return Path.touch, (tmp_path / "harmed",)

    trace = tmp_path / "trace"
    trace.write_bytes(pickle.dumps({"entries": [], "more": Harm()}))
    assert flight_recorder.read(str(trace), 0) is None and not (tmp_path / "harmed").exists()
    trace.write_bytes(pickle.dumps({"entries": []}))
    assert flight_recorder.read(str(trace), 0) == []
    trace.write_bytes(pickle.dumps([1]))
    assert flight_recorder.read(str(trace), 0) is None, "another version's"


async def test_slow_work_is_no_hang_and_idleness_is(tmp_path: Path) -> None:
    """Patience in small: 2 s when idle, a minute when busy. All at once, on few cores."""
    patience = Patience(idle_s=2.0, busy_s=60.0)
    async with supervised(tmp_path / "state", patience=patience) as supervisor:
        tasks = {}
        for number, (name, body) in enumerate({**SLOW, **STILL}.items(), 1):
            code = tmp_path / f"code-{number}"
            code.mkdir()
            (code / "train.py").write_text(BEATS + body)
            tasks[name] = key(number)
            await supervisor.start(start_task(tasks[name], "python train.py", code))

        def told(name: str) -> list[Any]:
            return of_kind(supervisor.entries(tasks[name], 0, 1000), "stalled")

        for name in STILL:
            await until(lambda name=name: told(name), f"{name} is told", 60)
            stall = told(name)[0]
            assert stall.idle and stall.still_s >= stall.limit_s == 2.0 and stall.step == 20, stall
        await supervisor.inspect(tasks["idle"])
        inspected = await until(
            lambda: of_kind(supervisor.entries(tasks["idle"], 0, 1000), "inspected"), "stacks are told", 20
        )
        assert inspected[0].stalled and inspected[0].begun
        [rank] = inspected[0].ranks
        assert rank.steps == 20 and rank.stack.startswith("<module> (") and "train.py" in rank.stack, rank
        for name in SLOW:
            entries = await ended(supervisor, tasks[name], 90)
            assert not of_kind(entries, "stalled"), (name, entries)
            assert list(of_kind(entries, "ended")[0].exit_codes) == [0], output(supervisor, tasks[name])
        for name in STILL:
            await supervisor.stop(tasks[name], 0.0, "enough")
        await asyncio.gather(*(ended(supervisor, tasks[name]) for name in STILL))


async def test_a_limit_of_the_job_and_what_came_before_change_the_patience(tmp_path: Path) -> None:
    (tmp_path / "train.py").write_text(BEATS + STILL["idle"])
    async with supervised(tmp_path / "state", patience=Patience(idle_s=1.0, busy_s=60.0)) as supervisor:
        more = {1: {"hang_timeout_s": 2.0}, 2: {"earlier_hangs": 1}, 3: {"hang_timeout_s": -1.0}}
        for number, fields in more.items():
            await supervisor.start(start_task(key(number), "python train.py", tmp_path, **fields))

        def told(number: int) -> list[Any]:
            return of_kind(supervisor.entries(key(number), 0, 1000), "stalled")

        for number in (1, 2):
            await until(lambda number=number: told(number), "it is told", 30)
            assert told(number)[0].limit_s == 2.0
        assert not told(3)


def test_what_a_job_writes_there_harms_nobody(tmp_path: Path) -> None:
    """Cut short, too long, not numbers: the shim reads what makes sense."""
    path = tmp_path / NAME
    for content in (
        b"",
        b"\x01",
        b"\xff" * 200,
        b"\x00" * SLOT_BYTES,
        os.urandom(RANKS_MAX * SLOT_BYTES + 99),
    ):
        path.write_bytes(content)
        fd = os.open(path, os.O_RDONLY)
        try:
            assert all(0 <= beats.slot < RANKS_MAX for beats in read_beats(fd))
        finally:
            os.close(fd)
