"""How the ranks agree: small CPU collectives over the process group that the script made.

Every call here is collective: all ranks make it, in the same order. A gang of one never touches torch.
Tensors of the training itself never pass here. Where the script's own group cannot carry CPU tensors
(NCCL alone), one gloo group is made beside it, once.
"""

import ctypes
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from ..proto.beats import BEAT
from .environment import Environment
from .errors import GangNotReady

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup, Work


class Gang:
    """The ranks of this run. Looks at torch.distributed at each call: scripts make groups late."""

    def __init__(self, environment: Environment) -> None:
        self._environment = environment
        self._control: Any = None
        self._control_of: object = None
        self._held: object = None
        self.wait: Callable[[Any], object] = _wait
        """For a collective that was begun."""

    @property
    def joined(self) -> bool:
        """True once there is a process group to agree over (False for a single process)."""
        distributed: Any = sys.modules.get("torch.distributed")
        return bool(
            distributed is not None
            and distributed.is_available()
            and distributed.is_initialized()
            and distributed.get_world_size() > 1
        )

    @property
    def rank(self) -> int:
        return self._environment.rank

    def require(self, what: str) -> None:
        """Raise GangNotReady when there are several ranks but nothing joins them yet."""
        if self._environment.world_size > 1 and not self.joined:
            raise GangNotReady(
                f"run.{what}() concerns all {self._environment.world_size} ranks, "
                "but torch.distributed is not initialized",
                hint=f"call torch.distributed.init_process_group() before run.{what}()",
                world_size=self._environment.world_size,
            )

    def group(self) -> "ProcessGroup | None":
        """The group for CPU collectives; None is the script's own."""
        from torch import distributed

        world = distributed.group.WORLD
        if self._held is not world:
            hold(world)
            self._held = world
        if "cpu:gloo" in str(distributed.get_backend_config()):
            return None
        if self._control_of is not world:
            self._control = distributed.new_group(backend="gloo")
            self._control_of = world
        group: ProcessGroup = self._control
        return group

    def release(self) -> None:
        """This process leaves the group, and its owner sees to its end: it is not held any longer."""
        if self._held is not None:
            _let_go(self._held)
        self._held = self._control = self._control_of = None

    def gather(self, value: Any) -> list[Any]:
        """Everyone's value, by rank, at every rank."""
        if not self.joined:
            return [value]
        from torch import distributed

        values: list[Any] = [None] * distributed.get_world_size()
        with BEAT.meeting():
            distributed.all_gather_object(values, value, group=self.group())
        return values

    def from_first(self, value: Any) -> Any:
        """Rank 0's value, at every rank."""
        if not self.joined:
            return value
        from torch import distributed

        values = [value]
        with BEAT.meeting():
            distributed.broadcast_object_list(values, src=0, group=self.group())
        return values[0]

    def largest(self, *values: int) -> tuple[int, ...]:
        """For each of these, the largest that any rank gave."""
        if not self.joined:
            return values
        import torch

        tensor = torch.tensor(values, dtype=torch.int64)
        with BEAT.meeting():
            largest = torch.distributed.ReduceOp.MAX
            self.wait(torch.distributed.all_reduce(tensor, largest, self.group(), async_op=True))
        return tuple(int(value) for value in tensor)


def _wait(work: "Work") -> None:
    work.wait()


def hold(group: object) -> None:
    """Keep this process group until the process ends, whoever else lets go of it.

    Where a script destroys its group and then drops its DDP model, the model's reducer has the last
    reference: it ends the group with the GIL held and joins gloo's thread, which may be waiting for the GIL
    to release its last work (seen with torch 2.13). The rank then never ends, and its gang with it.
    """
    ctypes.pythonapi.Py_IncRef(ctypes.py_object(group))


def _let_go(group: object) -> None:
    ctypes.pythonapi.Py_DecRef(ctypes.py_object(group))
