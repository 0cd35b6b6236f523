"""What became of each checkpoint that a job ever had accepted, from its history; newest first."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from ...spec.retention import Retention, reasons_to_keep
from .attempt_events import JobSubmitted
from .checkpoint_events import CheckpointAccepted, CheckpointRestored, PeerMemoryTold, RestoreRequested
from .copies import MEMORY, PEER_MEMORY, good_copies, is_good, is_in_memory
from .events import Event
from .evolve_checkpoints import accepted
from .job import Checkpoint, Job


@dataclass(frozen=True, slots=True)
class Line:
    """`state`: "good", "damaged: ...", "removed", "set aside". `kept`: why retention does not let it go."""

    checkpoint: Checkpoint
    state: str
    kept: str
    tiers: str = ""


def checkpoint_table(job: Job, events: Iterable[Event], policy: Retention) -> Sequence[Line]:
    """`events`: all of the job, in order."""
    states: dict[str, str] = {}
    known: dict[str, Checkpoint] = {}
    refused: dict[int, str] = {}
    """By a peer's memory, of this attempt: by rank, as it was told last."""
    for event in events:
        _enter(event, known, states)
        if isinstance(event, PeerMemoryTold) and event.task.attempt == job.attempt:
            refused[event.rank] = event.why
    peers = bool(refused) and not any(refused.values())
    for one in job.course.checkpoints:
        known[one.path] = one
        states.setdefault(one.path, "good")
        if one.damaged and not is_good(one):
            states[one.path] = "damaged: " + "; ".join(
                f"{why} in {copy}" for copy, why in one.damaged.items()
            )
    good = [path for path in known if states[path] == "good"]
    kept = dict(zip(good, reasons_to_keep([known[path] for path in good], policy), strict=True))
    lines = [
        Line(one, states[path], kept.get(path, ""), _tiers(job, one, peers=peers) if path in kept else "")
        for path, one in known.items()
    ]
    return lines[::-1]


def _tiers(job: Job, one: Checkpoint, *, peers: bool) -> str:
    memories = [MEMORY, PEER_MEMORY] if peers else [MEMORY]
    return ", ".join(memories * is_in_memory(job, one) + [*good_copies(one)])


def _enter(event: Event, known: dict[str, Checkpoint], states: dict[str, str]) -> None:
    match event:
        case JobSubmitted(checkpoint=Checkpoint() as first):
            known[first.path], states[first.path] = first, "good"
        case CheckpointAccepted():
            for path, one in known.items():
                if one.step in event.removed_steps and states[path] != "set aside":
                    states[path] = "removed"
            known[event.path] = accepted(event)
            states[event.path] = "good"
        case CheckpointRestored():
            _note_damage(event, known, states)
        case RestoreRequested():
            _set_aside(event.path, known, states)


def _note_damage(event: CheckpointRestored, known: dict[str, Checkpoint], states: dict[str, str]) -> None:
    """Rejected ones are told as "step 40 (attempt 2): why"."""
    for text in event.rejected:
        for path, one in known.items():
            head = f"step {one.step} (attempt {one.attempt}): "
            if text.startswith(head) and states[path] == "good":
                states[path] = f"damaged: {text.removeprefix(head)}"


def _set_aside(path: str, known: dict[str, Checkpoint], states: dict[str, str]) -> None:
    after = list(known)[list(known).index(path) + 1 :] if path in known else []
    for later in after:
        if states[later] == "good":
            states[later] = "set aside"
