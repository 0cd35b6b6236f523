"""Dataclasses that nobody changes once they are made; mypy sees to it.

What `frozen=True` costs at run time, a call for each field, is most of what it takes to make one, and every
decision makes dozens. So the type checker alone is told: an assignment is an error there, and equality and
hash are as ever.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from dataclasses import dataclass as record
else:

    def record(*, frozen, slots, order=False):
        return dataclass(slots=slots, order=order, unsafe_hash=frozen)


__all__ = ["record"]
