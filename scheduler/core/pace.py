"""How long the steps of a gang's ranks take. Facts of the attempt that runs; no part of the history."""

from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class RankPace:
    """Of one rank in its last window. The shares are of its step; all 0: not measurable there; only that of
    the data: how the rest is shared is not."""

    rank: int
    step_us: int
    compute: float = 0.0
    peers: float = 0.0
    """Waiting for them in a collective."""
    data: float = 0.0

    @property
    def measured(self) -> bool:
        """All of it."""
        return self.compute + self.peers > 0


@dataclass(slots=True)
class GangPaces:
    """What was heard of the current attempt; forgotten with it, or with this process."""

    ranks: dict[int, RankPace] = field(default_factory=dict)
    slow: dict[int, int] = field(default_factory=dict)
    """In how many windows in a row each rank was slower than its peers."""
