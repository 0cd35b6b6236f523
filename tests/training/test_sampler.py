"""The sampler: each sample once in an epoch and the same batches, whatever the ranks do on the way."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import paceline
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from paceline.spec.retention import Retention
from paceline.training.environment import Environment
from paceline.training.errors import InvalidSampler, SamplerMismatch
from paceline.training.run import Run
from paceline.training.sampler import Sampler, Share
from torch.utils.data import DataLoader, Dataset


@dataclass(frozen=True)
class Data:
    """What a sampler is made for, whatever the number of ranks."""

    size: int
    batch: int
    micro: int | None
    seed: int
    shuffle: bool
    scaled: bool = False
    """`batch` is for each rank: the global one follows their number."""

    def sampler(self, rank: int = 0, ranks: int = 1) -> Sampler:
        run = Run(Environment(rank=rank, world_size=ranks), Path(), Retention(keep_last=0))
        return run.sampler(
            self.size,
            global_batch_size=None if self.scaled else self.batch,
            batch_size_per_rank=self.batch if self.scaled else None,
            micro_batch_size_max=self.micro,
            seed=self.seed,
            shuffle=self.shuffle,
        )


def datas_of(largest_batch: int, *, scaled: bool) -> st.SearchStrategy[Data]:
    return st.builds(
        Data,
        st.integers(1, 60),
        st.integers(1, largest_batch),
        st.none() | st.integers(1, 5),
        st.integers(0, 9),
        st.booleans(),
        st.just(scaled),
    )


datas = datas_of(20, scaled=False)
resizes = st.lists(st.tuples(st.integers(1, 7), st.integers(0, 9)), max_size=6)


def train(data: Data, phases: list[tuple[int, int]], epochs: int) -> Iterator[tuple[int, list[list[Share]]]]:
    """Epoch and shares (by rank) of each global batch; `phases`: so many ranks for so many batches, each gone
    on from the state that the one before left."""
    state: dict[str, Any] | None = None
    for ranks, most in [*phases, (1, 10**9)]:
        left = most
        samplers = [data.sampler(rank, ranks) for rank in range(ranks)]
        for sampler in samplers:
            if state is not None:
                sampler.load_state_dict(state)
        while samplers[0].epoch < epochs and left:
            epoch = samplers[0].epoch
            gang = zip(*(sampler.shares() for sampler in samplers), strict=True)
            whole: list[list[Share]] = [[] for _ in samplers]
            for at_once in gang:
                for mine, share in zip(whole, at_once, strict=True):
                    mine.append(share)
                if at_once[0].last:
                    yield epoch, whole
                    whole = [[] for _ in samplers]
                    left -= 1
                    if not left:
                        break
        states = [sampler.state_dict() for sampler in samplers]
        assert all(each == states[0] for each in states), "ranks disagree"
        state = states[0]


def trained(whole: list[list[Share]]) -> list[int]:
    """The samples that count."""
    return [index for shares in whole for share in shares if share.weight for index in share.indices]


@given(datas, resizes, st.integers(1, 3))
def test_batches_and_their_order_do_not_depend_on_the_ranks(
    data: Data, phases: list[tuple[int, int]], epochs: int
) -> None:
    alone = [(epoch, trained(whole)) for epoch, whole in train(data, [], epochs)]
    resized = [(epoch, trained(whole)) for epoch, whole in train(data, phases, epochs)]
    assert resized == alone
    for epoch in range(epochs):
        samples = [index for at, one in resized if at == epoch for index in one]
        assert sorted(samples) == list(range(data.size)), "each sample exactly once"
    assert all(len(one) == data.batch for epoch, one in alone[: data.size // data.batch])


@given(datas_of(6, scaled=True), resizes, st.integers(1, 3))
def test_a_global_batch_that_follows_the_ranks_goes_on_where_the_last_one_ended(
    data: Data, phases: list[tuple[int, int]], epochs: int
) -> None:
    resized = list(train(data, phases, epochs))
    alone = [(epoch, index) for epoch, whole in train(data, [], epochs) for index in trained(whole)]
    assert [(epoch, index) for epoch, whole in resized for index in trained(whole)] == alone
    for epoch in range(epochs):
        batches = [whole for at, whole in resized if at == epoch]
        samples = [index for whole in batches for index in trained(whole)]
        assert sorted(samples) == list(range(data.size)), "each sample exactly once"
        assert all(len(trained(whole)) == data.batch * len(whole) for whole in batches[:-1])


@given(datas, st.integers(1, 7))
def test_weights_make_the_mean_over_ranks_that_of_the_global_batch(data: Data, ranks: int) -> None:
    """As DDP does: the mean over ranks of each rank's sum over its micro-batches."""
    losses = torch.rand(data.size, dtype=torch.float64)
    for _, whole in train(data, [(ranks, 10**9)], 1):
        sums = [sum(losses[list(s.indices)].mean() * s.weight for s in shares) for shares in whole]
        assert sum(sums) / ranks == pytest.approx(float(losses[trained(whole)].mean()))
        assert all(
            share.indices and share.size == len(trained(whole)) for shares in whole for share in shares
        )
        assert all(
            [share.last for share in shares] == [False] * (len(shares) - 1) + [True] for shares in whole
        )


@given(datas, st.integers(1, 7))
def test_ranks_have_as_many_micro_batches_within_their_bound(data: Data, ranks: int) -> None:
    samplers = [data.sampler(rank, ranks) for rank in range(ranks)]
    cuts_of_first = (len(whole[0]) for _, whole in train(data, [(ranks, 10**9)], 1))
    for _, whole in train(data, [(ranks, 10**9)], 1):
        assert len({len(shares) for shares in whole}) == 1, "a rank would wait for another's collective"
        if data.micro is not None:
            assert max(len(share.indices) for shares in whole for share in shares) <= data.micro
        sizes = [sum(len(share.indices) for share in shares if share.weight) for shares in whole]
        assert max(sizes) - min(sizes) <= 1
    lengths = {len(sampler) for sampler in samplers}
    assert lengths == {len(list(samplers[0]))}
    if data.size >= data.batch:
        assert samplers[0].accumulation_steps == next(cuts_of_first)


class Rows(Dataset[int]):
    def __len__(self) -> int:
        return 40

    def __getitem__(self, index: int) -> int:
        return index


DATA = Data(40, 8, None, 3, shuffle=True)


@pytest.mark.parametrize("workers", [0, 2])
def test_what_a_loader_fetched_ahead_is_not_in_the_position(workers: int) -> None:
    sampler = DATA.sampler()
    loader = DataLoader(Rows(), batch_sampler=sampler, num_workers=workers, persistent_workers=workers > 0)
    first = []
    for share, batch in sampler.over(loader):
        assert batch.tolist() == list(share.indices)
        first += batch.tolist()
        if len(first) == 16:
            break
    assert sampler.state_dict() | {"epoch": 0, "position": 16} == sampler.state_dict()
    again = DATA.sampler()
    again.load_state_dict(sampler.state_dict())
    rest = [index for share in again.shares() for index in share.indices]
    assert sorted(first + rest) == list(range(40))
    assert (again.epoch, again.position) == (1, 0)
    went_on = [index for share, _ in sampler.over(loader) for index in share.indices]
    assert went_on == rest, "the same process goes on where it broke off, too"


def test_a_saved_end_of_an_epoch_is_not_trained_again() -> None:
    sampler = DATA.sampler()
    for _ in sampler.shares():
        last = sampler.state_dict()
    assert last["position"] == 40
    again = DATA.sampler()
    again.load_state_dict(last)
    assert list(again.shares()) == [] and again.epoch == 1


def test_a_position_that_nobody_counted_is_not_saved() -> None:
    sampler = DATA.sampler()
    loader = DataLoader(Rows(), batch_sampler=sampler)
    for _ in loader:
        pass
    with pytest.raises(SamplerMismatch, match=r"sampler\.over\(loader\)"):
        sampler.state_dict()
    assert len(list(sampler.over(loader))) == 5
    assert sampler.state_dict()["epoch"] == 1


def test_a_loader_of_other_batches_is_refused() -> None:
    sampler = DATA.sampler()
    with pytest.raises(SamplerMismatch, match="does not draw from this sampler"):
        next(iter(sampler.over(DataLoader(Rows(), batch_size=8))))


@pytest.mark.parametrize("changed", [{"size": 41}, {"seed": 4}, {"shuffle": False}])
def test_a_state_of_other_samples_is_refused(changed: dict[str, Any]) -> None:
    fields = {name: getattr(DATA, name) for name in ("size", "batch", "micro", "seed", "shuffle")}
    with pytest.raises(SamplerMismatch, match="skipped or seen twice"):
        DATA.sampler().load_state_dict(Data(**{**fields, **changed}).sampler().state_dict())


def test_a_run_makes_one_and_keeps_its_position(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("paceline.training.run._current", None)
    run = paceline.init()
    sampler = run.sampler(40, global_batch_size=8)
    for step, _ in enumerate(sampler.shares(), start=1):
        if step == 3:
            run.save(step, sampler=sampler)
            break
    again = run.sampler(40, global_batch_size=8)
    run.flush()
    restored = run.restore(sampler=again)
    assert restored is not None and (again.epoch, again.position) == (0, 24)
    run.close()


def test_the_global_batch_may_follow_the_ranks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("paceline.training.run._current", None)
    for name, value in (("RANK", "0"), ("WORLD_SIZE", "3"), ("LOCAL_RANK", "0")):
        monkeypatch.setenv(name, value)
    run = paceline.init()
    assert run.sampler(40, batch_size_per_rank=4).global_batch_size == 12
    for wrong in ({}, {"global_batch_size": 8, "batch_size_per_rank": 4}, {"global_batch_size": 0}):
        with pytest.raises(InvalidSampler):
            run.sampler(40, **wrong)  # type: ignore[arg-type]
