"""Where a folder stands in git, as the git command says it: remote, branch, commit and the uncommitted diff.

Information only: a folder without git, or a git that fails, is packed all the same.
"""

import os
import subprocess
from dataclasses import dataclass
from typing import Final
from urllib.parse import urlsplit, urlunsplit

from ..spec.code import CodeGit

DIFF_BYTES_MAX: Final = 10 << 20
_PATIENCE_S: Final = 60.0
_LINE_MAX: Final = 200


@dataclass(frozen=True, slots=True)
class GitState:
    """`said.diff` is not set yet; `diff` is what it will be the hash of."""

    said: CodeGit
    diff: bytes


def top_folder(folder: str) -> str:
    """Of the repository that a folder is in; empty: none."""
    return _git(folder, "rev-parse", "--show-toplevel").decode(errors="replace").rstrip("\n")


def state_of(folder: str) -> GitState | None:
    """None: it is in no repository, or there is no git here."""
    status = _git(folder, "status", "--porcelain=v2", "--branch", "-z", "--untracked-files=normal", "--", ".")
    if not status:
        return None
    heads, changed, tracked = {}, False, False
    for line in status.decode(errors="replace").split("\0"):
        if line.startswith("# branch."):
            name, _, value = line.removeprefix("# branch.").partition(" ")
            heads[name] = value
        elif line:
            changed = True
            tracked = tracked or not line.startswith("?")
    commit = heads.get("oid", "")
    commit = "" if commit.startswith("(") else commit
    branch = heads.get("head", "")
    diff = (
        _git(folder, "diff", "HEAD", "--binary", "--no-ext-diff", "--no-textconv", "--", ".")
        if tracked and commit
        else b""
    )
    too_large = len(diff) > DIFF_BYTES_MAX
    said = CodeGit(
        remote=_remote(folder, heads.get("upstream", "")),
        branch="" if branch.startswith("(") else branch[:_LINE_MAX],
        commit=commit[:_LINE_MAX],
        dirty=changed,
        diff_left_out=f"it has {len(diff)} bytes; at most {DIFF_BYTES_MAX} are kept" if too_large else "",
    )
    return GitState(said, b"" if too_large else diff)


def _remote(folder: str, upstream: str) -> str:
    listed = (
        _git(folder, "config", "--get-regexp", r"^remote\..*\.url$").decode(errors="replace").splitlines()
    )
    urls = {}
    for line in listed:
        key, _, url = line.partition(" ")
        urls[key.removeprefix("remote.").removesuffix(".url")] = url
    chosen = next((urls[name] for name in (upstream.partition("/")[0], "origin") if name in urls), "")
    return without_password(chosen)[:_LINE_MAX]


def without_password(url: str) -> str:
    """A remote's URL as it may be shown."""
    try:
        parts = urlsplit(url)
        if "@" not in parts.netloc or not parts.scheme:
            return url
        user = parts.username if parts.scheme == "ssh" else ""
        host = parts.netloc.rpartition("@")[2]
        return urlunsplit(parts._replace(netloc=f"{user}@{host}" if user else host))
    except ValueError:
        return ""


def _git(folder: str, *arguments: str) -> bytes:
    """What it prints; empty where it fails."""
    try:
        done = subprocess.run(
            ["git", "-c", "core.quotepath=off", *arguments],
            cwd=folder,
            env={**os.environ, "GIT_OPTIONAL_LOCKS": "0", "LC_ALL": "C"},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=_PATIENCE_S,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return b""
    return done.stdout if done.returncode == 0 else b""
