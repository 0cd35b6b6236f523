"""What is in a folder, as a tree would have it: files, and links that stay within.

Devices, sockets and pipes are refused, and so is what leads out of the folder; each refusal names the file.
"""

import os
import stat
from collections.abc import Callable, Iterator
from typing import NamedTuple

from .errors import TreeTooLarge, UnreadableFile, UnsafePath
from .manifest import BOUNDS, Bounds, Link, too_large_a_file
from .paths import safe_link, safe_relative

Ignored = Callable[[str, bool], bool]
"""(relative path, is a folder) -> leave it out, with all that is below."""


class FoundFile(NamedTuple):
    """A plain file, as it was when the folder was read."""

    path: str
    stat: os.stat_result

    @property
    def mode(self) -> int:
        return 0o755 if self.stat.st_mode & stat.S_IXUSR else 0o644


def walk(folder: str, ignored: Ignored, bounds: Bounds = BOUNDS) -> Iterator[FoundFile | Link]:
    """In no order. Raises UnreadableFile, UnsafePath, TreeTooLarge."""
    root = os.path.realpath(folder)
    count = size = 0
    for path, entry in _entries(root, ignored):
        count += 1
        if count > bounds.files_max:
            raise TreeTooLarge(
                f"{folder} has more than {bounds.files_max} files, which is the most that a tree may have",
                hint="leave out what the job does not need: name it in .paceignore",
            )
        if entry.is_symlink():
            yield _link(root, path)
            continue
        info = entry.stat(follow_symlinks=False)
        if not stat.S_ISREG(info.st_mode):
            raise UnreadableFile(f"{path} is neither a file, a folder nor a link", path=path)
        if info.st_size > bounds.file_bytes_max:
            raise too_large_a_file(path, info.st_size, bounds)
        size += info.st_size
        if size > bounds.bytes_max:
            raise TreeTooLarge(
                f"{folder} has more than {bounds.bytes_max} bytes, which is the most that a tree may have",
                hint="leave out what the job does not need: name it in .paceignore",
            )
        yield FoundFile(path, info)


def _entries(root: str, ignored: Ignored) -> Iterator[tuple[str, "os.DirEntry[str]"]]:
    waiting = [""]
    while waiting:
        below = waiting.pop()
        try:
            with os.scandir(os.path.join(root, below)) as found:  # noqa: PTH118
                entries = list(found)
        except OSError as error:
            raise unreadable(below or root, error) from error
        for entry in entries:
            path = f"{below}/{entry.name}" if below else entry.name
            is_folder = entry.is_dir(follow_symlinks=False)
            if ignored(path, is_folder):
                continue
            safe_relative(path)
            if is_folder:
                waiting.append(path)
            else:
                yield path, entry


def unreadable(path: str, error: OSError) -> UnreadableFile:
    return UnreadableFile(
        f"{path} cannot be read: {error.strerror}",
        hint="make it readable, or name it in .paceignore",
        path=path,
    )


def _link(root: str, path: str) -> Link:
    """As it stands where that stays within, else by what it leads to. Raises UnsafePath."""
    where = os.path.join(root, path)  # noqa: PTH118
    target = os.readlink(where)  # noqa: PTH115
    try:
        return Link(path, safe_link(path, target))
    except UnsafePath:
        real = os.path.realpath(where)
        if not real.startswith(root + os.sep):
            raise UnsafePath(
                f"the link {path} leads out of {root}, to {target}",
                hint="name it in .paceignore, or put what it leads to into the folder",
                path=path,
            ) from None
        relative = os.path.relpath(real, os.path.dirname(where))  # noqa: PTH120
        return Link(path, safe_link(path, relative))
