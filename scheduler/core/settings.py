"""The numbers that decisions depend on, fixed when the scheduler starts.

Law 4 needs T_kill + stop time + drift < T_re: `Settings` refuses to be made otherwise.
"""

from dataclasses import dataclass, field
from typing import Final

from ...spec.retention import RECORD_MAX

SECOND_US: Final = 1_000_000
GPU_HOUR_US: Final = 3600 * SECOND_US
RESTART_US: Final = 30 * SECOND_US
"""What a stop and a new start are counted as where they were not measured."""


@dataclass(frozen=True, slots=True)
class Order:
    """Who goes first, see order.py. Times in microseconds; of service: GPU-microseconds."""

    class_limits_us: tuple[int, ...] = tuple(GPU_HOUR_US * 4**power // 4 for power in range(6))
    """Ascending: a job's class is how many of them its service has passed."""
    patience_us: int = 6 * 3600 * SECOND_US
    """A job counts as one class lower for each time that it has waited so long; 0: waiting lifts nobody."""
    lifted_percent: int = 15
    """Of the cluster: what those that were lifted may hold before others are, while all whose patience is
    over would leave less than that to others."""
    preemption: bool = True
    min_run_us: int = 600 * SECOND_US
    """Nobody is stopped for another before its attempt has run so long."""
    defragment: bool = False
    """Jobs are moved where a gang waits for nothing but fragmentation, see moves.py."""
    review_us: int = 30 * SECOND_US
    """A demand for which nobody could be stopped is looked at again so much later."""


@dataclass(frozen=True, slots=True)
class Settings:
    """All times in microseconds; `*_max` are bounds."""

    heartbeat_us: int = SECOND_US
    missed_heartbeats: int = 3
    return_heartbeats: int = 15
    lease_exclusive_us: int = 20 * SECOND_US
    """T_kill: the agent kills an exclusive task so long after SENDING its last acknowledged renewal."""
    replace_exclusive_us: int = 45 * SECOND_US
    """T_re: the scheduler replaces an exclusive job so long after RECEIVING the last renewal."""
    stop_and_drift_us: int = 10 * SECOND_US
    lease_fenced_us: int = 600 * SECOND_US
    start_timeout_us: int = 600 * SECOND_US
    """From the placement of an attempt until all its tasks have started."""
    stop_slack_us: int = 15 * SECOND_US
    """What a stop may take beyond its grace before the attempt is given up by fencing."""
    inspect_us: int = 20 * SECOND_US
    """What the nodes of a gang that may hang have to say where its ranks are."""
    reform_us: int = 10 * SECOND_US
    """How long ranks that can go on without those that fell wait for the next attempt, before they are killed
    and it starts anew."""
    free_restarts_max: int = 100
    """Restarts that do not count against the job: lost nodes, transient refusals."""
    refusal_backoff_us: int = SECOND_US // 10
    rest_max_us: int = 60 * SECOND_US
    """The longest that a node gets no work after it refused; the first time is `refusal_backoff_us`."""
    straggler_reports_max: int = 0
    """After so many reports of slow ranks a node is drained for new gangs; 0: it is only reported."""
    straggler_memory_us: int = 86_400 * SECOND_US
    """Reports that are older do not count."""
    straggler_drain_us: int = 3600 * SECOND_US
    """For so long; then it has another chance."""
    forget_after_us: int = 7 * 86_400 * SECOND_US
    """A node that was LOST for so long, and holds nothing, is dropped."""
    order: Order = field(default_factory=Order)
    topology_levels: tuple[str, ...] = ("block", "rack")
    """Labels of nodes that say where they stand, the widest first."""
    jobs_max: int = 1_000_000
    nodes_max: int = 20_000
    checkpoints_max: int = RECORD_MAX
    metric_names_max: int = 64
    metric_rows_max: int = 100_000

    def __post_init__(self) -> None:
        if self.lease_exclusive_us + self.stop_and_drift_us >= self.replace_exclusive_us:
            raise ValueError(
                f"an exclusive job would run twice: lease {self.lease_exclusive_us} us + stop and drift "
                f"{self.stop_and_drift_us} us must be less than {self.replace_exclusive_us} us"
            )

    @property
    def lost_after_us(self) -> int:
        """Silence after which a node is LOST: the last missed heartbeat, and half a beat for the way."""
        return self.missed_heartbeats * self.heartbeat_us + self.heartbeat_us // 2

    @property
    def return_grace_us(self) -> int:
        """What a node has to come back after the scheduler's start, or after a suspicion: agents dial with
        growing patience, and many at once."""
        return max(self.lost_after_us, self.return_heartbeats * self.heartbeat_us)

    @property
    def unknown_after_us(self) -> int:
        """Silence on an open stream after which a node is UNKNOWN."""
        return self.heartbeat_us + self.heartbeat_us // 2
