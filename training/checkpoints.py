"""The checkpoints of one run: where they lie, which count, and the verbs on them. All but `close` are
collective.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..proto.peer_door import PEERS
from ..proto.shim_line import ShimLink
from ..spec.retention import Retention
from . import candidates, folders, images
from .candidates import Candidate
from .environment import Environment
from .gang import Gang
from .images import Places
from .neighbours import Neighbours, meet
from .orders import History, Purpose, Setting
from .outcome import Restored, SaveOutcome
from .persisting import Persister
from .remote import Remote
from .restoring import Restorer
from .saving import Saver
from .say import say
from .scratch import Scratch
from .staging import Stager
from .task import Task


class Checkpoints:
    """Joins saving and restoring over one folder. `task` None: outside Paceline."""

    def __init__(
        self,
        environment: Environment,
        gang: Gang,
        link: ShimLink | None,
        task: Task | None,
        *,
        root: Path,
        retention: Retention,
    ) -> None:
        self._environment = environment
        self._gang = gang
        self._link = link
        self._task = task
        self._root = root
        self._retention = retention
        self._attempt = environment.attempt if task is not None else 0
        self._continues = False
        self._scratch: Scratch | None = None
        self._saver = Saver(
            environment,
            gang,
            link,
            root,
            stager=self._make_stager,
            persister=self._make_persister,
            when_busy=task.when_busy if task is not None else Task().when_busy,
        )
        remote = Remote(task.url) if task is not None and task.url else None
        self._restorer = Restorer(environment, gang, link, remote)
        self._neighbours: Neighbours | None = None

    def save(
        self, step: int, given: Mapping[str, Any], metrics: Mapping[str, float], purpose: Purpose
    ) -> SaveOutcome:
        """See Run.save."""
        self._gang.require("save")
        self._meet()
        return self._saver.save(self._settled_attempt(), step, given, metrics, purpose)

    def cost_s(self) -> tuple[float, float] | None:
        """See Saver.cost_s. Not collective."""
        return self._saver.cost_s()

    def flush(self) -> SaveOutcome | None:
        """See Run.flush."""
        self._gang.require("flush")
        return self._saver.flush()

    def restore(self, given: Mapping[str, Any]) -> Restored | None:
        """See Run.restore."""
        self._gang.require("restore")
        self._saver.flush()
        self._settled_attempt()
        restored = self._restorer.restore(self._candidates(), given, self._meet())
        self._continues = restored is not None
        self._saver.go_on_from(self._restorer.history)
        return restored

    def abandon(self) -> History:
        """The attempt is over, and with it what is under way: nothing of it can be accepted any more. What
        the next attempt's must know.
        """
        return self._saver.abandon()

    def go_on_from(self, history: History) -> None:
        """This process was in the attempt before."""
        self._saver.go_on_from(history)

    def close(self) -> None:
        """What is under way is brought to its end."""
        self._saver.close()

    def _meet(self) -> Neighbours | None:
        """Once in an attempt, at all ranks."""
        if self._neighbours is None and self._task is not None and self._task.peer_memory:
            self._neighbours = meet(self._gang, self._environment)
            if self._environment.node_count > 1 and self._neighbours.next_door is None:
                self._tell_no_door()
        return self._neighbours

    def _tell_no_door(self) -> None:
        environment, why = (
            self._environment,
            "none has opened its memory to peers, their agents' logs say why",
        )
        say(f"checkpoints of this node are NOT kept in the memory of another node: {why}")
        if self._link is not None and environment.local_rank == 0:
            told = {"rank": environment.rank, "node": "another node", "step": 0, "size_bytes": 0}
            self._link.ask({"op": "peer_memory", **told, "seconds": 0.0, "why": why})

    def _settled_attempt(self) -> int:
        """Outside Paceline each run is an attempt of its own, one above any that it finds."""
        if self._attempt == 0:
            self._attempt = self._gang.from_first(
                folders.next_attempt(self._root) if self._gang.rank == 0 else 0
            )
        return self._attempt

    def _candidates(self) -> list[Candidate]:
        """The same list at all ranks: the scheduler's, or what rank 0 sees."""
        if self._task is not None:
            return candidates.accepted(self._task)
        listed: list[Candidate] = self._gang.from_first(
            candidates.found(self._root) if self._gang.rank == 0 else []
        )
        return listed

    def _make_stager(self) -> Stager:
        """Where memory has no room, images are on disk: that costs time, and not the checkpoint."""
        memory, task = self._environment.memory_folder, self._environment.task_folder
        if memory is not None:
            self._let_go_of_strangers(memory)
            places = [memory, task / "images"] if task is not None else [memory]
        else:
            self._scratch = Scratch()
            places = [self._scratch.memory, self._scratch.disk]
        return Stager(self._gang, Places(places, _say_fallback))

    def _let_go_of_strangers(self, folder: Path) -> None:
        """Images of ranks that were here in an attempt before, and are not now; and what was kept for other
        nodes, where nobody brings anything newer.
        """
        here = self._environment
        if here.local_rank == 0:
            if self._neighbours is None:
                images.drop(folder / PEERS)
            ranks = range(here.rank, here.rank + here.local_world_size)
            images.keep_only(folder, [f"__{rank}_" for rank in ranks])

    def _make_persister(self) -> Persister:
        folder = self._environment.task_folder
        return Persister(
            Setting(
                root=str(self._root),
                task_folder=str(folder) if folder is not None else "",
                scratch=str(self._scratch.memory) if self._scratch is not None else "",
                retention=self._retention,
                attempt=self._attempt,
                continues=self._continues,
                url=self._task.url if self._task is not None else "",
                scrub_s=self._task.scrub_s if self._task is not None else 0.0,
                elastic=self._task.elastic if self._task is not None else False,
                job=self._environment.job,
                peer=self._neighbours.next_door if self._neighbours is not None else None,
                first_of_node=self._environment.local_rank == 0,
            ),
            self._scratch.lock_fd if self._scratch is not None else None,
        )


def _say_fallback(why: str) -> None:
    say(f"checkpoints are staged on disk, which stalls longer and leaves none in memory: {why}")
