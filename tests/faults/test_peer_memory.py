"""A node is lost with all that it had, and storage with it: the gang goes on from what the next node's memory
has kept, in a real cluster. What is damaged there is passed over, and said.
"""

import json
import re
import shutil
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from paceline.client import process
from paceline.proto.marks import agent_mark
from support.cluster import Cluster, wait_until

SCRIPT = Path(__file__).parents[1] / "support" / "saving_rank.py"
SHARED_MEMORY = Path("/dev/shm")
STEPS = 24


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Cluster]:
    """Three nodes, of which a gang of two takes two."""
    with Cluster(tmp_path, agents=3, cpus=1) as made:
        yield made


def submit(
    cluster: Cluster, folder: Path, *, steps: int = STEPS, step_s: float = 0.0, **checkpoint: object
) -> int:
    folder.mkdir()
    return cluster.submit_text(
        json.dumps(
            {
                "command": f"{sys.executable} {SCRIPT} {folder} {steps} 10 {step_s}",
                "distribution": {"type": "pytorch"},
                "environment_variables": {"OMP_NUM_THREADS": "1"},
                "resources": {"cpus": 1, "instance_count": 2},
                "retry": {"max_attempts": 3, "backoff": {"start_s": 0.01, "max_s": 0.01}},
                "checkpoint": {"keep_last": 3, **checkpoint},
            }
        )
    )


def memory_of(cluster: Cluster, index: int) -> Path:
    return SHARED_MEMORY / f"paceline-{agent_mark(cluster.agent_state(index) / 'tasks')[1:]}"


def kept_at(cluster: Cluster, index: int, job: int) -> dict[str, Path]:
    """What that node keeps for another: "step-00000020.a1/__1_0.distcp" and so on."""
    peers = memory_of(cluster, index) / str(job) / "peers"
    return {str(path.relative_to(peers)): path for path in peers.glob("*/*") if not path.name.startswith("~")}


def agent_of(cluster: Cluster, job: int, rank: int) -> int:
    tasks = sorted(cluster.client.job(job).tasks, key=lambda task: task.first_rank)
    return int(tasks[rank].node.removeprefix("local-"))


def lose_node(cluster: Cluster, index: int) -> None:
    """Its processes, and its memory."""
    mark = agent_mark(cluster.agent_state(index) / "tasks")
    cluster.kill_agent(index)
    process.kill_all(
        lambda: process.with_environment("PACELINE_MARK", lambda value: value.endswith(mark)), 20
    )
    shutil.rmtree(memory_of(cluster, index))


def losses_of(folder: Path, attempt: int) -> dict[tuple[int, int], str]:
    lines = [line.split() for line in (folder / "losses").read_text().splitlines()]
    return {(int(rank), int(step)): loss for a, rank, step, loss in lines if int(a) == attempt}


def texts(cluster: Cluster, job: int, kind: str) -> list[str]:
    return [entry.text for entry in cluster.client.timeline(job).entries if entry.kind == kind]


def wait_kept(cluster: Cluster, job: int) -> list[int]:
    """Steps 10 and 20 are accepted and kept by both nodes; the agents of rank 0 and 1."""
    wait_until("both are accepted", lambda: len(cluster.client.job(job).checkpoints) == 2, 120)
    agents = [agent_of(cluster, job, rank) for rank in (0, 1)]
    wanted = [
        {f"step-000000{step}.a1/{name}" for step in (10, 20) for name in names}
        for names in (("__1_0.distcp",), ("__0_0.distcp", ".metadata", "manifest.json"))
    ]
    for agent, names in zip(agents, wanted, strict=True):
        wait_until(f"{agent} keeps them", lambda a=agent, n=names: n <= set(kept_at(cluster, a, job)), 30)
    return agents


def finish(cluster: Cluster, job: int, folder: Path) -> None:
    (folder / "enough").touch()
    cluster.wait_state(job, "SUCCEEDED", timeout_s=120)


def wait_restored(cluster: Cluster, job: int) -> str:
    [text] = wait_until("attempt 2 goes on", lambda: texts(cluster, job, "CheckpointRestored") or None, 120)
    return text


@pytest.mark.parametrize("lost", [0, 1])
def test_a_lost_node_s_part_comes_from_the_next_one_s_memory(
    cluster: Cluster, tmp_path: Path, lost: int
) -> None:
    folder = tmp_path / "out"
    job = submit(cluster, folder)
    agents = wait_kept(cluster, job)
    wait_until("attempt 1 is at its end", lambda: len(losses_of(folder, 1)) == 2 * STEPS)
    (told,) = texts(cluster, job, "PeerMemoryTold")
    assert f"rank 0's part of checkpoints is kept in the memory of local-{agents[1]}, too: that of " in told
    newest, before = cluster.client.checkpoints(job)
    assert (newest.tiers, before.tiers) == ("memory, peer memory, storage", "storage")

    for one in cluster.client.job(job).checkpoints:
        shutil.rmtree(one.path)
    lose_node(cluster, agents[lost])
    text = wait_restored(cluster, job)
    assert "goes on from the checkpoint of step 20, read from " in text
    assert f"the memory of local-{agents[1 - lost]} (" in text, text
    assert "not in memory here" in text
    assert "memory at rank" in text
    wait_until("attempt 2 is at its end", lambda: len(losses_of(folder, 2)) == 2 * (STEPS - 20))
    finish(cluster, job, folder)
    first, again = losses_of(folder, 1), losses_of(folder, 2)
    assert again == {key: first[key] for key in again}, "the same losses, to the last digit"
    for agent in range(3):
        if agent != agents[lost]:
            gone = memory_of(cluster, agent) / str(job)
            wait_until("nothing is kept of a job that is over", lambda gone=gone: not gone.exists())


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def swap(path: Path) -> None:
    """That of the step before."""
    shutil.copyfile(Path(str(path).replace("step-00000020", "step-00000010")), path)


@pytest.mark.parametrize(
    ("damage", "why"),
    [(flip, "hash differs"), (truncate, r"\d+ bytes, expected \d+"), (swap, "hash differs")],
)
def test_a_damaged_copy_is_passed_over_and_storage_is_read(
    cluster: Cluster, tmp_path: Path, damage: Callable[[Path], None], why: str
) -> None:
    folder = tmp_path / "out"
    job = submit(cluster, folder)
    agents = wait_kept(cluster, job)
    wait_until("attempt 1 is at its end", lambda: len(losses_of(folder, 1)) == 2 * STEPS)
    damage(kept_at(cluster, agents[0], job)["step-00000020.a1/__1_0.distcp"])
    lose_node(cluster, agents[1])
    text = wait_restored(cluster, job)
    assert "goes on from the checkpoint of step 20, read from memory, and storage for 1 of 3 files" in text
    assert re.search(
        rf"\(__1_0\.distcp: {why} in memory\) at rank 0; the memory of local-{agents[0]} ", text
    ), text
    first = losses_of(folder, 1)
    wait_until("attempt 2 is at its end", lambda: len(losses_of(folder, 2)) == 2 * (STEPS - 20))
    assert losses_of(folder, 2).items() <= first.items()
    finish(cluster, job, folder)


def test_a_peer_that_hangs_costs_the_copies_and_not_the_training(cluster: Cluster, tmp_path: Path) -> None:
    """Checkpoints are accepted all the while; it is told once, and once that it is well again."""
    folder = tmp_path / "out"
    job = submit(cluster, folder, steps=10_000, step_s=0.05)
    wait_until("it is told", lambda: texts(cluster, job, "PeerMemoryTold") or None, 120)
    peer = agent_of(cluster, job, 1)
    receiver = receiver_of(cluster, peer)
    process.send(receiver, signal.SIGSTOP)
    hung = wait_until("it is told", lambda: texts(cluster, job, "PeerMemoryTold")[1:] or None, 60)
    assert hung == [
        f"rank 0's part of checkpoints is not kept in the memory of local-{peer}: timed out at local-{peer}"
    ]
    newest = cluster.client.job(job).checkpoints[0].step
    wait_until("two more", lambda: cluster.client.job(job).checkpoints[0].step >= newest + 20, 60)
    process.send(receiver, signal.SIGCONT)
    *_, well = wait_until("it is told", lambda: texts(cluster, job, "PeerMemoryTold")[2:] or None, 60)
    assert f"is kept in the memory of local-{peer}, too" in well
    assert cluster.client.job(job).attempt == 1
    cluster.client.cancel(job)
    cluster.wait_state(job, "CANCELLED", timeout_s=60)


def receiver_of(cluster: Cluster, index: int) -> process.Identity:
    for found in process.descendants(cluster.agents[index].identity):
        if b"peer_receiver" in Path(f"/proc/{found.pid}/cmdline").read_bytes():
            return found
    raise AssertionError(f"agent {index} has no process that serves peers")


def test_it_can_be_turned_off(cluster: Cluster, tmp_path: Path) -> None:
    folder = tmp_path / "out"
    job = submit(cluster, folder, peer_memory=False)
    wait_until("both are accepted", lambda: len(cluster.client.job(job).checkpoints) == 2, 120)
    agents = [agent_of(cluster, job, rank) for rank in (0, 1)]
    kill_rank(cluster, job)
    assert wait_restored(cluster, job).count("memory of") == 0
    finish(cluster, job, folder)
    assert not texts(cluster, job, "PeerMemoryTold")
    assert not [kept_at(cluster, agent, job) for agent in agents if kept_at(cluster, agent, job)]


def kill_rank(cluster: Cluster, job: int) -> None:
    found = process.identify(cluster.gang_pids(job, 2)[1])
    assert found is not None
    process.send(found, signal.SIGKILL)
