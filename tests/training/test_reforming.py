"""A process that joins one gang after the other: what it leaves open, how it gets out, what it takes over."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from support import reforming_rank
from support.ranks import RankPool
from torch.distributed import TCPStore


@pytest.fixture
def store() -> Iterator[TCPStore]:
    made = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    yield made
    del made


def test_each_group_is_gone_when_the_next_has_worked(
    ranks: RankPool, store: TCPStore, tmp_path: Path
) -> None:
    for found in ranks.run(reforming_rank.reforms, store.port, 6, folder=tmp_path):
        assert len(set(found[2:])) == 1, f"threads and connections grow: {found}"


def test_a_rank_gets_out_of_a_collective_in_which_it_waits_for_a_silent_peer(
    ranks: RankPool, store: TCPStore, tmp_path: Path
) -> None:
    for error in ranks.run(reforming_rank.is_cut, store.port, folder=tmp_path):
        assert "gloo" in error, "and its peer hears of it"


def test_state_goes_from_one_rank_to_those_who_lack_it(ranks: RankPool, tmp_path: Path) -> None:
    first, second, third = ranks.run(reforming_rank.takes, 1, (2,), folder=tmp_path, world_size=3)
    assert third == second
    assert second[1] == ([1, 1, 1, 1], 0.2)
    assert first[0] != second[0], "who did not ask keeps its own"
    assert first[1] == ([], 0.1)
