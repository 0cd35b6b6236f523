"""The other nodes of the gang, by the doors of their memories: which of them keeps this node's files, and who
is asked for what is missing here.

Each rank knows the door of its own node, and tells the others once in an attempt; who is in the gang has its
state anyway. Nodes are in a ring, by their ranks: each one's next keeps its files.
"""

import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from ..proto.peer_door import Door, read_door
from ..spec.folder_names import FolderName
from .environment import Environment
from .errors import StorageFailed
from .gang import Gang
from .manifest import FileEntry
from .peer_calls import Caller
from .say import say

_SMALL_S: Final = 5.0
"""For a manifest or metadata, from whoever has it."""


@dataclass(frozen=True, slots=True)
class Neighbours:
    """One rank's. `doors`: of each rank's node; None: it keeps nothing for others."""

    job: int
    attempt: int
    rank: int
    doors: tuple[Door | None, ...] = ()

    @property
    def next_door(self) -> Door | None:
        """Of the next node that has one; None: there is no other."""
        return next(self._others(), None)

    def caller(self, rank: int) -> Caller | None:
        """At that rank's node, where it is another one and has a door."""
        door = self.doors[rank] if rank < len(self.doors) else None
        return None if door is None or self._is_here(door) else Caller(door, self.job, self.attempt)

    def read_small(self, name: FolderName, file: str, entry: FileEntry | None = None) -> bytes:
        """From the first that has it. Raises StorageFailed."""
        until_s, problems = time.monotonic() + _SMALL_S, list[str]()
        for door in self._others():
            try:
                return Caller(door, self.job, self.attempt).read_small(name, file, entry)
            except StorageFailed as failure:
                problems.append(failure.message)
            if time.monotonic() > until_s:
                problems.append(f"given up after {_SMALL_S:.0f} s")
                break
        raise StorageFailed(f"{file}: {'; '.join(problems[-3:]) or 'no other node has a door'}")

    def _others(self) -> Iterator[Door]:
        """Each once, beginning with the node after this one."""
        seen = set()
        for door in (*self.doors[self.rank :], *self.doors[: self.rank]):
            if door is not None and door.place not in seen and not self._is_here(door):
                seen.add(door.place)
                yield door

    def _is_here(self, door: Door) -> bool:
        own = self.doors[self.rank]
        return own is not None and own.place == door.place


def meet(gang: Gang, environment: Environment) -> Neighbours:
    """Collective."""
    door: Door | None = None
    try:
        door = read_door(environment.task_folder) if environment.task_folder is not None else None
    except (OSError, ValueError) as error:
        say(f"the door of this node's memory is not known: {error}")
    doors: list[Door | None] = gang.gather(door)
    return Neighbours(environment.job, environment.attempt, gang.rank, tuple(doors))
