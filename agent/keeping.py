"""Which ranks of a task stay up when its attempt ends, for the next attempt on this node.

A rank says `stay` on a line of its own while it could go on without its process group, and `arrived` when it
has left the group and does nothing but wait for the next one: a peer is lost, or, in a gang that is whole,
the notice has asked for it. Only when all that live have arrived does the task end and the next one begin,
with them; they are handed its environment when its journal has begun. Until then they can publish nothing.
Whatever takes too long is killed. Standard library only.
"""

import os
import signal
import time
from collections.abc import Sequence
from typing import Any, Final, NamedTuple

from . import kernel
from .containment import signal_all
from .ranks import Kept, Worker
from .shim_door import Connection, Door
from .shim_process import read_launch

KEEP_S: Final = 10.0
"""What the next attempt may take to come, where the scheduler has not said."""
KEPT: Final = "kept"
"""How the `why` of a task begins whose ranks went on to the next."""
_NEVER: Final = float("inf")


class Successor(NamedTuple):
    """The next attempt's task."""

    folder: str
    launch: dict[str, Any]
    listener_fd: int
    control: Connection
    kept: dict[int, Kept]


class Keeping:
    """Of one task. `workers`: its own list, as it changes."""

    def __init__(self, launch: dict[str, Any], workers: Sequence[Worker], door: Door) -> None:
        self._launch = launch
        self._workers = workers
        self._door = door
        self._wanted: tuple[str, dict[str, Any], int, Connection] | None = None
        self.until = _NEVER
        """Then those that wait are killed."""
        self.look_at = _NEVER
        """Then whoever has not arrived is looked at: it is late for a reason."""
        self._keep_s = 0.0
        self._places: dict[int, str] = {}
        self.asked = False
        """The gang is whole, and its ranks were asked to leave it together."""

    @property
    def able(self) -> bool:
        """Some rank lives, and all that live would stay. In a container none can: the next attempt's folder
        is not there."""
        living = self._living()
        return (
            bool(living)
            and self._launch["client"] is None
            and all(worker.stays and worker.line in self._door.connections for worker in living)
        )

    @property
    def waiting(self) -> int:
        """How many wait for the next attempt, once all that live do."""
        living = self._living()
        return len(living) if self.able and all(worker.arrived for worker in living) else 0

    @property
    def ready(self) -> bool:
        """The next attempt is here, and all that live wait for it."""
        return self._wanted is not None and self.waiting > 0

    def on_stay(self, line: Connection, rank: int) -> bool:
        """False: no rank of this task that lives."""
        worker = next((worker for worker in self._living() if worker.rank == rank), None)
        if worker is not None:
            worker.line, worker.stays = line, True
        return worker is not None

    def ask(self) -> bool:
        """The gang is whole: its ranks are to leave it together, after the same step. False: they have."""
        self.asked = not self.waiting
        return self.asked

    def on_arrived(self, line: Connection) -> int:
        """How many wait now, as they were asked to. 0: not all, or it has seen that its gang is broken, and
        maybe nobody here knows yet."""
        for worker in self._living():
            worker.arrived = worker.arrived or worker.line is line
        if self.until == _NEVER and self.asked:  # the others have agreed to come, and need not be cut off
            self._wait(KEEP_S)
        elif self.until == _NEVER:
            self.hold(KEEP_S)
        ranks = self.waiting if self.asked else 0
        self.asked = self.asked and not ranks
        return ranks

    @property
    def late(self) -> list[Worker]:
        """Those that live and do not wait for the next attempt."""
        return [worker for worker in self._living() if not worker.arrived]

    def on_inspected(self, ranks: Sequence[dict[str, Any]]) -> None:
        """Where they are, as in the journal's `inspected`."""
        for each in ranks:
            innermost = each["stack"].partition("\n")[0]
            self._places[each["rank"]] = f", {each['state']}" + (f" in {innermost}" if innermost else "")

    def why_late(self) -> str:
        """Once `until` has passed; empty: all have arrived, and no attempt has come."""
        if not self.late:
            return ""
        rank = self.late[0].rank
        more = f" (nor did {len(self.late) - 1} more)" if self.late[1:] else ""
        place = self._places.get(rank, "")
        return f"rank {rank} did not leave the gang within {self._keep_s:g} s{place}{more}"

    def hold(self, keep_s: float) -> None:
        """The gang is broken: whoever has not seen it is told, and waits at most so long."""
        self._wait(keep_s)
        for worker in self._living():
            if worker.line is not None and not worker.arrived:
                self._door.send(worker.line, {"leave": True})

    def _wait(self, keep_s: float) -> None:
        now = time.monotonic()
        self.until, self.look_at, self._keep_s = now + keep_s, now + keep_s / 2, keep_s
        self._places.clear()

    def take(self, folder: str, control: Connection) -> bool:
        """The job's next attempt is here, says the agent; `control` has brought its listening socket, where
        it has one. False: these ranks cannot go on in it."""
        if not control.watching or not self.able:
            return False
        launch = read_launch(folder)
        if launch["mode"] != self._launch["mode"] or _gpus(launch) != _gpus(self._launch):
            return False
        self._wanted = (folder, launch, control.take_fd(), control)
        if self.until == _NEVER:
            self.hold(KEEP_S)
        return True

    def hand_on(self) -> Successor:
        """What ranks that are gone have left goes too; what those that stay have started stays."""
        assert self._wanted is not None
        folder, launch, listener_fd, control = self._wanted
        self._wanted = None
        kept = {
            worker.local_rank: Kept(worker.pid, worker.line)
            for worker in self._living()
            if worker.line is not None and worker.local_rank < len(launch["ranks"])
        }
        surplus = [worker.pid for worker in self._living() if worker.local_rank not in kept]
        gone = {worker.pid for worker in self._workers if not worker.lives} | set(surplus)
        strays = [pid for pid in kernel.descendants(os.getpid()) if kernel.session_of(pid) in gone]
        signal_all([*surplus, *strays], signal.SIGKILL)
        mode = f"{KEPT} {len(kept)} of {len(launch['ranks'])} ranks up, the others {launch['start_mode']}"
        launch |= {"start_mode": mode, "cgroup": self._launch["cgroup"]}
        return Successor(folder, launch, listener_fd, control, kept)

    def close(self) -> None:
        if self._wanted is not None and self._wanted[2] >= 0:
            os.close(self._wanted[2])

    def _living(self) -> list[Worker]:
        return [worker for worker in self._workers if worker.lives]


def attempt_message(environment: dict[str, str], log: str) -> dict[str, Any]:
    """What a kept rank is handed: it begins to count again."""
    return {"attempt": {"environment": environment, "log": log}}


def _gpus(launch: dict[str, Any]) -> str | None:
    """Those that its ranks see: a process that has begun on some cannot move to others."""
    gpus: str | None = launch["environment"].get("CUDA_VISIBLE_DEVICES")
    return gpus
