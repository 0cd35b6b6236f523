"""What the scheduler and a sweep's sampler process say to each other: msgpack, each message with its length
before it. One answer to each question, in order.

Values of parameters are Optuna's internal ones, beside the JSON of the distribution that they were drawn
from; attributes are JSON texts. So the scheduler keeps what Optuna needs and imports none of it.
"""

from typing import Any, Final

import msgspec

LENGTH_BYTES: Final = 4
MESSAGE_BYTES_MAX: Final = 512 << 20
"""A whole study of a million small trials still fits."""


class Known(msgspec.Struct, frozen=True):
    """A trial as the sampler needs it. `params`: name -> internal value and distribution, as drawn."""

    number: int
    state: str
    params: dict[str, tuple[float, str]] = {}
    values: tuple[float, ...] = ()
    intermediate: dict[int, float] = {}
    user_attrs: dict[str, str] = {}
    system_attrs: dict[str, str] = {}


class Begin(msgspec.Struct, frozen=True, tag=True):
    """The first message: the sweep's document, and all that has happened in its study. Answer: Noted."""

    document: str
    name: str
    study_attrs: dict[str, str]
    trials: list[Known]


class Ask(msgspec.Struct, frozen=True, tag=True):
    """For the params of trial `number`: a waiting one, or the next. Answer: Suggested or Exhausted."""

    number: int


class Wait(msgspec.Struct, frozen=True, tag=True):
    """A trial that waits was added to the study. Answer: Noted."""

    trial: Known


class Tell(msgspec.Struct, frozen=True, tag=True):
    """A trial is over. Answer: Noted."""

    trial: Known


class Report(msgspec.Struct, frozen=True, tag=True):
    """A trial that runs has told its objective at these steps, in this order. Answer: Verdict."""

    number: int
    values: dict[int, float]


class Suggested(msgspec.Struct, frozen=True, tag=True):
    """`values`: what the script gets. Attributes: those that the sampler has set."""

    number: int
    params: dict[str, tuple[float, str]]
    values: dict[str, Any]
    system_attrs: dict[str, str]
    study_attrs: dict[str, str]


class Exhausted(msgspec.Struct, frozen=True, tag=True):
    """Every point of the space has been given. The process is of no further use."""


class Verdict(msgspec.Struct, frozen=True, tag=True):
    """`prune`: why the trial shall end; empty: it goes on."""

    number: int
    prune: str
    system_attrs: dict[str, str]


class Noted(msgspec.Struct, frozen=True, tag=True):
    """It is known now."""


class Failed(msgspec.Struct, frozen=True, tag=True):
    """The question could not be answered: `text` is for a person. The process ends."""

    text: str
    hint: str = ""


Question = Begin | Ask | Wait | Tell | Report
Answer = Suggested | Exhausted | Verdict | Noted | Failed

_encode: Final = msgspec.msgpack.Encoder().encode
decode_question: Final = msgspec.msgpack.Decoder(Question).decode
decode_answer: Final = msgspec.msgpack.Decoder(Answer).decode


def framed(message: Question | Answer) -> bytes:
    """The message as it goes through the pipe."""
    body = _encode(message)
    return len(body).to_bytes(LENGTH_BYTES, "big") + body
