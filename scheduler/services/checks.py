"""What is asked of every call that changes something: its key, and who says so."""

import re
from typing import Final

from ...proto.limits import KEY_PATTERN, NAME_CHARACTERS_MAX, NODE_WHY_CHARACTERS_MAX
from ...spec.errors import InvalidRequest

_KEY: Final = re.compile(KEY_PATTERN)


def check_asked(key: str, user: str) -> None:
    """Raises InvalidRequest."""
    check_key(key)
    check_user(user)


def check_key(key: str) -> None:
    """Raises InvalidRequest."""
    if not _KEY.fullmatch(key):
        raise InvalidRequest(
            f"{key[:80]!r} is no idempotency key; expected 1 to 64 characters of A-Z a-z 0-9 _ -"
        )


def check_why(why: str) -> None:
    """Raises InvalidRequest."""
    if len(why) > NODE_WHY_CHARACTERS_MAX or not why.isprintable():
        raise InvalidRequest(
            f"`why` is no line of text: expected at most {NODE_WHY_CHARACTERS_MAX} printable characters"
        )


def check_user(user: str) -> None:
    """Raises InvalidRequest."""
    if len(user) > NAME_CHARACTERS_MAX or not user.isprintable():
        raise InvalidRequest(
            f"the user's name is not one: expected at most {NAME_CHARACTERS_MAX} printable characters"
        )
