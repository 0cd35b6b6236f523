"""Owns the tasks of this node: one folder and one shim each, whatever happens to this process.

A task starts at most once per key, an older attempt of the same job is dead before a newer one starts, and
every task whose folder exists ends in a journal that holds `ended` or `refused`. Shims outlive this process.
"""

import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from ..proto.generated import agent_pb2
from ..spec.ids import TaskKey


@dataclass(frozen=True, slots=True)
class SupervisorConfig:
    """What the agent tells its supervisor once, at start."""

    interpreter: str = sys.executable
    """The node's own; tasks with an empty `interpreter_environment` run in it."""
    environments: Mapping[str, str] = field(default_factory=dict)
    """Environment name -> interpreter."""
    warm: bool = True
    """Keep a process that has imported torch & co., and start Python jobs by forking it."""
    zygotes_max: int = 4
    """Warm processes kept for different interpreters and import-sensitive environments, least used go first."""
    rendezvous_address: str = "127.0.0.1"
    """On which the rendezvous ports listen."""
    rendezvous_ports: int = 8
    """How many are held ready."""
    answer_s: float = 5.0
    """A shim or zygote that does not answer in this time is killed."""


class Supervisor:
    """Starts, stops and watches tasks. All methods belong to the event loop's thread.

    `on_growth(key)` is called whenever a task's journal has grown (also once per task during `recover`);
    `on_change()` when `rendezvous_ports()` or `warm_pool()` say something new: the inventory is to be sent again.
    Both must return at once.
    """

    def __init__(
        self,
        state: Path,
        config: SupervisorConfig,
        *,
        on_growth: Callable[[TaskKey], None] = lambda key: None,
        on_change: Callable[[], None] = lambda: None,
    ) -> None:
        """`state` is the agent's state folder; nothing is touched before `recover`."""

    async def recover(self) -> None:
        """Once, before anything else: adopt living shims, finish the journals of dead ones, start the zygotes."""
        raise NotImplementedError

    async def start(self, request: agent_pb2.StartTask) -> None:
        """Start the task, unless its key is known already. Returns when its shim was forked or a `refused` entry
        is in its journal. Older attempts of the job on this node are killed first, completely. May be called
        for many tasks at once; calls for one job are done in turn. A start for an attempt older than one
        already here is refused (`stale-attempt`)."""
        raise NotImplementedError

    async def stop(self, key: TaskKey, grace_s: float, why: str) -> None:
        """Ask the task to end: notice byte and SIGTERM, after `grace_s` SIGKILL. Unknown and ended: nothing.
        Returns when the shim has taken it over, or, where it does not answer, when everything is dead."""
        raise NotImplementedError

    async def forget(self, key: TaskKey) -> None:
        """Kill what is left of the task and drop its folder. Unknown: nothing."""
        raise NotImplementedError

    def acknowledge(self, key: TaskKey, seq: int) -> None:
        """The scheduler has stored the journal up to `seq`: the shim may give that space back."""
        raise NotImplementedError

    def tasks(self) -> tuple[TaskKey, ...]:
        """All whose folders are here, running or ended."""
        raise NotImplementedError

    def request(self, key: TaskKey) -> agent_pb2.StartTask:
        """What `start` was given. Raises NotFound."""
        raise NotImplementedError

    def entries(self, key: TaskKey, after_seq: int, limit: int) -> list[agent_pb2.JournalEntry]:
        """Journal entries with seq > after_seq, in order, at most `limit`. Unknown: none."""
        raise NotImplementedError

    def log_files(self, key: TaskKey) -> dict[int, Path]:
        """Global rank -> its output file (which may not exist yet). Unknown: none."""
        raise NotImplementedError

    def ended(self, key: TaskKey) -> bool:
        """True when the journal holds `ended` or `refused`: no process is left and nothing will be added.
        True for an unknown key."""
        raise NotImplementedError

    async def wait_ended(self, key: TaskKey) -> None:
        """Return as soon as `ended(key)`."""
        raise NotImplementedError

    def rendezvous_ports(self) -> tuple[int, ...]:
        """Ports that listen now and are free to give to a gang (Inventory.rendezvous_ports)."""
        raise NotImplementedError

    def warm_pool(self) -> str:
        """For Inventory.warm_pool: "ready", "starting", "none: <why>"."""
        raise NotImplementedError

    def containment(self) -> str:
        """For Inventory.containment: "cgroup v2", or "process groups and subreaper: <why>"."""
        raise NotImplementedError

    async def close(self) -> None:
        """Let go of everything and end the zygotes; shims and their tasks live on."""
        raise NotImplementedError
