"""A process that joins one gang after the other: what it leaves open, how it gets out, what it takes over."""

from pathlib import Path

import pytest
from support import reforming_rank
from support.ranks import RankPool
from torch.distributed import TCPStore


def _store() -> TCPStore:
    return TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)


def test_each_group_is_gone_when_the_next_has_worked(ranks: RankPool, tmp_path: Path) -> None:
    stores = [_store() for _ in range(6)]
    for found in ranks.run(reforming_rank.reforms, [store.port for store in stores], folder=tmp_path):
        assert len(set(found[2:])) == 1, f"threads and connections grow: {found}"


def test_a_rank_gets_out_of_a_collective_in_which_it_waits_for_a_silent_peer(
    ranks: RankPool, tmp_path: Path
) -> None:
    store = _store()
    for error in ranks.run(reforming_rank.is_cut, store.port, folder=tmp_path):
        assert "gloo" in error, "and its peer hears of it"


def test_what_is_waited_for_fails_with_torchs_own_error(ranks: RankPool, tmp_path: Path) -> None:
    store = _store()
    error, _ = ranks.run(reforming_rank.hears, store.port, folder=tmp_path)
    assert "gloo" in error


@pytest.mark.parametrize("what", ["gradients", "agreement"])
def test_a_rank_gets_out_of_what_gloo_would_wait_for_for_ever(
    ranks: RankPool, tmp_path: Path, what: str
) -> None:
    store = _store()
    (error, left), _ = ranks.run(reforming_rank.is_freed, store.port, what, folder=tmp_path)
    assert error.removeprefix("GangLost: ") == "the gang is broken"
    assert left, "what waits for ever is not waited for"


def test_state_goes_from_one_rank_to_those_who_lack_it(ranks: RankPool, tmp_path: Path) -> None:
    first, second, third = ranks.run(reforming_rank.takes, 1, (2,), folder=tmp_path, world_size=3)
    assert third == second
    assert second[1] == ([1, 1, 1, 1], 0.2)
    assert first[0] != second[0], "who did not ask keeps its own"
    assert first[1] == ([], 0.1)
