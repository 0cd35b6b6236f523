"""What is looked up over and over has its hash worked out once."""

from operator import attrgetter


class Hashed:
    """Base of frozen dataclasses that say `__hash__ = Hashed.__hash__`: else each is given its own."""

    __slots__ = ("_hash",)
    _hash: int

    def __hash__(self) -> int:
        try:
            return self._hash
        except AttributeError:
            values = attrgetter(*self.__dataclass_fields__)(self)  # type: ignore[attr-defined]
            object.__setattr__(self, "_hash", hash(values))
            return self._hash
