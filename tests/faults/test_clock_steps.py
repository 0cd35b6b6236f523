"""The scheduler's wall clock is stepped back and forth, while it runs and while it is down.

Time in its history never runs backwards, the ledger adds up, and no lease is fooled: nothing is replaced.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path

from support.cluster import Cluster, Process
from support.counting import Counting

HOUR_S = 3600.0


def start_scheduler(cluster: Cluster, clock: Path) -> None:
    options = ["--state", str(cluster.state), "--listen", cluster.address]
    module = ["support.stepping_clock", str(clock)]
    cluster.scheduler = Process(
        "scheduler", [*module, *options], cluster.folder / "scheduler.log", cluster.environment
    )


def set_clock(clock: Path, off_s: float) -> None:
    aside = clock.with_suffix(".new")
    aside.write_text(f"{off_s}")
    aside.replace(clock)


@contextmanager
def cluster_with_clock(folder: Path) -> Iterator[tuple[Cluster, Path]]:
    """Two nodes, and the file that sets the clock of their scheduler."""
    clock = folder / "clock"
    tests = str(Path(__file__).resolve().parents[1])
    with Cluster(
        folder, agents=2, cpus=1, environment={"PYTHONPATH": tests}, agent_args=["--cold"]
    ) as cluster:
        cluster.stop_scheduler()
        start_scheduler(cluster, clock)
        yield cluster, clock


def test_silence_is_counted_after_a_start_with_the_clock_set_back(tmp_path: Path) -> None:
    """The store has seen a later time; a scheduler that waited for it would give up no node for an hour."""
    with cluster_with_clock(tmp_path) as (cluster, clock):
        counting = Counting(tmp_path / "counting")
        job = cluster.submit_text(counting.text)
        counting.wait_running(1)
        (task,) = cluster.client.job(job).tasks
        cluster.kill_scheduler()
        set_clock(clock, -HOUR_S)
        start_scheduler(cluster, clock)
        for index in (0, 1):
            cluster.wait_connected(index)
        cluster.kill_agent(int(task.node.rpartition("-")[2]))
        counting.wait_running(2, timeout_s=30)
        cluster.start_agent(int(task.node.rpartition("-")[2]))
        counting.stop()
        counting.check(cluster, job, attempts=2)


def test_wall_clock_steps(tmp_path: Path) -> None:
    with cluster_with_clock(tmp_path) as (cluster, clock):
        fenced = Counting(tmp_path / "fenced", limits={"timeout": 1200})
        exclusive = Counting(tmp_path / "exclusive", exclusive=True)
        late = Counting(tmp_path / "late")
        jobs = [cluster.submit_text(each.text) for each in (fenced, exclusive, late)]
        pids = [each.wait_running(1) for each in (fenced, exclusive)]
        for off_s in (HOUR_S, -HOUR_S, 0.0, -3.0, 3.0):
            set_clock(clock, off_s)
            for each in (fenced, exclusive):
                each.wait_counting_on(1)
            assert not cluster.client.nodes().suspected
        for off_s in (-2 * HOUR_S, 600.0, -60.0):
            cluster.kill_scheduler()
            set_clock(clock, off_s)
            start_scheduler(cluster, clock)
            for index in (0, 1):
                cluster.wait_connected(index)
            for each in (fenced, exclusive):
                each.wait_counting_on(1)
        assert [cluster.gang_pids(job, len(its)) for job, its in zip(jobs, pids, strict=False)] == pids
        for each in (fenced, exclusive, late):
            each.stop()
        for each, job in zip((fenced, exclusive, late), jobs, strict=True):
            found = each.check(cluster, job, alone=True)
            story = cluster.client.timeline(job)
            assert all(a.at_us <= b.at_us for a, b in pairwise(story.entries)), story.entries
            ledger = story.ledger
            parts = ("queued", "starting", "productive", "checkpoint", "lost", "restarting", "hung")
            assert sum(getattr(ledger, f"{part}_us") for part in parts) == ledger.wall_us
            assert all(getattr(ledger, f"{part}_us") >= 0 for part in parts)
            assert found.finished_us - found.submitted_us == ledger.wall_us
