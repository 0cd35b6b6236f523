"""No path, link or manifest from outside leaves its folder, however it is written."""

import json
import os
import stat
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from paceline.content.errors import BadManifest, NoContent, TreeTooLarge, UnreadableFile, UnsafePath
from paceline.content.manifest import Bounds, Entry, Link, hash_of, manifest_of, read_manifest, tree_id
from paceline.content.paths import safe_hash, safe_link, safe_relative
from paceline.content.store import ContentStore

EMPTY = hash_of(b"")

LEAVING = [
    "",
    "/etc/passwd",
    "//etc/passwd",
    "..",
    "../x",
    "a/../../x",
    "a/..",
    "a/./b",
    ".",
    "a//b",
    "a/",
    "~/x",
    "~root/.ssh/authorized_keys",
    "a\x00b",
    "a\nb",
    "a\x7fb",
    "C:\\windows",
    "c:/windows",
    "..\\x",
    "a\\..\\..\\x",
    "%2e%2e/x",
    "%2E%2E%2Fetc%2fpasswd",
    "a/%252e%252e/x",
    "a%5c..%5cx",
    "x%00.txt",
    "\ud800",
    "/".join("a" * 65),
    "a" * 256,
    "é" * 128,
    "/".join(["a" * 200] * 6),
]


@pytest.mark.parametrize("path", LEAVING)
def test_a_path_that_may_leave_is_refused(path: str) -> None:
    with pytest.raises(UnsafePath):
        safe_relative(path)


@pytest.mark.parametrize("path", LEAVING)
def test_a_manifest_that_names_such_a_path_is_refused(path: str) -> None:
    with pytest.raises(UnsafePath):
        manifest_of([Entry(path, 0, 0o644, EMPTY)])
    with pytest.raises(UnsafePath):
        manifest_of([], [Link(path, "x")])


@pytest.mark.parametrize(
    "path", ["a", "a/b.py", "...", "..a", "a..b/c", "é/日本.txt", "a b", "%41", ".git", "ab:c"]
)
def test_an_ordinary_path_is_taken_as_it_is(path: str) -> None:
    assert safe_relative(path) == path


@given(st.text(max_size=40))
def test_what_is_taken_stays_below_its_folder(path: str) -> None:
    try:
        safe_relative(path)
    except UnsafePath:
        return
    assert os.path.normpath(f"/root/tree/{path}") == f"/root/tree/{path}"


@pytest.mark.parametrize(
    ("path", "target"),
    [
        ("l", "/etc"),
        ("l", ".."),
        ("l", "../x"),
        ("a/l", "../../x"),
        ("a/l", "x/../../../y"),
        ("a/l", "../b/../../x"),
        ("l", ""),
        ("l", "a\x00"),
        ("l", "."),
        ("a/l", "..\\..\\x"),
    ],
)
def test_a_link_that_may_leave_is_refused(path: str, target: str) -> None:
    with pytest.raises(UnsafePath):
        safe_link(path, target)


NAMES = st.sampled_from(["a", "b", "l", "m"])
PATHS = st.lists(NAMES, min_size=1, max_size=3).map("/".join)
TARGETS = st.lists(st.sampled_from(["..", "a", "b", "l", "m"]), min_size=1, max_size=4).map("/".join)


@given(st.dictionaries(PATHS, TARGETS, max_size=5))
def test_no_chain_of_links_leaves_its_tree(
    tmp_path_factory: pytest.TempPathFactory, links: dict[str, str]
) -> None:
    try:
        manifest = manifest_of([], [Link(*one) for one in links.items()])
    except (UnsafePath, BadManifest):
        return
    store = ContentStore(tmp_path_factory.mktemp("links") / "store")
    tree = store.commit(manifest.to_bytes())
    into = tmp_path_factory.mktemp("out") / "tree"
    store.materialise(tree, into)
    for path in links:
        real = os.path.realpath(into / path)
        assert real == str(into) or real.startswith(f"{into}/")


@pytest.mark.parametrize(
    "text", ["", "..", "../../x", "A" * 64, "0" * 63, "0" * 65, "0" * 64 + "\n", "/" + "0" * 63]
)
def test_what_is_no_hash_names_no_file(tmp_path: Path, text: str) -> None:
    with pytest.raises(UnsafePath):
        safe_hash(text)
    store = ContentStore(tmp_path)
    for ask in (store.open, store.manifest, store.blob_path, store.has_tree):
        with pytest.raises(UnsafePath):
            ask(text)


@pytest.mark.parametrize("mode", [0o4755, 0o2755, 0o1777, 0o777, 0o600, 0, stat.S_IFCHR | 0o644])
def test_set_uid_bits_and_kinds_of_files_do_not_come_through(mode: int) -> None:
    with pytest.raises(BadManifest, match="0644 or 0755"):
        manifest_of([Entry("a", 0, mode, EMPTY)])


@pytest.mark.parametrize(
    ("files", "links"),
    [
        (["a", "a/b"], []),
        (["a/b/c", "a"], []),
        (["l/x"], [("l", "a")]),
        ([], [("l", "a"), ("l/x", "a")]),
        (["a"], [("a", "b")]),
        (["a", "a"], []),
    ],
)
def test_nothing_is_written_through_a_file_or_a_link(files: list[str], links: list[tuple[str, str]]) -> None:
    with pytest.raises(BadManifest):
        manifest_of([Entry(path, 0, 0o644, EMPTY) for path in files], [Link(*one) for one in links])


def test_bombs_of_count_bytes_and_ratio_are_refused() -> None:
    bounds = Bounds(files_max=10, bytes_max=1000, file_bytes_max=500, ratio_max=3, ratio_from_bytes=100)
    many = [Entry(f"{number}", 0, 0o644, EMPTY) for number in range(11)]
    with pytest.raises(TreeTooLarge, match="11 files"):
        manifest_of(many, (), bounds)
    with pytest.raises(TreeTooLarge, match="501 bytes"):
        manifest_of([Entry("a", 501, 0o644, EMPTY)], (), bounds)
    with pytest.raises(TreeTooLarge, match="1200 bytes"):
        manifest_of([Entry(f"{number}", 400, 0o644, f"{number:064x}") for number in range(3)], (), bounds)
    with pytest.raises(TreeTooLarge, match="400 bytes of which 100 are stored"):
        manifest_of([Entry(f"{number}", 100, 0o644, EMPTY) for number in range(4)], (), bounds)
    with pytest.raises(TreeTooLarge, match="a manifest of"):
        read_manifest(b" " * 200, Bounds(manifest_bytes_max=100))


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"[]",
        b"{}",
        b"\xff",
        b'{"files":[],"links":[],"version":2}',
        b'{"files": [], "links": [], "version": 1}',
        b'{"files":[["a",true,420,"' + EMPTY.encode() + b'"]],"links":[],"version":1}',
        b'{"files":[["a",-1,420,"' + EMPTY.encode() + b'"]],"links":[],"version":1}',
        b'{"files":[["a",0,420,"' + EMPTY.encode() + b'"]],"links":[],"more":1,"version":1}',
        b'{"files":[["b",0,420,"%s"],["a",0,420,"%s"]],"links":[],"version":1}'
        % (EMPTY.encode(), EMPTY.encode()),
        b"[" * 100_000,
    ],
)
def test_what_is_no_canonical_manifest_is_refused(data: bytes) -> None:
    with pytest.raises(BadManifest):
        read_manifest(data)


def test_one_tree_has_one_text_and_one_id() -> None:
    entries = [Entry("b", 0, 0o644, EMPTY), Entry("a/é", 0, 0o755, EMPTY)]
    one, other = manifest_of(entries), manifest_of(reversed(entries))
    assert one.to_bytes() == other.to_bytes()
    assert read_manifest(one.to_bytes()) == one
    assert tree_id(one) == hash_of(one.to_bytes())
    assert json.loads(one.to_bytes())["files"][0] == ["a/é", 0, 0o755, EMPTY]


def test_a_folder_with_a_pipe_or_a_link_that_leaves_is_refused_by_name(tmp_path: Path) -> None:
    store = ContentStore(tmp_path / "store")
    folder = tmp_path / "folder"
    folder.mkdir()
    os.mkfifo(folder / "pipe")
    with pytest.raises(UnreadableFile, match="pipe is neither"):
        store.put_tree(folder)
    (folder / "pipe").unlink()
    (folder / "out").symlink_to(tmp_path)
    with pytest.raises(UnsafePath, match="the link out leads out of"):
        store.put_tree(folder)
    (folder / "out").unlink()
    (folder / "back\\slash").write_text("")
    with pytest.raises(UnsafePath, match="backslash"):
        store.put_tree(folder)


def test_a_tree_whose_blobs_are_not_all_here_is_not_committed(tmp_path: Path) -> None:
    store = ContentStore(tmp_path)
    manifest = manifest_of([Entry("a", 3, 0o644, hash_of(b"abc"))])
    with pytest.raises(NoContent, match="one of the tree's blobs"):
        store.commit(manifest.to_bytes())
    store.put_bytes(b"abc")
    lying = manifest_of([Entry("a", 4, 0o644, hash_of(b"abc"))])
    with pytest.raises(NoContent):
        store.commit(lying.to_bytes())
    assert store.has_tree(store.commit(manifest.to_bytes()))
