"""What nobody refers to goes when it is old, and nothing else, whatever happens meanwhile."""

import os
import tempfile
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from paceline.content.errors import NoContent
from paceline.content.expiry import Round
from paceline.content.manifest import Entry, Manifest, change_between, hash_of, manifest_of, tree_id
from paceline.content.store import ContentStore
from paceline.content.times import FRESH_S

GRACE_S = 7 * 86400.0
DAY_S = 86400.0


@pytest.fixture
def store(tmp_path: Path) -> ContentStore:
    return ContentStore(tmp_path / "content")


def keep(store: ContentStore, *blobs: bytes) -> str:
    """A tree of these."""
    entries = [Entry(f"f{at}", len(data), 0o644, store.put_bytes(data)) for at, data in enumerate(blobs)]
    return store.commit(manifest_of(entries).to_bytes())


def files(store: ContentStore) -> Iterator[Path]:
    return (path for path in store.root.rglob("*") if path.is_file())


def pass_time(store: ContentStore, seconds: float) -> None:
    """As if all had been done so much earlier."""
    for path in files(store):
        info = path.stat()
        os.utime(path, (info.st_atime - seconds, info.st_mtime - seconds))


def go(store: ContentStore, *referred: str) -> Round:
    made = Round(store, set(referred), GRACE_S)
    for _ in made.steps():
        pass
    return made


def is_whole(store: ContentStore, tree: str) -> bool:
    """It is there with all of its blobs; nobody is told."""
    if not store.tree_path(tree).exists():
        return False
    for hash_ in store.manifest(tree).blobs():
        store.open(hash_).close()  # raises where it is not there, or not what it was
    return True


def test_what_is_referred_to_stays_and_the_rest_goes(store: ContentStore) -> None:
    used, unused = keep(store, b"shared", b"used"), keep(store, b"shared", b"unused")
    size = len(b"unused") + store.tree_path(unused).stat().st_size
    diff = store.put_bytes(b"a diff")
    go(store)
    pass_time(store, GRACE_S - DAY_S)
    assert go(store, used, diff).count.trees_gone == 0
    pass_time(store, 2 * DAY_S)
    count = go(store, used, diff).count
    assert (count.trees_gone, count.blobs_gone, count.bytes_gone) == (1, 1, size)
    left = [path.stat().st_size for path in files(store) if path.name != "timed"]
    assert (count.files, count.bytes) == (len(left), sum(left))
    assert is_whole(store, used) and not is_whole(store, unused)
    store.open(diff).close()
    for _ in range(20):
        pass_time(store, DAY_S)
        go(store, used)
    assert is_whole(store, used) and store.missing([diff])


@pytest.mark.parametrize("ask", ["has_tree", "missing", "put", "commit"])
def test_who_is_told_that_it_is_here_has_it_for_the_grace(store: ContentStore, ask: str) -> None:
    tree = keep(store, b"1", b"2")
    go(store)
    data = store.manifest(tree).to_bytes()
    pass_time(store, 30 * DAY_S)
    if ask == "has_tree":
        assert store.has_tree(tree)
    elif ask == "missing":
        assert store.missing([hash_of(b"1"), hash_of(b"2")]) == []
    elif ask == "put":
        store.put_bytes(b"1")
        store.put_bytes(b"2")
    else:
        assert store.commit(data) == tree
    pass_time(store, GRACE_S - DAY_S)
    go(store)
    assert store.missing([hash_of(b"1"), hash_of(b"2")]) == []
    assert store.tree_path(tree).exists() == (ask in ("has_tree", "commit"))
    assert store.commit(data) == tree


def test_a_new_tree_of_old_blobs_keeps_them(store: ContentStore) -> None:
    keep(store, b"1")
    go(store)
    pass_time(store, GRACE_S + DAY_S)
    later = store.commit(manifest_of([Entry("other", 1, 0o644, hash_of(b"1"))]).to_bytes())
    go(store)
    assert is_whole(store, later)


def test_a_blob_that_was_fresh_when_its_tree_came_stays_as_long(store: ContentStore) -> None:
    blob = store.put_bytes(b"1")
    go(store)
    pass_time(store, 0.9 * FRESH_S)
    tree = store.commit(manifest_of([Entry("f", 1, 0o644, blob)]).to_bytes())
    pass_time(store, GRACE_S - 0.5 * FRESH_S)
    go(store)
    assert is_whole(store, tree)


def test_a_tree_made_of_a_change_is_no_younger_than_the_base_whose_blobs_were_not_looked_at(
    store: ContentStore,
) -> None:
    blob = store.put_bytes(b"1")
    go(store)
    pass_time(store, 0.9 * FRESH_S)
    base = manifest_of([Entry("f", 1, 0o644, blob)])
    store.commit(base.to_bytes())
    pass_time(store, 0.9 * FRESH_S)
    later = manifest_of([*base.files, Entry("g", 1, 0o644, store.put_bytes(b"2"))])
    tree = store.commit_change(tree_id(base), change_between(base, later).new.to_bytes(), [])
    assert is_whole(store, tree)
    pass_time(store, GRACE_S - 0.5 * FRESH_S)  # the blob would go, and a tree of now would not
    go(store)
    assert not store.tree_path(tree).exists()


def test_a_base_that_has_gone_is_no_base(store: ContentStore) -> None:
    base = manifest_of([Entry("f", 1, 0o644, store.put_bytes(b"1"))])
    tree = store.commit(base.to_bytes())
    go(store)
    pass_time(store, GRACE_S + DAY_S)
    go(store)
    with pytest.raises(NoContent, match=f"no tree {tree}"):
        store.commit_change(tree, manifest_of([]).to_bytes(), [])


def test_a_store_of_an_earlier_version_gets_its_grace_first(store: ContentStore) -> None:
    """There, a blob may be older than the tree that names it."""
    tree = keep(store, b"1")
    pass_time(store, 100 * DAY_S)
    os.utime(store.tree_path(tree))
    assert go(store).count.blobs_gone == 0
    pass_time(store, GRACE_S - DAY_S)
    go(store)
    assert is_whole(store, tree)
    pass_time(store, 2 * DAY_S)
    assert go(store).count.trees_gone == 1


def test_a_tree_that_lost_a_blob_is_not_said_to_be_here(store: ContentStore) -> None:
    tree = keep(store, b"1", b"2")
    store.blob_path(hash_of(b"2")).unlink()
    pass_time(store, DAY_S)
    assert not store.has_tree(tree)
    assert keep(store, b"1", b"2") == tree and store.has_tree(tree) and is_whole(store, tree)


def test_what_a_killed_round_had_moved_aside_is_back(store: ContentStore) -> None:
    tree = keep(store, b"1")
    go(store)
    for path in (store.tree_path(tree), store.blob_path(hash_of(b"1"))):
        path.rename(f"{path}.gone")
    go(store, tree)
    assert is_whole(store, tree)


def test_who_is_told_in_the_last_moment_has_it(store: ContentStore, monkeypatch: pytest.MonkeyPatch) -> None:
    tree, lone = keep(store, b"1"), store.put_bytes(b"lone")
    go(store)
    pass_time(store, 30 * DAY_S)
    rename = os.rename

    def told_before(source: str, target: str) -> None:
        if target.endswith(".gone"):
            assert store.has_tree(tree) and not store.missing([lone])
        rename(source, target)

    monkeypatch.setattr(os, "rename", told_before)
    count = go(store).count
    assert (count.trees_gone, count.blobs_gone, count.files) == (0, 0, 3)
    assert is_whole(store, tree) and not store.missing([lone])


def test_an_empty_store_is_gone_through_too(store: ContentStore) -> None:
    assert go(store).count.trees_gone == 0
    assert not store.root.exists()


BLOBS = [bytes([number]) * 3 for number in range(4)]
TREES = [[0], [0, 1], [1, 2], [2, 3], [0, 1, 2, 3]]
WHICH = st.sampled_from(range(len(TREES)))
ACTIONS = st.tuples(
    st.sampled_from(["put", "put", "change", "change", "told", "refer", "refer", "drop"]), WHICH
)
ROUNDS = st.one_of(
    st.tuples(st.just("round"), st.none()),
    st.tuples(st.just("killed"), st.integers(0, 30)),
    st.tuples(st.just("told amid"), st.tuples(st.integers(0, 30), WHICH)),
)
HOURS = st.sampled_from([0.9, 2, 24 * 3, 24 * 6, 24 * 8])
CHAPTERS = st.tuples(st.lists(ACTIONS, max_size=4), HOURS, ROUNDS)


class Story:
    """A store, and until when what must be there: by the clock of the story."""

    def __init__(self, root: Path) -> None:
        root.mkdir()
        self.store = ContentStore(root)
        self.now_s = 0.0
        self.referred: set[str] = set()
        self.told_s: dict[str, float] = {}
        """When somebody was last told that a tree is here."""
        self.used_s: dict[str, float] = {}
        """When a round last found it referred to, too."""
        go(self.store)  # its times are kept from the beginning

    def act(self, what: str, given: object) -> None:
        match what, given:
            case "put", int(at):
                self._told(keep(self.store, *(BLOBS[blob] for blob in TREES[at])))
            case "change", int(at):
                self._change(self._tree(at - 1), at)
            case "told", int(at):
                self._ask(self._tree(at))
            case "refer", int(at):
                if self._ask(self._tree(at)):
                    self.referred.add(self._tree(at))
            case "drop", int(at):
                self.referred.discard(self._tree(at))
            case "pass", int() | float() as hours:
                pass_time(self.store, hours * 3600.0)
                self.now_s += hours * 3600.0
            case "round", _:
                list(self._round())
                self._check_gone()
            case "killed", int(steps):
                list(islice(self._round(), steps))
            case "told amid", (int(steps), int(at)):
                round_ = self._round()
                list(islice(round_, steps))
                self._ask(self._tree(at))
                list(round_)
        self._check_there()

    def _round(self) -> Iterator[None]:
        yield from Round(self.store, frozenset(self.referred), GRACE_S).steps()
        self.used_s |= dict.fromkeys(self.referred, self.now_s)

    def _change(self, base: str, at: int) -> None:
        if self._ask(base):
            change = change_between(self.store.manifest(base), self._manifest(at))
            for blob in TREES[at]:
                if hash_of(BLOBS[blob]) in change.new.blobs():
                    self.store.put_bytes(BLOBS[blob])
            self._told(self.store.commit_change(base, change.new.to_bytes(), change.gone))

    def _ask(self, tree: str) -> bool:
        there = self.store.has_tree(tree)
        if there:
            self._told(tree)
        return there

    def _told(self, tree: str) -> None:
        self.told_s[tree] = self.used_s[tree] = self.now_s

    def _tree(self, at: int) -> str:
        return tree_id(self._manifest(at))

    def _manifest(self, at: int) -> Manifest:
        blobs = enumerate(TREES[at])
        return manifest_of([Entry(f"f{place}", 3, 0o644, hash_of(BLOBS[blob])) for place, blob in blobs])

    def _check_there(self) -> None:
        for tree, told_s in self.told_s.items():
            if tree in self.referred or self.now_s - told_s < GRACE_S - FRESH_S:
                assert is_whole(self.store, tree)
        for path in self.store.trees.glob("*/*.json"):
            assert is_whole(self.store, path.stem), "a tree that is there has all its blobs"

    def _check_gone(self) -> None:
        left = {hash_ for path in self.store.trees.glob("*/*.json") for hash_ in self._blobs(path.stem)}
        for tree, used_s in self.used_s.items():
            if tree not in self.referred and self.now_s - used_s > GRACE_S + FRESH_S:
                assert not self.store.tree_path(tree).exists()
        for blob in (hash_of(data) for data in BLOBS):
            named = [used_s for tree, used_s in self.used_s.items() if blob in self._named_by(tree)]
            if blob not in left and named and self.now_s - max(named) > GRACE_S + 2 * FRESH_S:
                assert not self.store.blob_path(blob).exists()

    def _blobs(self, tree: str) -> set[str]:
        return set(self.store.manifest(tree).blobs())

    def _named_by(self, tree: str) -> set[str]:
        [at] = [at for at in range(len(TREES)) if self._tree(at) == tree]
        return {hash_of(BLOBS[blob]) for blob in TREES[at]}


@settings(max_examples=80, deadline=None)
@given(st.lists(CHAPTERS, min_size=2, max_size=8))
@example([([("put", 1)], 72, ("round", None)), ([("change", 2)], 144, ("round", None))])
def test_nothing_referred_to_goes_and_all_else_does(chapters: list[Any]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        story = Story(Path(folder) / "content")
        for actions, hours, round_ in chapters:
            for what, given_ in (*actions, ("pass", hours), round_):
                story.act(what, given_)
