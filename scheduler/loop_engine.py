"""One step of the loop, without a thread or a clock: what arrived goes in, a Batch and what follows come out.

asyncio (`loop.py`) and the simulation drive the same object. A step changes the state at once; if its batch
is not committed, the engine is thrown away and made anew from the store.
"""

from collections.abc import Iterable, Mapping, Sequence
from itertools import islice
from typing import Any, Final

from ..spec.errors import PacelineError
from ..spec.ids import JobId, Micros, NodeId
from .core.admin_stimuli import ApplyPolicy, HoldJob, ReleaseJob, SetPriority
from .core.checkpoints import on_ask_checkpoint, on_preempt, on_restore
from .core.contact import on_contact_lost, on_heartbeat, on_hello, on_inventory
from .core.cordons import on_cordon, on_uncordon
from .core.due import on_due
from .core.effects import Acked, Plan, Position
from .core.elastic import is_time_to_look, plan_growth, somebody_waits
from .core.events import DurableEvent, Event, LateFact
from .core.evolve import evolve
from .core.evolve_tasks import with_fact
from .core.holds import on_hold, on_priority, on_release
from .core.job import Job
from .core.node import Node
from .core.node_events import NodeForgotten, NodeHeard, SchedulerStarted, TimersPassed
from .core.policy_changes import on_apply_policy
from .core.policy_events import AccountsClosed
from .core.reports import on_entry, on_late_entry
from .core.settings import Settings
from .core.state import ClusterState, Touched
from .core.stimuli import (
    AskCheckpoint,
    Cancel,
    ContactLost,
    CordonNodes,
    Ended,
    Entry,
    Exited,
    Heartbeat,
    Hello,
    InventoryChanged,
    Preempt,
    Refused,
    Reports,
    Restore,
    Stimulus,
    Submit,
    Tick,
    TrustCluster,
    UncordonNodes,
)
from .core.submit import on_cancel, on_submit, on_trust
from .core.task_events import MetricsReported
from .core.turns import Turns
from .core.usage import CLOSED_AT_ONCE
from .loop_beside import Beside, BesideStimulus, fork_of
from .loop_step import Asked, Draft, Poison, Step, metric_rows
from .records import forgotten_row, node_row, recover
from .store.base import KeyRow, Loaded
from .sweeps.driving import ChangeSweep
from .sweeps.ops import OpenStudy, StudyOps

NO_JOBS: Final[Mapping[JobId, Job]] = {}
ACCOUNTS_MIN: Final = 512
PLACEMENTS_MAX = 512
"""In one step, so that a long line does not keep callers waiting; the next step goes on."""


class Engine(Beside):
    """The state and the one way to change it."""

    def __init__(self, loaded: Loaded, settings: Settings | None = None) -> None:
        self.state: ClusterState = recover(loaded, settings)
        super().__init__(loaded)
        self._turns = Turns()
        self._looked: tuple[int, bool, int] | None = None
        self._looked_us = Micros(0)
        """What the growth of gangs depends on, when it was last looked at."""
        self._accounts = ACCOUNTS_MIN
        """Looked for those to close when there are more than twice as many."""

    def begin(self, now_us: Micros) -> Step:
        """The first step after recovery: contact with every node is unknown."""
        now_us = max(now_us, self.state.last_at_us)
        return self._run(now_us, (), {}, (SchedulerStarted(now_us),))

    def step(
        self,
        stimuli: Sequence[Asked],
        now_us: Micros,
        known: Mapping[str, tuple[JobId, ...]],
        finished: Mapping[JobId, Job] = NO_JOBS,
    ) -> Step:
        """`known`: what the store says of the keys of these Submits; `finished`: of `late_jobs`. None of the
        stimuli is about a `cold_study`."""
        return self._run(now_us, stimuli, known, (), finished)

    def cold_study(self, stimulus: Asked) -> int | None:
        """The study that it is about, if its trials must be loaded first."""
        if not isinstance(stimulus, OpenStudy | StudyOps | ChangeSweep):
            return None
        study = self.studies.by_id.get(stimulus.study)
        return None if study is None or study.loaded else study.id

    def late_jobs(self, stimuli: Sequence[Asked]) -> set[JobId]:
        """Jobs that are over (or were never there) whose tasks tell only now how they left."""
        jobs = self.state.jobs
        return {
            entry.task.job
            for stimulus in stimuli
            if isinstance(stimulus, Reports)
            for entry in stimulus.entries
            if entry.task.job not in jobs and isinstance(entry.said, Exited | Ended | Refused)
        }

    def heard(self, node: NodeId, session: int, now_us: Micros) -> bool | None:
        """A heartbeat's short way: True, False as on_heartbeat; None: it changes history, submit it."""
        plan = on_heartbeat(self.state, Heartbeat(node, session), now_us)
        if not plan.answer:
            return False
        self.evolve(NodeHeard(now_us, node))
        return True if len(plan.events) == 1 and isinstance(plan.events[0], NodeHeard) else None

    def evolve(self, event: Event) -> Touched:
        """The one place where the state changes: whoever watches it (the simulation) sees every event."""
        return evolve(self.state, event)

    def next_due_us(self) -> Micros | None:
        due = [at_us for at_us in (self.state.timers.next_us(), self._turns.review_us) if at_us is not None]
        return min(due, default=None)

    def _run(
        self,
        now_us: Micros,
        stimuli: Sequence[Asked],
        known: Mapping[str, tuple[JobId, ...]],
        first: Iterable[Event],
        finished: Mapping[JobId, Job] = NO_JOBS,
    ) -> Step:
        now_us = max(now_us, self.state.last_at_us)
        draft = Draft(finished=finished)
        self._apply(draft, Plan(None, tuple(first)))
        answers = [self._answer(draft, stimulus, now_us, known) for stimulus in stimuli]
        self._pass_time(draft, now_us)
        more = self._place(draft, now_us)
        self._grow(draft, now_us)
        self._close_accounts(draft, now_us)
        return draft.step(self.state, answers, self._take_changes(), more=more)

    def _answer(
        self, draft: Draft, stimulus: Asked, now_us: Micros, known: Mapping[str, tuple[JobId, ...]]
    ) -> object:
        try:
            if isinstance(stimulus, BesideStimulus):
                return self._beside(draft, stimulus, now_us, known)
            return self._decide(draft, stimulus, now_us, known)
        except PacelineError as refusal:
            return refusal
        except Exception as bug:
            raise Poison(stimulus) from bug

    def _decide(
        self, draft: Draft, stimulus: Stimulus, now_us: Micros, known: Mapping[str, tuple[JobId, ...]]
    ) -> object:
        state = self.state
        match stimulus:
            case Submit():
                return self._submit(draft, stimulus, now_us, known)
            case Cancel():
                self._apply(draft, on_cancel(state, stimulus, now_us))
                return draft.jobs.get(stimulus.job) or state.jobs[stimulus.job]
            case HoldJob() | ReleaseJob() | SetPriority():
                return self._arrange(draft, stimulus, now_us)
            case Preempt() | Restore() | CordonNodes() | UncordonNodes() | ApplyPolicy():
                return self._once(draft, stimulus, now_us, known)
            case AskCheckpoint():
                return self._apply(draft, on_ask_checkpoint(state, stimulus, now_us))
            case Hello():
                return self._apply(draft, on_hello(state, stimulus, now_us))
            case Reports():
                return self._reports(draft, stimulus, now_us)
            case ContactLost():
                return self._apply(draft, on_contact_lost(state, stimulus, now_us))
            case Heartbeat():
                return self._apply(draft, on_heartbeat(state, stimulus, now_us))
            case InventoryChanged():
                return self._apply(draft, on_inventory(state, stimulus, now_us))
            case TrustCluster():
                return self._apply(draft, on_trust(state, stimulus, now_us))
            case Tick():
                return None

    def _submit(
        self, draft: Draft, asked: Submit, now_us: Micros, known: Mapping[str, tuple[JobId, ...]]
    ) -> object:
        before = draft.keys.get(asked.key)
        made = before.jobs if before else known.get(asked.key)
        answer = self._apply(draft, on_submit(self.state, asked, now_us, made))
        if made is None:
            draft.keys[asked.key] = KeyRow(asked.key, now_us, answer.jobs)
            for number, new in zip(answer.jobs, asked.jobs, strict=True):
                draft.documents[number] = new.document
                self._note_uses(number, new, fork_of(asked))
        return answer

    def _submit_one(self, draft: Draft, asked: Submit, now_us: Micros) -> JobId:
        [job] = self._apply(draft, on_submit(self.state, asked, now_us, None)).jobs
        draft.documents[job] = asked.jobs[0].document
        return JobId(job)

    def _arrange(self, draft: Draft, asked: HoldJob | ReleaseJob | SetPriority, now_us: Micros) -> Job:
        match asked:
            case HoldJob():
                self._apply(draft, on_hold(self.state, asked, now_us))
            case ReleaseJob():
                self._apply(draft, on_release(self.state, asked, now_us))
            case SetPriority():
                self._apply(draft, on_priority(self.state, asked, now_us))
        return self.state.jobs[asked.job]

    def _once(
        self,
        draft: Draft,
        asked: Preempt | Restore | CordonNodes | UncordonNodes | ApplyPolicy,
        now_us: Micros,
        known: Mapping[str, tuple[JobId, ...]],
    ) -> object:
        """The key is kept with the jobs that it was about."""
        before = draft.keys.get(asked.key)
        made = before.jobs if before else known.get(asked.key)
        plan: Plan[Any]
        match asked:
            case Preempt():
                plan = on_preempt(self.state, asked, now_us, made)
            case Restore():
                plan = on_restore(self.state, asked, now_us, made)
            case CordonNodes():
                plan = on_cordon(self.state, asked, now_us, made)
            case UncordonNodes():
                plan = on_uncordon(self.state, asked, now_us, made)
            case ApplyPolicy():
                plan = on_apply_policy(self.state, asked, now_us, made)
        answer = self._apply(draft, plan)
        if made is None:
            jobs = (asked.job,) if isinstance(asked, Preempt | Restore) else answer
            draft.keys[asked.key] = KeyRow(asked.key, now_us, jobs)
        return answer

    def _reports(self, draft: Draft, reports: Reports, now_us: Micros) -> Acked:
        seqs = {entry.task: self._entry(draft, reports.node, entry, now_us) for entry in reports.entries}
        return Acked(tuple(Position(task, seq) for task, seq in seqs.items()))

    def _entry(self, draft: Draft, node: NodeId, entry: Entry, now_us: Micros) -> Any:
        number = entry.task.job
        over = None if number in self.state.jobs else draft.jobs.get(number) or draft.finished.get(number)
        if over is None:
            return self._apply(draft, on_entry(self.state, node, entry, now_us))
        plan = on_late_entry(self.state, over, node, entry, now_us)
        for event in plan.events:
            assert isinstance(event, LateFact)
            draft.jobs[number] = over = with_fact(over, event)
        return self._apply(draft, plan)

    def _pass_time(self, draft: Draft, now_us: Micros) -> None:
        due = self.state.timers.due(now_us)
        for key in due:
            self._apply(draft, on_due(self.state, key, now_us))
        if due:
            self._apply(draft, Plan(None, (TimersPassed(now_us),)))

    def _place(self, draft: Draft, now_us: Micros) -> bool:
        left = PLACEMENTS_MAX
        while left:
            before = left
            for plan in islice(self._turns.walk(self.state, now_us), left):
                self._apply(draft, plan)
                left -= 1
            if left == before:
                return False
        return True

    def _grow(self, draft: Draft, now_us: Micros) -> None:
        state = self.state
        stands = (state.freed, somebody_waits(state), len(state.small))
        if stands != self._looked:
            self._apply(draft, plan_growth(state, now_us))
        elif state.small and is_time_to_look(self._looked_us, now_us):
            self._apply(draft, plan_growth(state, now_us, self._looked_us))
        else:
            return
        self._looked, self._looked_us = stands, now_us

    def _close_accounts(self, draft: Draft, now_us: Micros) -> None:
        """All are looked at, but only when they have become twice as many."""
        usage = self.state.usage
        if len(usage.accounts) <= 2 * self._accounts:
            return
        idle = usage.idle(now_us, self.state.policy.half_life_us)
        if idle:
            self._apply(draft, Plan(None, (AccountsClosed(now_us, tuple(idle)),)))
        if len(idle) < CLOSED_AT_ONCE:
            self._accounts = max(ACCOUNTS_MIN, len(usage.accounts))

    def _apply(self, draft: Draft, plan: Plan[Any]) -> Any:
        for event in plan.events:
            if isinstance(event, DurableEvent):
                assert event.at_us >= self.state.last_at_us, f"{event} is before {self.state.last_at_us}"
            if isinstance(event, MetricsReported):
                draft.metrics += metric_rows(self.state, event)
            touched = self.evolve(event)
            self._follow(draft, event, touched)
            if isinstance(touched, Job):
                draft.jobs[touched.number] = touched
            elif isinstance(touched, Node):
                draft.nodes[touched.node] = node_row(touched)
            elif isinstance(event, NodeForgotten):
                draft.nodes[event.node] = forgotten_row(event)
            if isinstance(event, DurableEvent):
                draft.facts.append((self.state.last_seq, event))
        draft.effects += plan.effects
        return plan.answer
