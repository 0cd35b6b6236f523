"""What the text of a command becomes: a program and its words, or a shell that reads it; and whether a
process that has a warm interpreter could run it exactly so.

Looks for programs in the file system, changes nothing.
"""

import os
import re
import shlex
import shutil
import time
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Final

_WHICH_S: Final = 1.0
"""For so long a program is taken to be where it was found on PATH."""
_ASSIGNMENT: Final = re.compile(r"[A-Za-z_]\w*=")
_SHELL_CHARACTERS: Final = frozenset("|&;<>()$`\\*?[]{}~#!\n")
_SHELL_IN_QUOTES: Final = frozenset("$`\\!")
_PYTHONS: Final = re.compile(r"python(3(\.\d+)?)?")
_BY_SHELL: Final = "a shell runs the command"


@dataclass(frozen=True, slots=True)
class Command:
    executable: str
    argv: list[str]
    assignments: dict[str, str]
    shell: bool = False
    python: dict[str, Any] | None = None
    cold: str = ""


def parse(text: str, interpreter: str, environment: Mapping[str, str], cwd: str) -> Command:
    """As it is run on the node itself."""
    plain = plain_words(text)
    if plain is None:
        return _shell(text, environment)
    assignments, words = plain
    path = assignments.get("PATH", environment["PATH"])
    executable = _find(words[0], interpreter, path, cwd)
    if not executable:
        return _shell(text, environment)
    if not _is_interpreter(executable, words[0], interpreter):
        return Command(executable, words, assignments, cold="not a script of this node's interpreter")
    python, cold = _parse_python(words[1:], cwd)
    return Command(executable, words, assignments, python=python, cold=cold)


def wrapped(command: Command, module: str, interpreter: str) -> Command:
    """The module is run in its place, and given the program and its words."""
    words = [command.executable, *command.argv]
    python = {"kind": "module", "target": module, "args": words, "unbuffered": False}
    argv = [os.path.basename(interpreter), "-m", module, *words]  # noqa: PTH119
    return Command(interpreter, argv, {}, python=python)


def plain_words(text: str) -> tuple[dict[str, str], list[str]] | None:
    """The variables that it sets and its words; None: only a shell can tell."""
    line = _without_continuations(text).strip()
    if _needs_shell(line):
        return None
    try:
        words = shlex.split(line)
    except ValueError:  # an open quote: the shell will say so
        return None
    assignments = {}
    while words and _ASSIGNMENT.match(words[0]):
        name, _, value = words.pop(0).partition("=")
        assignments[name] = value
    return (assignments, words) if words else None


def script_folder(python: Mapping[str, Any], cwd: str) -> str:
    """Where what it runs imports from first."""
    if python["kind"] == "module":
        return cwd
    return os.path.dirname(os.path.realpath(os.path.join(cwd, python["target"])))  # noqa: PTH118, PTH120


def _without_continuations(text: str) -> str:
    return text if "'" in text else text.replace("\\\n", " ")


def _needs_shell(line: str) -> bool:
    quote = ""
    for character in line:
        if quote:
            if character == quote:
                quote = ""
            elif quote == '"' and character in _SHELL_IN_QUOTES:
                return True
        elif character in "'\"":
            quote = character
        elif character in _SHELL_CHARACTERS:
            return True
    return False


def _shell(text: str, environment: Mapping[str, str]) -> Command:
    shell = _which("bash", environment["PATH"], int(time.monotonic() / _WHICH_S)) or "/bin/sh"
    return Command(shell, [os.path.basename(shell), "-c", text], {}, shell=True, cold=_BY_SHELL)  # noqa: PTH119


def _find(word: str, interpreter: str, path: str, cwd: str) -> str:
    if "/" in word:
        found = os.path.join(cwd, word)  # noqa: PTH118
        return found if os.access(found, os.X_OK) and os.path.isfile(found) else ""  # noqa: PTH113
    if on_path := _which(word, path, int(time.monotonic() / _WHICH_S)):
        return os.path.join(cwd, on_path)  # noqa: PTH118
    return interpreter if _PYTHONS.fullmatch(word) else ""


@lru_cache(maxsize=256)
def _which(word: str, path: str, _second: int) -> str | None:
    """A dozen looks at the disk; what a look within the same second misses, exec or the shell finds out."""
    return shutil.which(word, path=path)


def _is_interpreter(executable: str, word: str, interpreter: str) -> bool:
    if not _PYTHONS.fullmatch(os.path.basename(word)):  # noqa: PTH119
        return False
    same_folder = os.path.dirname(executable) == os.path.dirname(interpreter)  # noqa: PTH120
    return same_folder and Path(executable).samefile(interpreter)


def _parse_python(words: list[str], cwd: str) -> tuple[dict[str, Any] | None, str]:
    """(what to run, "") or (None, why it must be a fresh interpreter)."""
    unbuffered = False
    while words and words[0] == "-u":
        unbuffered = True
        words = words[1:]
    if not words:
        return None, "an interpreter without a script"
    if words[0] == "-m" and len(words) > 1:
        return {"kind": "module", "target": words[1], "args": words[2:], "unbuffered": unbuffered}, ""
    if words[0].startswith("-"):
        return None, f"interpreter option {words[0]}"
    path = os.path.join(cwd, words[0])  # noqa: PTH118
    if os.path.isdir(path) or not path.endswith(".py"):  # noqa: PTH112
        return None, f"{words[0]} is not a .py file"
    return {"kind": "script", "target": words[0], "args": words[1:], "unbuffered": unbuffered}, ""
