"""What of a folder is packed, what an unchanged one costs, and what is refused, by name."""

import os
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from paceline.client import git_state, packing, settings
from paceline.client.ignoring import Patterns
from paceline.client.packing import Packed
from paceline.client.stat_cache import StatCache
from paceline.content.errors import TreeTooLarge, UnreadableFile, UnsafePath
from paceline.content.manifest import hash_of
from paceline.spec.errors import InvalidRequest
from pathspec import GitIgnoreSpec

Pack = Callable[..., Packed]


@pytest.fixture
def pack(tmp_path: Path) -> Pack:
    """Packs tmp_path/"code", with a cache of its own."""
    plain = replace(settings.load(state=tmp_path / "state"), cache=tmp_path / "cache")
    return lambda **more: packing.pack(str(tmp_path / "code"), replace(plain, **more))


def write(folder: Path, **files: str) -> None:
    """`a__b_py="x"` is a/b.py."""
    for name, text in files.items():
        path = folder / name.replace("__", "/").replace("_py", ".py")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


def paths(packed: Packed) -> list[str]:
    return [entry.path for entry in packed.manifest.files]


def git(folder: Path, *arguments: str) -> str:
    names = ["-c", "user.name=me", "-c", "user.email=me@here", "-c", "init.defaultBranch=main"]
    done = subprocess.run(["git", *names, *arguments], cwd=folder, capture_output=True, text=True, check=True)
    return done.stdout.strip()


def test_caches_and_git_stay_out_and_the_rest_comes(tmp_path: Path, pack: Pack) -> None:
    code = tmp_path / "code"
    write(code, train_py="x", a__b_py="y")
    write(code / "a" / "__pycache__", m="")
    write(code / ".git", config="")
    (code / "old.pyc").write_text("")
    (code / ".env").write_text("")
    assert paths(pack()) == [".env", "a/b.py", "train.py"]


def test_ignore_files_count_below_where_they_are_and_the_last_match_wins(tmp_path: Path, pack: Pack) -> None:
    code = tmp_path / "code"
    write(
        code, train_py="", data__big="", data__keep="", sub__data__x="", sub__log="", log="", sub__tmp__y=""
    )
    (code / ".amlignore").write_text("/data/*\nlog\n")
    (code / ".paceignore").write_text("!/data/keep\n")
    (code / "sub" / ".paceignore").write_text("tmp/\n!log\n")
    (code / ".gitignore").write_text("train.py\n")  # no repository: it does not count
    found = [path for path in paths(pack()) if "ignore" not in path]
    assert found == ["data/keep", "sub/data/x", "sub/log", "train.py"]


PATTERNS = [
    "a",
    "/a",
    "a/",
    "!a",
    "!/a/b",
    "*.py",
    "!b.py",
    "a/*",
    "**/b",
    "a/**",
    "**",
    "# no",
    "",
    "[ab].py",
    r"\!a",
]
PATHS = st.lists(st.sampled_from(["a", "b", "ab", "b.py", "!a"]), min_size=1, max_size=3).map("/".join)


@given(st.lists(st.sampled_from(PATTERNS), max_size=4), PATHS, st.booleans())
def test_what_patterns_say_of_a_path_is_what_pathspec_says(
    lines: list[str], path: str, is_folder: bool
) -> None:
    spec = GitIgnoreSpec.from_lines(lines)
    whole = f"{path}/" if is_folder else path
    assert Patterns("x/", spec).said(f"x/{whole}") == spec.check_file(whole).include


def test_gitignore_counts_inside_a_repository_also_that_of_folders_above(tmp_path: Path, pack: Pack) -> None:
    git(tmp_path, "init")
    (tmp_path / ".gitignore").write_text("*.log\n/code/only-here\n/only-above\n")
    code = tmp_path / "code"
    write(code, train_py="", deep__x="")
    for name in ("a.log", "only-here", "only-above", "deep/b.log"):
        (code / name).write_text("")
    assert paths(pack()) == ["deep/x", "only-above", "train.py"]


def test_an_unchanged_file_is_not_read_again(
    tmp_path: Path, pack: Pack, monkeypatch: pytest.MonkeyPatch
) -> None:
    code = tmp_path / "code"
    write(code, a_py="1", b_py="2")
    for name in ("a.py", "b.py"):
        os.utime(code / name, (1e9, 1e9))
    read: list[str] = []
    real = packing.hash_of_file
    monkeypatch.setattr(packing, "hash_of_file", lambda folder, path: read.append(path) or real(folder, path))
    # A file's ctime cannot be set back: a clock that is later makes all of this long ago.
    now = packing.time.time_ns() + 10**11
    monkeypatch.setattr(packing.time, "time_ns", lambda: now)
    first = pack()
    assert sorted(read) == ["a.py", "b.py"]
    read.clear()
    [noted] = (tmp_path / "cache").rglob("*.json")
    written = noted.stat()
    assert pack().tree == first.tree
    assert read == []
    assert noted.stat().st_ino == written.st_ino, "nothing is written down anew"
    (code / "b.py").write_text("3")
    os.utime(code / "b.py", (1e9, 1e9))
    assert pack().tree != first.tree, "the same size and the same time of change"
    assert read == ["b.py"]


def test_a_file_that_was_changed_just_now_is_read_again(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_text("1")
    info = path.stat()
    for now_ns, known in ((info.st_mtime_ns + 10**9, None), (info.st_mtime_ns + 10**10, "h")):
        cache = StatCache(tmp_path / "cache.json", now_ns)
        cache.note("a", info, "h")
        cache.save()
        assert StatCache(tmp_path / "cache.json", now_ns).hash_of("a", info) == known


@pytest.mark.parametrize("text", ["", "{", "[]", '{"version": 1}', '{"version": 9, "files": {}}'])
def test_a_cache_that_makes_no_sense_is_none(tmp_path: Path, pack: Pack, text: str) -> None:
    write(tmp_path / "code", a_py="1")
    tree = pack().tree
    for file in (tmp_path / "cache").rglob("*.json"):
        file.write_text(text)
    (tmp_path / "cache" / "code").mkdir(parents=True, exist_ok=True)
    real = hash_of(str((tmp_path / "code").resolve()).encode())
    (tmp_path / "cache" / "code" / f"{real}.json").write_text(text)
    assert pack().tree == tree


def test_what_is_too_much_is_refused_with_the_bound_and_the_way_out(tmp_path: Path, pack: Pack) -> None:
    write(tmp_path / "code", a="x" * 100, b="x" * 100, c="x")
    with pytest.raises(TreeTooLarge, match="more than 2 files") as caught:
        pack(code_files_max=2)
    assert ".paceignore" in caught.value.hint
    with pytest.raises(TreeTooLarge, match="more than 150 bytes"):
        pack(code_bytes_max=150)
    with pytest.raises(TreeTooLarge, match=r"[ab] has 100 bytes; a file may have 99"):
        pack(code_file_bytes_max=99)
    with pytest.raises(InvalidRequest, match="is not a folder here"):
        packing.pack(str(tmp_path / "nowhere"), settings.load(state=tmp_path))


def test_the_bounds_are_read_from_the_environment(tmp_path: Path) -> None:
    found = settings.load(
        state=tmp_path, environ={"PACELINE_CODE_FILES": "7", "PACELINE_CODE_BYTES": "4Gi", "HOME": "/h"}
    )
    assert (found.code_files_max, found.code_bytes_max, found.code_file_bytes_max) == (7, 4 << 30, 512 << 20)
    with pytest.raises(InvalidRequest, match="PACELINE_CODE_BYTES"):
        settings.load(state=tmp_path, environ={"PACELINE_CODE_BYTES": "much"})


@pytest.fixture
def as_nobody() -> Iterator[Path]:
    """A folder of a user who is not root, and the process is that user's."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        folder.chmod(0o777)
        if os.geteuid() != 0:
            yield folder
            return
        os.seteuid(65534)
        try:
            yield folder
        finally:
            os.seteuid(0)


def test_a_file_that_cannot_be_read_is_named(as_nobody: Path) -> None:
    given = replace(settings.load(state=as_nobody), cache=as_nobody / "cache")
    write(as_nobody / "code", deep__secret="x", b="")
    (as_nobody / "code" / "deep" / "secret").chmod(0)
    with pytest.raises(UnreadableFile, match="deep/secret cannot be read: Permission denied"):
        packing.pack(str(as_nobody / "code"), given)
    (as_nobody / "code" / "deep").chmod(0)
    with pytest.raises(UnreadableFile, match=r"deep/\.amlignore cannot be read: Permission denied"):
        packing.pack(str(as_nobody / "code"), given)
    (as_nobody / "code" / "deep").chmod(0o700)


def test_what_is_not_a_file_and_what_leads_out_is_refused_by_name(tmp_path: Path, pack: Pack) -> None:
    code = tmp_path / "code"
    write(code, a="")
    (code / "out").symlink_to("../..")
    with pytest.raises(UnsafePath, match="the link out leads out of"):
        pack()
    (code / ".paceignore").write_text("out\npipe\n")
    os.mkfifo(code / "pipe")
    assert paths(pack()) == [".paceignore", "a"]


def test_git_says_remote_branch_commit_and_the_diff(tmp_path: Path, pack: Pack) -> None:
    code = tmp_path / "code"
    write(code, train_py="one\n", other_py="x\n")
    git(tmp_path, "init")
    assert pack().git == git_state.CodeGit(branch="main", dirty=True), "no commit yet"
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "-m", "first")
    git(tmp_path, "remote", "add", "origin", "https://me:secret@example.com/it.git")
    clean = pack().git
    assert clean is not None
    assert (clean.remote, clean.branch) == ("https://example.com/it.git", "main")
    assert (clean.commit, clean.dirty, clean.diff) == (git(tmp_path, "rev-parse", "HEAD"), False, None)

    write(code, train_py="two\n", new_py="")
    dirty = pack()
    assert dirty.git is not None and dirty.git.dirty
    assert dirty.git.diff == hash_of(dirty.diff)
    assert b"-one\n+two\n" in dirty.diff
    git(code, "stash", "--include-untracked")
    subprocess.run(["git", "apply", "-"], cwd=tmp_path, input=dirty.diff, check=True)
    assert (code / "train.py").read_text() == "two\n", "commit and diff give the files back"


def test_changes_elsewhere_in_the_repository_do_not_make_the_code_dirty(tmp_path: Path, pack: Pack) -> None:
    write(tmp_path / "code", a="")
    write(tmp_path, notes="x")
    git(tmp_path, "init")
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "-m", "first")
    write(tmp_path, notes="y")
    found = pack().git
    assert found is not None and not found.dirty
    git(tmp_path, "checkout", "--detach")
    found = pack().git
    assert found is not None and found.branch == "" and found.commit


def test_a_diff_that_is_too_large_is_left_out_and_said(
    tmp_path: Path, pack: Pack, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path / "code", a="x\n")
    git(tmp_path, "init")
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "-m", "first")
    write(tmp_path / "code", a="y\n")
    monkeypatch.setattr(git_state, "DIFF_BYTES_MAX", 10)
    found = pack()
    assert found.git is not None and found.git.diff is None and found.diff == b""
    assert "at most 10 are kept" in found.git.diff_left_out


def test_no_git_command_is_no_trouble(tmp_path: Path, pack: Pack, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "code", a="")
    git(tmp_path, "init")
    monkeypatch.setenv("PATH", "")
    assert pack().git is None


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("https://me:secret@host:8443/a.git", "https://host:8443/a.git"),
        ("https://ghp_token@host/a", "https://host/a"),
        ("ssh://git@host/a", "ssh://git@host/a"),
        ("ssh://git:secret@host:22/a", "ssh://git@host:22/a"),
        ("git@host:a/b.git", "git@host:a/b.git"),
        ("/srv/a.git", "/srv/a.git"),
        ("https://[bad/", ""),
    ],
)
def test_no_password_of_a_remote_is_kept(url: str, shown: str) -> None:
    assert git_state.without_password(url) == shown
