"""What was at a URL, on this node for tasks to come: fetched once, and kept as a tree beside all others.

urls/KEY             the id of the tree that it made; KEY says the URL, and its state when somebody looked
incoming/RANDOM/     what is being fetched (fetching.py); what an earlier agent has left there goes
"""

import contextlib
import os
import secrets
import selectors
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import msgspec

from ..content.manifest import Manifest, hash_of, read_manifest, tree_id
from ..content.writing import remove_tree
from ..proto.generated import agent_pb2
from ..spec.stores import shown_url
from .fetching import MANIFEST, Asked, Told
from .launch import Refusal, base_environment
from .tree_cache import Provided, Stopped, TreeCache

STALL_S: Final = 120.0
"""Without a byte, a fetch is given up: longer than its libraries wait for an answer, with their retries."""
_KNOWN_MAX: Final = 10_000
_POLL_S: Final = 0.1
_LOG_READ_BYTES: Final = 2000

Stop = Callable[[], object]


def url_key(need: agent_pb2.Need) -> str:
    """Of a URL in one state: fetched once, however many ask for it."""
    return hash_of(msgspec.json.encode([need.url, need.version, need.bytes, need.files]))


@dataclass(frozen=True, slots=True)
class Fetched:
    """What came of a URL, until it is kept: files by their hash, which move from here into the cache."""

    _folder: Path
    tree: str
    _manifest: Manifest

    def manifest(self, tree: str) -> Manifest:
        return self._manifest

    def copy_to(self, hash_: str, path: str, mode: int) -> None:
        os.rename(self._folder / hash_, path)  # noqa: PTH104

    def drop(self) -> None:
        """It is kept, or nobody wants it."""
        remove_tree(self._folder)


class UrlCache:
    """Blocks on the disk and for servers; may be used from several threads, of one key by one at a time.
    Methods raise OSError where the disk refuses."""

    def __init__(self, root: Path, cache: TreeCache, stall_s: float = STALL_S) -> None:
        self._known, self._incoming = root / "urls", root / "incoming"
        self._cache, self._stall_s = cache, stall_s

    def begin(self) -> None:
        """Once, after the cache."""
        self._known.mkdir(mode=0o700, exist_ok=True)
        remove_tree(self._incoming)
        self._incoming.mkdir(mode=0o700, exist_ok=True)

    def tree_of(self, key: str) -> str:
        """What was made of it; empty: nothing that is known."""
        with contextlib.suppress(FileNotFoundError):
            return (self._known / key).read_text()
        return ""

    def find(self, key: str) -> Provided | None:
        """What is kept of it."""
        tree = self.tree_of(key)
        return self._cache.kept(tree) if tree else None

    def remember(self, key: str, tree: str) -> None:
        """That tree is what was made of it. The oldest are forgotten."""
        aside = self._incoming / secrets.token_hex(8)
        aside.write_text(tree)
        aside.rename(self._known / key)
        known = sorted(os.scandir(self._known), key=lambda entry: entry.stat().st_mtime_ns)
        for entry in known[: max(0, len(known) - _KNOWN_MAX)]:
            Path(entry.path).unlink(missing_ok=True)

    def fetch(self, need: agent_pb2.Need, pinned: Collection[str], stopped: Stop) -> Fetched:
        """What is at the URL, if it is what somebody saw there; to be dropped. Raises Refusal, CacheFull,
        Stopped."""
        folder = self._incoming / secrets.token_hex(8)
        with self._cache.room(need.bytes, pinned):
            self._check_disk(need)
            folder.mkdir(mode=0o700)
            try:
                self._run(need, folder, stopped)
                manifest = read_manifest((folder / MANIFEST).read_bytes())
            except BaseException:
                remove_tree(folder)
                raise
        return Fetched(folder, tree_id(manifest), manifest)

    def _check_disk(self, need: agent_pb2.Need) -> None:
        free = shutil.disk_usage(self._incoming).free
        if free < need.bytes:
            text = (
                f"{need.name}: {need.bytes} bytes are to be fetched, and {free} are free on this node's disk"
            )
            raise Refusal("disk-full", text, transient=True, hint=f"It is that of {self._incoming.parent}.")

    def _run(self, need: agent_pb2.Need, folder: Path, stopped: Stop) -> None:
        asked = Asked(need.url, need.version, need.bytes, need.files, need.bytes or self._cache.bytes_max)
        log = folder / "log"
        with log.open("wb") as errors:
            child = subprocess.Popen(
                [sys.executable, "-P", "-m", f"{__package__}.fetching", str(folder)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                env=base_environment(os.environ),
                start_new_session=True,
            )
        try:
            assert child.stdin is not None
            with contextlib.suppress(BrokenPipeError):  # it has ended: its log says why
                child.stdin.write(msgspec.json.encode(asked) + b"\n")
                child.stdin.flush()
            last = self._listen(child, need, stopped)
        finally:
            child.kill()
            child.communicate()
        if last is None or not last.outcome:
            text = log.read_bytes()[-_LOG_READ_BYTES:].decode("utf-8", "replace").strip()
            raise Refusal(
                "fetch-died",
                f"{need.name}: what fetched {shown_url(need.url)} ended amid it: {text or 'it said nothing'}",
                transient=True,
            )
        if last.outcome != "done":
            raise _refusal(need, last)

    def _listen(self, child: "subprocess.Popen[bytes]", need: agent_pb2.Need, stopped: Stop) -> Told | None:
        """The last that it told."""
        assert child.stdout is not None
        last, rest = None, b""
        until_s = time.monotonic() + self._stall_s
        with selectors.DefaultSelector() as selector:
            selector.register(child.stdout, selectors.EVENT_READ)
            while True:
                if stopped():
                    raise Stopped
                if time.monotonic() > until_s:
                    raise _stalled(need, last, self._stall_s)
                if not selector.select(_POLL_S):
                    continue
                data = os.read(child.stdout.fileno(), 1 << 16)
                if not data:
                    return last
                *lines, rest = (rest + data).split(b"\n")
                for line in lines:
                    last = msgspec.json.decode(line, type=Told)
                    until_s = time.monotonic() + self._stall_s


def _refusal(need: agent_pb2.Need, told: Told) -> Refusal:
    text = f"{need.name}: {told.text}"
    match told.outcome:
        case "changed":
            hint = "Register what is there now (pace data create NAME URL), or submit again."
            return Refusal("data-changed", text, transient=False, hint=hint)
        case "refused":
            hint = f"On the node: {told.hint}." if told.hint else ""
            return Refusal("no-data", text, transient=False, hint=hint)
        case "away":
            return Refusal("data-away", text, transient=True)
        case "disk":
            text = f"{need.name}: {told.text}, after {told.bytes} of {need.bytes} bytes"
            return Refusal("disk-full", text, transient=True)
    return Refusal("bad-content", text, transient=False)


def _stalled(need: agent_pb2.Need, last: Told | None, stall_s: float) -> Refusal:
    come = last.bytes if last is not None else 0
    text = f"{come} of {need.bytes} bytes came, and then none for {stall_s:g} s"
    return Refusal("data-away", f"{need.name}: {shown_url(need.url)}: {text}", transient=True)
