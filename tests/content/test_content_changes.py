"""A tree is kept by what has changed since another: the same tree, as much checked, where that is here."""

from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from paceline.content.errors import BadManifest, NoContent, TreeTooLarge
from paceline.content.manifest import (
    BOUNDS,
    EXECUTABLE,
    PLAIN,
    Bounds,
    Change,
    Entry,
    Link,
    Manifest,
    change_between,
    changed,
    hash_of,
    manifest_of,
    read_manifest,
    written_manifest,
)
from paceline.content.store import ContentStore

EMPTY = hash_of(b"")

NAMES = st.sampled_from(["a", "b", "a/b", "a/c", "d/e/f"])
HASHES = st.sampled_from([EMPTY, "1" * 64, "2" * 64])
FILES = st.builds(
    lambda path, mode, hash_: Entry(path, 0, mode, hash_), NAMES, st.sampled_from([PLAIN, EXECUTABLE]), HASHES
)
LINKS = st.builds(Link, NAMES, st.sampled_from(["x", "y"]))


@st.composite
def manifests(draw: st.DrawFn) -> Manifest:
    files: list[Entry] = []
    links: list[Link] = []
    for one in draw(st.lists(st.one_of(FILES, LINKS), max_size=6)):
        more = ([*files, one], links) if isinstance(one, Entry) else (files, [*links, one])
        with suppress(BadManifest):
            manifest_of(*more)
            files, links = more
    return manifest_of(files, links)


@given(manifests(), manifests())
def test_a_change_makes_one_tree_of_another(before: Manifest, now: Manifest) -> None:
    change = change_between(before, now)
    assert changed(before, change) == now
    assert read_manifest(change.new.to_bytes(), BOUNDS.of_some) == change.new
    assert written_manifest(now.to_bytes()) == now
    if before == now:
        assert change == Change(Manifest(()), ())


def test_what_a_change_makes_is_checked_as_a_whole() -> None:
    before = manifest_of([Entry("a", 0, 0o644, EMPTY), Entry("b/c", 0, 0o644, EMPTY)])
    below_a_file = Manifest((Entry("a/d", 0, 0o644, EMPTY),))
    with pytest.raises(BadManifest, match="below 'a'"):
        changed(before, Change(below_a_file, ()))
    assert [entry.path for entry in changed(before, Change(below_a_file, ("a",))).files] == ["a/d", "b/c"]
    with pytest.raises(TreeTooLarge, match="3 files"):
        changed(before, Change(Manifest((Entry("d", 0, 0o644, EMPTY),)), ()), Bounds(files_max=2))


def test_some_files_of_a_tree_may_repeat_themselves_and_all_of_them_may_not() -> None:
    bounds = Bounds(ratio_max=3, ratio_from_bytes=100)
    same = tuple(Entry(f"{number}", 100, 0o644, "1" * 64) for number in range(4))
    new = read_manifest(Manifest(same).to_bytes(), bounds.of_some)
    other = manifest_of([Entry("other", 100, 0o644, "2" * 64)])
    assert len(changed(other, Change(new, ()), bounds).files) == 5
    with pytest.raises(TreeTooLarge, match="of which 100 are stored"):
        changed(other, Change(new, ("other",)), bounds)


def test_a_tree_is_kept_by_what_has_changed_since_another(tmp_path: Path) -> None:
    store = ContentStore(tmp_path)
    before = manifest_of([Entry("a", 1, 0o644, store.put_bytes(b"1")), Entry("b", 1, 0o644, hash_of(b"1"))])
    base = store.commit(before.to_bytes())
    new = Manifest((Entry("a", 1, 0o644, hash_of(b"2")), Entry("c", 1, 0o755, hash_of(b"1")))).to_bytes()
    with pytest.raises(NoContent, match="one of the tree's blobs"):
        store.commit_change(base, new, ["b"])
    store.put_bytes(b"2")
    tree = store.commit_change(base, new, ["b"])
    assert store.manifest(tree).to_bytes() == new
    assert store.commit_change(base, new, ["b"]) == tree
    store.blob_path(hash_of(b"2")).unlink()
    with pytest.raises(NoContent, match="one of the tree's blobs"):
        store.commit_change(base, new, [])
    with pytest.raises(BadManifest, match="another size"):
        store.commit_change(base, Manifest((Entry("d", 2, 0o644, hash_of(b"1")),)).to_bytes(), [])


def test_a_tree_does_not_grow_by_changes_beyond_what_a_manifest_may_have(tmp_path: Path) -> None:
    entries = [Entry("a" * 60, 0, 0o644, EMPTY), Entry("b" * 60, 0, 0o644, EMPTY)]
    first, second = (manifest_of([entry]).to_bytes() for entry in entries)
    store = ContentStore(tmp_path, Bounds(manifest_bytes_max=len(first)))
    store.put_bytes(b"")
    base = store.commit(first)
    with pytest.raises(TreeTooLarge, match="a manifest of"):
        store.commit_change(base, second, [])
    assert store.commit_change(base, second, ["a" * 60]) == hash_of(second)


def test_a_damaged_base_is_none(tmp_path: Path) -> None:
    store = ContentStore(tmp_path)
    base = store.commit(manifest_of([]).to_bytes())
    store.tree_path(base).chmod(0o644)
    store.tree_path(base).write_bytes(b"{}")
    with pytest.raises(NoContent, match=f"no tree {base}"):
        store.commit_change(base, Manifest(()).to_bytes(), [])
