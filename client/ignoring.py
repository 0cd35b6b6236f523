"""Which files of a folder stay out when it is packed, by the patterns of git.

.gitignore counts inside a git repository, also of the folders above; .amlignore and .paceignore count
everywhere. Of all patterns that match, the last one wins: those of deeper folders come later, and in one
folder .paceignore comes last. What is below a folder that stays out stays out.
"""

import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Final

from ..content.walking import unreadable
from ..spec.errors import InvalidRequest

if TYPE_CHECKING:
    from pathspec import GitIgnoreSpec

_NEVER: Final = ".git"
_UNLESS_SAID: Final = frozenset(("__pycache__", ".ipynb_checkpoints", ".DS_Store"))
_ENDS_UNLESS_SAID: Final = (".pyc", ".pyo")
"""Stay out, unless a pattern takes them in."""
_FILES: Final = (".amlignore", ".paceignore")
_BYTES_MAX: Final = 1 << 20


class Patterns:
    """Those of one folder's ignore files."""

    def __init__(self, where: str, spec: "GitIgnoreSpec") -> None:
        """`where`: the folder, with a slash behind; empty: the repository's top."""
        self._at = len(where)
        self._spec = spec
        regexes = [one.regex for one in spec.patterns if one.include is not None]
        self._searches: list[Callable[[str], re.Match[str] | None]] = [
            regex.search for regex in regexes if regex is not None
        ]

    def said(self, path: str) -> bool | None:
        """Whether that path stays out; None: nothing is said of it."""
        below = path[self._at :]
        for search in self._searches:  # which one counts is asked of the few that one of them matches
            if search(below):
                return self._spec.check_file(below).include
        return None


class Ignoring:
    """Of one folder; asked from the top down."""

    def __init__(self, folder: str, repository: str) -> None:
        """`repository`: the top folder of the git repository that it is in; empty: none. Raises
        UnreadableFile, InvalidRequest."""
        self._folder = folder
        self._names = (".gitignore", *_FILES) if repository else _FILES
        self._chains: dict[str, tuple[Patterns, ...]] = {}
        """Folder -> what counts in it."""
        first: tuple[Patterns, ...] = ()
        self._above = ""
        if repository:
            self._above = os.path.relpath(folder, repository)
            self._above = "" if self._above == "." else f"{self._above}/"
            names = self._above.split("/")[:-1]
            for depth in range(len(names)):
                where = "/".join(names[:depth])
                first += self._read(
                    str(Path(repository, where)), f"{where}/" if where else "", (".gitignore",)
                )
        self._chains[""] = first + self._read(folder, self._above, self._names)

    def __call__(self, path: str, is_folder: bool) -> bool:
        """Whether it stays out."""
        parent, _, name = path.rpartition("/")
        if name == _NEVER:
            return True
        chain = self._chains[parent]
        whole = f"{self._above}{path}/" if is_folder else f"{self._above}{path}"
        out = name in _UNLESS_SAID or name.endswith(_ENDS_UNLESS_SAID)
        for patterns in reversed(chain):
            said = patterns.said(whole)
            if said is not None:
                out = said
                break
        if is_folder and not out:
            own = self._read(os.path.join(self._folder, path), f"{self._above}{path}/", self._names)  # noqa: PTH118
            self._chains[path] = chain + own if own else chain
        return out

    def _read(self, folder: str, where: str, names: tuple[str, ...]) -> tuple[Patterns, ...]:
        lines: list[str] = []
        for name in names:
            path = Path(folder, name)
            try:
                data = path.read_bytes()
            except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
                continue
            except OSError as error:
                raise unreadable(str(path), error) from error
            if len(data) > _BYTES_MAX:
                raise InvalidRequest(f"{path} has {len(data)} bytes; at most {_BYTES_MAX} are read")
            lines += data.decode("utf-8", "surrogateescape").splitlines()
        if not lines:
            return ()
        from pathspec import GitIgnoreSpec

        try:
            return (Patterns(where, GitIgnoreSpec.from_lines(lines)),)
        except ValueError as error:
            raise InvalidRequest(f"{folder}: a pattern of {' or '.join(names)} is none: {error}") from error
