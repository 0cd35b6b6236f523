"""What a script sees of Paceline: `run = paceline.init()`, and ten verbs on it.

The same script runs under Paceline, `torchrun` and plain `python`: outside, reports go nowhere, SIGTERM alone
asks to stop, and checkpoints lie in ./checkpoints. Importing this costs no torch; `save` and `restore` import
it. `save`, `flush`, `restore`, `should_save`, `should_stop` and `loop` are collective: all ranks call them,
at the same steps.
"""

import atexit
import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, SupportsFloat, SupportsIndex

from ..proto.beats import BEAT, RESTORES, SAVES, answer_stack_signal
from ..proto.shim_line import ShimLink
from ..spec.every import AUTO, parse_every
from ..spec.progress import TOTAL_STEPS
from ..spec.retention import Retention
from .environment import Environment, Param, read_environment
from .errors import InvalidSampler, UnsavableState
from .gang import Gang
from .metrics import check_step, check_values, remember
from .outcome import Restored, SaveOutcome
from .output import move_output
from .schedule import SaveSchedule
from .steps import watch_training
from .stop import StopAgreement, StopNotice
from .task import Task, read_task

if TYPE_CHECKING:
    from torch import nn
    from torch.optim import Optimizer

    from .checkpoints import Checkpoints
    from .sampler import Sampler
    from .staying import NextAttempt

_FLUSH_AT_EXIT_S = 1.0
_TELL_S = 2.0
_PROGRESS_EVERY_S = 10.0
_current: "Run | None" = None


def init(
    *,
    total_steps: int | None = None,
    checkpoints: str | os.PathLike[str] = "checkpoints",
    keep_last: int = 3,
) -> "Run":
    """This process's run; the same object each time.

    `total_steps`, where they are known: the scheduler then says when the run will be over, by its pace.

    `checkpoints` and `keep_last` (0: keep all) concern runs outside Paceline only; inside, the job has its
    own folder and the job file says what to keep.
    """
    global _current  # noqa: PLW0603 - one process is one rank of one run
    if _current is None:
        run = Run(read_environment(os.environ), Path(checkpoints).absolute(), Retention(keep_last=keep_last))
        run.check_storage()
        _current = run
        atexit.register(_current.close)
        if _current.job:
            watch_training()
            answer_stack_signal()
    if total_steps is not None:
        _current.total_steps = total_steps
    return _current


class Run:
    """One rank's view of the run. Made by `init`."""

    def __init__(self, environment: Environment, local_root: Path, local_retention: Retention) -> None:
        self._pid = os.getpid()
        """A forked child's exit is not the rank's."""
        self._environment = environment
        self._local = (local_root, local_retention)
        folder = environment.task_folder
        self._link = ShimLink(folder) if folder is not None else None
        self._gang = Gang(environment)
        self._notice = StopNotice(folder)
        self._stopping = StopAgreement(self._gang, self._notice, self._tell_stop_seen)
        self._lazy_schedule: SaveSchedule | None = None
        self._latest: dict[str, float] = {}
        self._step = -1
        """The last that the script told of."""
        self._lazy_checkpoints: Checkpoints | None = None
        self.total_steps = 0
        """That the run plans; 0: it does not say."""
        self._reported_s = self._planned_s = -_PROGRESS_EVERY_S

    @property
    def rank(self) -> int:
        """This process's place among all of the run, from 0."""
        return self._environment.rank

    @property
    def world_size(self) -> int:
        """Processes of the run, over all nodes."""
        return self._environment.world_size

    @property
    def attempt(self) -> int:
        """How many times the job has been started, this one included; 0 outside Paceline."""
        return self._environment.attempt

    @property
    def job(self) -> int:
        """The job's number; 0 outside Paceline."""
        return self._environment.job

    @property
    def params(self) -> Mapping[str, Param]:
        """The values of this trial of a sweep, by their names in its search space; empty outside of one."""
        return self._environment.params

    def report(self, step: SupportsIndex, **values: SupportsFloat) -> None:
        """Say how training goes: `run.report(step, loss=loss, accuracy=0.97)`.

        Any rank may. Values are numbers (NaN and infinities too) or tensors of one element; a CUDA tensor is
        waited for. Raises InvalidMetric for anything else; never waits for the agent, never fails because it
        is away.
        """
        self._watch()
        checked_step, checked = check_step(step), check_values(values)
        remember(self._latest, checked)
        self._step = checked_step
        BEAT.reported(checked_step)
        self._post(checked_step, checked)

    def save(
        self,
        step: SupportsIndex,
        *,
        model: Any = None,
        optimizer: Any = None,
        metrics: Mapping[str, SupportsFloat] | None = None,
        **more: Any,
    ) -> SaveOutcome:
        """Checkpoint the run's state after `step`; all ranks call it.

        `more` takes anything by name: modules and optimizers, objects with state_dict() and load_state_dict()
        (schedulers, scalers), tensors, and plain values (numbers, texts, lists, dicts) of rank 0. Random
        number generators are saved for each rank. `metrics` rate the checkpoint for `keep_best`; left out,
        rank 0's last reported values do.

        It returns when the state is copied into shared memory; another process writes it to storage. One save
        is under way at a time: while the one before is not on disk, this one waits for it or is skipped, as
        `checkpoint.when_busy` in the job file says. Storage that fails (full, read-only) costs this
        checkpoint and not the run: stderr and the job's timeline say so. The process ends when its last save
        is on disk. Raises UnsavableState for what could never be restored.
        """
        self._watch()
        rating = self._latest if metrics is None else check_values(metrics)
        given = {"model": model, "optimizer": optimizer, **more}
        if not any(thing is not None for thing in given.values()):
            raise UnsavableState("run.save() was given nothing to save", hint="run.save(step, model=model)")
        with BEAT.phase(SAVES):
            purpose = self._schedule().begin_save()
            return self._checkpoints().save(check_step(step), given, dict(rating), purpose)

    def should_save(self, step: SupportsIndex, *, every: str = AUTO) -> bool:
        """True when it is time for a checkpoint: call it after each step, and save when it says so.

            if run.should_save(step):
                run.save(step, model=model, optimizer=optimizer)
            if run.should_stop():
                break

        `every` is "100 steps" (at each multiple), "60 s", "10 min", or "auto": an interval that follows from
        what saves cost and how often gangs fail here. `checkpoint.every` of the job file goes before it. It
        is also True when somebody asks (`pace checkpoint`), and once before the run is stopped. All ranks
        call it and get the same answer at the same call.
        """
        self._watch()
        self._gang.require("should_save")
        self._step = check_step(step)
        return self._schedule().should_save(self._step, every)

    def flush(self) -> SaveOutcome | None:
        """Wait until the last save is on disk and told of; how it went, the same at all ranks, which all call
        it. None: nothing was saved.
        """
        with BEAT.phase(SAVES):
            return self._checkpoints().flush()

    def restore(self, *, model: Any = None, optimizer: Any = None, **more: Any) -> Restored | None:
        """Put back the newest good checkpoint, in place; None when there is none. All ranks call it.

        Give it the objects that `save` was given, by the same names; plain values come back in `.values`. Go
        on with the step after `.step`. Damaged ones are passed over, which stderr and the job's timeline say;
        one that is good but does not fit raises CheckpointMismatch.
        """
        self._watch()
        with BEAT.phase(RESTORES):
            return self._checkpoints().restore({"model": model, "optimizer": optimizer, **more})

    def sampler(
        self,
        dataset_size: int,
        *,
        global_batch_size: int | None = None,
        batch_size_per_rank: int | None = None,
        micro_batch_size_max: int | None = None,
        seed: int = 0,
        shuffle: bool = True,
    ) -> "Sampler":
        """Which samples this rank trains on: a `batch_sampler` for a DataLoader, see `Sampler`.

        With `global_batch_size`, the global batches are the same whatever the number of ranks; a rank's
        share of one comes in micro-batches of at most `micro_batch_size_max` samples. With
        `batch_size_per_rank` instead, the global batch follows the number of ranks: `.global_batch_size`
        says how large it is.
        """
        from .sampler import Sampler

        if (global_batch_size is None) == (batch_size_per_rank is None):
            raise InvalidSampler("expected either global_batch_size or batch_size_per_rank, and not both")
        return Sampler(
            dataset_size,
            rank=self.rank,
            world_size=self.world_size,
            global_batch_size=global_batch_size or (batch_size_per_rank or 0) * self.world_size,
            micro_batch_size_max=micro_batch_size_max,
            seed=seed,
            shuffle=shuffle,
        )

    def should_stop(self) -> bool:
        """True when the run was asked to end: save, then leave. All ranks call it and get the same answer at
        the same call.

        Within about a tenth of a second, or one step where steps are longer. From the first call on (or that
        of `should_save`), SIGTERM only asks; outside Paceline, a second one ends the process.
        """
        self._watch()
        return self._stopping.should_stop()

    def check_storage(self) -> None:
        """Raises InvalidEnvironment where checkpoints are to be uploaded to what nothing here opens."""
        task = self._task()
        if task is not None and task.url:
            from .remote import check_opener

            check_opener(task.url)

    def stop_left_s(self) -> float | None:
        """Seconds until the run is killed, once it was asked to stop; None: it was not, or nobody says
        when."""
        return self._notice.left_s()

    def loop(
        self,
        step: "Callable[[int, nn.Module], object]",
        *,
        steps: int,
        model: "nn.Module",
        optimizer: "Optimizer",
        save_every: int = 0,
        wrap: "Callable[[nn.Module], nn.Module] | None" = None,
        **more: Any,
    ) -> int:
        """Train: call `step(number, model)` for each number up to `steps`, and return how many are done.

        The loop forms the process group, wraps the model (DistributedDataParallel, unless `wrap` says
        otherwise), restores, saves every `save_every` steps, and ends early when the run is asked to stop.
        When a rank is lost, the others keep their processes and their state, and a new one gets it from them.

        `step` calls `optimizer.step()` once, after all collectives of its own, and takes its data by number,
        `run.rank` and `run.world_size`, which may change. `more` takes what else has state_dict(), the same
        at all ranks: schedulers, scalers. Models that are sharded over ranks cannot be handed on so.
        """
        from .loop import Plan, StepLoop, wrap_for

        self.total_steps = steps
        plan = Plan(step, steps, model, optimizer, wrap or wrap_for, save_every, more)
        return StepLoop(self, plan).run()

    def close(self) -> None:
        """Wait for a save under way, and give what is still unsent a moment; called at exit."""
        if self._lazy_checkpoints is not None and os.getpid() == self._pid:
            with BEAT.phase(SAVES):
                self._lazy_checkpoints.close()
        if self._link is not None:
            self._link.close(_FLUSH_AT_EXIT_S)

    # For the step loop.
    def progressed(self, step: int) -> None:
        """Say how far the run is, where the script does not."""
        if self.rank == 0 and time.monotonic() - self._reported_s >= _PROGRESS_EVERY_S:
            self._post(step, {})

    @property
    def gang(self) -> Gang:
        """How the ranks of this attempt agree."""
        return self._gang

    @property
    def task_folder(self) -> Path | None:
        """None outside Paceline."""
        return self._environment.task_folder

    def tell(self, message: Mapping[str, object], timeout_s: float) -> None:
        """Have it in the job's timeline, if the shim takes it in that time."""
        if self._link is not None:
            self._link.ask(message, timeout_s)

    @property
    def stays(self) -> bool:
        """The ranks have agreed, at a call of `should_stop`, to leave the gang for the next attempt's."""
        return self._stopping.stay

    def go_on_in(self, attempt: "NextAttempt") -> None:
        """This process is a rank of the next attempt: all that it knew of the last one is exchanged."""
        history = self._lazy_checkpoints.abandon() if self._lazy_checkpoints is not None else None
        os.environ.update(attempt.variables)
        self._environment = read_environment(os.environ)
        folder = self._environment.task_folder
        assert folder is not None
        move_output(attempt.log)
        BEAT.move()
        if self._link is not None:
            self._link.close(0.0)
        self._link = ShimLink(folder)
        self._gang.release()
        self._gang = Gang(self._environment)
        self._notice.move(folder)
        self._stopping = StopAgreement(self._gang, self._notice, self._tell_stop_seen)
        self._lazy_schedule = self._lazy_checkpoints = None
        if history is not None:
            self._checkpoints().go_on_from(history)

    def _watch(self) -> None:
        """Have the steps of torch's optimizers seen, as soon as torch is there."""
        if self.job:
            watch_training()

    def _post(self, step: int, values: Mapping[str, float]) -> None:
        """The planned steps go along again and again: of reports in quick succession the last one counts."""
        if self._link is None:
            return
        self._reported_s = time.monotonic()
        if self.total_steps > 0 and self._reported_s - self._planned_s >= _PROGRESS_EVERY_S:
            self._planned_s = self._reported_s
            values = {**values, TOTAL_STEPS: float(self.total_steps)}
        self._link.post({"op": "metrics", "rank": self.rank, "step": step, "values": dict(values)})

    def _checkpoints(self) -> "Checkpoints":
        if self._lazy_checkpoints is None:
            from .checkpoints import Checkpoints

            task, (root, retention) = self._task(), self._local
            if task is not None:
                root, retention = self._environment.checkpoints(), task.retention
            self._lazy_checkpoints = Checkpoints(
                self._environment,
                self._gang,
                self._link,
                task,
                root=root,
                retention=retention,
            )
        return self._lazy_checkpoints

    def _schedule(self) -> SaveSchedule:
        if self._lazy_schedule is None:
            task = self._task() or Task()
            newest = task.checkpoints[0] if task.checkpoints else None
            before = (newest.stall_s, newest.persist_s) if newest is not None and newest.persist_s else None
            self._lazy_schedule = SaveSchedule(
                self._stopping,
                self._notice,
                self._cost_s,
                first_rank=self.rank == 0,
                every=parse_every(task.save_every) if task.save_every else None,
                mtbf_s=task.mtbf_s,
                before=before,
            )
        return self._lazy_schedule

    def _cost_s(self) -> tuple[float, float] | None:
        return self._lazy_checkpoints.cost_s() if self._lazy_checkpoints is not None else None

    def _tell_stop_seen(self) -> None:
        """Rank 0 tells: the timeline then shows that the script knows."""
        if self._link is not None and self.rank == 0:
            left_s = self._notice.left_s() or 0.0
            self._link.ask({"op": "stop_seen", "step": self._step, "left_s": left_s}, _TELL_S)

    def _task(self) -> Task | None:
        folder = self._environment.task_folder
        return read_task(folder) if folder is not None else None
