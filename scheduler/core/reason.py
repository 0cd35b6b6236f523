"""One reason: a stable code, a line with the numbers in it, the next thing to do, and the numbers by name."""

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Reason:
    code: str
    text: str
    hint: str = ""
    fields: Mapping[str, str | int] = field(default_factory=dict)
