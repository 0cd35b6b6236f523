"""The checkpoints that are on disk and count, and what rank 0 lets go of.

Deleting follows `retention.choose_removals`; sweeping takes what attempts before this one left behind: half-
written folders, and complete ones that were never accepted and, this attempt being the current one, never
will be. Both wait until a checkpoint of this attempt is accepted, which a replaced attempt never sees. A
deletion that fails is said and costs nothing else.
"""

from collections.abc import Callable, Collection, Sequence
from dataclasses import replace
from pathlib import Path

from ..spec.folder_names import FolderName
from ..spec.retention import Retention
from . import folders
from .retention import Kept, choose_removals, is_before_record
from .say import say


class Keeper:
    """Rank 0's alone. `earlier` gives what counts from before this attempt, oldest first, when it is first
    needed.
    """

    def __init__(
        self,
        root: Path,
        retention: Retention,
        earlier: Callable[[], Sequence[Kept]],
        acked_seq: Callable[[], int],
        is_bad: Callable[[Path], bool],
        *,
        sweeps_unaccepted: bool,
    ) -> None:
        self._root = root
        self._retention = retention
        self._earlier = earlier
        self._acked_seq = acked_seq
        self._is_bad = is_bad
        self._sweeps_unaccepted = sweeps_unaccepted
        self._kept: list[Kept] | None = None
        self._removed_steps: set[int] = set()
        self._swept = False

    def add(self, published: Kept) -> None:
        """A new one of this attempt."""
        self._known().append(published)

    def let_go(self, attempt: int) -> None:
        """Delete what the policy does not want and nobody can need."""
        acked_seq = self._acked_seq()
        kept = self._kept = [
            replace(one, good=one.good and not self._is_bad(one.path)) for one in self._known()
        ]
        for one in choose_removals(kept, self._retention, acked_seq):
            kept.remove(one)
            if discard(one.path):
                self._removed_steps.add(one.step)
        if not self._swept and any(one.seq is not None and one.seq <= acked_seq for one in kept):
            self._swept = True
            self._sweep(attempt, kept)

    def removed_steps(self) -> list[int]:
        """Steps removed and not yet told of. One that is still there under another attempt is not gone."""
        return sorted(self._removed_steps - {one.step for one in self._known()})

    def kept(self) -> tuple[Kept, ...]:
        """As of now; for any thread."""
        return tuple(self._kept or ())

    def names_kept(self) -> frozenset[FolderName] | None:
        """None while it is not known that this attempt is the current one: then nothing may go."""
        if not self._swept:
            return None
        return _names(self._known())

    def told_removed(self) -> None:
        self._removed_steps.clear()

    def _known(self) -> list[Kept]:
        if self._kept is None:
            self._kept = list(self._earlier())
        return self._kept

    def _sweep(self, attempt: int, known: Collection[Kept]) -> None:
        stale, paths = folders.leftovers(self._root, attempt), {one.path for one in known}
        if self._sweeps_unaccepted:
            before = (name for name in folders.published(self._root) if name.attempt < attempt)
            names = _names(known)
            stale += [
                path
                for name in before
                if (path := self._root / str(name)) not in paths and not is_before_record(name, names)
            ]
        for path in stale:
            discard(path)


def _names(kept: Collection[Kept]) -> frozenset[FolderName]:
    return frozenset(name for one in kept if (name := FolderName.parse(one.path.name)))


def discard(path: Path) -> bool:
    """Delete it if it is there. A deletion that fails is said: False."""
    try:
        folders.remove(path)
    except FileNotFoundError:
        return True
    except OSError as error:
        say(f"{path} could not be deleted and stays: {error.strerror}")
        return False
    return True
