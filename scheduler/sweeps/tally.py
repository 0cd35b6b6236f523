"""How many trials of a sweep stand where, kept as they change: a look at all of them would cost more with
each trial."""

from collections.abc import Iterable
from dataclasses import dataclass, field

from .study import Trial, TrialState


@dataclass(slots=True)
class Tally:
    """`note` each trial that has changed; it may be noted again as it was."""

    states: dict[int, TrialState] = field(default_factory=dict)
    waiting: set[int] = field(default_factory=set)
    running: set[int] = field(default_factory=set)
    complete: int = 0

    @classmethod
    def of(cls, trials: Iterable[Trial]) -> "Tally":
        """Of all trials so far."""
        made = cls()
        for trial in trials:
            made.note(trial)
        return made

    def note(self, trial: Trial) -> TrialState | None:
        """The state in which it was noted before; None: never."""
        number, state = trial.number, trial.state
        before = self.states.get(number)
        if before is state:
            return before
        self.states[number] = state
        for group, kind in ((self.waiting, TrialState.WAITING), (self.running, TrialState.RUNNING)):
            if state is kind:
                group.add(number)
            else:
                group.discard(number)
        self.complete += state is TrialState.COMPLETE
        return before
