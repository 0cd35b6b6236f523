"""Bad GPUs from end to end: real agent and scheduler, NVML's stub made to tell of faults while jobs run.

What is not real is the device: the test of a GPU runs its code on the CPU.
"""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
from paceline.client import views
from paceline.spec.failures import FailureClass
from paceline.spec.gpu_health import GpuState
from support.cluster import Cluster, wait_until
from support.nvml_node import Driver, build_stub, nvml_environment

CPU_TEST = f"{sys.executable} -P -m paceline.training.gpu_test --device cpu"
HOLDS = "command: echo GPUs $CUDA_VISIBLE_DEVICES; sleep 600\nresources:\n  gpus: 2\n"


@pytest.fixture(scope="module")
def stub(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_stub(tmp_path_factory.mktemp("nvml"))


@pytest.fixture
def start(stub: Path, tmp_path: Path) -> Callable[..., "contextmanager[tuple[Cluster, Driver]]"]:  # type: ignore[type-arg]
    @contextmanager
    def started(gpus: int, *, test: str = CPU_TEST, after_s: float = 0.5) -> Iterator[tuple[Cluster, Driver]]:
        script = tmp_path / "nvml"
        driver = Driver(script, gpus)
        args = ["--cold", "--gpu-test", test, "--gpu-test-after", str(after_s)]
        with Cluster(tmp_path, agent_args=args, environment=nvml_environment(stub, script)) as cluster:
            yield cluster, driver

    return started


def gpu(cluster: Cluster, index: int) -> views.Gpu:
    return cluster.client.nodes().nodes[0].gpus[index]


def wait_gpu(cluster: Cluster, index: int, state: GpuState) -> views.Gpu:
    def there() -> views.Gpu | None:
        found = gpu(cluster, index)
        return found if found.state is state else None

    return wait_until(f"GPU {index} is {state}", there)


def wait_attempt(cluster: Cluster, job: int, attempt: int) -> views.Job:
    def runs() -> views.Job | None:
        found = cluster.client.job(job)
        return found if found.attempt == attempt and found.state == "RUNNING" else None

    return wait_until(f"attempt {attempt} of job {job} runs", runs)


def gpus_of(job: views.Job) -> list[int]:
    return [index for task in job.tasks for index in task.gpu_indices]


def story(cluster: Cluster, job: int) -> str:
    return "\n".join(entry.text for entry in cluster.client.timeline(job).entries)


def test_a_gang_leaves_a_bad_gpu_which_comes_back_when_it_does_well(start, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    gate = tmp_path / "gate"
    test = f"sh -c 'test -e {gate} || {{ echo no gate; exit 1; }}; exec {CPU_TEST}'"
    with start(4, test=test) as (cluster, driver):
        job = cluster.submit_text(HOLDS)
        assert gpus_of(wait_attempt(cluster, job, 1)) == [0, 1]
        driver.tell(0, 48)
        assert gpus_of(wait_attempt(cluster, job, 2)) == [1, 2]
        bad = gpu(cluster, 0)
        assert (bad.state, bad.quarantines) == (GpuState.QUARANTINED, 1) and bad.since_us
        assert bad.health.startswith("XID 48: double-bit ECC error") and "needs a reset" in bad.health
        told = story(cluster, job)
        assert "attempt 1 ended (node-lost, uses no retry): GPU 0 of local-0 is quarantined: XID 48" in told
        shown = cluster.pace("nodes").stdout
        assert "XID 48" in " ".join(shown.split()) and "1 of 3" in shown
        wait_until("a failed test is told", lambda: "no gate" in gpu(cluster, 0).health)
        gate.touch()
        assert wait_gpu(cluster, 0, GpuState.OK).health == "ok"
        assert gpu(cluster, 0).quarantines == 1
        assert cluster.client.job(job).attempt == 2
        again = cluster.submit_text(HOLDS)
        assert gpus_of(wait_attempt(cluster, again, 1)) == [0, 3]


def test_a_programs_own_fault_is_charged_to_it_and_to_no_gpu(start, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    fall = tmp_path / "fall"
    command = f"while ! test -e {fall}; do sleep 0.05; done; exit 3"
    with start(2) as (cluster, driver):
        job = cluster.submit_text(f"command: {command}\nresources:\n  gpus: 2\nretry: {{max_attempts: 1}}\n")
        wait_attempt(cluster, job, 1)
        driver.tell(1, 31)
        wait_until("the XID is heard", lambda: gpu(cluster, 1).last_xid == 31)
        fall.touch()
        failed = cluster.wait_state(job, "FAILED")
        assert failed.failure is not None and failed.failure.kind is FailureClass.EXIT_CODE
        assert "XID 31: MMU fault: an illegal address in the program" in failed.failure.hint
        assert "XID 31 on GPU 1" in story(cluster, job)
        assert [gpu(cluster, index).state for index in (0, 1)] == [GpuState.OK, GpuState.OK]


def test_quarantine_outlives_agent_and_scheduler(start) -> None:  # type: ignore[no-untyped-def]
    with start(2, after_s=600) as (cluster, driver):
        driver.tell(1, 79)
        bad = wait_gpu(cluster, 1, GpuState.QUARANTINED)
        cluster.kill_agent()
        driver.forget_events()
        cluster.start_agent()
        assert gpu(cluster, 1) == replace(bad, last_xid=None)
        cluster.kill_agent()
        cluster.kill_scheduler()
        cluster.start_scheduler()
        assert gpu(cluster, 1).state is GpuState.QUARANTINED
        job = cluster.submit_text(HOLDS)

        def why() -> str:
            return " ".join(reason.text for reason in cluster.client.why(job).reasons)

        wait_until("it says why", lambda: "1 of 2 GPUs of local-0 is quarantined for" in why())
        cluster.start_agent()
        assert gpu(cluster, 1).since_us == bad.since_us


def test_new_ecc_errors_and_what_the_driver_asks_for_keep_a_gpu_out(start) -> None:  # type: ignore[no-untyped-def]
    with start(1, after_s=0.1) as (cluster, driver):
        wait_gpu(cluster, 0, GpuState.OK)
        driver.show(0, ecc=2, recovery=1, pending=1)
        bad = wait_gpu(cluster, 0, GpuState.QUARANTINED)
        assert bad.health.startswith("2 new uncorrected ECC errors")
        assert "a reset (nvidia-smi -r)" in bad.health
        job = cluster.submit_text("command: echo here\nresources:\n  gpus: 1\n")
        driver.lose(0)
        wait_until("it is lost", lambda: "fallen off the bus" in gpu(cluster, 0).health)
        assert "testing it" not in cluster.agents[0].log_text()
        driver.lose()
        driver.show(0, ecc=0, recovery=0, pending=0)
        wait_gpu(cluster, 0, GpuState.OK)
        assert "did well in its test" in cluster.agents[0].log_text()
        cluster.wait_state(job, "SUCCEEDED")


def test_a_links_fault_stops_nothing_and_gets_no_new_work(start) -> None:  # type: ignore[no-untyped-def]
    with start(2, after_s=0.1) as (cluster, driver):
        job = cluster.submit_text(HOLDS)
        wait_attempt(cluster, job, 1)
        driver.tell(0, 74)
        wait_gpu(cluster, 0, GpuState.DRAINED)
        assert cluster.client.job(job).attempt == 1
        waits = cluster.submit_text("command: echo here\nresources:\n  gpus: 1\n")
        # Not tested while the job has it; then tested, and given to the next.
        assert "testing it" not in cluster.agents[0].log_text()
        cluster.client.cancel(job)
        cluster.wait_state(waits, "SUCCEEDED")
        wait_gpu(cluster, 0, GpuState.OK)
