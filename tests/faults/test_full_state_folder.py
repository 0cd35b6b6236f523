"""State folders full or read-only, the scheduler's or the agent's: it is said, nothing is lost, it heals."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from paceline.client import documents
from paceline.client.endpoint_views import Endpoint
from paceline.client.registry_views import OfPath
from paceline.spec.errors import PacelineError
from support.cluster import Cluster, wait_until
from support.counting import Counting
from support.disks import Disk, needs_root, small_disk
from support.endpoint_models import Load, model

pytestmark = needs_root


class ApartCluster(Cluster):
    """The agents' folders lie beside the scheduler's, so that either can have a disk of its own."""

    def agent_state(self, index: int = 0) -> Path:
        return self.folder / "agents" / str(index)


@contextmanager
def cluster_on(folder: Path, *, small: str, size: str) -> Iterator[tuple[Cluster, Disk]]:
    """`small`: whose state folder is a disk of that size."""
    cluster = ApartCluster(folder, cpus=4, agent_args=["--cold"])
    cluster.agent_state(0).mkdir(parents=True)
    with small_disk(cluster.state if small == "scheduler" else cluster.agent_state(0), size) as disk, cluster:
        yield cluster, disk


def submit_until_refused(cluster: Cluster, text: str) -> tuple[list[int], PacelineError]:
    """The jobs that were acknowledged, and what the first that was not was told."""
    acknowledged: list[int] = []
    with cluster.new_client(patience_s=0.5) as client:
        while len(acknowledged) < 1000:
            job = documents.prepare_bytes(text, "job.yaml", cluster.folder)
            try:
                acknowledged += client.submit_prepared([job])
            except PacelineError as error:
                return acknowledged, error
    raise AssertionError("a full disk took 1000 jobs")


def test_the_scheduler_s_disk_is_full(tmp_path: Path) -> None:
    with cluster_on(tmp_path, small="scheduler", size="6m") as (cluster, disk):
        counting = Counting(tmp_path / "counting", period_s=0.01)
        job = cluster.submit_text(counting.text)
        pids = counting.wait_running(1)
        disk.fill()
        waiting = '{"command": "true", "resources": {"cpus": 4}, "description": "' + "x" * 2000 + '"}'
        acknowledged, refusal = submit_until_refused(cluster, waiting)
        assert refusal.code in ("unavailable", "store")
        assert "the disk is full" in str(refusal), refusal
        counting.wait_counting_on(1)
        disk.free()
        after = cluster.submit_text(waiting)
        assert after > max([job, *acknowledged])
        for each in acknowledged:
            assert cluster.client.job(each).state == "QUEUED"
        cluster.wait_connected(0)
        assert cluster.gang_pids(job, len(pids)) == pids
        counting.stop()
        counting.check(cluster, job, alone=True)
        for each in (*acknowledged, after):
            assert cluster.wait_state(each, "SUCCEEDED").attempt == 1


def test_the_scheduler_s_disk_is_full_when_a_job_ends(tmp_path: Path) -> None:
    """Its end waits in the node's journal until there is room, also over a restart on the full disk."""
    with cluster_on(tmp_path, small="scheduler", size="6m") as (cluster, disk):
        counting = Counting(tmp_path / "counting", exit_code=4, retry={"max_attempts": 1})
        job = cluster.submit_text(counting.text)
        (pid,) = counting.wait_running(1)
        disk.fill()
        submit_until_refused(cluster, '{"command": "true", "description": "' + "x" * 2000 + '"}')
        counting.stop()
        wait_until("the rank is over", lambda: not Path(f"/proc/{pid}").exists())
        cluster.kill_scheduler()
        disk.free()
        cluster.start_scheduler()
        found = counting.check(cluster, job, state="FAILED")
        assert found.exit_code == 4


def test_the_scheduler_s_disk_is_full_when_a_model_is_registered(tmp_path: Path) -> None:
    """A person's upload is refused and takes no version; a job's output waits until there is room."""
    weights, written, enough = (tmp_path / name for name in ("weights", "written", "enough"))
    weights.write_bytes(os.urandom(2_000_000))
    script = f"cp {weights} ${{{{outputs.model}}}}/w.bin; touch {written}; "
    script += f"until [ -e {enough} ]; do sleep 0.05; done"
    output = "{model: {type: custom_model, name: saved}}"
    with cluster_on(tmp_path, small="scheduler", size="16m") as (cluster, disk):
        job = cluster.submit_text(f"command: '{script}'\noutputs: {output}\n")
        wait_until("its output is written", written.exists)
        [pid] = cluster.gang_pids(job, 1)
        disk.fill()
        with pytest.raises(PacelineError, match="No space left on device") as refused:
            cluster.client.register("model", "digits", OfPath(str(weights)))
        assert "the disk below the scheduler's --storage folder" in str(refused.value)
        enough.touch()
        wait_until("the rank is over", lambda: not Path(f"/proc/{pid}").exists())
        disk.free()
        assert cluster.client.register("model", "digits", OfPath(str(weights))).version == "1"
        assert cluster.wait_state(job, "SUCCEEDED").attempt == 1
        saved = cluster.wait_registered("model", "saved")
        assert (saved.version, saved.bytes) == ("1", 2_000_000)


def test_the_scheduler_s_disk_is_read_only(tmp_path: Path) -> None:
    """It refuses to start, saying why; jobs go on meanwhile, and all is there when it can write again."""
    with cluster_on(tmp_path, small="scheduler", size="16m") as (cluster, disk):
        counting = Counting(tmp_path / "counting")
        job = cluster.submit_text(counting.text)
        pids = counting.wait_running(1)
        cluster.kill_scheduler()
        disk.remount("ro")
        with pytest.raises(AssertionError, match=r"(?i)read-only"):
            cluster.start_scheduler()
        assert cluster.scheduler is not None
        assert cluster.scheduler.exit_code() == 3
        counting.wait_counting_on(1)
        disk.remount("rw")
        cluster.start_scheduler()
        cluster.wait_connected(0)
        assert cluster.gang_pids(job, len(pids)) == pids
        counting.stop()
        counting.check(cluster, job, alone=True)


def test_the_agent_s_disk_is_full(tmp_path: Path) -> None:
    """A task that runs ends as it did; new ones are refused, with the reason, until there is room."""
    with cluster_on(tmp_path, small="agent", size="4m") as (cluster, disk):
        enough = tmp_path / "enough"
        command = f"until [ -e {enough} ]; do sleep 0.05; done; exit 6"
        job = cluster.submit_text(f"command: '{command}'\nretry: {{max_attempts: 1}}\n")
        cluster.wait_state(job, "RUNNING")
        disk.fill()
        second = cluster.submit_text("command: echo there is room\n")
        text = wait_until(
            "its start is refused",
            lambda: next(
                (e.text for e in cluster.client.timeline(second).entries if "No space left" in e.text), None
            ),
        )
        assert "local-0 refused to start task 0" in text or "node-trouble" in text
        enough.touch()
        found = cluster.wait_state(job, "FAILED")
        assert (found.exit_code, found.attempt) == (6, 1)
        disk.free()
        assert cluster.wait_state(second, "SUCCEEDED").exit_code == 0
        chunks = cluster.client.logs(second, follow=True)
        assert b"".join(chunk.data for chunk in chunks) == b"there is room\n"


@pytest.mark.timeout(600)
def test_the_scheduler_s_disk_is_full_when_an_endpoint_is_updated(tmp_path: Path) -> None:
    """Every request is answered all the while; the update is refused with the reason, and made when there is
    room."""
    first, second = model(tmp_path / "a", "a", answer_s=0.01), model(tmp_path / "b", "b", answer_s=0.01)
    with cluster_on(tmp_path, small="scheduler", size="6m") as (cluster, disk):
        found = answering(cluster, first)
        with Load(found, clients=2) as load:
            load.wait_more(5)
            disk.fill()
            submit_until_refused(
                cluster, '{"command": "true", "resources": {"cpus": 9}, "description": "' + "x" * 2000 + '"}'
            )
            with (
                cluster.new_client(patience_s=0.5) as client,
                pytest.raises(PacelineError, match="the disk is full"),
            ):
                client.deploy({"endpoint_name": "e", "model": str(second)})
            load.wait_more(20)
            disk.free()
            answering(cluster, second)
            load.wait_more(5)
        load.all_answered()
        assert set(load.models) == {"a", "b"}
        cluster.client.undeploy("e")
        wait_until("it is gone", lambda: not cluster.client.endpoints(), 120)


def answering(cluster: Cluster, folder: Path) -> Endpoint:
    """The endpoint, when that model alone answers."""
    cluster.client.deploy({"endpoint_name": "e", "model": str(folder)})

    def look() -> Endpoint | None:
        found = cluster.client.endpoint("e")
        [one] = found.deployments
        settled = one.model == str(folder) and all(each.revision == one.revision for each in one.replicas)
        return found if found.url and one.state == "ready" and settled else None

    return wait_until(f"{folder.name} answers", look, 240)
