"""The simulated scheduler process: the real Engine, driven as the loop drives it, with a store that can fail.

Gathers what arrives while a commit is under way; answers and sends only after the commit; dies at any commit,
before or after it took effect, and comes back from the store.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from paceline.scheduler.core import stimuli as s
from paceline.scheduler.core.effects import Effect
from paceline.scheduler.core.events import Event
from paceline.scheduler.core.node import NodeInventory
from paceline.scheduler.core.state import Touched
from paceline.scheduler.loop_engine import Engine
from paceline.scheduler.loop_step import Step
from paceline.scheduler.records import job_from_row
from paceline.scheduler.store.base import Loaded
from paceline.spec.errors import PacelineError
from paceline.spec.ids import Micros, NodeId
from support.sim_laws import Watch, drained_nodes_empty
from support.sim_world import MS, Stream

if TYPE_CHECKING:
    from support.sim_agent import Node
    from support.sim_run import Run

Reply = Callable[[Any], None]


class WatchedEngine(Engine):
    """The real one; after each event that it applies, the laws of the state are checked."""

    def __init__(self, loaded: Loaded, run: "Run") -> None:
        super().__init__(loaded, run.settings)
        self._apply_to = run.evolve
        self._watch = Watch(self.state)

    def evolve(self, event: Event) -> Touched:
        touched = self._apply_to(self.state, event)
        self._watch.applied(self.state, event)
        return touched


class Scheduler:
    """`store` survives; everything else is the process's."""

    def __init__(self, run: "Run") -> None:
        self.run = run
        self.world = run.world
        self.store = run.store
        self.alive = False
        self.dies_at_commit = ""
        """before | after: what the next commit will be."""
        self._life = 0
        self.start()

    def start(self) -> None:
        if self.alive:
            return
        self.alive = True
        self._life += 1
        self._busy = False
        self._sessions = 0
        self._arrivals: list[tuple[s.Stimulus, Reply]] = []
        self._sinks: dict[NodeId, tuple[Node, Stream]] = {}
        self._waking_us = 0
        self.engine = WatchedEngine(self.store.load(), self.run)
        self.run.checks.recovered(self.engine.state)
        self.world.tell("the scheduler starts")
        self._commit(self.engine.begin(Micros(self.world.now_us)), [])

    def die(self, why: str) -> None:
        if not self.alive:
            return
        self.world.tell(f"the scheduler dies: {why}")
        self.alive = False
        self._life += 1
        for node, stream in self._sinks.values():
            stream.open_at_scheduler = False
            stream.down(node.stream_closed, stream)
        long = self.world.chance(0.1)
        self.world.later(self.world.between(50 * MS, 60_000 * MS if long else 4_000 * MS), self.start)

    # --- what arrives

    def call(self, stimulus: s.Stimulus, reply: Reply) -> None:
        if self.alive:
            self._arrivals.append((stimulus, reply))
            self._kick()

    def hello(self, node: "Node", stream: Stream, hello: s.Hello, sent_us: int) -> None:
        if not self.alive:
            stream.down(node.stream_closed, stream)
            return
        self._sessions += 1
        stream.session = self._sessions
        standing = self._sinks.get(node.name)
        if standing is not None:
            self._close(*standing)
        self._sinks[node.name] = (node, stream)
        said = s.Hello(hello.node, stream.session, hello.incarnation, hello.inventory, hello.tasks)
        self.call(said, lambda welcome: stream.down(node.welcome, stream, said, welcome, sent_us))

    def heartbeat(self, node: "Node", stream: Stream, sent_us: int) -> None:
        if not self.alive:
            return
        heard = self.engine.heard(node.name, stream.session, Micros(self.world.now_us))
        if heard is False:
            self._close(node, stream)
            return
        if heard is None:
            self.call(s.Heartbeat(node.name, stream.session), lambda _: None)
        stream.down(node.renewal, stream, sent_us)

    def inventory(self, node: "Node", stream: Stream, inventory: NodeInventory) -> None:
        self.call(s.InventoryChanged(node.name, stream.session, inventory), lambda _: None)

    def reports(self, node: "Node", stream: Stream, reports: s.Reports) -> None:
        self.call(reports, lambda acked: stream.down(node.acked, stream, acked))

    def stream_broke(self, node: "Node", stream: Stream) -> None:
        stream.open_at_scheduler = False
        if self.alive:
            self.call(s.ContactLost(node.name, stream.session, "connection reset"), lambda _: None)

    def _close(self, node: "Node", stream: Stream) -> None:
        if stream.open_at_scheduler:
            stream.open_at_scheduler = False
            stream.down(node.stream_closed, stream)
            if self.alive:
                self.call(s.ContactLost(node.name, stream.session, "closed by us"), lambda _: None)

    # --- steps

    def _kick(self) -> None:
        if self.alive and not self._busy:
            self._busy = True
            self.world.later(0, self._step, self._life)

    def _step(self, life: int) -> None:
        if life != self._life:
            return
        arrivals, self._arrivals = self._arrivals, []
        stimuli = [stimulus for stimulus, _ in arrivals]
        known = {row.key: row.jobs for row in self.store.key_rows.values()}
        rows = self.store.job_rows
        finished = {number: job_from_row(rows[number]) for number in self.engine.late_jobs(stimuli)}
        step = self.engine.step(stimuli, Micros(self.world.now_us), known, finished)
        self._commit(step, [reply for _, reply in arrivals])

    def _commit(self, step: Step, replies: list[Reply]) -> None:
        self._busy = True
        fate, self.dies_at_commit = self.dies_at_commit, ""
        if step.empty or fate != "before":
            if not step.empty:
                self.store.commit(step.batch)
            if fate != "after" or step.empty:
                delay_us = self.world.between(100, 3 * MS)
                self.world.later(delay_us, self._committed, self._life, step, replies)
                return
        self.die(f"{fate} commit {self.store.commits}")

    def _committed(self, life: int, step: Step, replies: list[Reply]) -> None:
        if life != self._life:
            return
        self._busy = False
        for committed in step.committed:
            self.run.checks.committed(committed)
        drained_nodes_empty(self.engine.state)
        if (step.committed or self.world.chance(0.05)) and self.world.chance(0.1):
            self.run.checks.state_is_what_is_stored(self.engine.state)
        for reply, answer in zip(replies, step.answers, strict=True):
            if not isinstance(answer, PacelineError):
                reply(answer)
        self._send(step)
        if self._arrivals or step.more:
            self._kick()
        self._wake_when_due()

    def _send(self, step: Step) -> None:
        by_node: dict[NodeId, list[Effect]] = {}
        for effect in step.effects:
            by_node.setdefault(effect.node, []).append(effect)
        for name, effects in by_node.items():
            if name in self._sinks:
                node, stream = self._sinks[name]
                for _ in range(2 if self.world.chance(0.05) else 1):
                    stream.down(node.take, stream, tuple(effects))

    def _wake_when_due(self) -> None:
        due_us = self.engine.next_due_us()
        if due_us is None or (self.world.now_us < self._waking_us <= due_us):
            return
        self._waking_us = max(due_us, self.world.now_us + 1)
        self.world.later(self._waking_us - self.world.now_us, self._wake, self._life)

    def _wake(self, life: int) -> None:
        if life == self._life:
            due_us = self.engine.next_due_us()
            if due_us is not None and due_us <= self.world.now_us:
                self._kick()
            else:
                self._wake_when_due()
