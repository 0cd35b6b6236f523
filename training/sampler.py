"""Which samples each rank trains on, so that a run does not depend on how many ranks it has.

An epoch is one order of all samples, cut into global batches; a global batch is split over the ranks there
are, and a rank's share into micro-batches. The order and the cuts follow from seed, epoch and position
alone: with any number of ranks, also one that changes on the way, the same batches come in the same order,
and each sample exactly once in an epoch. The position counts what the training loop has been given, whole
global batches only: what a DataLoader has fetched ahead is not in it.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final, TypeVar

import torch

from .errors import InvalidSampler, SamplerMismatch

T = TypeVar("T")
_SEED_MAX: Final = 2**63


@dataclass(frozen=True, slots=True)
class Share:
    """One micro-batch of one rank."""

    indices: tuple[int, ...]
    """Of its samples; never empty: a rank for which none was left gets one that another has, with weight
    0."""
    weight: float
    """What to multiply the micro-batch's mean loss with before `backward()`: then the gradients that DDP or
    FSDP averages over ranks, and a rank adds up over its micro-batches, are those of the global batch's
    mean loss."""
    last: bool
    """It ends the global batch: synchronise, and step the optimizer."""
    size: int
    """Of the global batch, in samples."""


class Sampler:
    """A DataLoader's `batch_sampler`; made by `run.sampler`.

        sampler = run.sampler(len(data), global_batch_size=64)
        loader = DataLoader(data, batch_sampler=sampler)
        run.restore(model=model, optimizer=optimizer, sampler=sampler)
        while sampler.epoch < epochs:
            for share, (images, labels) in sampler.over(loader):
                (loss_of(images, labels) * share.weight).backward()

    `over` walks through what is left of the epoch, and counts; where no loader is needed, `shares` does.
    """

    def __init__(
        self,
        dataset_size: int,
        *,
        rank: int,
        world_size: int,
        global_batch_size: int,
        micro_batch_size_max: int | None,
        seed: int,
        shuffle: bool,
    ) -> None:
        for name, value in (
            ("dataset_size", dataset_size),
            ("global_batch_size", global_batch_size),
            ("micro_batch_size_max", 1 if micro_batch_size_max is None else micro_batch_size_max),
        ):
            if value < 1:
                raise InvalidSampler(f"{name} is {value}: expected 1 or more", name=name)
        self.global_batch_size = global_batch_size
        self.epoch = 0
        self.position = 0
        """Samples of this epoch, over all ranks, that the training loop has been given."""
        self._rank, self._world_size = rank, world_size
        self._micro_max = micro_batch_size_max or global_batch_size
        self._size = dataset_size
        self._order: dict[str, Any] = {"dataset_size": dataset_size, "seed": seed, "shuffle": shuffle}
        self._counts = self._drawn = False
        self._uncounted = False
        """A loader walks through it on its own: nobody counts what is trained."""

    @property
    def accumulation_steps(self) -> int:
        """Micro-batches of a full global batch; the same number at each rank."""
        return self._micro_batches(self.global_batch_size)

    def over(self, loader: Iterable[T]) -> Iterator[tuple[Share, T]]:
        """What `loader` (a DataLoader with this as its batch_sampler) makes of each share that is left of the
        epoch. The next epoch begins when it is through."""
        self._counts, self._drawn, self._uncounted = True, False, False
        try:
            for share, batch in self._counted(zip(self._shares(), loader, strict=True)):
                if not self._drawn:
                    raise SamplerMismatch(
                        "the loader does not draw from this sampler: its batches are others",
                        hint="make it with batch_sampler=sampler, without batch_size and shuffle",
                    )
                yield share, batch
        finally:
            self._counts = False

    def shares(self) -> Iterator[Share]:
        """What is left of the epoch, for loops that fetch the samples themselves."""
        self._uncounted = False
        for share, _ in self._counted((share, None) for share in self._shares()):
            yield share

    def __iter__(self) -> Iterator[list[int]]:
        self._drawn = True
        self._uncounted |= not self._counts
        return (list(share.indices) for share in self._shares())

    def __len__(self) -> int:
        """Micro-batches of this rank that are left of the epoch."""
        whole, rest = divmod(self._size - self.position, self.global_batch_size)
        return whole * self.accumulation_steps + (self._micro_batches(rest) if rest else 0)

    def state_dict(self) -> dict[str, Any]:
        """The same at all ranks, and for any number of them."""
        if self._uncounted:
            raise SamplerMismatch(
                "nobody has counted what was trained: the sampler's loader was walked through by itself",
                hint="write `for share, batch in sampler.over(loader):` in place of `for batch in loader:`",
            )
        return {"epoch": self.epoch, "position": self.position, **self._order}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on there. Raises SamplerMismatch where other samples would come: another size, seed or order."""
        for name, here in self._order.items():
            if state[name] != here:
                raise SamplerMismatch(
                    f"the checkpoint's sampler had {name}={state[name]}, this one has {name}={here}: samples "
                    "of the epoch would be skipped or seen twice",
                    hint=f"make it with {name}={state[name]}, or restore without the sampler",
                    name=name,
                )
        self.epoch, self.position = int(state["epoch"]), int(state["position"])

    def _counted(self, pairs: Iterable[tuple[Share, T]]) -> Iterator[tuple[Share, T]]:
        """Counted as it is given out, so that a save after the step has the step in it."""
        for share, batch in pairs:
            self.position += share.size if share.last else 0
            yield share, batch
        self.epoch, self.position = self.epoch + 1, 0

    def _shares(self) -> Iterator[Share]:
        """From where it stands now to the end of the epoch, whatever is counted meanwhile."""
        order = self._order_of(self.epoch)
        for start in range(self.position, len(order), self.global_batch_size):
            yield from self._split(order[start : start + self.global_batch_size].tolist())

    def _order_of(self, epoch: int) -> torch.Tensor:
        if not self._order["shuffle"]:
            return torch.arange(self._size)
        dice = torch.Generator().manual_seed((self._order["seed"] + epoch) % _SEED_MAX)
        return torch.randperm(self._size, generator=dice)

    def _split(self, batch: list[int]) -> Iterator[Share]:
        """This rank's part, cut evenly; ranks' parts differ by one sample at most, with as many cuts."""
        size, ranks = len(batch), self._world_size
        mine = batch[size * self._rank // ranks : size * (self._rank + 1) // ranks]
        cuts = self._micro_batches(size)
        for cut in range(cuts):
            part = mine[len(mine) * cut // cuts : len(mine) * (cut + 1) // cuts]
            weight = len(part) * ranks / size
            yield Share(tuple(part or batch[:1]), weight, cut == cuts - 1, size)

    def _micro_batches(self, size: int) -> int:
        largest_share = -(-size // self._world_size)
        return -(-largest_share // self._micro_max)
