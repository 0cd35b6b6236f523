"""One error root. Each error has a code, says whether trying again can help, and carries its fields.

Asserts are for our bugs; these are for the world. `hint` is the next thing a person should do.
"""

from collections.abc import Mapping
from typing import ClassVar


class PacelineError(Exception):
    """Root of every error that a user may see.

    `code` is stable and machine-readable, `retryable` says whether the same call may succeed later,
    `fields` holds the numbers and names that the message mentions, `hint` what to do next.
    """

    code: ClassVar[str] = "internal"
    retryable: ClassVar[bool] = False

    def __init__(self, message: str, *, hint: str = "", **fields: object) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
        self.fields: Mapping[str, object] = fields

    def __str__(self) -> str:
        return f"{self.message}\n  {self.hint}" if self.hint else self.message


class InvalidRequest(PacelineError):
    """What came in does not have the form it must have."""

    code = "invalid"


class NotFound(PacelineError):
    """There is nothing of that name or number."""

    code = "not-found"


class Conflict(PacelineError):
    """The thing exists, but its state does not allow this."""

    code = "conflict"


class StaleAttempt(PacelineError):
    """It came from an attempt that is no longer the current one (fencing)."""

    code = "stale-attempt"


class LimitExceeded(PacelineError):
    """A stated bound would be passed."""

    code = "limit"


class Unauthenticated(PacelineError):
    """No token, or not a valid one, or one of the wrong role."""

    code = "unauthenticated"


class Unavailable(PacelineError):
    """The other side is away or not ready; the same call may succeed soon."""

    code = "unavailable"
    retryable = True


class StoreFailure(PacelineError):
    """The store could not do what was asked: full, read-only, damaged, of another version."""

    code = "store"
