"""What the interpreters of this node have: each is asked once, in a process of its own, and again when one of
the folders that it imports from has changed.

A job brings its interpreter, so what it says is not trusted: a bound on time and on bytes, the form checked.
"""

import contextlib
import json
import math
import os
import select
import signal
import subprocess
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from ..content.manifest import hash_of
from . import packages_of

ANSWER_S_MAX: Final = 20.0
ANSWER_BYTES_MAX: Final = 4 << 20
AGAIN_S: Final = 600.0
"""After which one that gave no answer is asked again."""
INTERPRETERS_MAX: Final = 64
_FOLDERS_MAX: Final = 1000
_TEXT_MAX: Final = 300
_LOOK_MS: Final = 100
_PROGRAM: Final = Path(packages_of.__file__)


@dataclass(frozen=True, slots=True)
class Listing:
    """What an interpreter has said of itself; `problem`: why that is nothing."""

    python: str = ""
    implementation: str = ""
    libc: str = ""
    packages: bytes = b""
    """JSON, as packages_of says; empty: they are not known."""
    packages_hash: str = ""
    count: int = 0
    left_out: int = 0
    problem: str = ""
    folders: tuple[tuple[str, int], ...] = ()
    until_s: float = math.inf
    """time.monotonic()."""

    @property
    def is_fresh(self) -> bool:
        if time.monotonic() > self.until_s:
            return False
        return all(packages_of.changed_ns(path) == changed_ns for path, changed_ns in self.folders)


class Interpreters:
    """Belongs to one thread; the asking is done in others."""

    def __init__(
        self, environment: Mapping[str, str], on_change: Callable[[str], None] = lambda interpreter: None
    ) -> None:
        """`environment`: what tasks inherit; `on_change(interpreter)`: it has other packages than before."""
        self._environment = environment
        self._on_change = on_change
        self._known: OrderedDict[str, Listing] = OrderedDict()
        self._asked: dict[str, Future[Listing]] = {}
        self._threads = ThreadPoolExecutor(2, "interpreters")
        self._closed = threading.Event()

    def known(self, interpreter: str) -> Listing | None:
        """As it is now; None: it has changed, or was not asked yet. A dozen looks at the disk."""
        asked = self._asked.get(interpreter)
        if asked is not None and asked.done():
            self._keep(interpreter, self._asked.pop(interpreter).result())
        found = self._known.get(interpreter)
        if found is None or not found.is_fresh:
            return None
        self._known.move_to_end(interpreter)
        return found

    def ask(self, interpreter: str) -> Future[Listing]:
        """Have it asked, once at a time, unless its answer is known."""
        found = self.known(interpreter)
        if found is not None:
            done: Future[Listing] = Future()
            done.set_result(found)
            return done
        if interpreter not in self._asked:
            self._asked[interpreter] = self._threads.submit(self._listing, interpreter)
        return self._asked[interpreter]

    def close(self) -> None:
        """Whoever is being asked is ended."""
        self._closed.set()
        self._threads.shutdown(cancel_futures=True)

    def _keep(self, interpreter: str, found: Listing) -> None:
        before = self._known.get(interpreter, found)
        self._known[interpreter] = found
        self._known.move_to_end(interpreter)
        if before.packages_hash != found.packages_hash and before.packages_hash and found.packages_hash:
            self._on_change(interpreter)
        while len(self._known) > INTERPRETERS_MAX:
            self._known.popitem(last=False)

    def _listing(self, interpreter: str) -> Listing:
        """In a thread."""
        before = ((interpreter, packages_of.changed_ns(interpreter)),)
        try:
            return _checked(self._answer(interpreter))
        except (OSError, ValueError) as error:
            problem = f"{interpreter} does not say what it has: {error}"[:_TEXT_MAX]
            return Listing(problem=problem, folders=before, until_s=time.monotonic() + AGAIN_S)

    def _answer(self, interpreter: str) -> bytes:
        """Raises OSError, ValueError."""
        reading, writing = os.pipe()
        try:
            process = subprocess.Popen(
                [interpreter, "-c", _PROGRAM.read_text(), str(writing)],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                cwd="/",
                env=dict(self._environment),
                pass_fds=[writing],
                start_new_session=True,
            )
        except BaseException:
            os.close(reading)
            raise
        finally:
            os.close(writing)
        try:
            return self._read(reading)
        finally:
            os.close(reading)
            with contextlib.suppress(ProcessLookupError):  # with all that it has started
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()

    def _read(self, reading: int) -> bytes:
        said = bytearray()
        until = time.monotonic() + ANSWER_S_MAX
        poll = select.poll()
        poll.register(reading, select.POLLIN)
        while not self._closed.is_set():
            if time.monotonic() > until:
                raise ValueError(f"no answer within {ANSWER_S_MAX:g} s")
            if not poll.poll(_LOOK_MS):
                continue
            if not (piece := os.read(reading, 1 << 16)):
                return bytes(said)
            said += piece
            if len(said) > ANSWER_BYTES_MAX:
                raise ValueError(f"an answer of more than {ANSWER_BYTES_MAX} bytes")
        raise ValueError("the agent was stopped")


def _checked(said: bytes) -> Listing:
    """Raises ValueError."""
    if not said:
        raise ValueError("it ended without an answer")
    try:
        form = json.loads(said)
        packages = [
            [_text(word) for word in (name, version, origin)] for name, version, origin in form["packages"]
        ]
        folders = tuple((str(path), int(changed_ns)) for path, changed_ns in form["folders"][:_FOLDERS_MAX])
        python, implementation, libc = (_text(form[name]) for name in ("python", "implementation", "libc"))
        left_out = int(form["left_out"])
    except (ValueError, KeyError, TypeError, RecursionError):
        raise ValueError(f"an answer of another form: {said[:80]!r}") from None
    if len(packages) > packages_of.PACKAGES_MAX:
        raise ValueError(f"more than {packages_of.PACKAGES_MAX} packages")
    text = json.dumps(packages, separators=(",", ":")).encode()
    return Listing(
        python, implementation, libc, text, hash_of(text), len(packages), left_out, folders=folders
    )


def _text(value: Any) -> str:
    """Of one line. Raises TypeError."""
    if not isinstance(value, str):
        raise TypeError(value)
    return "".join(c if c.isprintable() else "?" for c in value[:_TEXT_MAX])
