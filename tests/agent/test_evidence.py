"""What is found of a rank's death: in what real interpreters print, in what torchrun's scripts record."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from paceline.agent.containment import NODE_OUT_OF_MEMORY, memory_verdict
from paceline.agent.evidence import (
    LINES_CHARS_MAX,
    MESSAGE_CHARS_MAX,
    TRACEBACK_CHARS_MAX,
    error_path,
    find_traceback,
    record_error,
    what_is_left,
)
from paceline.agent.kernel import killed_for_memory, names_killed


def printed(script: str, folder: Path) -> str:
    """What an interpreter says of it."""
    (folder / "script.py").write_text(script)
    return subprocess.run([sys.executable, "script.py"], cwd=folder, capture_output=True, text=True).stderr


@pytest.mark.parametrize(
    ("script", "error_type", "message"),
    [
        ("def f(:\n    pass", "SyntaxError", "invalid syntax"),
        ("if True:\npass", "IndentationError", "expected an indented block after 'if' statement on line 1"),
        ("import no_such_module", "ModuleNotFoundError", "No module named 'no_such_module'"),
        ("raise ValueError('one\\ntwo')", "ValueError", "one"),
        ("raise ValueError", "ValueError", ""),
        ("class Odd(Exception): pass\nraise Odd('x: y')", "Odd", "x: y"),
        (
            "import json\njson.loads('')",
            "json.decoder.JSONDecodeError",
            "Expecting value: line 1 column 1 (char 0)",
        ),
        ("try:\n    1 / 0\nexcept Exception as e:\n    raise KeyError('k') from e", "KeyError", "'k'"),
        ("raise ExceptionGroup('g', [ValueError(1)])", "ExceptionGroup", "g (1 sub-exception)"),
    ],
)
def test_what_an_interpreter_prints_is_understood(
    tmp_path: Path, script: str, error_type: str, message: str
) -> None:
    said = printed(script, tmp_path)
    for text in (
        said,
        "step 1\nstep 2\n" + "".join(f"[rank3]: {line}" for line in said.splitlines(keepends=True)),
    ):
        found = find_traceback(text)
        assert found is not None
        assert (found.error_type, found.message) == (error_type, message)
        assert "script.py" in found.text and "step 1" not in found.text


def test_of_a_chain_all_of_it_is_kept_and_of_two_errors_the_last() -> None:
    handled = 'Traceback (most recent call last):\n  File "a.py", line 1, in <module>\nOSError: earlier\n'
    last = "Traceback (most recent call last):\n  File \"a.py\", line 9, in <module>\nKeyError: 'k'\n"
    chain = f"{handled}\nDuring handling of the above exception, another exception occurred:\n\n{last}"
    apart, together = find_traceback(f"{handled}went on\n{last}"), find_traceback(chain)
    assert apart is not None and together is not None
    assert apart.error_type == together.error_type == "KeyError"
    assert "OSError" not in apart.text and "OSError: earlier" in together.text


@pytest.mark.parametrize(
    "text", ["", "\n\n", "all is well", "Traceback (most recent call last):\n  File", "a: b\nSyntaxError: no"]
)
def test_where_there_is_no_error_none_is_seen(text: str) -> None:
    assert find_traceback(text) is None


RAY = """Traceback (most recent call last):
  File "train.py", line 11, in <module>
    TorchTrainer(loop).fit()
  File "ray/train/v2/api/data_parallel_trainer.py", line 195, in fit
    raise result.error
ray.train.WorkerGroupError: Training failed due to worker errors:
"""
PEER_LEFT = """[Rank 0,2 Error Snippet]:
Traceback (most recent call last):
  File "train.py", line 8, in loop
    dist.barrier()
RuntimeError: [gloo/transport/tcp/pair.cc:537] Read error [127.0.0.1]:32406: Connection reset by peer. GLHF!

"""
OUT_OF_MEMORY = """[Rank 1 Error Snippet]:
Traceback (most recent call last):
  File "train.py", line 7, in loop
    torch.zeros(10**15)
torch.OutOfMemoryError: CUDA out of memory

"""
DIED = """[Rank 1 Error Snippet]:
A worker health check failed.
Worker info: Worker(
  actor=Actor(RayTrainWorker, f7b9116d408ae950ad63f06a03000000),
)
The actor died unexpectedly before finishing this task.
	pid: 1072
The actor is dead because its worker process has died. Worker exit type: SYSTEM_ERROR Worker exit detail: \
Worker unexpectedly exits with a connection error code 2. End of file. Some common causes include: (1) the \
process was killed by the OOM killer due to high memory usage, (2) ray stop --force was called
"""
NODE_DIED = DIED.replace("its worker process has died.", "its node has died.")
CUT = """[Rank 3 Error Snippet]:
Traceback (most recent call last):
  File "train.py", line 7, in loop
    handle(o...
... (Output truncated. See individual worker logs for full details) ...
ndling of the above exception, another exception occurred:

Traceback (most recent call last):
  File "train.py", line 9, in loop
    raise KeyError("k")
KeyError: 'k'

"""
CUT_TO_THE_END = """[Rank 4 Error Snippet]:
Traceback (most recent call last):
  File "tra...
... (Output truncated. See individual worker logs for full details) ...
the end of a long message
"""
AFTERWARDS = "\x1b[36m(RayTrainWorker pid=1072)\x1b[0m Traceback (most recent call last):\n"


@pytest.mark.parametrize(
    ("workers", "error_type", "message"),
    [
        (PEER_LEFT + OUT_OF_MEMORY, "torch.OutOfMemoryError", "CUDA out of memory"),
        (OUT_OF_MEMORY + PEER_LEFT, "torch.OutOfMemoryError", "CUDA out of memory"),
        (OUT_OF_MEMORY + CUT, "torch.OutOfMemoryError", "CUDA out of memory"),
        (PEER_LEFT, "RuntimeError", "[gloo/transport/tcp/pair.cc:537] Read error"),
        (PEER_LEFT + DIED, "ray.train.WorkerGroupError", "a worker was killed by a signal, or ended without"),
        (DIED, "ray.train.WorkerGroupError", "a worker was killed by a signal, or ended without a word."),
        (NODE_DIED, "ray.train.WorkerGroupError", "The actor is dead because its node has died."),
        (PEER_LEFT + CUT, "KeyError", "'k'"),
        (CUT, "KeyError", "'k'"),
        (PEER_LEFT + CUT_TO_THE_END, "ray.train.WorkerGroupError", "the end of a long message"),
    ],
)
def test_of_rays_workers_the_one_that_did_not_merely_lose_a_peer(
    workers: str, error_type: str, message: str
) -> None:
    found = find_traceback(f"step 1\n{RAY}{workers}{AFTERWARDS}")
    assert found is not None
    assert found.error_type == error_type
    assert found.message.startswith(message) and "common causes" not in found.message
    assert found.text.startswith("[Rank ") and "pid=1072" not in found.text


def test_what_rays_driver_handled_and_survived_is_not_what_it_ended_of() -> None:
    last = "Traceback (most recent call last):\n  File \"a.py\", line 9, in <module>\nKeyError: 'k'\n"
    for handled in (RAY + OUT_OF_MEMORY, RAY + DIED):
        found = find_traceback(f"{handled}went on\n{last}")
        assert found is not None and found.error_type == "KeyError"
    again = find_traceback(f"{RAY}{OUT_OF_MEMORY}went on\n{RAY}{PEER_LEFT}{CUT}")
    assert again is not None and again.error_type == "KeyError"


def left(folder: Path, output: str, *, killed_by_us: bool = False) -> tuple[str, dict[str, object]]:
    log = folder / "rank-0.log"
    log.write_text(output)
    return what_is_left(str(log), error_path(str(folder), 0), killed_by_us=killed_by_us)


def record(folder: Path, text: str) -> None:
    Path(error_path(str(folder), 0)).write_text(text)


def test_all_is_bounded(tmp_path: Path) -> None:
    frames = "".join(f'  File "a.py", line {n}, in f\n    {"x" * 80}\n' for n in range(2000))
    log = f"Traceback (most recent call last):\n{frames}ValueError: {'y' * 5000}\n"
    try:
        exec(compile("raise ValueError('y' * 10**6)", "a.py", "exec"))
    except ValueError as error:
        record_error(error_path(str(tmp_path), 0), type(error), error, error.__traceback__)
    line, found = left(tmp_path, log)
    assert len(line) == 500
    assert 900 < len(str(found["message"])) <= MESSAGE_CHARS_MAX
    assert "in test_all_is_bounded" in str(found["traceback"])
    assert len(str(found["traceback"])) <= TRACEBACK_CHARS_MAX
    assert len(str(found["last_lines"])) <= LINES_CHARS_MAX


def test_a_record_is_believed_before_the_output(tmp_path: Path) -> None:
    before = time.monotonic()
    try:
        raise KeyError("recorded")
    except KeyError as error:
        record_error(error_path(str(tmp_path), 0), type(error), error, error.__traceback__)
    _, found = left(tmp_path, "Traceback (most recent call last):\n  File\nValueError: printed\n")
    assert (found["error_type"], found["message"], found["recorded"]) == ("KeyError", "'recorded'", True)
    assert "test_evidence.py" in str(found["traceback"])
    assert before - 1 <= float(str(found["at_monotonic_s"])) <= time.monotonic()


def test_the_first_record_stays(tmp_path: Path) -> None:
    """That of `@record` is nearer to the cause than what the launcher above it raises."""
    path = error_path(str(tmp_path), 0)
    for error in (ValueError("first"), RuntimeError("second")):
        record_error(path, type(error), error, None)
    assert json.loads(Path(path).read_text())["message"]["message"] == "ValueError: first"


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[]",
        '"x"',
        '{"message": null}',
        '{"message": 3}',
        '{"message": {"message": ["x"]}}',
        "[" * 100_000,
    ],
)
def test_a_broken_record_is_none(tmp_path: Path, text: str) -> None:
    record(tmp_path, text)
    _, found = left(tmp_path, "the end\n")
    assert found == {"last_lines": "the end"}


def test_what_the_job_put_in_the_records_place_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(error_path(str(tmp_path), 0))
    assert left(tmp_path, "the end\n")[1] == {"last_lines": "the end"}


def test_torchrun_records_are_read(tmp_path: Path) -> None:
    """Of a launcher below: with an error code, and with a message alone."""
    record(tmp_path, json.dumps({"message": {"message": "RuntimeError: x", "errorCode": 1, "extraInfo": {}}}))
    assert left(tmp_path, "")[1]["error_type"] == "RuntimeError"
    record(tmp_path, json.dumps({"message": "ValueError: y"}))
    assert left(tmp_path, "")[1]["message"] == "y"


def test_of_a_rank_that_we_killed_only_what_it_had_failed_of(tmp_path: Path) -> None:
    trace = 'Traceback (most recent call last):\n  File "a.py", line 1, in <module>\nValueError: x\n'
    assert left(tmp_path, "step 7\n", killed_by_us=True) == ("step 7", {})
    assert left(tmp_path, f"{trace}step 7\nstep 8\nstep 9\nstep 10\n", killed_by_us=True)[1] == {}
    assert left(tmp_path, f"{trace}warning: a leak\n", killed_by_us=True)[1]["error_type"] == "ValueError"


OOM_KILL = (
    b"<4>[ 5123.100000] python invoked oom-killer: gfp_mask=0xcc0(GFP_KERNEL), order=0, oom_score_adj=0\n"
    b"<3>[ 5123.456789] Memory cgroup out of memory: Killed process 4711 (python) total-vm:9000kB\n"
    b"<3>[ 5200.000001] Out of memory: Killed process 815 (train) total-vm:9000kB\n"
)


@pytest.mark.parametrize(
    ("pid", "now_s", "killed"),
    [(4711, 5124.0, True), (815, 5200.5, True), (47, 5124.0, False), (4711, 9000.0, False)],
)
def test_the_kernels_log_names_what_it_killed_lately(pid: int, now_s: float, killed: bool) -> None:
    assert names_killed(OOM_KILL, pid, now_s) is killed


def test_the_kernels_own_log_can_be_asked_or_says_no() -> None:
    assert killed_for_memory(os.getpid()) is False


@pytest.mark.parametrize(
    ("events", "verdict"),
    [
        (
            "low 0\nmax 3\noom 1\noom_kill 2\noom_group_kill 0\n",
            "out of memory: the task reached its limit of 96 MiB",
        ),
        ("oom 0\noom_kill 2\n", NODE_OUT_OF_MEMORY),
        ("oom 1\noom_kill 0\n", ""),
        (None, ""),
    ],
)
def test_a_group_says_whether_the_kernel_killed_in_it(
    tmp_path: Path, events: str | None, verdict: str
) -> None:
    if events is not None:
        (tmp_path / "memory.events").write_text(events)
        (tmp_path / "memory.max").write_text(f"{96 << 20}\n")
    assert memory_verdict(str(tmp_path)) == verdict


def test_without_a_log_there_is_nothing(tmp_path: Path) -> None:
    assert what_is_left(str(tmp_path / "none"), str(tmp_path / "nor this"), killed_by_us=False) == ("", {})
