"""How a checkpoint's folder is called, wherever it lies.

step-00000040.a2      .a2 is the attempt; saved again in that attempt: .a2.1 ...
"""

import re
from dataclasses import dataclass
from typing import Final, Self

ASIDE: Final = ".tmp-"
"""What stands before the name of one that is not whole yet."""
_NAME: Final = re.compile(r"step-(\d{8,19})\.a(\d{1,9})(?:\.(\d{1,9}))?", re.ASCII)


@dataclass(frozen=True, slots=True, order=True)
class FolderName:
    """What a folder's name says. Ordered: a later attempt is newer, then a later step, then a repetition."""

    attempt: int
    step: int
    repetition: int = 0

    def __str__(self) -> str:
        repeated = f".{self.repetition}" if self.repetition else ""
        return f"step-{self.step:08d}.a{self.attempt}{repeated}"

    @property
    def aside(self) -> str:
        return f"{ASIDE}{self}"

    @classmethod
    def parse(cls, text: str) -> Self | None:
        """None for a name that is not a checkpoint's."""
        match = _NAME.fullmatch(text)
        if match is None:
            return None
        return cls(attempt=int(match[2]), step=int(match[1]), repetition=int(match[3] or 0))
