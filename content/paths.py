"""The one place that says which paths may come from outside: relative, below their folder, however written.

Pure. Names are kept as given: nothing is decoded, normalised or folded; what was checked is what is used.
"""

import re
from collections.abc import Iterable
from typing import Final

from .errors import UnsafePath

PATH_BYTES_MAX: Final = 1024
NAME_BYTES_MAX: Final = 255
DEPTH_MAX: Final = 64
"""Names in a path."""

_PLAIN: Final = re.compile(r"(?:[A-Za-z0-9_][\w.+=@ -]*/){0,63}[A-Za-z0-9_][\w.+=@ -]*", re.ASCII)
"""What nearly all paths are: nothing in them can be at fault, but their length."""
_CONTROL: Final = re.compile(r"[\x00-\x1f\x7f]")
_DRIVE: Final = re.compile(r"[A-Za-z]:")
_ENCODED: Final = re.compile(r"%(2e|2f|5c|00|25)", re.IGNORECASE)
"""A dot, a slash, a backslash, NUL or a percent sign for whoever decodes it once more."""
HASH: Final = re.compile(r"[0-9a-f]{64}", re.ASCII)


def safe_relative(path: str) -> str:
    """The path as it is. Raises UnsafePath unless it is a relative POSIX path that stays below its folder."""
    why = _fault(path)
    if why:
        raise UnsafePath(
            f"the path {path[:200]!r} {why}", hint="paths are relative and stay below their folder"
        )
    return path


def all_safe(paths: Iterable[str]) -> None:
    """As `safe_relative` of each; of many, nearly all of which are plain, that costs less."""
    for path in paths:
        if len(path) > NAME_BYTES_MAX or _PLAIN.fullmatch(path) is None:
            safe_relative(path)


def safe_link(path: str, target: str) -> str:
    """The target of the symbolic link at `path`, as it is. Raises UnsafePath unless it stays in the tree.

    `..` may stand at the beginning only, and no more often than `path` is deep: whatever other such links are
    on the way, what it leads to is then in the tree.
    """
    names = target.split("/")
    ups = 0
    while ups < len(names) and names[ups] == "..":
        ups += 1
    below = "/".join(names[ups:])
    why = _fault(below) if below or not ups else ""
    if not why and ups > path.count("/"):
        why = "leads out of the tree"
    if why:
        raise UnsafePath(
            f"the link {path[:200]!r} to {target[:200]!r} {why}", hint="links stay within their tree"
        )
    return target


def safe_hash(text: str) -> str:
    """A hash in hex, as it is. Raises UnsafePath for anything else."""
    if HASH.fullmatch(text) is None:
        raise UnsafePath(f"{text[:80]!r} is not a hash: 64 digits from 0-9a-f")
    return text


def _fault(path: str) -> str:
    """What is wrong with it; empty: nothing."""
    if len(path) <= NAME_BYTES_MAX and _PLAIN.fullmatch(path):
        return ""
    if not path:
        return "is empty"
    try:
        size = len(path.encode())
    except UnicodeEncodeError:
        return "is not UTF-8"
    if size > PATH_BYTES_MAX:
        return f"has {size} bytes; at most {PATH_BYTES_MAX} are taken"
    if _CONTROL.search(path):
        return "holds control characters"
    if "\\" in path:
        return "holds a backslash"
    if path.startswith(("/", "~")) or _DRIVE.match(path):
        return "is not relative"
    if _ENCODED.search(path):
        return "holds an encoded separator"
    names = path.split("/")
    if len(names) > DEPTH_MAX:
        return f"is {len(names)} folders deep; at most {DEPTH_MAX} are taken"
    if any(name in ("", ".", "..") for name in names):
        return "has a name that is empty, `.` or `..`"
    if size > NAME_BYTES_MAX and any(len(name.encode()) > NAME_BYTES_MAX for name in names):
        return f"has a name of more than {NAME_BYTES_MAX} bytes"
    return ""
