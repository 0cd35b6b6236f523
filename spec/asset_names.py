"""Names, versions and aliases of what is registered, and how they are written: `NAME:VERSION`, `NAME@ALIAS`.

One alphabet for all three: nothing in it is a path, a URL, or an escape of one, and a name is never made part
of a path. `azureml:` before a reference is Azure's, and means nothing more.
"""

import re
from dataclasses import dataclass
from typing import Final

KINDS: Final = ("data", "model")
LATEST: Final = "latest"
"""The alias that every name has: of the version that was registered last."""
PREFIX: Final = "azureml:"
WORD: Final = r"[A-Za-z0-9][A-Za-z0-9._-]{0,254}"
EXPECTED: Final = (
    "letters, digits, '.', '_' and '-', beginning with a letter or digit, at most 255 characters"
)

_WORD: Final = re.compile(WORD, re.ASCII)
_REFERENCE: Final = re.compile(rf"(?P<name>{WORD})(?:(?P<sign>[:@])(?P<which>{WORD}))?", re.ASCII)


@dataclass(frozen=True, slots=True)
class Reference:
    """A version by its own name, or by an alias."""

    name: str
    version: str = ""
    alias: str = ""

    def __str__(self) -> str:
        return f"{self.name}:{self.version}" if self.version else f"{self.name}@{self.alias}"


def is_word(text: str) -> bool:
    """Whether it can be a name, a version, or an alias."""
    return _WORD.fullmatch(text) is not None


def parse_reference(text: str) -> Reference | None:
    """What a text refers to; None: it is no reference, but perhaps a path or a URL. `file:NAME` is a path."""
    match = _REFERENCE.fullmatch(text.removeprefix(PREFIX))
    if match is None or match["sign"] is None or text.startswith("file:"):
        return None
    if match["sign"] == ":":
        return Reference(match["name"], version=match["which"])
    return Reference(match["name"], alias=match["which"])


def parse_asset(text: str) -> Reference | None:
    """As `parse_reference`; where a name stands alone, its latest version is meant."""
    bare = text.removeprefix(PREFIX)
    return Reference(bare, alias=LATEST) if is_word(bare) else parse_reference(text)
