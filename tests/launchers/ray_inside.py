"""The Ray launcher against the conformance class. Run by test_ray.py, in a network namespace of its own."""

import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import psutil
import pytest
from conformance.launcher import LauncherConformance
from paceline.client import process
from paceline.spec.failures import FailureClass
from support.cluster import Cluster, wait_until

EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "chargpt" / "ray.yaml"

_RAY = """
def loop(main):
    import ray.train
    it = ray.train.get_context()
    main(it.get_world_rank(), it.get_world_size(), it.get_local_rank(), it.get_local_world_size())

def ride(main):
    from ray.train import ScalingConfig
    from ray.train.torch import TorchConfig, TorchTrainer
    assert "RAY_ADDRESS" in os.environ
    trainer = TorchTrainer(
        lambda: loop(main),
        scaling_config=ScalingConfig(num_workers=4),
        torch_config=TorchConfig(backend="gloo"),
    )
    trainer.fit()
"""

_ONE_ENDS = """
def main(rank, world_size, local_rank, local_world_size):
    import torch.distributed as dist
    dist.barrier()
    if rank == 2:
        {how}
    dist.barrier()

if __name__ == "__main__":
    ride(main)
"""

_ENDS = {
    "import no_such_module": (
        FailureClass.USER_ERROR,
        "ModuleNotFoundError",
        "No module named 'no_such_module'",
    ),
    "raise MemoryError('full')": (FailureClass.OUT_OF_MEMORY, "MemoryError", "full"),
    "os.kill(os.getpid(), 9)": (
        FailureClass.EXCEPTION,
        "ray.train.WorkerGroupError",
        "a worker was killed by a signal, or ended without a word.",
    ),
}

_LOOK = """
import os, ray
ray.init()
print("nodes:", sum(node["Alive"] for node in ray.nodes()), "seen from", os.environ["PACELINE_TASK_FOLDER"])
"""


class TestRay(LauncherConformance):
    """A rank that fails is Ray's: the trainer raises, and the command ends with 1."""

    distribution = "{type: ray}"
    RIDE = _RAY
    failed_rank_code = 1
    killed_rank_code = 1

    def who(self, rank: int) -> list[int]:
        """Ray Train takes nodes of one address for one node."""
        return [rank, 4, rank, 4]

    @pytest.mark.timeout(400)
    @pytest.mark.parametrize("how", _ENDS)
    def test_a_worker_that_fails_is_what_the_job_failed_of(
        self, cluster: Cluster, tmp_path: Path, how: str
    ) -> None:
        """Of the driver, which is rank 0; which of Ray's workers it was stands before the traceback."""
        job = self.submit(cluster, tmp_path, _ONE_ENDS.format(how=how))
        failure = self.ends(cluster, job, tmp_path, "FAILED").failure
        assert failure is not None
        kind, error_type, message = _ENDS[how]
        assert (failure.kind, failure.error_type) == (kind, error_type)
        assert failure.message.startswith(message)
        assert (failure.rank, failure.exit_code) == (0, 1)
        assert failure.traceback.startswith("[Rank 2 Error Snippet]:")


@pytest.fixture
def nothing_stays() -> Iterator[None]:
    """Of all that is started meanwhile, whatever its name and whoever its parent."""
    before = processes()
    yield
    wait_until("nothing is left in the namespace", lambda: not processes() - before, 30)


@pytest.fixture
def other_ray(nothing_stays: None) -> Iterator[list[psutil.Process]]:
    """Somebody else's Ray, in the same namespace: what must live for it to live."""
    folder = Path(tempfile.mkdtemp(prefix="ray-", dir="/tmp"))
    command = [str(Path(sys.executable).with_name("ray")), "start", "--head", "--block", "--port=0"]
    command += ["--include-dashboard=false", "--node-ip-address=127.0.0.1", f"--temp-dir={folder}"]
    environment = {**os.environ, "RAY_USAGE_STATS_ENABLED": "0"}
    with (folder / "log").open("wb") as log:
        started = subprocess.Popen(command, env=environment, stdout=log, stderr=log)
    try:
        wait_until("the other Ray is up", (folder / "ray_current_cluster").exists, 200)
        below = psutil.Process(started.pid).children(recursive=True)
        yield [each for each in below if each.name() in ("gcs_server", "raylet")]
    finally:
        for each in [*psutil.Process(started.pid).children(recursive=True), started]:
            each.kill()
        started.wait()
        shutil.rmtree(folder)


@pytest.mark.timeout(900)
def test_the_example(tmp_path: Path, other_ray: list[psutil.Process]) -> None:
    """A stock TorchTrainer, one worker on each instance; two such jobs at once on the same two agents. The
    second one's Ray goes on when the first one's has ended, and somebody else's on the machine, too."""
    gate, look = tmp_path / "gate", tmp_path / "look.py"
    look.write_text(_LOOK)
    train = "python train_ray.py --steps 40 --workers 2"
    longer = f"command={train} && until test -e {gate}; do sleep 0.1; done && python {look}"
    with Cluster(tmp_path, agents=2, cpus=2) as cluster:
        jobs = [cluster.client.submit(EXAMPLE, overrides=overrides) for overrides in ((), (longer,))]
        wait_until("both run at once", lambda: {cluster.client.job(job).state for job in jobs} == {"RUNNING"})
        folders = wait_until("each node has its folder", lambda: len(found := ray_folders()) == 4 and found)
        for job in jobs:
            assert cluster.wait_state(job, "SUCCEEDED", timeout_s=300).attempt == 1
            check_gone(job)
            [loss] = re.findall(r"2 workers, loss (\d+\.\d+)", cluster.output(job, rank=0).decode())
            assert float(loss) < 4.85 - 1.5
            gate.touch()
        first = min(cluster.client.job(jobs[1]).tasks, key=lambda task: task.first_rank)
        state = cluster.agent_state(int(first.node.removeprefix("local-")))
        assert f"nodes: 2 seen from {state}" in cluster.output(jobs[1], rank=0).decode()
    assert not ray_folders() & folders
    assert len(other_ray) == 2 and set(other_ray) <= processes()


@pytest.mark.timeout(400)
def test_a_node_of_ray_that_dies_ends_the_attempt_and_what_it_left_goes(
    tmp_path: Path, nothing_stays: None
) -> None:
    text = "command: sleep 600\ndistribution: {type: ray}\nresources: {instance_count: 2, cpus: 1}\n"
    with Cluster(tmp_path, agents=2, cpus=1) as cluster:
        job = cluster.submit_text(text + "retry: {max_attempts: 2}\ngrace_s: 1\n")
        before = wait_until("the command runs", lambda: running("sleep", "600") or None, 200)
        left = ray_folders()
        [victim, _] = named("raylet")
        victim.kill()
        wait_until("a second attempt runs", lambda: cluster.client.job(job).attempt == 2, 60)
        wait_until(
            "its output says why", lambda: said_by_either(cluster, job, b"this node's Ray ended with 1")
        )
        wait_until("its command, too", lambda: bool(running("sleep", "600") - before), 200)
        assert not ray_folders() & left
        cluster.client.cancel(job)
        cluster.wait_state(job, "CANCELLED")


def said_by_either(cluster: Cluster, job: int, words: bytes) -> bool:
    """In its first attempt; what a rank says last comes a moment after the news of its end."""
    return any(words in cluster.output(job, rank=rank, attempt=1) for rank in range(2))


def ray_folders() -> set[Path]:
    return set(Path(f"/tmp/pace-ray-{os.getuid()}").glob("*"))


def running(*command: str) -> set[psutil.Process]:
    """With that very command. One that ends meanwhile, or is a zombie, hides no other."""
    found = psutil.process_iter(["cmdline"])
    return {each for each in found if each.info["cmdline"] == list(command)}


def processes() -> set[psutil.Process]:
    """All of this namespace that run."""
    found = psutil.process_iter(["name", "status"])
    return {each for each in found if each.info["status"] != psutil.STATUS_ZOMBIE}


def named(name: str) -> list[psutil.Process]:
    return [each for each in processes() if each.info["name"] == name]


def check_gone(job: int) -> None:
    """What was started for it and has an environment of its own, as all of Ray has."""
    found = partial(process.with_environment, "PACELINE_JOB", lambda value: value == str(job))
    wait_until(f"nothing of job {job} is left", lambda: not list(found()))
