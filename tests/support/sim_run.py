"""One simulated run: a cluster, its users and faults, from one seed; it raises on a broken law."""

from collections.abc import Callable
from random import Random

from paceline.scheduler.core import stimuli as s
from paceline.scheduler.core.effects import Submitted
from paceline.scheduler.core.events import Event
from paceline.scheduler.core.evolve import evolve
from paceline.scheduler.core.settings import Order, Settings
from paceline.scheduler.core.state import ClusterState, Touched
from paceline.scheduler.loop_step import Poison
from paceline.spec.failures import RETRIED, RETRY_CHOICES
from paceline.spec.gpu_health import GpuState
from paceline.spec.ids import JobId, NodeId, TaskKey
from paceline.spec.resources import Constraints
from support.memory_store import MemoryStore
from support.paddock import inventory, shape
from support.sim_agent import Gangs, Node
from support.sim_checks import Checks
from support.sim_saves import Saves
from support.sim_scheduler import Scheduler
from support.sim_world import MS, SECOND, START_US, World

Evolve = Callable[[ClusterState, Event], Touched]
DRAIN_MAX_US = 1_800 * SECOND
WHERE = (
    *(None,) * 5,
    Constraints(within="rack"),
    Constraints(within="rack", within_preferred=True),
    Constraints(labels=(("rack", ("r1", "r9")),), tolerate=(("spot", ""),)),
    Constraints(prefer=(("rack", ("r0",)),), tolerate=(("spot", ""),)),
)

HASTY = Order(min_run_us=SECOND, review_us=SECOND, defragment=True)
"""Jobs are stopped for others, made smaller and moved within the minutes of a run."""


class Run:
    """Everything of one run."""

    def __init__(self, seed: int, evolve: Evolve = evolve) -> None:
        self.evolve = evolve
        self.world = World(seed)
        die = self.world.die
        self.where = Random(seed)
        """Says where nodes stand and jobs shall be."""
        self.slow = die.random() < 0.2
        """Long jobs, most of them exclusive, and long partitions: leases run out."""
        self.faults_us = (120 if self.slow else 30) * SECOND
        lease_s = die.choice([30, 600])
        self.settings = Settings(
            start_timeout_us=60 * SECOND,
            lease_fenced_us=lease_s * SECOND,
            straggler_reports_max=die.choice([0, 1]),
            straggler_drain_us=20 * SECOND,
            order=HASTY if seed % 4 == 3 else Order(),
        )
        self.nodes: list[Node] = []
        self.acknowledged: dict[str, tuple[JobId, ...]] = {}
        self.obeyed: dict[str, tuple[JobId, ...]] = {}
        """Of the operators' requests: the jobs that were told to leave."""
        self.waiting_keys: set[str] = set()
        self.gangs = Gangs(self)
        self.checks = Checks(self)
        self.store = MemoryStore()
        self.scheduler = Scheduler(self)
        self.saves = Saves(self)
        for at in range(die.randint(2, 5)):
            gpus = die.choice([0, 2, 4])
            facts = inventory(
                f"n{at}",
                cpus=die.choice([2, 4, 8]),
                gpus=gpus,
                ports=range(5000, 5003),
                labels=self.where.choice([{}, {"rack": "r0"}, {"rack": "r1"}]),
                taints=self.where.choice([(), (), ("spot",)]),
            )
            self.nodes.append(Node(self, f"n{at}", facts))
        for at in range(die.randint(2, 6)):
            self.world.later(self.world.between(0, 20 * SECOND), self._submit, f"key-{at}")
        for _ in range(die.randint(1, 8)):
            self.world.later(self.world.between(0, self.faults_us), self._fault)
        for at in range(die.choice([0, 0, 1, 3])):
            self.world.later(self.world.between(0, self.faults_us), self._take_out, f"cordon-{at}")
        self.world.later(self.faults_us, self._calm_down)

    def holder_of(self, key: TaskKey) -> Node:
        """The node that holds the task's folder (any node, when it is gone)."""
        return next((node for node in self.nodes if key in node.folders), self.nodes[0])

    def over(self) -> bool:
        """Calm, all asked for and answered, no job left, no process left."""
        if not self.world.calm or self.waiting_keys or not self.scheduler.alive:
            return False
        if self.scheduler.engine.state.jobs:
            return False
        return not any(folder.running for node in self.nodes if node.up for folder in node.folders.values())

    # --- users

    def _submit(self, key: str) -> None:
        die = self.world.die
        self.waiting_keys.add(key)
        shapes = [self._shape() for _ in range(die.choice([1, 1, 2, 5]))]
        jobs = tuple(
            s.NewJob(f"{key}-{at}", die.choice([0, 0, 0, 5]), one, "{}") for at, one in enumerate(shapes)
        )
        self._ask(s.Submit(key, "ann", jobs))

    def _shape(self):  # type: ignore[no-untyped-def]
        die = self.world.die
        tasks = die.choice([1, 1, 2, 3])
        return shape(
            tasks,
            least=die.choice([tasks, tasks, 1]),
            most=tasks + die.choice([0, 0, 0, 1, 3]),
            cpus=die.choice([0.5, 1, 2]),
            gpus=die.choice([0, 0, 0, 1, 2]),
            exclusive=die.random() < (0.7 if self.slow else 0.25),
            rendezvous=die.random() < 0.5,
            ranks=die.choice([1, 1, 2]),
            retries=die.choice([0, 1, 3]),
            timeout_s=die.choice([0, 0, 0, 90 if self.slow else 5, 30]),
            grace_s=die.choice([0, 1, 5]),
            retry_on=die.choice([RETRIED, RETRIED, RETRY_CHOICES, RETRIED[:-2], ()]),
            backoff_s=die.choice([0, 0.1, 5]),
            constraints=self.where.choice(WHERE),
        )

    def _ask(self, asked: s.Submit | s.CordonNodes | s.UncordonNodes) -> None:
        """As clients do: the same key again until an answer comes. Messages may be lost or doubled."""
        if asked.key not in self.waiting_keys:
            return
        reply = self._answered if isinstance(asked, s.Submit) else self._obeyed
        for _ in range(2 if self.world.chance(0.2) else 1):
            if self.world.calm or self.world.chance(0.9):
                self.world.later(
                    self.world.between(50, 20 * MS),
                    self.scheduler.call,
                    asked,
                    lambda answer: reply(asked, answer),  # type: ignore[arg-type]
                )
        self.world.later(SECOND, self._ask, asked)

    def _take_out(self, key: str) -> None:
        """An operator cordons or drains nodes, and puts most of them back."""
        die, known = self.world.die, sorted(self.scheduler.engine.state.nodes)
        if not known:
            return
        names = tuple(die.sample(known, min(len(known), die.choice([1, 1, 2]))))
        deadline_us = die.choice([None, 0, 3 * SECOND])
        self.waiting_keys.add(key)
        self._ask(s.CordonNodes(key, names, "ann", "new disks", die.random() < 0.7, deadline_us))
        if self.world.chance(0.7):
            self.world.later(self.world.between(0, 40 * SECOND), self._put_back, f"un{key}", names)

    def _put_back(self, key: str, names: tuple[str, ...]) -> None:
        self.waiting_keys.add(key)
        self._ask(s.UncordonNodes(key, names, "ann"))

    def _obeyed(self, asked: s.CordonNodes | s.UncordonNodes, jobs: tuple[JobId, ...]) -> None:
        known = self.obeyed.setdefault(asked.key, jobs)
        assert known == jobs, f"{asked.key} told {known} and then {jobs}"
        self.waiting_keys.discard(asked.key)

    def _answered(self, submit: s.Submit, answer: Submitted) -> None:
        if not self.world.calm and self.world.chance(0.2):
            return
        known = self.acknowledged.setdefault(submit.key, answer.jobs)
        assert known == answer.jobs, f"{submit.key} made {known} and then {answer.jobs}"
        assert all(number in self.store.job_rows for number in answer.jobs), (
            "answered before it was committed"
        )
        if submit.key in self.waiting_keys:
            self.waiting_keys.discard(submit.key)
            for number in answer.jobs:
                if self.world.chance(0.15):
                    delay_us = self.world.between(0, 10 * SECOND)
                    self.world.later(delay_us, self.scheduler.call, s.Cancel(number), lambda _: None)

    # --- faults

    def _fault(self) -> None:
        if self.world.calm:
            return
        node = self.world.die.choice(self.nodes)
        kind = self.world.die.choice(
            [
                "scheduler",
                "commit",
                "commit",
                "agent",
                "agent",
                "machine",
                "partition",
                "partition",
                "all",
                "worker",
                "wipe",
                "gpu",
                "gpu",
                "leaving",
            ]
        )
        self.world.tell(f"fault: {kind} {node.name}")
        getattr(self, f"_fault_{kind}")(node)

    def _fault_scheduler(self, node: Node) -> None:
        self.scheduler.die("killed")

    def _fault_commit(self, node: Node) -> None:
        self.scheduler.dies_at_commit = self.world.die.choice(["before", "after"])

    def _fault_agent(self, node: Node) -> None:
        node.kill_agent()
        self.world.later(self.world.between(50 * MS, 8 * SECOND), node.start_agent)

    def _fault_leaving(self, node: Node) -> None:
        node.leaves()

    def _fault_machine(self, node: Node) -> None:
        node.kill_machine()
        if self.world.chance(0.7):
            self.world.later(self.world.between(SECOND, 90 * SECOND), node.boot)

    def _fault_partition(self, node: Node) -> None:
        node.link.cut = True
        long = self.world.chance(0.7 if self.slow else 0.2)
        self.world.later(self.world.between(100 * MS, 80 * SECOND if long else 6 * SECOND), node.link.heal)

    def _fault_all(self, node: Node) -> None:
        """The scheduler's own network is gone."""
        for one in self.nodes:
            one.link.cut = True
            self.world.later(self.world.between(SECOND, 30 * SECOND), one.link.heal)

    def _fault_worker(self, node: Node) -> None:
        node.kill_a_task()

    def _fault_wipe(self, node: Node) -> None:
        """The agent's disk is new: it no longer knows its tasks."""
        node.kill_machine()
        node.folders.clear()
        self.world.later(self.world.between(100 * MS, 5 * SECOND), node.boot)

    def _fault_gpu(self, node: Node) -> None:
        """A GPU goes out of service, on this node or another that has one, and mostly comes back."""
        having = [one for one in (node, *self.nodes) if one.inventory.gpus]
        if not having:
            return
        node = having[0]
        index = self.world.die.choice(node.inventory.gpus[:2]).index  # those that are given first
        node.gpu_is(index, self.world.die.choice([GpuState.QUARANTINED, GpuState.DRAINED]))
        if self.world.chance(0.3):
            self.world.later(self.world.between(SECOND, 5 * SECOND), node.gpu_is, index, GpuState.QUARANTINED)
        if self.world.chance(0.8):
            self.world.later(self.world.between(5 * SECOND, 20 * SECOND), node.gpu_is, index, GpuState.OK)

    def _calm_down(self) -> None:
        """No more faults. What is gone for good stays gone; a big node joins, so that every job can end."""
        self.world.tell("faults stop")
        self.world.calm = True
        self.scheduler.dies_at_commit = ""
        for node in self.nodes:
            if node.link.cut:
                node.link.heal()
            node.start_agent()
        self.world.later(120 * SECOND, self._operator_trusts)
        facts = inventory("big", cpus=64, gpus=16, ports=range(6000, 6010), labels={"rack": "r9"})
        self.nodes.append(Node(self, "big", facts))

    def _operator_trusts(self) -> None:
        """Where most machines are gone for good, somebody must say so."""
        self.scheduler.call(s.TrustCluster("an operator"), lambda _: None)
        self.world.later(60 * SECOND, self._operator_trusts)


def simulate(seed: int, look: Callable[[Run], None] = lambda run: None, evolve: Evolve = evolve) -> Run:
    """Run one seed to its end. Raises AssertionError with the seed; `look` gets the run before it begins,
    and a broken `evolve` in the place of the core's shows that the laws bite."""
    run = Run(seed, evolve)
    look(run)
    try:
        ended = run.world.run(START_US + run.faults_us + DRAIN_MAX_US, run.over)
        assert ended, f"not over after all that time: {_left(run)}"
        run.checks.all_is_told()
    except Exception as error:
        tail = "\n".join(run.world.story[-40:])
        broken = error.__cause__ if isinstance(error, Poison) else error
        raise AssertionError(
            f"seed {seed}: {broken}\n{tail}\nreplay: python tests/simulation/replay.py --seed {seed} -v"
        ) from error
    return run


def _left(run: Run) -> str:
    state = run.scheduler.engine.state
    running = [
        f"{folder.key} on {node.name}"
        for node in run.nodes
        for folder in node.folders.values()
        if folder.running
    ]
    contacts = {name: node.contact.value for name, node in state.nodes.items()}
    return (
        f"jobs {list(state.jobs.values())}, keys {run.waiting_keys}, running {running}, contacts {contacts}"
    )


__all__ = ["NodeId", "Run", "simulate"]
