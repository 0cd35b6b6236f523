"""What is put is what comes out: whole, verified, once; an upload goes on where it was cut off."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from paceline.content.errors import Damaged, NoContent
from paceline.content.manifest import hash_of
from paceline.content.store import ContentStore, Lacking, Piece


@pytest.fixture
def store(tmp_path: Path) -> ContentStore:
    return ContentStore(tmp_path / "store")


def make_folder(folder: Path) -> Path:
    (folder / "package" / "deep").mkdir(parents=True)
    (folder / "train.py").write_text("print(1)\n")
    (folder / "run.sh").write_text("#!/bin/sh\n")
    (folder / "run.sh").chmod(0o4755)
    (folder / "package" / "deep" / "data.bin").write_bytes(bytes(range(256)) * 20_000)
    (folder / "package" / "same.py").write_text("print(1)\n")
    (folder / "package" / "link.py").symlink_to("../train.py")
    (folder / "absolute").symlink_to(folder / "package")
    return folder


def put(store: ContentStore, hash_: str, size: int, offset: int, data: bytes) -> int:
    """How many bytes are there then."""
    [have] = store.put_pieces([Piece(hash_, size, offset, data)])
    return have


def contents(folder: Path) -> dict[str, object]:
    return {
        str(path.relative_to(folder)): str(path.readlink()) if path.is_symlink() else path.read_bytes()
        for path in folder.rglob("*")
        if path.is_symlink() or path.is_file()
    }


def test_a_tree_comes_out_as_it_went_in(store: ContentStore, tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "folder")
    tree = store.put_tree(folder)
    store.materialise(tree, tmp_path / "out")
    assert contents(tmp_path / "out") == {**contents(folder), "absolute": "package"}
    assert (tmp_path / "out" / "run.sh").stat().st_mode & 0o7777 == 0o755
    assert store.put_tree(tmp_path / "out") == tree


def test_equal_files_are_kept_once(store: ContentStore, tmp_path: Path) -> None:
    store.put_tree(make_folder(tmp_path / "folder"))
    assert len(list((tmp_path / "store" / "blobs").rglob("?" * 64))) == 3
    assert not list((tmp_path / "store" / "part").iterdir())


def test_one_file_is_a_tree_too(store: ContentStore, tmp_path: Path) -> None:
    (tmp_path / "model.pt").write_bytes(b"weights")
    tree = store.put_tree(tmp_path / "model.pt")
    assert [entry.path for entry in store.manifest(tree).files] == ["model.pt"]


def test_an_upload_goes_on_where_it_was_cut_off(store: ContentStore) -> None:
    data = bytes(range(256)) * 1000
    hash_ = hash_of(data)
    assert store.missing([hash_, hash_]) == [Lacking(hash_, 0)]
    assert put(store, hash_, len(data), 0, data[:1000]) == 1000
    assert store.missing([hash_]) == [Lacking(hash_, 1000)]
    assert put(store, hash_, len(data), 5000, data[5000:]) == 1000, "nothing is taken after a gap"
    assert put(store, hash_, len(data), 500, data[500:2000]) == 2000, "what is here is passed over"
    assert put(store, hash_, len(data), 0, data[:100]) == 2000
    assert put(store, hash_, len(data), 2000, data[2000:]) == len(data)
    assert store.missing([hash_]) == []
    assert put(store, hash_, len(data), 0, data[:10]) == len(data), "a repeated call changes nothing"
    with store.open(hash_) as file:
        assert file.read() == data


@pytest.mark.parametrize("cut", [0, 10])
def test_bytes_that_are_not_what_their_hash_says_are_not_kept(store: ContentStore, cut: int) -> None:
    data, hash_ = b"x" * 100, hash_of(b"y" * 100)
    if cut:
        put(store, hash_, 100, 0, data[:cut])
    with pytest.raises(Damaged):
        put(store, hash_, 100, cut, data[cut:])
    assert store.missing([hash_]) == [Lacking(hash_, 0)]


def test_what_was_damaged_on_disk_is_never_handed_out(store: ContentStore, tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"abc")
    tree = store.put_tree(tmp_path / "a")
    blob = store.blob_path(hash_of(b"abc"))
    blob.chmod(0o644)
    blob.write_bytes(b"abd")
    with pytest.raises(Damaged):
        store.open(hash_of(b"abc"))
    with pytest.raises(Damaged):
        store.materialise(tree, tmp_path / "out")
    blob.unlink()
    with pytest.raises(NoContent):
        store.materialise(tree, tmp_path / "again")
    path = next((tmp_path / "store" / "trees").rglob(f"{tree}.json"))
    path.chmod(0o644)
    path.write_bytes(path.read_bytes().replace(b'"a"', b'"b"'))
    with pytest.raises(Damaged):
        store.manifest(tree)


def test_a_blob_that_is_a_link_is_not_followed(store: ContentStore, tmp_path: Path) -> None:
    store.put_bytes(b"abc")
    blob = store.blob_path(hash_of(b"abc"))
    blob.unlink()
    (tmp_path / "elsewhere").write_bytes(b"abc")
    blob.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(OSError, match="symbolic links"):
        store.open(hash_of(b"abc"))


def test_many_processes_write_one_store_at_once(store: ContentStore, tmp_path: Path) -> None:
    data = os.urandom(200_000)
    (tmp_path / "data").write_bytes(data)
    code = (
        "import sys; from pathlib import Path; from paceline.content.store import ContentStore, Piece\n"
        "from paceline.content.manifest import hash_of\n"
        "store, data = ContentStore(Path(sys.argv[1])), Path(sys.argv[2]).read_bytes()\n"
        "name, at = hash_of(data), 0\n"
        "while at < len(data): at = store.put_pieces([Piece(name, len(data), at, data[at:at + 1000])])[0]\n"
        "print(store.put_tree(sys.argv[2]))\n"
    )
    arguments = [sys.executable, "-c", code, str(tmp_path / "store"), str(tmp_path / "data")]
    some = [subprocess.Popen(arguments, stdout=subprocess.PIPE, text=True) for _ in range(4)]
    trees = {one.communicate()[0].strip() for one in some}
    assert [one.returncode for one in some] == [0] * 4
    store.materialise(trees.pop(), tmp_path / "out")
    assert not trees
    assert (tmp_path / "out" / "data").read_bytes() == data


def test_uploads_that_nobody_goes_on_with_are_dropped(store: ContentStore, tmp_path: Path) -> None:
    put(store, hash_of(b"abc"), 3, 0, b"a")
    part = tmp_path / "store" / "part" / f"{hash_of(b'abc')}.part"
    written_s = part.stat().st_mtime
    store.drop_stale_parts(written_s + 6 * 86400)
    assert part.exists()
    store.drop_stale_parts(written_s + 8 * 86400)
    assert not part.exists()
