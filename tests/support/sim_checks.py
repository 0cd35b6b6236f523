"""What must be true of a simulated run beyond the scheduler's memory (for that see sim_laws.py): of what was
committed, stored, recovered and told, of the processes on the nodes, and of the whole history at the end.

Each check raises AssertionError with what it saw.
"""

from typing import TYPE_CHECKING, Any

from msgspec.structs import replace
from paceline.scheduler.core import stimuli as s
from paceline.scheduler.core.attempt_events import (
    AttemptEnded,
    AttemptStarted,
    FirstFailureFound,
    GrowthDropped,
    GrowthPlanned,
    JobEnded,
    JobSubmitted,
    LingererGone,
    StopRequested,
)
from paceline.scheduler.core.checkpoint_events import CheckpointAccepted
from paceline.scheduler.core.effects import Welcome
from paceline.scheduler.core.events import Event, LateFact, job_of
from paceline.scheduler.core.evolve import replay
from paceline.scheduler.core.failure import ON_ITS_OWN, Failure
from paceline.scheduler.core.failures import is_before
from paceline.scheduler.core.job import Job, TaskState
from paceline.scheduler.core.ledger import ledger_of
from paceline.scheduler.core.progress_events import GangHung, RanksInspected, SuspicionCleared
from paceline.scheduler.core.state import ClusterState
from paceline.scheduler.core.task_events import RankExited, TaskEnded
from paceline.scheduler.core.timeline import describe
from paceline.scheduler.loop_step import Committed
from paceline.scheduler.records import event_from_row, events_from_rows, job_from_row, recover
from paceline.spec.failures import FAILURES, FailureClass
from paceline.spec.ids import JobId, Micros, TaskKey
from paceline.spec.lifecycle import TERMINAL, TRANSITIONS, AttemptOutcome, JobState, NodeContact

if TYPE_CHECKING:
    from support.sim_run import Run


def durable(job: Job) -> Job:
    """Without what history does not hold: metrics, and how far the journal was applied by metrics alone."""
    tasks = tuple(replace(task, applied_seq=0) for task in job.tasks)
    news = {"step": -1, "attempt_step": -1, "first": None, "metrics": {}, "metric_rows": 0}
    return replace(job, course=replace(job.course, tasks=tasks, **news))


def picture(state: ClusterState) -> dict[str, Any]:
    """The state as it can be compared: proper state and what follows from it, without contact."""
    waiting = [number for number, job in state.jobs.items() if job.state is JobState.QUEUED]
    return {
        "last_job": state.last_job,
        "last_seq": state.last_seq,
        "policy": (state.policy, state.policy_by, state.policy_us),
        "jobs": {number: durable(job) for number, job in state.jobs.items()},
        "nodes": {
            name: (node.inventory, node.contact is NodeContact.LOST, node.cordon)
            for name, node in state.nodes.items()
        },
        "loads": state.loads,
        "usage": state.usage,
        "waiting": sorted(waiting),
        "in line or held": len(state.queue) + len(state.held) + len(state.on_hold),
    }


class Checks:
    def __init__(self, run: "Run") -> None:
        self.run = run
        self.world = run.world
        self.attempts: dict[JobId, int] = {}
        self.states: dict[JobId, JobState] = {}
        self.seq = 0
        self.failures: dict[JobId, Failure] = {}
        self.heard: list[tuple[Failure, RankExited]] = []
        """Ranks that could be the cause and were heard after the report of their attempt's failure."""
        self.held_until: dict[JobId, Micros] = {}
        self.moved: dict[JobId, Micros] = {}
        self.hung: dict[JobId, GangHung] = {}
        self.found_moving: dict[JobId, set[TaskKey]] = {}
        self.to_grow: dict[JobId, GrowthPlanned] = {}
        self.saved: dict[JobId, CheckpointAccepted] = {}
        """The last checkpoint since the gang was told to grow."""
        self.growths = 0

    # --- at every moment

    def committed(self, committed: Committed) -> None:
        """Each event of the history once, in order, and from the current attempt only."""
        event = committed.event
        number = job_of(event)
        self._silence_alone_ends_nothing(event)
        self._only_the_still_hang(event)
        self.world.tell(f"#{committed.seq} {'' if number is None else f'job {number}: '}{describe(event)}")

    def _silence_alone_ends_nothing(self, event: Event) -> None:
        """Law 5: a fenced gang that was replaced for a silence has its new places in the same breath, or its
        lease was over."""
        moved = self.moved
        if isinstance(event, AttemptStarted):
            moved.pop(event.job, None)
        for number, at_us in moved.items():
            assert event.at_us == at_us, f"job {number} was ended for a silence and has no place"
        if isinstance(event, AttemptEnded) and " has not been heard of for " in event.ending.text:
            silent_s = float(event.ending.text.split(" has not been heard of for ")[1].split(" s")[0])
            job = job_from_row(self.run.store.job_rows[event.job])
            lease_over = silent_s * 1e6 >= self.run.settings.lease_fenced_us
            if event.then is JobState.QUEUED and not job.demand.exclusive and not lease_over:
                moved[event.job] = event.at_us

    def _only_at_a_checkpoint_it_grows(self, event: Event) -> None:
        """It was told to, and has made a checkpoint since: none is restarted twice for one checkpoint."""
        if isinstance(event, GrowthPlanned):
            assert event.job not in self.to_grow, f"told twice to grow: {event}"
            assert event.to > event.instances, f"{event} is no growth"
            self.to_grow[event.job] = event
        elif isinstance(event, CheckpointAccepted):
            self.saved[event.task.job] = event
        elif isinstance(event, GrowthDropped):
            del self.to_grow[event.job]
        elif isinstance(event, StopRequested) and event.stop.outcome is AttemptOutcome.RESIZED:
            told, saved = self.to_grow[event.job], self.saved[event.job]
            assert told.attempt == saved.task.attempt, f"{event} follows {saved}"
            assert saved.at_us == event.at_us >= told.at_us, f"{event} does not follow a checkpoint: {saved}"
            self.growths += 1
        elif isinstance(event, AttemptEnded):
            self.to_grow.pop(event.job, None)

    def _only_the_still_hang(self, event: Event) -> None:
        """An attempt is ended for a hang when no node of the gang has found its ranks moving, and at once."""
        number = job_of(event)
        if number is None:
            return
        moving = self.found_moving.setdefault(number, set())
        if isinstance(event, RanksInspected):
            (moving.discard if event.stalled or not event.begun else moving.add)(event.task)
        elif isinstance(event, TaskEnded):
            moving.discard(event.task)
        elif isinstance(event, SuspicionCleared | AttemptStarted):
            moving.clear()
        elif isinstance(event, GangHung):
            assert not moving, f"job {number} is taken for hung, but {moving} move"
            self.hung[number] = event
            return
        hung = self.hung.pop(number, None)
        failure = event.ending.failure if isinstance(event, AttemptEnded) else None
        if failure is None or failure.kind is not FailureClass.HANG:
            assert hung is None, f"job {number}: {hung}, and then {event}"
            return
        assert hung is not None and event.at_us == hung.at_us, (
            f"job {number}: {hung}, and ended by it {event}"
        )
        assert failure.rank == (hung.ranks[0] if hung.ranks else None), f"{failure} names another than {hung}"

    def task_runs(self, key: TaskKey, exclusive: bool) -> None:
        """A process starts, somewhere. Of an exclusive job, no other attempt may run anywhere."""
        if not exclusive:
            return
        for node in self.run.nodes:
            for other in node.folders.values():
                if other.running and other.key.job == key.job and other.key.attempt != key.attempt:
                    raise AssertionError(f"exclusive task {key} runs while {other.key} runs on {node.name}")

    def end_is_told(self, key: TaskKey) -> None:
        """An end that was acknowledged is in the record of the job while that attempt is its last."""
        job = job_from_row(self.run.store.job_rows[key.job])
        if job.attempt == key.attempt:
            assert job.tasks[key.task].state is TaskState.ENDED, f"the end of {key} is lost: {job}"

    def welcomed(self, hello: s.Hello, welcome: Welcome) -> None:
        """Each task of a Hello is somebody's, and goes on, or nobody's, and is forgotten."""
        known = [position.task for position in welcome.positions]
        assert sorted([*known, *welcome.forget]) == sorted(hello.tasks), f"{hello} was answered by {welcome}"
        attempts = {number: job.attempt for number, job in self.run.scheduler.engine.state.jobs.items()}
        for key in welcome.forget:
            assert attempts.get(key.job, key.attempt + 1) >= key.attempt, (
                f"{key} is forgotten, but is the newest"
            )

    def recovered(self, state: ClusterState) -> None:
        """What was loaded is what the whole history leads to."""
        history = events_from_rows(self.run.store.event_rows)
        told, loaded = picture(replay(history, self.run.settings)), picture(state)
        for part in told:
            assert told[part] == loaded[part], f"{part}: history says {told[part]}, rows say {loaded[part]}"

    def state_is_what_is_stored(self, state: ClusterState) -> None:
        loaded = recover(self.run.store.load(), self.run.settings)
        live, stored = picture(state), picture(loaded)
        for part in live:
            assert live[part] == stored[part], f"{part}: live {live[part]}, stored {stored[part]}"
        for number, job in state.jobs.items():
            assert loaded.jobs[number] == job, f"live {job}, stored {loaded.jobs[number]}"

    # --- at the end

    def all_is_told(self) -> None:
        """The whole history, from its beginning, judged by an eye of its own."""
        self.recovered(self.run.scheduler.engine.state)
        self.state_is_what_is_stored(self.run.scheduler.engine.state)
        for row in self.run.store.event_rows:
            self._judge(event_from_row(row))
        self.run.saves.judge(map(event_from_row, self.run.store.event_rows))
        for number in self.run.store.job_rows:
            self._ledger_adds_up(number)
        self._none_was_before_the_first()
        self._no_job_is_lost()
        self._no_metric_twice()
        self._nothing_is_left()

    def _judge(self, event: Event) -> None:
        number = job_of(event)
        if number is None:
            return
        task = getattr(event, "task", None)
        self._judge_failure(event, number)
        self._only_at_a_checkpoint_it_grows(event)
        if isinstance(event, AttemptStarted):
            assert event.attempt == self.attempts.get(number, 0) + 1, f"attempts only grow by one: {event}"
            self.attempts[number] = event.attempt
            self._moves(number, JobState.STARTING)
        elif isinstance(event, AttemptEnded):
            assert event.attempt == self.attempts[number]
            self._moves(number, event.then)
        elif isinstance(event, JobEnded):
            self._moves(number, event.state)
        elif isinstance(event, JobSubmitted):
            assert number not in self.states, f"job {number} was made twice"
            self.states[number] = JobState.QUEUED
        elif task is not None and not isinstance(event, LingererGone):
            assert task.attempt == self.attempts[number], f"a stale attempt was listened to: {event}"
            placed = self.states[number] in (JobState.STARTING, JobState.RUNNING)
            assert placed or isinstance(event, LateFact), f"no attempt goes on: {event}"

    def _judge_failure(self, event: Event, number: JobId) -> None:
        """What is tried again is what the rule names, and not before its time; what is told as the first
        failure is one, and of all ranks that were heard while the attempt was the last none was before it."""
        if isinstance(event, AttemptStarted):
            assert event.at_us >= self.held_until.get(number, 0), f"job {number} was tried again too early"
        elif isinstance(event, AttemptEnded | FirstFailureFound):
            told = event.ending.failure
            if isinstance(event, AttemptEnded):
                self.held_until[number] = event.held_until_us
                self._judge_retry(event, number)
            else:
                assert told is not None and is_before(told, self.failures[number]), (
                    f"{event} tells nothing new"
                )
                assert told.attempt == self.failures[number].attempt
            self.failures.pop(number, None)
            if told is not None:
                self.failures[number] = told
                self._is_a_failure(number, told)
        elif isinstance(event, JobEnded):  # while it waited: its end is no rank's any more
            self.failures.pop(number, None)
        elif isinstance(event, RankExited) and event.kind is not None:
            failure = self.failures.get(number)
            if failure is not None and failure.attempt == event.task.attempt and failure.rank is not None:
                self.heard.append((failure, event))

    def _none_was_before_the_first(self) -> None:
        for told, late in self.heard:
            now = self.failures.get(late.task.job)
            if now is not None and now.attempt == told.attempt and now.rank is not None:
                said = (now.doubt, now.died_us or 0)
                assert said <= (late.doubt, late.died_us), f"{late} was before {now}"

    def _judge_retry(self, event: AttemptEnded, number: JobId) -> None:
        failure = event.ending.failure
        if event.then is not JobState.QUEUED or event.ending.outcome is AttemptOutcome.RESTORED:
            return
        if event.ending.outcome is AttemptOutcome.RESIZED:
            assert failure is None and not event.counted, f"growing is no failure: {event}"
            return
        assert failure is not None, f"tried again without a failure: {event}"
        policy = job_from_row(self.run.store.job_rows[number]).shape.policy
        named = failure.kind in policy.retry_on or failure.kind is FailureClass.START_FAILED
        assert named, f"a {failure.kind} was tried again: {policy}"
        assert event.counted is FAILURES[failure.kind].counted

    def _is_a_failure(self, number: JobId, told: Failure) -> None:
        """One that is said to have failed on its own did so. Ranks that hang do not fall."""
        if told.kind is FailureClass.HANG:
            return
        if told.rank is None or told.doubt != ON_ITS_OWN or told.exit_code == -9:
            return
        ranks = job_from_row(self.run.store.job_rows[number]).demand.processes_per_task
        key = TaskKey(number, told.attempt, told.rank // ranks)
        assert key in self.run.gangs.culprits, f"{told} fell of a peer, or was killed"

    def _moves(self, number: JobId, to: JobState) -> None:
        standing = self.states[number]
        via_running = standing is JobState.STARTING and to in TRANSITIONS[JobState.RUNNING]
        assert to in TRANSITIONS[standing] or via_running, f"job {number}: {standing} -> {to}"
        self.states[number] = to

    def _ledger_adds_up(self, number: JobId) -> None:
        rows = [row for row in self.run.store.event_rows if row.job == number]
        book = ledger_of(events_from_rows(rows), Micros(self.world.now_us))
        parts = (
            book.queued_us,
            book.starting_us,
            book.productive_us,
            book.checkpoint_us,
            book.lost_us,
            book.restarting_us,
            book.hung_us,
        )
        row = self.run.store.job_rows[number]
        assert all(part >= 0 for part in parts), book
        assert sum(parts) == book.wall_us, book
        assert row.finished_us is not None and book.wall_us == row.finished_us - row.submitted_us, (book, row)

    def _no_job_is_lost(self) -> None:
        made = [number for numbers in self.run.acknowledged.values() for number in numbers]
        assert len(made) == len(set(made)), "two keys share a job"
        for key, numbers in self.run.acknowledged.items():
            assert self.run.store.key_rows[key].jobs == numbers
            for number in numbers:
                row = self.run.store.job_rows.get(number)
                assert row is not None, f"job {number} was acknowledged and is lost"
                assert row.state in {state.value for state in TERMINAL}, (
                    f"job {number} never ended: {row.state}"
                )

    def _no_metric_twice(self) -> None:
        rows = [(row.job, row.attempt, row.rank, row.step, row.name) for row in self.run.store.metric_rows]
        assert len(rows) == len(set(rows)), "a metric was stored twice"

    def _nothing_is_left(self) -> None:
        state = self.run.scheduler.engine.state
        assert not state.jobs and not len(state.queue) and not state.held
        for load in state.loads.values():
            assert not load.tasks and not load.lingering and not load.ports
        left = [
            str(folder.key)
            for node in self.run.nodes
            if node.up
            for folder in node.folders.values()
            if folder.running
        ]
        assert not left, f"processes are left: {left}"
