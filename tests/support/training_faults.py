"""The faults of a round of training. Each leaves the cluster able to heal, and those that must be seen (a bad
GPU, no memory, a full disk) wait until the job's timeline tells of them.
"""

import contextlib
import os
import random
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path

from paceline.client import process
from paceline.client.process import Identity
from paceline.client.views import Job, TimelineEntry
from paceline.proto.marks import agent_mark
from paceline.spec.errors import Conflict
from paceline.spec.failures import FailureClass
from paceline.spec.gpu_health import GpuState
from paceline.spec.ids import JobId
from paceline.spec.lifecycle import NodeContact

from .cluster import wait_until
from .rank_scripts import persisters_of
from .training_cluster import TrainingCluster

NOTICE_S = 2.0
XIDS = (48, 79, 94, 119)
"""Of the device, whatever runs on it."""
PULSES = 20
Fault = Callable[[], None]
Ride = Callable[[], None]


class Faults:
    def __init__(
        self, cluster: TrainingCluster, job: JobId, folder: Path, luck: random.Random, ride_on: Ride
    ) -> None:
        """`ride_on` waits until the gang makes steps again."""
        self._cluster = cluster
        self._job = job
        self._folder = folder
        self._luck = luck
        self._ride_on = ride_on
        self.damaged: set[str] = set()
        """Checkpoints that must not be restored from storage."""

    def all(self) -> list[Fault]:
        return [
            self._kill_rank,
            self._kill_both_ranks,
            self._kill_shim,
            self._kill_persister,
            self._stop_rank,
            self._slow_rank,
            self._kill_agent,
            self._kill_node,
            self._kill_scheduler,
            self._forget_memory,
            self._damage_storage,
            self._swap_storage,
            self._damage_memory,
            self._silence_node,
            self._preempt,
            self._take_memory,
            self._break_gpu,
            *([self._fill_disk] if self._cluster.disk is not None else []),
        ]

    def _slow_rank(self) -> None:
        """It gets little of its time, and is nevertheless no rank that hangs."""
        since, victim = (
            self._newest(),
            self._luck.choice(wait_until("it has ranks", lambda: self._ranks() or None)),
        )
        for _ in range(PULSES):
            process.send(victim, signal.SIGSTOP)
            time.sleep(self._luck.uniform(0.05, 0.2))  # what a step takes longer
            process.send(victim, signal.SIGCONT)
            time.sleep(0.02)
        assert not self._told(since, "TaskStalled"), self._cluster.story(self._job, "slow, not still")

    def _take_memory(self) -> None:
        """A rank takes what there is, and is refused more."""
        since = self._newest()
        (self._folder / "hungry").write_text(str(self._luck.choice([0, 1])))
        self._wait_told(since, "AttemptEnded", f"({FailureClass.OUT_OF_MEMORY}")

    def _break_gpu(self) -> None:
        """The driver tells of a fault of a GPU that the job has: the gang goes on with another, also on that
        node, and the GPU is given back when it has done well in its test.
        """
        task = self._luck.choice(
            wait_until("it has nodes", lambda: self._cluster.client.job(self._job).tasks or None)
        )
        node, gpu, since = int(task.node.removeprefix("local-")), task.gpu_indices[0], self._newest()
        xid = self._luck.choice(XIDS)
        with self._cluster.gpu_tests_held(node):
            self._cluster.drivers[node].tell(gpu, xid)
            why = f"GPU {gpu} of {task.node} is quarantined: XID {xid}"
            ended = self._wait_told(since, "AttemptEnded", f"({FailureClass.NODE_LOST}", why)
            again = wait_until("it goes on", lambda: self._running_after(ended.attempt))
            assert (task.node, gpu) not in [(one.node, at) for one in again.tasks for at in one.gpu_indices]
            self._ride_on()
            assert self._gpu_state(node, gpu) is GpuState.QUARANTINED
        wait_until("the GPU is given back", lambda: self._gpu_state(node, gpu) is GpuState.OK)

    def _gpu_state(self, node: int, gpu: int) -> GpuState:
        nodes = {one.name: one for one in self._cluster.client.nodes().nodes}
        return nodes[f"local-{node}"].gpus[gpu].state

    def _running_after(self, attempt: int) -> Job | None:
        job = self._cluster.client.job(self._job)
        return job if job.attempt > attempt and job.state == "RUNNING" else None

    def _fill_disk(self) -> None:
        """The checkpoints' disk is full for a while, in which a rank may be killed, too: what cannot be saved
        costs that checkpoint and no step.
        """
        disk, since = self._cluster.disk, self._newest()
        assert disk is not None

        def failed() -> TimelineEntry | None:
            disk.fill()  # again: what retention drops makes room for another
            return self._told(since, "CheckpointFailed", "No space left on device")

        try:
            entry = wait_until("a save fails", failed)
            if self._luck.random() < 0.5:
                self._hit(self._luck.choice([0, 1]), signal.SIGKILL)
            self._ride_on()
        finally:
            disk.free()
        self._wait_told(entry.seq, "CheckpointAccepted")

    def _newest(self) -> int:
        return max((entry.seq for entry in self._cluster.client.timeline(self._job).entries), default=0)

    def _told(self, since: int, kind: str, *words: str) -> TimelineEntry | None:
        """The first such entry of the job's timeline after that one."""
        for entry in self._cluster.client.timeline(self._job).entries:
            if entry.seq > since and entry.kind == kind and all(word in entry.text for word in words):
                return entry
        return None

    def _wait_told(self, since: int, kind: str, *words: str) -> TimelineEntry:
        return wait_until(f"{kind} {words}", lambda: self._told(since, kind, *words))

    def _kill_rank(self) -> None:
        self._hit(self._luck.choice([0, 1]), signal.SIGKILL)

    def _kill_both_ranks(self) -> None:
        for rank in (0, 1):
            self._hit(rank, signal.SIGKILL)

    def _kill_shim(self) -> None:
        for found in self._ranks()[:1]:
            self._send(process.parent_of(found), signal.SIGKILL)

    def _kill_persister(self) -> None:
        for found in self._ranks():
            for pid in persisters_of(found.pid):
                self._send(pid, signal.SIGKILL)

    def _stop_rank(self) -> None:
        self._hit(self._luck.choice([0, 1]), signal.SIGSTOP)

    def _kill_agent(self) -> None:
        index = self._luck.choice([0, 1])
        self._cluster.kill_agent(index)
        self._cluster.start_agent(index)

    def _kill_node(self) -> None:
        index = self._luck.choice([0, 1])
        state = str(self._cluster.agent_state(index))
        tasks = process.with_environment("PACELINE_TASK_FOLDER", lambda value: value.startswith(state))
        for found in [
            self._cluster.agents[index].identity,
            *process.descendants(self._cluster.agents[index].identity),
            *tasks,
        ]:
            process.send(found, signal.SIGKILL)
        self._cluster.kill_agent(index)
        self._cluster.start_agent(index)

    def _kill_scheduler(self) -> None:
        self._cluster.kill_scheduler()
        self._cluster.start_scheduler()

    def _forget_memory(self) -> None:
        """Both nodes lose what they hold in memory, and the gang falls."""
        self._kill_both_ranks()
        for folder in self._memory():
            shutil.rmtree(folder, ignore_errors=True)

    def _damage_storage(self) -> None:
        """The newest checkpoint rots where it lies, memory is lost, and the gang falls: the one before is
        taken.
        """
        newest = max(self._cluster.client.job(self._job).checkpoints, key=lambda one: one.accepted_us)
        files = sorted(Path(newest.path).glob("*.distcp")) if Path(newest.path).exists() else []
        if files:  # else retention was faster, and this is no damage
            self.damaged.add(newest.path)
            self._spoil(self._luck.choice(files))
        self._forget_memory()

    def _swap_storage(self) -> None:
        """The two newest checkpoints get each other's files, memory is lost, and the gang falls."""
        by_age = sorted(self._cluster.client.job(self._job).checkpoints, key=lambda one: one.accepted_us)
        newest, before = ([*map(Path, (one.path for one in reversed(by_age)))] * 2)[:2]
        names = [file.name for file in newest.glob("*.distcp") if (before / file.name).exists()]
        if newest != before and names:
            for name in names:
                (newest / name).rename(newest / "swapped")
                (before / name).rename(newest / name)
                (newest / "swapped").rename(before / name)
            self.damaged |= {str(newest), str(before)}
        self._forget_memory()

    def _silence_node(self) -> None:
        """Its agent says nothing until it is taken for lost; what it runs goes on, as far as it is let."""
        index = self._luck.choice([0, 1])
        agent, name = self._cluster.agents[index], f"local-{index}"
        agent.send(signal.SIGSTOP)
        try:
            wait_until(f"{name} is missed", lambda: self._contact(name) is not NodeContact.CONNECTED)
        finally:
            agent.send(signal.SIGCONT)
        wait_until(f"{name} is back", lambda: self._contact(name) is NodeContact.CONNECTED)

    def _contact(self, name: str) -> NodeContact:
        return next(node.contact for node in self._cluster.client.nodes().nodes if node.name == name)

    def _preempt(self) -> None:
        """It saves and leaves, or is killed when its time is over, and comes back."""
        with contextlib.suppress(Conflict):  # it has no nodes at this moment
            self._cluster.client.preempt(self._job, grace_s=NOTICE_S)

    def _damage_memory(self) -> None:
        images = [path for folder in self._memory() for path in folder.glob("**/*.distcp")]
        for path in images:
            self._spoil(path)
        self._kill_both_ranks()

    def _spoil(self, path: Path) -> None:
        """A bit turns over, or the end is missing."""
        with path.open("r+b") as file:
            size = file.seek(0, os.SEEK_END)
            if self._luck.random() < 0.5 or size < 2:
                file.truncate(size // 2)
                return
            at = self._luck.randrange(size)
            file.seek(at)
            bits = file.read(1)[0] ^ (1 << self._luck.randrange(8))
            file.seek(at)
            file.write(bytes([bits]))

    def _memory(self) -> list[Path]:
        marks = [agent_mark(self._cluster.agent_state(index) / "tasks")[1:] for index in (0, 1)]
        return [Path(f"/dev/shm/paceline-{mark}") / str(self._job) for mark in marks]

    def _ranks(self) -> list[Identity]:
        found = [process.identify(pid) for pid in self._cluster.task_pids(self._job)]
        return [one for one in found if one is not None]

    def _hit(self, rank: int, signum: int) -> None:
        pids = self._cluster.task_pids(self._job)
        if rank < len(pids):
            self._send(pids[rank], signum)

    def _send(self, pid: int | None, signum: int) -> None:
        found = process.identify(pid) if pid else None
        if found is not None:
            process.send(found, signum)
