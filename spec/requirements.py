"""Lines of requirements, as pip reads them: what a node installs into an environment."""

import re
from typing import Any, Final

from .fields import PATH_CHARS_MAX, refusal
from .problems import shown

REQUIREMENTS_MAX: Final = 2000
_OPTIONS: Final = frozenset(
    [
        "-i",
        "--index-url",
        "--extra-index-url",
        "-f",
        "--find-links",
        "--no-index",
        "--pre",
        "--prefer-binary",
        "--only-binary",
        "--no-binary",
        "--trusted-host",
        "--require-hashes",
    ]
)
_COMMENT: Final = re.compile(r"(^|\s)#.*$")
_VERSION: Final = re.compile(r"3\.\d{1,3}")


def requirements(value: Any) -> Any:
    """A file's path, or lines without comments, blanks and repetitions. Raises refusal."""
    if isinstance(value, str):
        return value
    if not isinstance(value, list | tuple) or not all(isinstance(line, str) for line in value):
        raise refusal(f"expected the path of a file, or a list of requirements; found {shown(value)}")
    lines = tuple(dict.fromkeys(line for line in map(bare, value) if line))
    if len(lines) > REQUIREMENTS_MAX:
        raise refusal(f"expected at most {REQUIREMENTS_MAX} lines; found {len(lines)}")
    for line in lines:
        if fault := fault_of(line):
            raise refusal(fault)
    return lines


def check_python_version(text: str) -> None:
    """Raises refusal."""
    if text and not _VERSION.fullmatch(text):
        raise refusal(f"expected a version such as 3.11; found {shown(text)}", "python_version")


def bare(line: str) -> str:
    """Without comment and needless blanks."""
    return " ".join(_COMMENT.sub("", line).split())


def fault_of(line: str) -> str:
    """What is wrong with a bare line; empty: nothing."""
    if len(line) > PATH_CHARS_MAX or not line.isprintable():
        return f"expected a line of at most {PATH_CHARS_MAX} printable characters; found {shown(line)}"
    if line.startswith("-"):
        option = re.split(r"[ =]", line, maxsplit=1)[0]
        if option not in _OPTIONS:
            return f"{shown(option)} is not taken here: a node has the lines alone, and no files beside them"
    if line.startswith(("./", "../", "~")) or re.search(r"file:(?!///)", line):
        return f"{shown(line)}: nodes do not have this path; give an absolute one that they have, or an index"
    return ""
