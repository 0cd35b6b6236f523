"""A test environment that owns the real engine, an in-memory store and its own clock.

Scenarios are told in domain verbs: nodes join and go silent, jobs are submitted, ranks fail, time passes. The
agents are obedient: they take each message that is sent to them, and speak only when the scenario says so.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from paceline.scheduler.core import stimuli as s
from paceline.scheduler.core.admin_stimuli import ApplyPolicy, HoldJob, ReleaseJob, SetPriority
from paceline.scheduler.core.cluster_policy import ClusterPolicy
from paceline.scheduler.core.effects import Effect, StartTask, StopTask, Submitted
from paceline.scheduler.core.events import Event
from paceline.scheduler.core.evolve import replay
from paceline.scheduler.core.job import Job, Policy, Shape
from paceline.scheduler.core.ledger import Ledger, ledger_of
from paceline.scheduler.core.node import NodeGpu, NodeInventory
from paceline.scheduler.core.reasons import Why, node_reason, why
from paceline.scheduler.core.settings import Settings
from paceline.scheduler.core.state import ClusterState
from paceline.scheduler.loop_engine import Engine
from paceline.scheduler.records import events_from_rows, job_from_row
from paceline.spec.errors import PacelineError
from paceline.spec.failures import RETRIED, FailureClass
from paceline.spec.ids import JobId, Micros, NodeId, TaskKey
from paceline.spec.lifecycle import JobState
from paceline.spec.resources import Constraints, GangDemand, Resources
from paceline.spec.slices import slice_index
from support.memory_store import MemoryStore

GIB = 1 << 30
START_US = 1_000_000_000_000


def _slice_bytes(profile: str) -> int:
    """`1g.5gb` has 5 GiB here."""
    return int(profile.partition(".")[2].removesuffix("gb")) * GIB


def inventory(
    name: str,
    *,
    cpus: int = 8,
    memory_gib: int = 64,
    gpus: int = 0,
    model: str = "NVIDIA H100 80GB HBM3",
    gpu_gib: int = 0,
    slices: Sequence[str] = (),
    environments: Sequence[str] = (),
    ports: Sequence[int] = (41000, 41001, 41002),
    warming: bool = False,
    labels: Mapping[str, str] | None = None,
    taints: Sequence[str] = (),
    engine: str = "",
    no_engine: str = "",
) -> NodeInventory:
    return NodeInventory(
        name,
        f"{name}.test",
        Resources(cpus * 1000, memory_gib * GIB, gpus + len(slices)),
        (
            *(NodeGpu(index, model, memory_bytes=gpu_gib * GIB) for index in range(gpus)),
            *(
                NodeGpu(
                    slice_index(gpus, 7 + at, 0), f"{model} MIG {profile}", memory_bytes=_slice_bytes(profile)
                )
                for at, profile in enumerate(slices)
            ),
        ),
        tuple(environments),
        tuple(ports),
        warming=warming,
        labels=tuple(sorted((labels or {}).items())),
        taints=tuple(sorted((key, value) for key, _, value in (one.partition("=") for one in taints))),
        engine=engine,
        no_engine=no_engine,
    )


def shape(
    tasks: int = 1,
    *,
    least: int | None = None,
    most: int | None = None,
    cpus: float = 1,
    gpus: float = 0,
    memory_gib: int = 0,
    models: Sequence[str] = (),
    environment: str = "",
    image: str = "",
    exclusive: bool = False,
    rendezvous: bool = False,
    ranks: int = 1,
    retries: int = 0,
    timeout_s: float = 0,
    grace_s: float = 30,
    retry_on: Sequence[FailureClass] = RETRIED,
    backoff_s: float = 1,
    constraints: Constraints | None = None,
    queue: str = "",
    pool: str = "",
    gpu_gib: int = 0,
) -> Shape:
    share_milli = round(gpus * 1000) if gpus < 1 else 0
    need = Resources(round(cpus * 1000), memory_gib * GIB, int(gpus), share_milli)
    bounds = (tasks if least is None else least, tasks if most is None else most)
    demand = GangDemand(
        need,
        tasks,
        *bounds,
        ranks,
        tuple(models),
        environment,
        exclusive,
        rendezvous,
        constraints,
        pool,
        gpu_gib * GIB,
        image,
    )
    times_us = (round(timeout_s * 1e6), round(grace_s * 1e6))
    return Shape(demand, Policy(retries, *times_us, tuple(retry_on), round(backoff_s * 1e6)), queue)


class Paddock:
    """The engine, its store, its clock, and what was sent to whom."""

    def __init__(self, settings: Settings | None = None) -> None:
        self.settings = settings or Settings()
        self.store = MemoryStore()
        self.now_us = START_US
        self.sent: list[Effect] = []
        self.sessions: dict[str, int] = {}
        self.seqs: dict[TaskKey, int] = {}
        self.inventories: dict[str, NodeInventory] = {}
        self._session = 0
        self._key = 0
        self.engine = Engine(self.store.load(), self.settings)
        self._commit(self.engine.begin(Micros(self.now_us)))

    # --- what happens

    def tell(self, stimulus: s.Stimulus) -> Any:
        """One stimulus as a batch of its own; a refusal is raised."""
        known = {row.key: row.jobs for row in self.store.key_rows.values()}
        finished = {number: self.job(number) for number in self.engine.late_jobs([stimulus])}
        step = self.engine.step([stimulus], Micros(self.now_us), known, finished)
        self._commit(step)
        while step.more:
            step = self.engine.step([], Micros(self.now_us), known)
            self._commit(step)
        answers = step.answers or (None,)
        if isinstance(answers[0], PacelineError):
            raise answers[0]
        return answers[0]

    def node_joins(self, name: str, *tasks: TaskKey, **facts: Any) -> Any:
        """Dials in (again) with a new session; the answer is its Welcome."""
        self._session += 1
        if facts or name not in self.inventories:
            self.inventories[name] = inventory(name, **facts)
        self.sessions[name] = self._session
        return self.tell(s.Hello(NodeId(name), self._session, "boot", self.inventories[name], tasks))

    def stream_breaks(self, name: str) -> None:
        self.tell(s.ContactLost(NodeId(name), self.sessions.pop(name), "connection reset"))

    def submit(self, *shapes: Shape, priority: int = 0, key: str = "", user: str = "ann") -> list[int]:
        jobs = tuple(s.NewJob("train", priority, one, "{}") for one in shapes)
        answer: Submitted = self.tell(s.Submit(key or self._new_key(), user, jobs))
        return list(answer.jobs)

    def cancel(self, job: int, grace_s: float | None = None) -> None:
        grace_us = None if grace_s is None else round(grace_s * 1e6)
        self.tell(s.Cancel(JobId(job), grace_us, "ann"))

    def cordon(self, *names: str, why: str = "", by: str = "ann", key: str = "") -> list[int]:
        return self._asks(s.CordonNodes(key or self._new_key(), names, by, why))

    def drain(
        self, *names: str, why: str = "", by: str = "ann", deadline_s: float | None = None, key: str = ""
    ) -> list[int]:
        """The jobs that were told to leave."""
        deadline_us = None if deadline_s is None else round(deadline_s * 1e6)
        return self._asks(s.CordonNodes(key or self._new_key(), names, by, why, True, deadline_us))

    def uncordon(self, *names: str, key: str = "") -> list[int]:
        return self._asks(s.UncordonNodes(key or self._new_key(), names, "ann"))

    def hold(self, job: int, why: str = "") -> None:
        self.tell(HoldJob(JobId(job), "ann", why))

    def release(self, job: int) -> None:
        self.tell(ReleaseJob(JobId(job), "ann"))

    def has_priority(self, job: int, priority: int) -> None:
        self.tell(SetPriority(JobId(job), "ann", priority))

    def policy_becomes(self, policy: ClusterPolicy, *, by: str = "ann", key: str = "") -> None:
        self.tell(ApplyPolicy(key or self._new_key(), by, policy))

    def says(self, job: int, task: int, *said: s.Said, attempt: int | None = None) -> Any:
        """The task's journal goes on; entries are numbered by themselves."""
        current = self.job(job)
        key = TaskKey(JobId(job), current.attempt if attempt is None else attempt, task)  # type: ignore[arg-type]
        node = self.node_of(key)
        entries = []
        for one in said:
            self.seqs[key] = self.seqs.get(key, 0) + 1
            entries.append(s.Entry(key, self.seqs[key], one))
        return self.tell(s.Reports(NodeId(node), tuple(entries)))

    def starts(self, job: int) -> None:
        """All tasks of the current attempt say that they run."""
        for task in self.job(job).tasks:
            self.says(job, task.task, s.Started((100 + task.task,), "warm"))

    def rank_dies(self, job: int, task: int, code: int = -9, line: str = "") -> None:
        self.says(job, task, s.Exited(0, code, line))

    def finishes(self, job: int) -> None:
        """All tasks of the current attempt end well."""
        for task in self.job(job).tasks:
            self.says(job, task.task, s.Exited(0, 0), s.Ended((0,), (0,)))

    def saves(self, job: int, step: int, took_us: int = 10) -> None:
        """A checkpoint of that step is accepted; `took_us`: each, the stall and the way to disk."""
        published = s.Published(step, f"/c/{job}/{step}", "hash", 10, stall_us=took_us, persist_us=took_us)
        self.says(job, 0, published)

    def leaves(self, job: int) -> None:
        """As it was told to: all its tasks end by the notice."""
        for task in self.job(job).tasks:
            self.says(job, task.task, s.Exited(0, -15, killed_by_us=True), s.Ended((-15,), (0,)))

    def task_ends(self, job: int, task: int, code: int = 0, why: str = "exited", **more: Any) -> None:
        self.says(job, task, s.Ended((code,), (0,), why), **more)

    def pass_time(self, seconds: float, *, step_s: float = 0.25) -> None:
        """Nodes with a session send heartbeats all the while; whatever is due happens."""
        end_us = self.now_us + round(seconds * 1e6)
        while self.now_us < end_us:
            self.now_us = min(end_us, self.now_us + round(step_s * 1e6))
            for name, session in list(self.sessions.items()):
                if not self.tell(s.Heartbeat(NodeId(name), session)):
                    del self.sessions[name]
            self.tell(s.Tick())

    def pass_hours(self, count: float) -> None:
        """In one step: for settings by which no silence is long enough to lose a node."""
        self.pass_time(count * 3600, step_s=count * 3600)

    def goes_on_until(self, at_us: int) -> None:
        """From one moment at which something is due to the next: likewise."""
        while (due_us := self.engine.next_due_us()) is not None and due_us <= at_us:
            self.pass_time(max(1, due_us - self.now_us) / 1e6, step_s=1e9)
        self.pass_time((at_us - self.now_us) / 1e6, step_s=1e9)

    def goes_silent(self, name: str) -> None:
        """The stream stays open, but nothing comes any more."""
        del self.sessions[name]

    def scheduler_restarts(self) -> None:
        """From the store alone; all streams are gone."""
        self.sessions.clear()
        self.engine = Engine(self.store.load(), self.settings)
        self._commit(self.engine.begin(Micros(self.now_us)))

    # --- what can be seen

    @property
    def state(self) -> ClusterState:
        return self.engine.state

    def job(self, job: int) -> Job:
        """As it is, or as it ended."""
        live = self.state.jobs.get(JobId(job))
        return live or job_from_row(self.store.job_rows[JobId(job)])

    def state_of(self, job: int) -> JobState:
        return self.job(job).state

    def nodes_of(self, job: int) -> list[str]:
        return [task.node for task in self.job(job).tasks]

    def node_of(self, key: TaskKey) -> str:
        for effect in self.sent:
            if isinstance(effect, StartTask) and effect.key == key:
                return effect.node
        raise AssertionError(f"task {key} was never sent")

    def why(self, job: int) -> Why:
        return why(self.state, self.job(job), Micros(self.now_us))

    def note(self, name: str) -> str:
        """Why the node takes no work, as `pace nodes` says it; empty: it does."""
        reason = node_reason(self.state, self.state.nodes[NodeId(name)], Micros(self.now_us))
        return reason.text if reason is not None else ""

    def history(self, job: int | None = None) -> list[Event]:
        rows = [row for row in self.store.event_rows if job is None or row.job == job]
        return events_from_rows(rows)

    def ledger(self, job: int) -> Ledger:
        return ledger_of(self.history(job), Micros(self.now_us))

    def starts_sent(self, job: int) -> list[StartTask]:
        return [one for one in self.sent if isinstance(one, StartTask) and one.key.job == job]

    def stops_sent(self, job: int) -> list[StopTask]:
        return [one for one in self.sent if isinstance(one, StopTask) and one.key.job == job]

    def replayed(self) -> ClusterState:
        return replay(self.history(), self.settings)

    def _new_key(self) -> str:
        self._key += 1
        return f"key-{self._key}"

    def _asks(self, stimulus: s.CordonNodes | s.UncordonNodes) -> list[int]:
        return list(self.tell(stimulus))

    def _commit(self, step: Any) -> None:
        if not step.empty:
            self.store.commit(step.batch)
        self.sent += step.effects


def with_times(settings: Settings, **changes: int) -> Settings:
    return replace(settings, **changes)
