"""`python -m paceline.training.objectives FILE.py:FUNCTION`: a sweep's worker. It imports the function once,
and calls it for one trial after the other, until the sweep has no more for it or the job is to stop.

What raises is a failed trial, and the worker goes on. A trial that was interrupted (the job was preempted,
its node lost, this process killed) stays RUNNING; the job's next attempt is given the same number, and
`trial.suggest_...` the same values.
"""

import importlib
import importlib.util
import math
import sys
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final

import optuna
from optuna.pruners import NopPruner
from optuna.samplers import BaseSampler
from optuna.trial import TrialState

from ..proto.generated import studies_pb2
from ..spec.errors import InvalidRequest
from ..spec.sweep import SweepSpec
from ..spec.sweep_reading import parse_canonical_sweep
from ..studies.attributes import WHY
from ..studies.pruners import pruner_of
from ..studies.samplers import sampler_of
from .run import Run, init
from .study_calls import StudyCalls
from .trial_storage import TrialStorage

WHY_CHARACTERS_MAX: Final = 2_000
Objective = Callable[[optuna.Trial], "float | Sequence[float]"]


class Interrupted(BaseException):
    """The job is to stop, and its trial with it: another attempt takes it up."""


class WorkerTrial(optuna.Trial):
    """What the function is given."""

    def __init__(self, study: optuna.Study, number: int, storage: TrialStorage, run: Run) -> None:
        super().__init__(study, number)
        self._storage, self._run = storage, run

    def report(self, value: float, step: int) -> None:
        """As Optuna's; and here the trial ends when its job is to stop."""
        super().report(value, step)
        if self._run.should_stop():
            raise Interrupted

    def should_prune(self) -> bool:
        """As Optuna's, by the sweep's early_termination: by what all trials have reported so far."""
        if isinstance(self.study.pruner, NopPruner):
            return False
        self._storage.sync()
        return super().should_prune()


class Worker:
    """`work` once."""

    def __init__(self, target: str, run: Run, calls: StudyCalls) -> None:
        about = calls.call("Find", studies_pb2.FindStudyRequest(study=calls.study))
        self._target = target
        self._run = run
        self._spec: SweepSpec = parse_canonical_sweep(about.document)
        self._storage = TrialStorage(calls, about)
        self._study = optuna.Study(about.name, self._storage, pruner=pruner_of(self._spec) or NopPruner())
        # Samplers may call study.stop(), which is for those who optimize in a loop.
        self._study._thread_local.in_optimize_loop = True
        self._objective: Objective | None = None
        self._sampler: BaseSampler | None = None

    def work(self) -> None:
        """Raises PacelineError, StaleAttempt when another attempt has taken this one's place."""
        try:
            while not self._run.should_stop():
                number = self._storage.take()
                if number is None:
                    break
                self._try(number)
        except Interrupted:
            pass
        finally:  # whatever ends it: what the trial was given is of use to the next attempt, and to a reader
            self._storage.close()

    def _try(self, number: int) -> None:
        study = self._study
        study._thread_local.cached_all_trials = None  # as ask() begins
        study.sampler = self._sampler = sampler_of(self._spec, number, self._sampler)
        try:
            trial = WorkerTrial(study, number, self._storage, self._run)
            self._objective = self._objective or load(self._target)
            values = values_of(self._objective(trial), len(study.directions))
        except optuna.TrialPruned as pruned:
            self._tell(number, TrialState.PRUNED, str(pruned) or self._why_pruned(number))
        except Exception as error:  # noqa: BLE001 - the user's, and told as such
            traceback.print_exc()
            self._tell(number, TrialState.FAIL, f"{type(error).__name__}: {error}")
        else:
            study.tell(number, values)

    def _tell(self, number: int, state: TrialState, why: str) -> None:
        self._storage.set_trial_user_attr(number, WHY, why[:WHY_CHARACTERS_MAX])
        self._study.tell(number, state=state)

    def _why_pruned(self, number: int) -> str:
        told = self._storage.get_trial(number).intermediate_values
        policy = self._spec.early_termination.type if self._spec.early_termination else "itself"
        return f"{policy} at step {max(told)}, with {told[max(told)]:g}" if told else policy


def load(target: str) -> Objective:
    """FILE.py:FUNCTION, below the working folder, or PACKAGE.MODULE:FUNCTION. Raises what its import raises,
    InvalidRequest where there is no such function."""
    where, _, name = target.rpartition(":")
    if where.endswith(".py"):
        path = Path(where).absolute()
        found = importlib.util.spec_from_file_location(path.stem, path)
        assert found is not None and found.loader is not None
        module = importlib.util.module_from_spec(found)
        sys.modules[path.stem] = module
        found.loader.exec_module(module)
    else:
        module = importlib.import_module(where)
    function = getattr(module, name, None)
    if not callable(function):
        raise InvalidRequest(f"{where} has no function {name}")
    objective: Objective = function
    return objective


def values_of(returned: Any, objectives: int) -> list[float]:
    """What the function has returned, as numbers. Raises ValueError where these are none to be told."""
    values = (
        list(returned) if isinstance(returned, Sequence) and not isinstance(returned, str) else [returned]
    )
    if len(values) != objectives:
        raise ValueError(f"the objective returned {len(values)} values; expected {objectives}")
    try:
        numbers = list(map(float, values))
    except (TypeError, ValueError):
        raise ValueError(f"the objective returned {returned!r:.200}; expected numbers") from None
    if any(map(math.isnan, numbers)):
        raise ValueError("the objective returned NaN")
    return numbers


def main() -> None:
    [target] = sys.argv[1:]
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    run = init()
    calls = StudyCalls.admitted(run.should_stop)
    Worker(target, run, calls).work()
    calls.close()


if __name__ == "__main__":
    main()
