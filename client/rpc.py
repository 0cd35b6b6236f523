"""One request-reply, for whoever makes it; and what a request says of who asks.

Pure: nothing here sends. Every call may be repeated without harm (a submit carries its idempotency key,
made once and kept over all retries), so the clients retry all of them alike.
"""

import getpass
import os
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Generic, TypeVar

if TYPE_CHECKING:
    from .stubs import Stubs

T = TypeVar("T")

UNARY_S = 10.0
SUBMIT_S = 30.0


@dataclass(frozen=True, slots=True)
class Call(Generic[T]):
    """One request-reply: which method, what to send, how to read the reply, how long one try may take."""

    method: "Callable[[Stubs], Any]"
    request: Any
    decode: Callable[[Any], T]
    try_s: float = UNARY_S


@dataclass(frozen=True, slots=True)
class Sent:
    """A document as it goes over the wire: canonical JSON (a job's paths absolute), and the file's name."""

    document: str
    source: str


def new_key() -> str:
    """An idempotency key that nobody else makes."""
    return uuid.uuid4().hex


def user_name() -> str:
    """Who submits, as this machine knows them; `uid-N` for one without a name."""
    try:
        return getpass.getuser()[:200]
    except (OSError, KeyError):
        return f"uid-{os.getuid()}"
