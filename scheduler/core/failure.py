"""What an attempt failed of, and what a node found of a rank's death: plain facts, all bounded."""

from dataclasses import dataclass
from typing import Final

from ...spec.failures import FailureClass
from ...spec.ids import Attempt, Micros, NodeId

ON_ITS_OWN, SEEN_FAILING, AFTER_A_PEER = 0, 1, 2
"""How sure it is that a rank was a cause: it ended by itself, or wrote down what it died of; it was killed by
us with a traceback at the end of its output; it fell in a way that ranks do whose peer is gone."""


@dataclass(frozen=True, slots=True)
class Evidence:
    """What a node found of a rank's death, bounded there. Empty: nothing."""

    error_type: str = ""
    """As Python names it: `ValueError`, `torch.OutOfMemoryError`."""
    message: str = ""
    traceback: str = ""
    """Its end."""
    last_lines: str = ""
    recorded: bool = False
    """The rank itself wrote the error down; else it was read off its output."""


NOTHING: Final = Evidence()


@dataclass(frozen=True, slots=True)
class Failure:
    """What an attempt failed of. Of ranks: the first that failed, as far as is known."""

    kind: FailureClass
    attempt: Attempt
    hint: str = ""
    node: NodeId | None = None
    rank: int | None = None
    exit_code: int | None = None
    """Of the rank, as waitpid says; None: it was killed by us before it came to its own end."""
    died_us: Micros | None = None
    """Of the rank, on the scheduler's clock, as near as its node could say."""
    doubt: int = ON_ITS_OWN
    error_type: str = ""
    message: str = ""
    traceback: str = ""
    last_lines: str = ""
