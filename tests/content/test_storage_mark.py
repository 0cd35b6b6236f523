"""The storage folder says whose it is."""

from pathlib import Path

import pytest
from paceline.content.errors import ForeignStorage
from paceline.content.storage_mark import FILE, check, claim


def test_it_is_claimed_once_and_known_again(tmp_path: Path) -> None:
    claim(tmp_path, "one")
    claim(tmp_path, "one")
    check(tmp_path, "one")
    assert [file.name for file in tmp_path.iterdir()] == [FILE]


def test_two_clusters_never_share_one(tmp_path: Path) -> None:
    claim(tmp_path, "one")
    with pytest.raises(ForeignStorage, match="is that of cluster one, and this is cluster two"):
        claim(tmp_path, "two")
    check(tmp_path, "one")


def test_a_node_without_it_says_what_is_there(tmp_path: Path) -> None:
    with pytest.raises(ForeignStorage, match=f"is not the storage folder of cluster one: there is no {FILE}"):
        check(tmp_path, "one")
    with pytest.raises(ForeignStorage, match="is not the storage folder"):
        check(tmp_path / "missing", "one")
    claim(tmp_path, "two")
    with pytest.raises(ForeignStorage, match="cluster one: it is that of cluster two"):
        check(tmp_path, "one")


def test_a_claim_that_was_cut_short_is_nobodys(tmp_path: Path) -> None:
    (tmp_path / FILE).touch()
    claim(tmp_path, "one")
    check(tmp_path, "one")
