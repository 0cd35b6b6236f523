"""Says what this interpreter is and has, as one JSON line into the descriptor that it is given.

The agent runs this text with `-c` in whatever interpreter a job brings (3.8 and newer), so it imports the
standard library alone. What the line holds:

    python, implementation, libc    of the interpreter
    packages    [[name, version, origin], ...], as an import finds them: the first of a name counts; origin:
                where it came from, of what was not taken from an index by its name
    left_out    how many there are beyond these
    folders     [[path, time of its last change], ...] that were looked into, as they were before
"""

import json
import os
import platform
import re
import sys
from importlib import metadata
from typing import Any

PACKAGES_MAX = 5000
_TEXT_MAX = 300


def main(answer_fd: int) -> None:
    sys.path[:] = [path for path in sys.path if path]
    library = os.path.dirname(os.__file__)  # noqa: PTH120 - it changes with the interpreter
    installed = [path for path in sys.path if path not in (library, os.path.join(library, "lib-dynload"))]  # noqa: PTH118
    folders = [[path, changed_ns(path)] for path in dict.fromkeys([sys.executable, *installed])]
    packages = all_packages()
    said = {
        "python": platform.python_version(),
        "implementation": platform.python_implementation(),
        "libc": " ".join(platform.libc_ver()).strip(),
        "packages": packages[:PACKAGES_MAX],
        "left_out": max(0, len(packages) - PACKAGES_MAX),
        "folders": folders,
    }
    with os.fdopen(answer_fd, "w") as answer:
        answer.write(json.dumps(said) + "\n")


def all_packages() -> "list[list[str]]":
    """By name."""
    found: dict[str, list[str]] = {}
    for one in metadata.distributions():
        name, version = _name_and_version(one)
        if name:
            found.setdefault(re.sub("[-_.]+", "-", name).lower(), [name, version, _origin(one)])
    return [found[name] for name in sorted(found)]


def changed_ns(path: str) -> int:
    """0: it is not there."""
    try:
        return os.stat(path).st_mtime_ns  # noqa: PTH116
    except OSError:
        return 0


def _name_and_version(one: metadata.Distribution) -> "tuple[str, str]":
    """Off the head of its metadata: to parse all of it takes most of the time."""
    head: dict[str, str] = {}
    for line in (one.read_text("METADATA") or one.read_text("PKG-INFO") or "").splitlines():
        name, _, value = line.partition(":")
        if not line or len(head) == 2:
            break
        if name in ("Name", "Version"):
            head[name] = value.strip()[:_TEXT_MAX]
    return head.get("Name", ""), head.get("Version", "")


def _origin(one: metadata.Distribution) -> str:
    """As pip takes it; without a password."""
    try:
        said: dict[str, Any] = json.loads(one.read_text("direct_url.json") or "{}")
        url = re.sub("//[^/@]*@", "//", str(said.get("url", "")))
        if "vcs_info" in said:
            url = "{}+{}@{}".format(said["vcs_info"]["vcs"], url, said["vcs_info"]["commit_id"])
        editable = "editable " if said.get("dir_info", {}).get("editable") else ""
    except (ValueError, KeyError, AttributeError, TypeError):
        return ""
    return (editable + url)[:_TEXT_MAX]


if __name__ == "__main__":
    main(int(sys.argv[1]))
