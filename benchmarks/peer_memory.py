"""peer_memory: a node of a gang of two is killed, and its part of the checkpoint is read from the memory of
the other one, or from disk; and what it costs the training that copies are sent there.

All nodes are on one machine, so what a copy takes of the processors is taken from the training twice: at the
end that sends, and at the one that receives. From disk: nothing of it is in the page cache.
"""

import json
import os
import tempfile
from collections.abc import Sequence
from itertools import count
from pathlib import Path
from typing import Any

from .cluster import Cluster, training
from .cluster import version as our_version
from .harness import Options, Report, Row, alternate, options
from .peers.work.waiting import wait_until

SCRIPT = Path(__file__).parent / "work" / "peer_rank.py"
SIZE_MB = 500
TRAIN_S = 30.0
_WAIT_S = 120.0


def main(argv: Sequence[str] | None = None) -> None:
    given = options("peer_memory", "A lost node's part, from a peer's memory and from disk.", argv)
    report = Report("peer_memory", versions={"paceline": our_version()})
    megabytes, seconds = (50, 2.0) if given.quick else (SIZE_MB, TRAIN_S)
    with tempfile.TemporaryDirectory(prefix="bench-peer-") as name:
        folder = Path(name)
        with Cluster(folder, agents=3, slots=1) as cluster:
            runs = Runs(cluster, folder, megabytes)
            restoring(report, given, runs)
            slowed(report, given, runs, seconds)
    report.finish(given)


def restoring(report: Report, given: Options, runs: "Runs") -> None:
    taken = alternate(given.pairs, lambda: runs.restore(peer=True), lambda: runs.restore(peer=False))
    case = f"{runs.megabytes} MB, one node of two lost"
    report.rows.append(Row(case, "restore from a peer's memory", "s", taken[0], "ours from disk", taken[1]))


def slowed(report: Report, given: Options, runs: "Runs", seconds: float) -> None:
    taken = alternate(
        given.pairs, lambda: runs.train(seconds, peer=True), lambda: runs.train(seconds, peer=False)
    )
    metric = f"training, one save in {seconds:.0f} s"
    report.rows.append(
        Row(f"{runs.megabytes} MB", metric, "1/s", taken[0], "nothing sent to a peer", taken[1])
    )


class Runs:
    """Of a gang of two nodes; a third has room for one that is lost."""

    def __init__(self, cluster: Cluster, folder: Path, megabytes: int) -> None:
        self.megabytes = megabytes
        self._cluster = cluster
        self._folder = folder
        self._numbers = count()

    def restore(self, *, peer: bool) -> float:
        """Seconds of the restore after the loss, as rank 0 told."""
        out, job = self._submit(0.0, peer=peer)
        self._wait_saved(job, peer=peer)
        for one in self._cluster.client.job(job).checkpoints:
            _evict(Path(one.path))
        self._cluster.kill_node(self._cluster.client.job(job).tasks[1].node)
        told = wait_until(
            lambda: self._told(job, "CheckpointRestored"), "the restore", timeout_s=_WAIT_S, every_s=0.05
        )
        tier = str(told[0]["tier"])
        if ("the memory of " in tier) is not peer or ("storage" in tier) is peer:
            raise AssertionError(f"job {job}: read from {tier}")
        self._finish(out, job)
        self._cluster.start_dead()
        self._cluster.wait_warm()
        return float(told[0]["duration_us"]) / 1e6

    def train(self, seconds: float, *, peer: bool) -> float:
        """Steps a second from a save on."""
        out, job = self._submit(seconds, peer=peer)
        rate = out / "rate"
        wait_until(rate.exists, "the rate", timeout_s=seconds + _WAIT_S, every_s=0.1)
        self._wait_saved(job, peer=peer)
        self._finish(out, job)
        return float(rate.read_text())

    def _submit(self, seconds: float, *, peer: bool) -> tuple[Path, int]:
        out = self._folder / f"run-{next(self._numbers)}"
        out.mkdir()
        document = training(out, steps=self.megabytes, instances=2, processes=1, cpus=1, script=SCRIPT)
        document["command"] = f"python {SCRIPT} {out} {self.megabytes} {seconds}"
        document["checkpoint"] = {"keep_last": 1, "peer_memory": peer}
        return out, self._cluster.client.submit(document)

    def _wait_saved(self, job: int, *, peer: bool) -> None:
        def saved() -> bool:
            accepted = self._cluster.client.job(job).checkpoints
            second = next((Path(one.path) for one in accepted if one.step == 2), None)
            return second is not None and (not peer or _is_kept(job, second))

        wait_until(saved, "both checkpoints saved", timeout_s=_WAIT_S, every_s=0.1)

    def _told(self, job: int, kind: str) -> list[dict[str, Any]]:
        entries = self._cluster.client.timeline(job).entries
        return [json.loads(entry.body) for entry in entries if entry.kind == kind]

    def _finish(self, out: Path, job: int) -> None:
        (out / "enough").touch()
        self._cluster.finish(job)


def _is_kept(job: int, checkpoint: Path) -> bool:
    """All of its files are in the memories of other nodes, too, whole."""
    kept = {path.name for path in Path("/dev/shm").glob(f"paceline-*/{job}/peers/{checkpoint.name}/*")}
    return {path.name for path in checkpoint.iterdir()} <= kept


def _evict(folder: Path) -> None:
    """Out of the page cache: on another machine nothing of it would be there."""
    for path in folder.iterdir():
        fd = os.open(path, os.O_RDONLY)
        os.fsync(fd)
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(fd)


if __name__ == "__main__":
    main()
