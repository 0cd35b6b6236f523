"""What a job ran: `pace show`'s lines on its code and where that stood in git."""

import json
from collections.abc import Iterator
from typing import Any

from . import output as out


def code_lines(document: str) -> Iterator[tuple[str, str]]:
    """Of a job's document: label and text; clean."""
    said: dict[str, Any] = json.loads(document or "{}")
    folder, tree, git = said.get("code", ""), said.get("code_tree"), said.get("code_git")
    if not folder:
        return
    yield "code", out.clean(f"{folder}, packed as {tree[:12]}" if tree else f"{folder}, in place")
    if git:
        yield "git", out.clean(git_text(git))


def git_text(git: dict[str, Any]) -> str:
    """`1762c1c72f02 on main of https://github.com/me/it, with uncommitted changes (diff 3dba7b67ffc6)`."""
    text = git["commit"][:12] or "no commit yet"
    if git["branch"]:
        text += f" on {git['branch']}"
    if git["remote"]:
        text += f" of {git['remote']}"
    if not git["dirty"]:
        return text
    if git.get("diff"):
        return f"{text}, with uncommitted changes (diff {git['diff'][:12]})"
    if git["diff_left_out"]:
        return f"{text}, with uncommitted changes whose diff is not kept: {git['diff_left_out']}"
    return f"{text}, with files that git does not know"
