"""`paceline.init()` and what needs no torch: the environment, reports, stopping."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from paceline.spec.retention import Retention
from paceline.training.environment import Environment, read_environment
from paceline.training.errors import GangNotReady, InvalidEnvironment, InvalidMetric
from paceline.training.run import Run
from paceline.training.stop import StopNotice
from paceline.training.task import read_acked_seq, read_task
from support.fake_shim import FakeShim, FakeTask, wait_until

MakeRun = Any


def test_no_variables_is_one_process_outside() -> None:
    assert read_environment({}) == Environment()
    assert read_environment({"WORLD_SIZE": "4"}).world_size == 1, "without RANK nobody has launched a gang"


def test_torchruns_variables(task: FakeTask) -> None:
    torchrun = {
        "RANK": "5",
        "LOCAL_RANK": "1",
        "WORLD_SIZE": "8",
        "LOCAL_WORLD_SIZE": "4",
        "GROUP_RANK": "1",
        "GROUP_WORLD_SIZE": "2",
    }
    here = read_environment(torchrun | task.variables())
    assert (here.rank, here.local_rank, here.world_size, here.local_world_size) == (5, 1, 8, 4)
    assert (here.node_rank, here.node_count) == (1, 2)
    assert (here.job, here.attempt, here.task_folder) == (7, 1, task.folder)
    assert here.managed
    assert not read_environment(torchrun).managed


def test_the_values_of_a_trial(make_run: MakeRun) -> None:
    text = '{"lr": 0.1, "layers": 3, "optimizer": "sgd", "nesterov": true, "clip": null}'
    params = read_environment({"PACELINE_PARAMS": text}).params
    assert dict(params) == {"lr": 0.1, "layers": 3, "optimizer": "sgd", "nesterov": True, "clip": None}
    with pytest.raises(TypeError):
        params["lr"] = 0.2  # type: ignore[index]
    assert dict(make_run().params) == {}


@pytest.mark.parametrize("variables", [
    {"PACELINE_PARAMS": "lr=1"},
    {"PACELINE_PARAMS": "[1]"},
    {"RANK": "x"},
    {"RANK": "1", "WORLD_SIZE": "1"},
    {"RANK": "-1", "WORLD_SIZE": "2"},
    {"PACELINE_ATTEMPT": "1.5"},
])  # fmt: skip
def test_wrong_variables_are_named(variables: dict[str, str]) -> None:
    with pytest.raises(InvalidEnvironment, match="|".join(variables)):
        read_environment(variables)


def test_reports_reach_the_shim_as_numbers(make_run: MakeRun, task: FakeTask, shim: FakeShim) -> None:
    run = make_run(task)
    weight = torch.ones((), requires_grad=True)
    run.report(3, loss=weight * 2, rate=np.float32(0.5), count=7, wild=float("nan"), top=float("inf"))
    run.report(step=np.int64(4), loss=torch.tensor([1.5]))
    wait_until(lambda: len(shim.of("metrics")) == 2, "both arrive")
    first, second = shim.of("metrics")
    assert (first["rank"], first["step"]) == (0, 3)
    assert first["values"].pop("wild") != first["values"].get("wild")
    assert first["values"] == {"loss": 2.0, "rate": 0.5, "count": 7.0, "top": float("inf")}
    assert (second["step"], second["values"]) == (4, {"loss": 1.5})


def test_planned_steps_go_along_now_and_then(make_run: MakeRun, task: FakeTask, shim: FakeShim) -> None:
    run = make_run(task)
    run.total_steps = 500
    run.report(1, loss=2)
    run.report(2, loss=1)
    wait_until(lambda: len(shim.of("metrics")) == 2, "both arrive")
    assert [each["values"] for each in shim.of("metrics")] == [
        {"loss": 2.0, "total_steps": 500.0},
        {"loss": 1.0},
    ]


def test_a_loop_tells_its_progress_where_the_script_does_not(
    make_run: MakeRun, task: FakeTask, shim: FakeShim
) -> None:
    run, model = make_run(task), torch.nn.Linear(1, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    assert run.loop(lambda number, model: optimizer.step(), steps=3, model=model, optimizer=optimizer) == 3
    wait_until(lambda: shim.of("metrics"), "it arrives")
    assert [(each["step"], each["values"]) for each in shim.of("metrics")] == [(1, {"total_steps": 3.0})]


@pytest.mark.parametrize(("step", "values", "words"), [
    (1, {"loss": "0.5"}, "loss='0.5'"),
    (1, {"loss": None}, "loss=None"),
    (1, {"loss": torch.ones(2)}, "not one real number"),
    (1, {"loss": 1j}, "complex"),
    (1, {"loss": [1]}, "loss="),
    (1, {f"m{number}": 1 for number in range(101)}, "101 values"),
    (1, {"a\nb": 1}, "metric name"),
    (1, {"": 1}, "metric name"),
    (-1, {}, "step is -1"),
    (1.5, {}, "step is 1.5"),
    ("1", {}, "step is '1'"),
    (2**63, {}, "step is"),
])  # fmt: skip
def test_what_is_no_number_is_refused_by_name(make_run: MakeRun, step: Any, values: Any, words: str) -> None:
    with pytest.raises(InvalidMetric, match=words):
        make_run().report(step, **values)


def test_names_that_never_end_are_forgotten_oldest_first(
    make_run: MakeRun, task: FakeTask, shim: FakeShim
) -> None:
    run = make_run(task)
    for step in range(250):
        run.report(step, loss=step, **{f"step_{step}": 1.0})
    run.save(250, model=torch.nn.Linear(1, 1))
    run.flush()
    [told] = shim.of("checkpoint")
    assert len(told["metrics"]) == 100
    assert told["metrics"]["loss"] == 249
    assert "step_249" in told["metrics"]
    assert "step_0" not in told["metrics"]


def test_a_task_folder_without_a_job_folder_is_said(make_run: MakeRun, task: FakeTask) -> None:
    environment = read_environment({"PACELINE_TASK_FOLDER": str(task.folder)})
    with pytest.raises(InvalidEnvironment, match="PACELINE_JOB_FOLDER is not"):
        Run(environment, task.root, Retention()).restore()


def test_reports_without_an_agent_cost_nothing(make_run: MakeRun, task: FakeTask) -> None:
    for run in (make_run(), make_run(task)):
        run.report(1, loss=0.5)
        assert not run.should_stop()


def test_stopping_alone(make_run: MakeRun, task: FakeTask) -> None:
    run = make_run(task)
    assert not run.should_stop()
    task.give_notice()
    assert run.should_stop()
    assert not make_run().should_stop(), "outside nobody gives notice"


def exit_code(script: str, variables: dict[str, str]) -> int:
    lines = f"import multiprocessing, os, signal, threading, time, paceline\nrun = paceline.init()\n{script}"
    command = [sys.executable, "-c", lines]
    return subprocess.run(command, env={**os.environ, **variables}, timeout=60, check=False).returncode


ASK = "run.should_stop()"
TERMINATE = "os.kill(os.getpid(), signal.SIGTERM)"
ANSWER = "raise SystemExit(7 if run.should_save(2) and run.should_stop() else 8)"


@pytest.mark.parametrize("inside", [True, False])
@pytest.mark.parametrize(
    ("first", "code"),
    [
        ("", -signal.SIGTERM),
        (ASK, 7),
        ("run.should_save(1)", 7),
        (f"{ASK}; {TERMINATE}", 7),
        (
            "thread = threading.Thread(target=run.should_stop); thread.start(); thread.join()",
            -signal.SIGTERM,
        ),
    ],
    ids=["never", "should_stop", "should_save", "at once again", "another thread"],
)
def test_sigterm_asks_only_from_the_first_question_on(
    task: FakeTask, first: str, code: int, inside: bool
) -> None:
    """Real processes: one that never asks dies of it, one that asks may save and leave."""
    variables = task.variables() if inside else {}
    assert exit_code(f"{first}\n{TERMINATE}\n{ANSWER}", variables) == code


def test_outside_a_second_sigterm_kills(tmp_path: Path) -> None:
    script = f"{ASK}\nuntil_s = time.monotonic() + 50\nwhile time.monotonic() < until_s: {TERMINATE}"
    assert exit_code(script, {}) == -signal.SIGTERM


def test_a_forked_child_of_one_that_asks_dies_of_sigterm() -> None:
    """As Process.terminate and Pool.terminate have it, also while it is being made."""
    script = f"""{ASK}
for _ in range(50):
    child = multiprocessing.get_context("fork").Process(target=time.sleep, args=(50,))
    child.start()
    child.terminate()
    child.join()
    if child.exitcode != -signal.SIGTERM: raise SystemExit(8)
raise SystemExit(7)"""
    assert exit_code(script, {}) == 7


def test_the_scripts_own_sigterm_handler_stays(task: FakeTask) -> None:
    def handler(*_: object) -> None: ...

    before = signal.signal(signal.SIGTERM, handler)
    try:
        StopNotice(task.folder).catch_sigterm()
        assert signal.getsignal(signal.SIGTERM) is handler
    finally:
        signal.signal(signal.SIGTERM, before)


def test_a_gang_without_a_process_group_is_told_what_to_do(make_run: MakeRun, tmp_path: Path) -> None:
    run = Run(read_environment({"RANK": "0", "WORLD_SIZE": "2"}), tmp_path, Retention())
    with pytest.raises(GangNotReady, match=r"init_process_group\(\) before run.save"):
        run.save(1, model=torch.nn.Linear(1, 1))
    with pytest.raises(GangNotReady, match=r"before run\.restore"):
        run.restore(model=torch.nn.Linear(1, 1))


def test_init_reports_and_stops_without_importing_torch(task: FakeTask) -> None:
    code = (
        "import sys, paceline; run = paceline.init(); assert run is paceline.init(); run.report(1, loss=0.5);"
        "run.should_stop(); print(run.job, run.attempt, run.rank, run.world_size);"
        "heavy = {'torch', 'numpy', 'grpc', 'pydantic', 'google'} & set(sys.modules); assert not heavy, heavy"
    )
    with FakeShim(task) as shim:
        done = subprocess.run(
            [sys.executable, "-c", code],
            env={**os.environ, **task.variables()},
            capture_output=True,
            text=True,
            check=False,
        )
        assert (done.returncode, done.stdout) == (0, "7 1 0 1\n"), done.stderr
        wait_until(lambda: shim.of("metrics") != [], "a report from a short-lived process arrives")


def test_task_json_is_read_as_protobuf_writes_it(task: FakeTask) -> None:
    from google.protobuf import json_format
    from paceline.proto.generated import agent_pb2

    message = agent_pb2.StartTask(keep_last=3, keep_best=1, best_metric="-loss")
    message.checkpoints.add(step=2**40, attempt=2, path="/x", manifest_hash="ab")
    text = json_format.MessageToJson(message, preserving_proto_field_name=True)
    (task.folder / "task.json").write_text(text)
    read = read_task(task.folder)
    assert (read.retention.keep_last, read.retention.keep_best, read.retention.best_metric) == (3, 1, "-loss")
    assert (read.checkpoints[0].step, read.checkpoints[0].path) == (2**40, Path("/x"))

    (task.folder / "task.json").write_text(json.dumps({"checkpoints": [{"step": 1}]}))
    with pytest.raises(InvalidEnvironment, match=r"task.json cannot be read: KeyError"):
        read_task(task.folder)


def test_acked_is_nothing_until_it_is_written(task: FakeTask) -> None:
    assert read_acked_seq(task.folder) == 0
    (task.folder / "acked").write_text("")
    assert read_acked_seq(task.folder) == 0
    task.ack(12)
    assert read_acked_seq(task.folder) == 12
