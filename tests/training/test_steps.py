"""The beat: each optimizer step and report is seen in the task's folder, and the script sees nothing."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from paceline.proto.beats import NAME, SAVES, TRAINS, Beats, read_beats

HEAD = """
import os, sys, torch
import paceline.training.warm
from paceline.proto.beats import BEAT, read_beats, SAVES, TRAINS
model = torch.nn.Linear(4, 1)
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
def step(make=optimizer.step):
    model(torch.ones(2, 4)).sum().backward()
    make()
"""


def ran(folder: Path, body: str, head: str = HEAD, **variables: str) -> tuple[list[Beats], str]:
    """What stands in the slots after the script, and its output."""
    (folder / "task.json").write_text("{}")
    environment = {**os.environ, "PACELINE_TASK_FOLDER": str(folder), "LOCAL_RANK": "2", **variables}
    done = subprocess.run(
        [sys.executable, "-c", head + body],
        env={name: value for name, value in environment.items() if value},
        capture_output=True,
        text=True,
        check=False,
        timeout=100,
    )
    assert done.returncode == 0, done.stderr
    path = folder / NAME
    if not path.exists():
        return [], done.stdout
    fd = os.open(path, os.O_RDONLY)
    try:
        return read_beats(fd), done.stdout
    finally:
        os.close(fd)


def test_steps_of_any_optimizer_are_counted(tmp_path: Path) -> None:
    [beats], _ = ran(tmp_path, "for _ in range(7): step()\n")
    assert (beats.slot, beats.steps, beats.reports, beats.step) == (2, 7, 0, -1)
    assert beats.begun and 0 < beats.longest_s < 60 and beats.at_s > 0


def test_a_rank_as_open_mpi_numbers_them_has_its_own_slot(tmp_path: Path) -> None:
    [beats], _ = ran(tmp_path, "step()\n", LOCAL_RANK="", OMPI_COMM_WORLD_LOCAL_RANK="3")
    assert (beats.slot, beats.steps) == (3, 1)


COLD = """
import os, sys
import paceline
run = paceline.init()
assert "torch" not in sys.modules
import torch
model = torch.nn.Linear(4, 1)
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
{verb}
model(torch.ones(2, 4)).sum().backward()
for _ in range(7): optimizer.step()
"""


@pytest.mark.parametrize(
    "verb",
    [
        "run.report(1, loss=1.0)",
        "run.should_stop()",
        "run.should_save(1)",
        "run.save(1, model=model)",
        "run.restore(model=model)",
    ],
)
def test_steps_are_seen_from_the_first_verb_on_where_torch_came_after_init(tmp_path: Path, verb: str) -> None:
    job = {"PACELINE_JOB": "1", "PACELINE_ATTEMPT": "1", "PACELINE_JOB_FOLDER": str(tmp_path)}
    [beats], _ = ran(tmp_path, COLD.format(verb=verb), head="", **job)
    assert beats.steps == 7


def test_reports_and_saves_are_beats_too(tmp_path: Path) -> None:
    body = """
import paceline
run = paceline.init()
run.report(40, loss=1.0)
run.report(41, loss=1.0)
with BEAT.phase(SAVES):
    print(read_beats(os.open(os.environ["PACELINE_TASK_FOLDER"] + "/beats", os.O_RDONLY))[0].phase)
"""
    [beats], said = ran(tmp_path, body, PACELINE_JOB="1", PACELINE_JOB_FOLDER=str(tmp_path))
    assert (beats.steps, beats.reports, beats.step, beats.phase) == (0, 2, 41, 0)
    assert int(said) == SAVES


def test_a_rank_that_waits_for_its_peers_in_a_save_is_not_saving(tmp_path: Path) -> None:
    body = """
step()
def phase(): return read_beats(os.open(os.environ["PACELINE_TASK_FOLDER"] + "/beats", os.O_RDONLY))[0].phase
with BEAT.meeting(): said = [phase()]
with BEAT.phase(SAVES):
    with BEAT.meeting(): said.append(phase())
    said.append(phase())
print(*said, phase())
"""
    _, said = ran(tmp_path, body)
    assert said.split() == [str(TRAINS), str(TRAINS), str(SAVES), str(TRAINS)]


def test_a_forked_child_does_not_beat_for_its_parent(tmp_path: Path) -> None:
    body = """
step()
if not (child := os.fork()):
    step(); step(); os._exit(0)
os.waitpid(child, 0)
"""
    [beats], _ = ran(tmp_path, body)
    assert beats.steps == 1


def test_outside_a_task_nothing_is_written(tmp_path: Path) -> None:
    assert ran(tmp_path, "step()\n", PACELINE_TASK_FOLDER="")[0] == []


def test_a_task_without_a_step_makes_no_file(tmp_path: Path) -> None:
    assert ran(tmp_path, "")[0] == []


def test_where_no_slot_can_be_had_it_trains_unwatched(tmp_path: Path) -> None:
    (tmp_path / NAME).mkdir()
    body = "step(); step(); print('trained')\n"
    environment = {**os.environ, "PACELINE_TASK_FOLDER": str(tmp_path), "LOCAL_RANK": "0"}
    done = subprocess.run(
        [sys.executable, "-c", HEAD + body], env=environment, capture_output=True, text=True, check=False
    )
    assert done.stdout == "trained\n", done.stderr


def test_a_compiled_step_is_compiled_as_without_us(tmp_path: Path) -> None:
    """Torch breaks its graph there by itself; our hook adds no break."""
    body = """
import torch._dynamo
from paceline.training import steps
def breaks():
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    compiled = torch.compile(lambda: optimizer.step(), backend="eager")
    for _ in range(3): step(compiled)
    return sum(torch._dynamo.utils.counters["graph_break"].values())
ours = breaks()
steps._watched[0].remove()
assert ours == breaks(), (ours, breaks())
"""
    ran(tmp_path, body)


def test_the_stack_signal_is_not_seen_from_python(tmp_path: Path) -> None:
    body = """
import signal
from paceline.proto.beats import STACK_SIGNAL, answer_stack_signal
before = {number: signal.getsignal(number) for number in signal.valid_signals()}
answer_stack_signal()
assert before == {number: signal.getsignal(number) for number in signal.valid_signals()}
import faulthandler
assert not faulthandler.is_enabled()
os.kill(os.getpid(), STACK_SIGNAL)
print("alive")
"""
    assert ran(tmp_path, body)[1] == "alive\n"


def test_waits_for_data_loaders_are_added_up(tmp_path: Path) -> None:
    """Those of the main thread: whoever fetches ahead waits for nobody's step."""
    body = """
import threading, time
from torch.utils.data import DataLoader

class Slow(torch.utils.data.Dataset):
    def __len__(self): return 4
    def __getitem__(self, at):
        time.sleep(0.05)
        return torch.ones(4)

step()
threading.Thread(target=list, args=(DataLoader(Slow()),)).start()
slow = list(DataLoader(Slow()))
assert len(slow) == 4
step()
"""
    [beats], _ = ran(tmp_path, body)
    assert beats.steps == 2
    assert 0.2 <= beats.fetching_s < 0.2 + beats.longest_s, "four times 50 ms, once"


def test_a_loader_raises_and_gives_what_it_always_did(tmp_path: Path) -> None:
    body = """
from torch.utils.data import DataLoader
loader = DataLoader([1, 2, 3], batch_size=2)
print([each.tolist() for each in loader], [each.tolist() for each in DataLoader([4], num_workers=1)])
iterator = iter(loader)
next(iterator), next(iterator)
try:
    next(iterator)
except StopIteration:
    print("over")
"""
    _, said = ran(tmp_path, body)
    assert said.splitlines() == ["[[1, 2], [3]] [[4]]", "over"]
