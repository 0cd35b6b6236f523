"""Fetches what is at a URL, in a process of its own: `python -m paceline.agent.fetching FOLDER`.

    stdin     one line: what to fetch (Asked). When it closes, whoever asked is gone, and this ends at once
    stdout    lines: Told, with the bytes that have come so far, and last with how it ended
    FOLDER    gets the files, each under its hash; `manifest` when all of them are there

What speaks a URL is a library that may hang, crash or leave threads: none of that is the agent's.
"""

import os
import sys
import threading
import time
from pathlib import Path
from typing import Final

import msgspec

from ..content.errors import UrlAway, UrlChanged, UrlRefused
from ..content.urls import fetch
from ..spec.errors import PacelineError
from ..spec.stores import Seen

MANIFEST: Final = "manifest"
_TELL_S: Final = 0.5


class Asked(msgspec.Struct, frozen=True):
    url: str
    etag: str
    bytes: int
    files: int
    bytes_max: int


class Told(msgspec.Struct, frozen=True, omit_defaults=True):
    bytes: int
    """That have come."""
    outcome: str = ""
    """Empty: it goes on. `done`, `changed`, `refused`, `away`, `bad` (no tree that may be kept), `disk`."""
    text: str = ""
    hint: str = ""


class _Teller:
    """Lines to who asked; from any thread."""

    def __init__(self) -> None:
        self._bytes = 0
        self._told_s = 0.0

    def progress(self, size: int) -> None:
        """Not each time."""
        self._bytes = size
        now_s = time.monotonic()
        if now_s - self._told_s >= _TELL_S:
            self._told_s = now_s
            self.end("")

    def end(self, outcome: str, text: str = "", hint: str = "") -> None:
        told = Told(self._bytes, outcome, text, hint)
        sys.stdout.buffer.write(msgspec.json.encode(told) + b"\n")
        sys.stdout.buffer.flush()


def main(folder: Path) -> None:
    asked = msgspec.json.decode(sys.stdin.buffer.readline(), type=Asked)
    threading.Thread(target=_end_with_stdin, daemon=True).start()
    teller = _Teller()
    try:
        seen = Seen(asked.url, asked.etag, asked.bytes, asked.files)
        manifest = fetch(seen, folder, asked.bytes_max, teller.progress)
        (folder / MANIFEST).write_bytes(manifest.to_bytes())
        teller.end("done")
    except PacelineError as error:
        teller.end(_outcome(error), error.message, error.hint)
    except OSError as error:
        teller.end("disk", f"{error.strerror or error}")


def _outcome(error: PacelineError) -> str:
    kinds = {UrlChanged: "changed", UrlRefused: "refused", UrlAway: "away"}
    return kinds.get(type(error), "bad")


def _end_with_stdin() -> None:
    sys.stdin.buffer.read()
    os._exit(1)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
    os._exit(0)  # threads of what spoke the URL may be left
