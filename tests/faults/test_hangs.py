"""Gangs that hang for real: found, the rank that did not arrive named with the place where it is, and the job
goes on from its checkpoint in another attempt."""

import re
from collections.abc import Iterator

import pytest
from paceline.client import views
from support.cluster import Cluster

TORCH_ONLY = """
import os, signal, sys, threading, time
import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

def sleeps_for_ever():
    time.sleep(1e6)

def spins():
    while True:
        pass

def is_stopped():
    os.kill(os.getpid(), signal.SIGSTOP)

def is_locked():
    lock = threading.Lock()
    lock.acquire()
    lock.acquire()

def crosses():
    dist.barrier(other)

dist.init_process_group("gloo")
other = dist.new_group()
dist.barrier(other)
model = DistributedDataParallel(torch.nn.Linear(4, 1))
optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
for step in range(8):
    if step == 5 and dist.get_rank() == 1 and os.environ["PACELINE_ATTEMPT"] == "1":
        globals()[sys.argv[1]]()
    optimizer.zero_grad()
    model(torch.ones(2, 4)).sum().backward()
    optimizer.step()
dist.destroy_process_group()
"""

WITH_OURS = """
import os, time
import torch
import torch.distributed as dist
import paceline

def never_comes_back():
    time.sleep(1e6)

dist.init_process_group("gloo")
run = paceline.init()
model = torch.nn.Linear(4, 1)
restored = run.restore(model=model)
print("goes on after", restored.step if restored else None, flush=True)
for step in range(restored.step + 1 if restored else 0, 8):
    dist.all_reduce(torch.ones(1))
    time.sleep(0.2)  # what a step takes
    run.report(step, loss=1.0)
    if step == 3:
        run.save(step, model=model)
        run.flush()
    if step == 5 and run.rank == 0 and run.attempt == 1:
        never_comes_back()
dist.destroy_process_group()
"""

SAVES_ALONE = """
import os, signal, sys, time
import torch
import torch.distributed as dist
import paceline

class Model(torch.nn.Linear):
    def state_dict(self, *args, **options):
        if sys.argv[1] == "within":
            stop()
        return super().state_dict(*args, **options)

def stop():
    if step == 5 and run.rank == 1 and run.attempt == 1:
        os.kill(os.getpid(), signal.SIGSTOP)

def plan(self):
    stop()
    return planned(self)

if sys.argv[1] == "planning":  # where all agree on who writes what, by collectives of torch's own
    from torch.distributed.checkpoint.default_planner import DefaultSavePlanner
    planned, DefaultSavePlanner.create_local_plan = DefaultSavePlanner.create_local_plan, plan

dist.init_process_group("gloo")
run = paceline.init()
model, step = Model(4, 1), -1
restored = run.restore(model=model)
for step in range(restored.step + 1 if restored else 0, 8):
    dist.all_reduce(torch.ones(1))
    time.sleep(0.2)  # what a step takes
    run.report(step, loss=1.0)
    if sys.argv[1] == "before":
        stop()
    if sys.argv[1] != "planning" or step >= 5:  # at the first save
        run.save(step, model=model)
dist.destroy_process_group()
"""

COLD = """
import os, time
import paceline
run = paceline.init()
import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

def sleeps_cold():
    time.sleep(1e6)

dist.init_process_group("gloo")
model = DistributedDataParallel(torch.nn.Linear(4, 1))
optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
for step in range(8):
    if run.should_stop():
        break
    if step == 5 and run.rank == 1 and run.attempt == 1:
        sleeps_cold()
    optimizer.zero_grad()
    model(torch.ones(2, 4)).sum().backward()
    optimizer.step()
dist.destroy_process_group()
"""

BEFORE_A_STEP = """
import os, signal, sys, time
import torch
import torch.distributed as dist
import paceline

class Model(torch.nn.Linear):
    def load_state_dict(self, *args, **options):
        if sys.argv[1] == "restore" and hangs:
            os.kill(os.getpid(), signal.SIGSTOP)
        return super().load_state_dict(*args, **options)

def never_joins():
    time.sleep(1e6)

run = paceline.init()
hangs = run.rank == 1 and run.attempt == 2
if sys.argv[1] == "rendezvous" and hangs:
    never_joins()
dist.init_process_group("gloo")
model = Model(4, 1)
restored = run.restore(model=model)
for step in range(restored.step + 1 if restored else 0, 8):
    dist.all_reduce(torch.ones(1))
    run.report(step, loss=1.0)
    if step == 3:
        run.save(step, model=model)
        run.flush()
    if step == 5 and run.rank == 1 and run.attempt == 1:
        os._exit(7)
dist.destroy_process_group()
"""

JOB = """
command: {command}
code: {code}
distribution: {{type: pytorch}}
resources: {{instance_count: 2, cpus: 1}}
limits: {{hang_timeout: 10}}
retry: {{max_attempts: {attempts}}}
"""


SCRIPTS = {
    "sleeps_for_ever": ("python torch_only.py sleeps_for_ever", 2),
    "spins": ("python torch_only.py spins", 2),
    "is_stopped": ("python torch_only.py is_stopped", 2),
    "is_locked": ("python torch_only.py is_locked", 2),
    "crosses": ("python torch_only.py crosses", 2),
    "with_ours": ("python with_ours.py && true", 2),
    "stops_before_a_save": ("python saves_alone.py before", 2),
    "stops_within_a_save": ("python saves_alone.py within", 2),
    "stops_as_a_save_is_planned": ("python saves_alone.py planning", 2),
    "sleeps_cold": ("python -O cold.py", 2),
    "hangs_in_the_rendezvous": ("python before_a_step.py rendezvous", 3),
    "hangs_in_the_restore": ("python before_a_step.py restore", 3),
    "has_one_attempt": ("python torch_only.py is_locked", 1),
}


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    folder = tmp_path_factory.mktemp("hangs")
    with Cluster(folder, agents=2, cpus=len(SCRIPTS)) as cluster:
        yield cluster


@pytest.fixture(scope="module")
def jobs(cluster: Cluster) -> dict[str, int]:
    """All at once: what takes long is to wait for nothing."""
    code = cluster.folder / "code"
    code.mkdir()
    (code / "torch_only.py").write_text(TORCH_ONLY)
    (code / "with_ours.py").write_text(WITH_OURS)
    (code / "saves_alone.py").write_text(SAVES_ALONE)
    (code / "cold.py").write_text(COLD)
    (code / "before_a_step.py").write_text(BEFORE_A_STEP)
    return {
        name: cluster.submit_text(JOB.format(command=command, code=code, attempts=attempts))
        for name, (command, attempts) in SCRIPTS.items()
    }


def hang_of(cluster: Cluster, job: int) -> views.TimelineEntry:
    found = [entry for entry in cluster.client.timeline(job).entries if entry.kind == "GangHung"]
    assert len(found) == 1, [entry.text for entry in cluster.client.timeline(job).entries]
    return found[0]


def stacks(cluster: Cluster, job: int, rank: int) -> str:
    shown = cluster.pace("logs", str(job), "--stacks", "--attempt", "1", "--rank", str(rank))
    assert shown.returncode == 0, shown.stderr
    return shown.stdout


def ledger_is_whole(cluster: Cluster, job: int) -> views.Ledger:
    ledger = cluster.client.timeline(job).ledger
    assert sum(us for _, us in ledger.parts) == ledger.wall_us
    assert ledger.hung_us >= 10_000_000, ledger
    return ledger


@pytest.mark.parametrize("how", ["sleeps_for_ever", "spins", "is_stopped", "is_locked"])
def test_a_script_that_calls_nothing_of_ours_is_seen_to_hang(
    cluster: Cluster, jobs: dict[str, int], how: str
) -> None:
    """Two nodes, a rank each; rank 0 waits in the gradients' exchange for rank 1."""
    job = jobs[how]
    assert cluster.wait_state(job, "SUCCEEDED").attempt == 2, cluster.story(job, "two attempts were wanted")
    hang = hang_of(cluster, job)
    assert "rank 1 on local-" in hang.text and f"is in {how} (" in hang.text, hang.text
    assert "rank 0" not in hang.text
    assert f"{how} (" in stacks(cluster, job, 1)
    assert "_engine_run_backward" in stacks(cluster, job, 0)
    ledger_is_whole(cluster, job)


def test_ranks_that_wait_in_two_groups_are_said_to_wait_for_each_other(
    cluster: Cluster, jobs: dict[str, int]
) -> None:
    """All are in a collective, at the same step: only the collectives' own numbers tell."""
    job = jobs["crosses"]
    assert cluster.wait_state(job, "SUCCEEDED").attempt == 2, cluster.story(job, "two attempts were wanted")
    hang = hang_of(cluster, job).text
    assert re.search(
        r"rank 0 on local-. did not begin gloo:barrier, no. 2 of group 1, in which others wait"
        r" \(its own last: no. 1\)",
        hang,
    ), hang
    assert re.search(r"rank 1 on local-. did not begin gloo:all_reduce, no. \d+ of the default group", hang)
    assert "group 1: has begun no. 2, gloo:barrier; waits in no. 2, gloo:barrier" in stacks(cluster, job, 1)
    ledger_is_whole(cluster, job)


def test_it_goes_on_from_its_checkpoint(cluster: Cluster, jobs: dict[str, int]) -> None:
    """Started by a shell: the ranks are not the shim's own children."""
    job = jobs["with_ours"]
    assert cluster.wait_state(job, "SUCCEEDED").attempt == 2
    hang = hang_of(cluster, job)
    assert "rank 0 on local-" in hang.text and "after step 5" in hang.text, hang.text
    assert "never_comes_back (" in stacks(cluster, job, 0)
    assert b"goes on after None" in cluster.output(job, attempt=1)
    assert b"goes on after 3" in cluster.output(job)
    story = [entry.text for entry in cluster.client.timeline(job).entries]
    assert any("goes on from the checkpoint of step 3, read from memory in" in text for text in story), story
    ended = next(entry for entry in cluster.client.timeline(job).entries if entry.kind == "AttemptEnded")
    assert "uses a retry" in ended.text
    ledger = ledger_is_whole(cluster, job)
    assert 0 < ledger.lost_us < 10_000_000, "only what came after the checkpoint is lost, not the silence"


@pytest.mark.parametrize("how", ["stops_before_a_save", "stops_within_a_save", "stops_as_a_save_is_planned"])
def test_who_waits_in_a_save_or_is_stopped_in_one_is_not_taken_for_one_who_saves(
    cluster: Cluster, jobs: dict[str, int], how: str
) -> None:
    job = jobs[how]
    assert cluster.wait_state(job, "SUCCEEDED").attempt == 2
    hang = hang_of(cluster, job)
    assert "rank 1 on local-" in hang.text and "rank 0" not in hang.text, hang.text
    ledger_is_whole(cluster, job)


def test_a_script_that_starts_cold_and_imports_torch_after_init_is_seen_to_hang(
    cluster: Cluster, jobs: dict[str, int]
) -> None:
    """It reports nothing: its steps are seen from its first verb on."""
    job = jobs["sleeps_cold"]
    assert cluster.wait_state(job, "SUCCEEDED").attempt == 2, cluster.story(job, "two attempts were wanted")
    hang = hang_of(cluster, job)
    assert "after step 5: rank 1 on local-" in hang.text and "is in sleeps_cold (" in hang.text, hang.text
    started = [entry.text for entry in cluster.client.timeline(job).entries if entry.kind == "TaskStarted"]
    assert all("; watched for hangs only if it calls paceline" in text for text in started), started
    ledger_is_whole(cluster, job)


@pytest.mark.parametrize(
    ("where", "place"), [("rendezvous", "is in never_joins ("), ("restore", "is stopped by a signal")]
)
def test_a_gang_that_hangs_before_its_first_step_is_seen(
    cluster: Cluster, jobs: dict[str, int], where: str, place: str
) -> None:
    """In its second attempt: the first one has made steps and a checkpoint, and lost a rank."""
    job = jobs[f"hangs_in_the_{where}"]
    assert cluster.wait_state(job, "SUCCEEDED").attempt == 3, cluster.story(job, "three attempts were wanted")
    hang = hang_of(cluster, job)
    assert hang.attempt == 2 and "no step yet for" in hang.text, hang.text
    assert "rank 1 on local-" in hang.text and place in hang.text and "rank 0" not in hang.text, hang.text
    ledger_is_whole(cluster, job)


def test_a_hang_counts_as_an_attempt(cluster: Cluster, jobs: dict[str, int]) -> None:
    job = jobs["has_one_attempt"]
    over = cluster.wait_state(job, "FAILED")
    assert over.attempt == 1 and over.reason is not None and over.reason.code == "hang"
    assert "rank 1" in over.reason.text and "--stacks" in over.reason.hint
