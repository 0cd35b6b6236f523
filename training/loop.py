"""The step loop: a rank that loses a peer, or gets more of them, keeps its process, its model and what it has
learned.

A step is made whole or not at all: it counts once the optimizer has made its step, before which no parameter
has changed. A rank that was interrupted before that puts back its buffers and random generators and makes the
step again; when some ranks had come further, their update holds the gradients of all, so the others take the
state of the most advanced one instead. So no rank that stays makes a step twice. One that a lost rank alone
had made is lost with it: the others make it for the first time.
On a GPU that takes a wait in each step: the update is not put in line before its gradients are reduced, so an
abort that ends a collective half way has no update behind it.
The loop makes the process group, and makes it anew in each attempt. All calls are collective.
"""

import gc
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import distributed, nn
from torch.amp import GradScaler
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer

from ..proto.beats import BEAT, RESTORES
from . import rng
from .errors import GangLost, GangNotReady, UnsavableState
from .handing import hand
from .peers import CALLBACK_FAILED, Peers
from .sampler import Sampler
from .say import say
from .staying import StayLine

if TYPE_CHECKING:
    from .run import Run

Step = Callable[[int, nn.Module], object]
Wrap = Callable[[nn.Module], nn.Module]
_TELL_S = 2.0


@dataclass(frozen=True, slots=True)
class Plan:
    """What the script asks for."""

    step: Step
    steps: int
    model: nn.Module
    optimizer: Optimizer
    wrap: Wrap
    save_every: int
    more: Mapping[str, Any]

    @property
    def things(self) -> dict[str, Any]:
        return {"model": self.model, "optimizer": self.optimizer, **self.more}


@dataclass(frozen=True, slots=True)
class _Standing:
    """Where a rank is when the gang meets."""

    keeps: bool
    """It has the state of the attempt before."""
    done: int
    saved: int


class StepLoop:
    """One rank's part; `run` once."""

    def __init__(self, run: "Run", plan: Plan) -> None:
        for name, thing in plan.more.items():
            if not (hasattr(thing, "state_dict") and hasattr(thing, "load_state_dict")):
                raise UnsavableState(
                    f"run.loop() was given {name}, a {type(thing).__name__} without state_dict()",
                    hint="give it schedulers and scalers; keep other values in a small class",
                )
            if isinstance(thing, Sampler):
                raise UnsavableState(
                    f"run.loop() was given {name}, a sampler, which goes on when a step is made again",
                    hint="take the step's samples by its number, run.rank and run.world_size",
                )
        _refuse_sharded(plan.model)
        self._run = run
        self._plan = plan
        self._device = next((each.device for each in plan.model.parameters()), torch.device("cpu"))
        self._standing = _Standing(keeps=False, done=0, saved=0)
        self._model = plan.model
        self._peers: Peers | None = None
        self._last_peers: Peers | None = None
        """Until another group has done some work: see Peers.leave."""
        self._line: StayLine | None = None
        self._before: tuple[dict[str, torch.Tensor], list[torch.Tensor]] | None = None
        """Generators and buffers as they were before the step that is being made."""

    def run(self) -> int:
        """Steps done: all, or as many as until the run was asked to stop."""
        optimizer = self._plan.optimizer
        hooks = (
            optimizer.register_step_pre_hook(self._settle),
            optimizer.register_step_post_hook(self._on_update),
        )
        try:
            if self._run.world_size > 1 and distributed.is_initialized():
                raise GangNotReady(
                    "run.loop() makes the process group itself, and there is one already",
                    hint="leave init_process_group() and DistributedDataParallel to run.loop()",
                )
            self._meet()
            while (why := self._until_left()) is not None:
                self._meet_again(why)
            return self._standing.done
        finally:
            for hook in hooks:
                hook.remove()
            for peers in (self._last_peers, self._peers):
                if peers is not None:
                    peers.drop()
            if self._line is not None:
                self._line.close()

    # Steps.

    def _until_left(self) -> str | None:
        """None: the loop is over. Else why this gang is to be left."""
        try:
            while self._turn():
                pass
        except Exception as error:
            if self._line is None or not self._tells_of_a_loss(error):
                raise
            text = str(error).removeprefix(CALLBACK_FAILED)
            return f"a peer is lost: {text.splitlines()[0][:200]}"
        return "the gang grows" if self._leaves() else None

    def _turn(self) -> bool:
        """Save where that is due, then one step. False: the loop is over, or the gang is to be left."""
        if self._line is not None and self._line.broken:  # a rank alone hears of it in no collective
            raise GangLost("the gang is broken")
        done, every = self._standing.done, self._plan.save_every
        stop = self._run.should_stop()
        if self._leaves():
            return False
        if done != self._standing.saved and (stop or (every and done % every == 0)):
            self._run.save(done, **self._plan.things)
            self._standing = _Standing(keeps=True, done=done, saved=done)
        if stop or done >= self._plan.steps:
            self._run.flush()
            return False
        self._make_step(done + 1)
        self._run.progressed(self._standing.done)
        if self._last_peers is not None:
            self._last_peers.drop()
            self._last_peers = None
        return True

    def _leaves(self) -> bool:
        """Where all is done, there is nothing to stay for."""
        return self._run.stays and self._standing.done < self._plan.steps

    def _make_step(self, number: int) -> None:
        self._before = (rng.capture(), [each.detach().clone() for each in self._plan.model.buffers()])
        self._plan.step(number, self._model)
        if self._before is not None:
            self._on_no_update()

    def _settle(self, *_: object) -> None:
        """What the ranks have reduced or handed on is there. Raises GangLost where a broken gang may have
        left it half way.
        """
        if self._peers is not None:
            self._peers.settle(self._device)

    def _on_no_update(self) -> None:
        """A scaler skips one whose gradients are not finite, and scales by less from then on. Where a broken
        gang left such gradients, that cannot be undone: this rank's state is no longer that of a step.
        """
        try:
            self._settle()
        except GangLost:
            self._standing = replace(self._standing, keeps=False)
            raise
        self._on_update()

    def _on_update(self, *_: object) -> None:
        """The optimizer has made its step: this one is done, whatever comes."""
        if self._before is not None:
            self._before = None
            self._standing = replace(self._standing, done=self._standing.done + 1)

    def _undo(self) -> None:
        """What a step that made no update has changed."""
        for each in self._plan.model.parameters():
            each.grad = None
        self._forget_scaling()
        if self._before is None:
            return
        generators, buffers = self._before
        self._before = None
        rng.apply(generators)
        for buffer, value in zip(self._plan.model.buffers(), buffers, strict=True):
            buffer.detach().copy_(value)

    def _forget_scaling(self) -> None:
        """What a scaler knows of gradients that are gone, and has told a fused optimizer: it would unscale
        those of the step that is made again not at all, or twice.
        """
        for thing in self._plan.more.values():
            if isinstance(thing, GradScaler) and thing.is_enabled():
                thing._per_optimizer_states.clear()
                for name in ("grad_scale", "found_inf"):
                    vars(self._plan.optimizer).pop(name, None)

    # The gang.

    def _tells_of_a_loss(self, error: Exception) -> bool:
        """Our own and torch's errors of a collective, gloo's words in a RuntimeError, or the shim's word."""
        assert self._line is not None
        by_error = isinstance(error, GangLost | distributed.DistError) or (
            isinstance(error, RuntimeError) and "gloo" in str(error)
        )
        return self._line.broken or (by_error and self._peers is not None)

    def _meet(self) -> list[int]:
        """Form the gang, agree where it stands, and take what others have. Ranks that kept their state."""
        run = self._run
        if run.world_size > 1:
            self._peers = Peers(self._device.type)
        told: list[_Standing] = run.gang.gather(self._standing)
        keepers = [rank for rank, standing in enumerate(told) if standing.keeps]
        if keepers:
            source = max(keepers, key=lambda rank: told[rank].done)
            self._take_over(told, source)
            self._standing = told[source]
        else:
            restored = run.restore(**self._plan.things)
            done = restored.step if restored is not None else 0
            self._standing = _Standing(keeps=True, done=done, saved=done)
        self._model = self._plan.model
        if self._peers is not None:
            self._model = self._plan.wrap(self._plan.model)
            _refuse_sharded(self._model)
        self._settle()  # what was handed on is there: from now on this rank keeps it
        self._stay()
        return keepers

    def _take_over(self, told: list[_Standing], source: int) -> None:
        behind = [not each.keeps or each.done < told[source].done for each in told]
        if any(behind):
            rank = self._run.rank
            hand(
                self._plan.things,
                source,
                gives=rank == source,
                takes=behind[rank],
                group=self._run.gang.group(),
                device=self._device,
            )

    def _stay(self) -> None:
        folder = self._run.task_folder
        if folder is None:
            return
        if self._line is None:
            self._line = StayLine(folder, self._on_leave)
        if self._peers is not None:
            self._peers.watch(self._model)
            self._run.gang.wait = self._peers.wait
        self._line.stay(self._run.rank)

    def _on_leave(self) -> None:
        """In the line's thread."""
        if self._peers is not None:
            self._peers.cut()

    def _meet_again(self, why: str) -> None:
        since_s = time.monotonic()
        assert self._line is not None
        if not self._standing.keeps:
            raise GangLost(f"this rank cannot go on, since its last step cannot be undone: {why}")
        say(f"this rank leaves its gang after step {self._standing.done} and stays up: {why}")
        with BEAT.phase(RESTORES):
            self._undo()
            self._model = self._plan.model
            gc.collect()  # the wrapper is in cycles, and its hooks are on the parameters
            if self._peers is not None:
                self._peers.leave()
            attempt = self._line.wait_for_attempt()
        if attempt is None:
            raise GangLost(f"no next attempt came: {why}")
        self._last_peers, self._peers = self._peers, None
        self._run.go_on_in(attempt)
        with BEAT.phase(RESTORES):
            keepers = self._meet()
        self._tell(keepers, time.monotonic() - since_s)

    def _tell(self, keepers: list[int], seconds: float) -> None:
        run = self._run
        if run.rank == keepers[0]:
            replaced = [rank for rank in range(run.world_size) if rank not in keepers]
            step = self._standing.done
            told = {"replaced": replaced, "world_size": run.world_size, "step": step, "seconds": seconds}
            run.tell({"op": "reformed", **told}, _TELL_S)


def _refuse_sharded(model: nn.Module) -> None:
    for name, each in model.named_parameters():
        if isinstance(each, DTensor):
            raise UnsavableState(
                f"run.loop() was given a model whose {name} is a DTensor: each rank has a part of it, "
                "and one that stays could not hand the whole to a new one",
                hint="write the loop yourself, with run.restore() and run.save(): its ranks restart together",
            )


def wrap_for(model: nn.Module) -> nn.Module:
    """What the loop does where the script says nothing."""
    return DistributedDataParallel(model)
