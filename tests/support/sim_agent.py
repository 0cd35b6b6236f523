"""Simulated nodes: an agent that may die and come back, tasks that outlive it, a disk that outlives both.

They keep the contracts: journals numbered from 1, positions, folders dropped after the end is acknowledged,
older attempts killed before newer ones start, leases counted from the SENDING of the last renewal that was
acknowledged.
"""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from msgspec import structs
from paceline.scheduler.core import stimuli as s
from paceline.scheduler.core.effects import Acked, AskSave, Effect, InspectTask, StartTask, StopTask, Welcome
from paceline.scheduler.core.failure import NOTHING, Evidence
from paceline.scheduler.core.hang import RankLook
from paceline.scheduler.core.node import NodeGpu, NodeInventory, SickGpu
from paceline.scheduler.core.pace import RankPace
from paceline.spec.gpu_health import GpuState
from paceline.spec.ids import Attempt, JobId, Micros, NodeId, TaskKey
from support.sim_world import MS, SECOND, Link, Stream, World

if TYPE_CHECKING:
    from support.sim_run import Run


ERRORS = (
    NOTHING,
    Evidence("ValueError", "bad label", "Traceback ...", "bad label", recorded=True),
    Evidence("ModuleNotFoundError", "No module named 'x'", recorded=True),
    Evidence("torch.OutOfMemoryError", "CUDA out of memory", recorded=True),
)
PEER_GONE = s.Exited(
    0, 1, "bye", evidence=Evidence("RuntimeError", "Connection closed by peer", recorded=True)
)


@dataclass
class Folder:
    """A task's folder on disk, and the processes that belong to it."""

    key: TaskKey
    exclusive: bool
    ranks: int
    gang: int
    life_us: int
    journal: list[s.Entry] = field(default_factory=list)
    running: bool = False
    trains: bool = False
    hangs: bool = False
    stalled: bool = False
    """As its shim judges: also wrongly, for a while."""
    acked: int = 0
    sent: int = 0
    stays: bool = False
    """Its ranks would outlive their gang."""
    failed: s.Exited | None = None
    """It has failed on its own, and its process has not ended yet."""
    asked: int = 0
    """The last checkpoint that was asked for."""

    @property
    def ended(self) -> bool:
        return bool(self.journal) and isinstance(self.journal[-1].said, s.Ended | s.Refused)


class Gangs:
    """How the ranks of one attempt depend on each other: they train when all are there, and fall together."""

    def __init__(self, run: "Run") -> None:
        self.run = run
        self.there: dict[tuple[JobId, Attempt], set[TaskKey]] = {}
        self.culprits: set[TaskKey] = set()
        """Tasks whose ranks fell on their own."""

    def joined(self, node: "Node", folder: Folder) -> None:
        key = folder.key
        there = self.there.setdefault((key.job, key.attempt), set())
        there.add(key)
        if len(there) == folder.gang:
            hangs = self.run.world.chance(0.02 if self.run.world.calm else 0.06)
            for member in there:
                self.run.holder_of(member).trains(member, hangs)

    def fell(self, key: TaskKey) -> None:
        for member in sorted(self.there.get((key.job, key.attempt), ())):
            if member != key:
                self.run.world.later(
                    self.run.world.between(1 * MS, 400 * MS), self.run.holder_of(member).peer_fell, member
                )


class Node:
    """One machine. `up` is the machine, `agent_up` the agent's process on it."""

    def __init__(self, run: "Run", name: str, inventory: NodeInventory) -> None:
        self.run = run
        self.world: World = run.world
        self.name = NodeId(name)
        self.inventory = inventory
        self.link = Link(self.world)
        self.folders: dict[TaskKey, Folder] = {}
        self.up = True
        self.agent_up = False
        self.stream: Stream | None = None
        self.welcomed = False
        self.incarnation = 0
        self.renewed_us = 0
        """When the last acknowledged renewal was sent."""
        self.answered_us = 0
        self.start_agent()

    # --- the agent's process

    def start_agent(self) -> None:
        if not self.up or self.agent_up:
            return
        self.agent_up = True
        self.incarnation += 1
        for folder in self.folders.values():
            folder.acked = folder.sent = 0
            if not folder.running and not folder.ended:
                self.write(folder, s.Exited(0, -9), s.Ended((-9,) * folder.ranks, (), "shim died"))
        self._dial(self.incarnation)

    def kill_agent(self) -> None:
        """SIGKILL: the kernel closes its connection; tasks go on."""
        if self.agent_up:
            self.agent_up = False
            self._hang_up()

    def kill_machine(self) -> None:
        """Power off: nothing says goodbye; the disk stays."""
        self.up = self.agent_up = self.welcomed = False
        if self.stream is not None:
            self.stream.open_at_agent = False
            self.stream = None
        for folder in self.folders.values():
            folder.running = False

    def boot(self) -> None:
        if not self.up:
            self.up = True
            self.start_agent()

    def _dial(self, incarnation: int) -> None:
        if not self.agent_up or incarnation != self.incarnation or self.stream is not None:
            return
        if self.link.cut or not self.run.scheduler.alive:
            self.world.later(self.world.between(100 * MS, 600 * MS), self._dial, incarnation)
            return
        stream = self.stream = Stream(self.link)
        self.welcomed = False
        self.answered_us = sent_us = self.world.now_us
        tasks = tuple(sorted(self.folders))
        hello = s.Hello(self.name, 0, str(self.incarnation), self.inventory, tasks)
        stream.up(self.run.scheduler.hello, self, stream, hello, sent_us)
        self.world.later(SECOND, self._beat, stream)

    def _hang_up(self) -> None:
        """This end is closed; the other hears of it, if the link lets it."""
        stream, self.stream, self.welcomed = self.stream, None, False
        if stream is not None:
            stream.open_at_agent = False
            stream.up(self.run.scheduler.stream_broke, self, stream)

    def stream_closed(self, stream: Stream) -> None:
        """The scheduler's end is closed."""
        if self.stream is stream:
            stream.open_at_agent = False
            self.stream, self.welcomed = None, False
            self.world.later(self.world.between(10 * MS, 400 * MS), self._dial, self.incarnation)

    def _beat(self, stream: Stream) -> None:
        if self.stream is not stream or not self.agent_up:
            return
        if self.world.now_us - self.answered_us > 3 * SECOND:
            self._hang_up()
            self._dial(self.incarnation)
            return
        if self.welcomed:
            stream.up(self.run.scheduler.heartbeat, self, stream, self.world.now_us)
        self.world.later(SECOND, self._beat, stream)

    def gpu_is(self, index: int, state: GpuState) -> None:
        """As its driver sees it; told at once where somebody listens, else with the next hello."""
        old = self.inventory
        model = next(gpu.model for gpu in (*old.gpus, *old.sick) if gpu.index == index)
        gpus = {gpu.index: gpu for gpu in old.gpus if gpu.index != index}
        sick = {gpu.index: gpu for gpu in old.sick if gpu.index != index}
        if state is GpuState.OK:
            gpus[index] = NodeGpu(index, model)
        else:
            sick[index] = SickGpu(index, model, state, "XID 48", Micros(self.world.now_us))
        self.inventory = replace(
            old,
            gpus=tuple(gpus[at] for at in sorted(gpus)),
            sick=tuple(sick[at] for at in sorted(sick)),
        )
        self._tell_inventory()

    def leaves(self) -> None:
        """It is to end with its tasks: it says so, and ends when they have, or not, and another comes."""
        if self.agent_up:
            self.inventory = replace(self.inventory, leaving=True)
            self._tell_inventory()
            self.world.later(self.world.between(100 * MS, 8 * SECOND), self._has_left)

    def _has_left(self) -> None:
        self.kill_agent()
        self.inventory = replace(self.inventory, leaving=False)
        self.world.later(self.world.between(50 * MS, 8 * SECOND), self.start_agent)

    def _tell_inventory(self) -> None:
        if self.stream is not None and self.welcomed:
            self.stream.up(self.run.scheduler.inventory, self, self.stream, self.inventory)

    # --- what the scheduler says

    def welcome(self, stream: Stream, hello: s.Hello, welcome: Welcome, sent_us: int) -> None:
        if self.stream is not stream:
            return
        self.welcomed = True
        self.run.checks.welcomed(hello, welcome)
        self.renewal(stream, sent_us)
        for position in welcome.positions:
            folder = self.folders.get(position.task)
            if folder is not None:
                folder.acked = folder.sent = position.seq
        for key in welcome.forget:
            self._forget(key)
        for key in list(self.folders):
            self._ship(key)

    def renewal(self, stream: Stream, sent_us: int) -> None:
        if self.stream is stream:
            self.answered_us = self.world.now_us
            self.renewed_us = max(self.renewed_us, sent_us)

    def acked(self, stream: Stream, acked: Acked) -> None:
        if self.stream is not stream:
            return
        for position in acked.positions:
            folder = self.folders.get(position.task)
            if folder is None:
                continue
            folder.acked = max(folder.acked, position.seq)
            folder.sent = min(folder.sent, position.seq)
            self._ship(folder.key)
            if folder.ended and folder.acked >= len(folder.journal):
                self.folders.pop(position.task, None)
                self.run.checks.end_is_told(folder.key)

    def take(self, stream: Stream, effects: tuple[Effect, ...]) -> None:
        if self.stream is not stream:
            return
        for effect in effects:
            if isinstance(effect, AskSave):
                self.run.saves.asked(self, effect)
            elif isinstance(effect, StartTask):
                self.run.saves.starts(effect)
                self._start(effect)
            elif isinstance(effect, InspectTask):
                self.world.later(self.world.between(10 * MS, 5 * SECOND), self._inspected, effect.key)
            else:
                self._stop(effect)

    def _older(self, key: TaskKey) -> list[Folder]:
        return [
            one for one in self.folders.values() if one.key.job == key.job and one.key.attempt < key.attempt
        ]

    def _start(self, start: StartTask) -> None:
        key = start.key
        if key in self.folders or any(
            one.job == key.job and one.attempt > key.attempt for one in self.folders
        ):
            return
        kept = [other for other in self._older(key) if self._can_go_on(other, key)]
        for other in self._older(key):
            if other in kept:
                self.world.later(self.world.between(1 * MS, 200 * MS), self._goes_on, other)
            else:
                self._kill(other, "superseded")
        job = start.job
        long = self.world.chance(0.5 if self.run.slow else 0.05)
        life_us = self.world.between(50 * MS, 60 * SECOND if long else 8 * SECOND)
        folder = Folder(key, job.demand.exclusive, job.demand.processes_per_task, len(job.tasks), life_us)
        self.folders[key] = folder
        if not self.world.calm and self.world.chance(0.03):
            self.write(folder, s.Refused("port", "the port is taken", transient=self.world.chance(0.9)))
            return
        self.world.later(self.world.between(5 * MS, 200 * MS), self._launch, folder)

    def _launch(self, folder: Folder) -> None:
        if not self.up or folder.ended or self.folders.get(folder.key) is not folder:
            return
        if any(older.running for older in self._older(folder.key)):
            self.world.later(5 * MS, self._launch, folder)
            return
        folder.running = True
        self.run.checks.task_runs(folder.key, folder.exclusive)
        self.write(folder, s.Started(tuple(range(100, 100 + folder.ranks)), "warm"))
        self._watch_lease(folder)
        self.run.gangs.joined(self, folder)

    def _stop(self, stop: StopTask) -> None:
        folder = self.folders.get(stop.key)
        if folder is None or folder.ended:
            return
        if stop.keep_us and folder.running and folder.stays:
            if stop.grace_us:
                delay_us = self.world.between(0, min(stop.grace_us, 2 * SECOND))
                self.world.later(delay_us, self._left_the_gang, folder)
            else:
                self.world.later(stop.keep_us, self._waited_in_vain, folder)
            return
        if not folder.running or not stop.grace_us:
            self._kill(folder, "stopped")
            return
        delay_us = self.world.between(0, min(stop.grace_us, 2 * SECOND))
        self.world.later(delay_us, self._stopped_within_grace, folder)

    def _stopped_within_grace(self, folder: Folder) -> None:
        if not folder.running:
            return
        if self.world.chance(0.5):
            self._end(folder, s.Exited(0, 0), "stopped")
        else:
            self._end(folder, s.Exited(0, -15, "bye", killed_by_us=True), "stopped")

    def _can_go_on(self, before: Folder, key: TaskKey) -> bool:
        """Ranks of the attempt just before, at the same place in the gang."""
        at = before.key
        return before.stays and before.running and (at.attempt + 1, at.task) == (key.attempt, key.task)

    def _goes_on(self, before: Folder) -> None:
        """Those that live are the next attempt's: this one's journal ends."""
        if before.running and self.up:
            before.running = False
            self.write(before, s.Ended((), (1,) * before.ranks, "kept for the next attempt"))

    def _left_the_gang(self, folder: Folder) -> None:
        if folder.running:
            self.write(folder, s.Waiting(folder.ranks))
            self.world.later(10 * SECOND, self._waited_in_vain, folder)

    def _waited_in_vain(self, folder: Folder) -> None:
        if folder.running:
            self._kill(folder, "exited")

    def _forget(self, key: TaskKey) -> None:
        """Kill what is left; the folder goes when it is dead."""
        folder = self.folders.get(key)
        if folder is None:
            return
        if folder.running:
            self._kill(folder, "superseded")
        else:
            self.folders.pop(key)

    # --- the life of a task

    def trains(self, key: TaskKey, hangs: bool) -> None:
        """All ranks are there: the clock of the training runs."""
        folder = self.folders.get(key)
        if folder is None or not folder.running or folder.trains:
            return
        folder.trains, folder.hangs = True, hangs
        folder.stays = self.world.chance(0.4)
        if folder.stays and key.attempt > 1 and self.world.chance(0.5):
            self.write(folder, s.Reformed((0,), folder.ranks * folder.gang, 7, 100 * MS))
        if self.world.chance(0.3):
            self._paces(folder, self.world.chance(0.5))
        if hangs:
            self._stalls(folder, self.world.between(SECOND, 10 * SECOND))
            return
        if self.world.chance(0.05):
            self._stalls(folder, self.world.between(0, folder.life_us))
        if key.task == 0:
            self.world.later(folder.life_us // 3, self._saves, folder, 10)
            self.world.later(2 * folder.life_us // 3, self._saves, folder, 20)
        fails = self.world.chance(0.05 if self.world.calm else 0.15)
        self.world.later(folder.life_us, self._exits, folder, self.world.between(1, 3) if fails else 0)

    def _stalls(self, folder: Folder, still_us: int) -> None:
        """Its shim has seen no step for so long. One that hangs says so each time that has doubled."""
        self.world.later(still_us, self._is_still, folder, still_us)

    def _paces(self, folder: Folder, slow: bool) -> None:
        """A window of its ranks' steps is over; the first rank of some tasks is slow in each."""
        if not folder.running:
            return
        first_rank = folder.key.task * folder.ranks
        paces = (
            RankPace(first_rank + rank, (900 if slow and not rank else 100) * MS, 0.5, 0.25, 0.25)
            for rank in range(folder.ranks)
        )
        self.write(folder, s.Paced(tuple(paces)))
        self.world.later(self.world.between(200 * MS, SECOND), self._paces, folder, slow)

    def _is_still(self, folder: Folder, still_us: int) -> None:
        if not folder.running:
            return
        folder.stalled = True
        self.write(folder, s.Stalled(still_us, still_us, 100 * MS, 7))
        if folder.hangs:
            self._stalls(folder, still_us)
        else:
            self.world.later(self.world.between(0, 5 * SECOND), setattr, folder, "stalled", False)

    def _inspected(self, key: TaskKey) -> None:
        folder = self.folders.get(key)
        if folder is None or not folder.running or not self.up:
            return
        first_rank = key.task * folder.ranks
        looks = tuple(
            RankLook(first_rank + rank, 7 - self.world.between(0, 1), state="sleeping")
            for rank in range(folder.ranks)
        )
        self.write(folder, s.Inspected(folder.trains, folder.stalled, looks))

    def peer_fell(self, key: TaskKey) -> None:
        folder = self.folders.get(key)
        if folder is not None and folder.running and self.up and folder.failed is None:
            if folder.stays:
                self.world.later(10 * SECOND, self._waited_in_vain, folder)
                return
            self._end(folder, structs.replace(PEER_GONE, died_us=self._about_now()), "exited")

    def kill_a_task(self) -> None:
        """SIGKILL of a worker."""
        running = [folder for folder in self.folders.values() if folder.running and folder.failed is None]
        if running:
            self._exits(self.world.die.choice(running), -9)

    def _saves(self, folder: Folder, step: int) -> None:
        if not folder.running:
            return
        self.write(folder, s.Metrics(0, step, {"loss": 1 / step}))
        stall_us = self.world.between(0, 50 * MS)
        path, took_us = f"step-{step}.a{folder.key.attempt}", self.world.between(0, 100 * MS)
        staged_us = Micros(max(1, self.world.now_us - took_us))
        self.write(folder, s.Published(step, path, "hash", 1, stall_us, {}, (), took_us, staged_us))

    def _exits(self, folder: Folder, code: int) -> None:
        if not folder.running or not self.up or folder.failed is not None:
            return
        if not code:
            self._end(folder, s.Exited(0, 0), "exited")
            return
        self.run.gangs.culprits.add(folder.key)
        evidence = self.world.die.choice(ERRORS) if code > 0 else NOTHING
        code = 1 if evidence.error_type else code
        folder.failed = s.Exited(0, code, "bye", evidence=evidence, died_us=self._about_now())
        self.run.gangs.fell(folder.key)
        lingers_us = self.world.between(1 * MS, 600 * MS) if self.world.chance(0.3) else 0
        self.world.later(lingers_us, self._dies, folder)

    def _dies(self, folder: Folder) -> None:
        """The process of what has failed is gone; its peers may have been faster."""
        if folder.running and folder.failed is not None and self.up:
            self._end(folder, folder.failed, "exited")

    def _about_now(self) -> Micros:
        """As near as the scheduler will know it."""
        return Micros(self.world.now_us + self.world.between(0, 5 * MS))

    def _end(self, folder: Folder, exited: s.Exited, why: str) -> None:
        folder.running = False
        exits = tuple(structs.replace(exited, local_rank=rank) for rank in range(folder.ranks))
        codes = (exited.exit_code,) * folder.ranks
        self.write(folder, *exits, s.Ended(codes, (1,) * folder.ranks, why))

    def _kill(self, folder: Folder, why: str) -> None:
        """SIGKILL, and the wait until the kernel has taken all processes away."""
        if not folder.running:
            self._killed(folder, why)
        else:
            self.world.later(self.world.between(100, 300 * MS), self._killed, folder, why)

    def _killed(self, folder: Folder, why: str) -> None:
        if folder.ended or not (folder.running or not folder.journal):
            return
        killed = s.Exited(0, -9, "bye", killed_by_us=True)
        if folder.failed is not None:  # what it recorded before it was killed stays
            killed = structs.replace(killed, evidence=folder.failed.evidence, died_us=folder.failed.died_us)
        self._end(folder, killed, why)

    def _watch_lease(self, folder: Folder) -> None:
        """The shim's own: it works without the agent. A node's clock may be a little slow."""
        if not folder.running:
            return
        settings = self.run.settings
        lease_us = settings.lease_exclusive_us if folder.exclusive else settings.lease_fenced_us
        end_us = self.renewed_us + lease_us + lease_us // 100
        if self.world.now_us >= end_us:
            self._kill(folder, "lease ran out")
            self.run.gangs.fell(folder.key)
            return
        self.world.later(end_us - self.world.now_us, self._watch_lease, folder)

    # --- the journal

    def write(self, folder: Folder, *said: s.Said) -> None:
        for one in said:
            folder.journal.append(s.Entry(folder.key, len(folder.journal) + 1, one))
        self.world.later(self.world.between(0, 5 * MS), self._ship, folder.key)

    def _ship(self, key: TaskKey) -> None:
        folder = self.folders.get(key)
        if folder is None or self.stream is None or not self.welcomed or not self.agent_up:
            return
        first = folder.acked if self.world.chance(0.2) else folder.sent
        entries = tuple(folder.journal[first:])
        if entries:
            folder.sent = len(folder.journal)
            self.stream.up(self.run.scheduler.reports, self, self.stream, s.Reports(self.name, entries))


Reply = Callable[[Any], None]
