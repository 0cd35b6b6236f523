"""The forecaster's own process: `python -m paceline.scheduler.forecast_worker`.

Questions on stdin, answers on stdout, one after the other, each with its length before it (eight bytes, big
endian). It ends when its stdin does, also in the middle of a forecast: then nobody waits for it.
"""

import os
import sys
from queue import SimpleQueue
from threading import Thread
from typing import BinaryIO, Final

import msgspec

from ..spec.errors import PacelineError
from .core.settings import Settings
from .decisions import Decision, decide_again
from .forecast import Forecast, Question, Snapshot, forecast
from .store.base import EventRow

LENGTH_BYTES: Final = 8
_NICE: Final = 5


class Asked(msgspec.Struct, frozen=True, tag=True):
    """Answer: a forecast."""

    snapshot: Snapshot
    question: Question


class AskedAgain(msgspec.Struct, frozen=True, tag=True):
    """Answer: the decision that is the last of these events."""

    rows: list[EventRow]
    settings: Settings


class Told(msgspec.Struct, frozen=True):
    """What was asked for, or why there is none."""

    forecast: Forecast | None = None
    decision: Decision | None = None
    error: str = ""
    hint: str = ""


encode_asked: Final = msgspec.msgpack.Encoder().encode
decode_told: Final = msgspec.msgpack.Decoder(Told).decode
_decode_asked: Final = msgspec.msgpack.Decoder(Asked | AskedAgain).decode


def framed(body: bytes) -> bytes:
    return len(body).to_bytes(LENGTH_BYTES, "big") + body


def main() -> None:
    os.nice(_NICE)
    asked: SimpleQueue[bytes] = SimpleQueue()
    Thread(target=_read, args=(sys.stdin.buffer, asked), daemon=True).start()
    while True:
        sys.stdout.buffer.write(framed(msgspec.msgpack.encode(_answer(asked.get()))))
        sys.stdout.buffer.flush()


def _answer(body: bytes) -> Told:
    asked: Asked | AskedAgain = _decode_asked(body)
    try:
        if isinstance(asked, Asked):
            return Told(forecast=forecast(asked.snapshot, asked.question))
        return Told(decision=decide_again(asked.rows, asked.settings))
    except PacelineError as error:
        return Told(error=error.message, hint=error.hint)


def _read(stdin: BinaryIO, asked: "SimpleQueue[bytes]") -> None:
    while True:
        head = stdin.read(LENGTH_BYTES)
        body = stdin.read(int.from_bytes(head, "big"))
        if len(head) < LENGTH_BYTES or not body:
            os._exit(0)
        asked.put(body)


if __name__ == "__main__":
    main()
