"""Bringing a rank's files to the memory of the next node: in its persister, by a thread of its own, at the
lowest priority.

What has come to storage is sent from there, through descriptors: no image is held, and no rename and no
retention comes between. One checkpoint is sent at a time; of those that wait, the newest. What fails costs
that copy and nothing else. The timeline hears of it when it ceases to go well or does so again, not at each
save; that it goes well from the first, of rank 0's alone.
"""

import os
import threading
import time
from typing import Final

from ..proto.shim_line import ShimLink
from . import manifest
from .errors import StorageFailed
from .peer_calls import Caller
from .say import say
from .uploading import Upload

_NICENESS: Final = 19
_WHY_LENGTH_MAX: Final = 500


class PeerSender:
    """`tells`: the timeline, for all ranks of this node."""

    def __init__(self, caller: Caller, link: ShimLink | None, *, tells: bool) -> None:
        self._caller = caller
        self._link = link if tells else None
        self._went_well: bool | None = None
        self._waiting: Upload | None = None
        self._busy = False
        self._lock = threading.Lock()

    def take(self, part: Upload) -> None:
        """Of every order that went well. Never waits."""
        with self._lock:
            overtaken, self._waiting = self._waiting, part
            begins, self._busy = not self._busy, True
        if overtaken is not None:
            overtaken.close()
        if begins:
            threading.Thread(target=self._run, name="to a peer", daemon=True).start()

    def _run(self) -> None:
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _NICENESS)
        while (part := self._next()) is not None:
            since_s = time.monotonic()
            why = self._send(part)
            self._tell(part, why[:_WHY_LENGTH_MAX], time.monotonic() - since_s)

    def _next(self) -> Upload | None:
        with self._lock:
            part, self._waiting = self._waiting, None
            self._busy = part is not None
        return part

    def _send(self, part: Upload) -> str:
        """What went wrong. The manifest last."""
        name = part.order.name
        try:
            for file, descriptor in part.descriptors.items():
                self._caller.put_file(name, file, descriptor, part.files[file])
            if part.commit is not None:
                self._caller.put_bytes(name, manifest.NAME, part.commit.document)
        except StorageFailed as failure:
            return failure.message
        finally:
            part.close()
        return ""

    def _tell(self, part: Upload, why: str, seconds: float) -> None:
        before, self._went_well = self._went_well, not why
        if before == self._went_well:
            return
        node, is_news = self._caller.door.node, bool(why) or before is False or part.order.rank == 0
        if why:
            say(f"this rank's part of checkpoints is NOT kept in the memory of {node}: {why}")
        if self._link is not None and is_news:
            size_bytes = sum(part.files[file].size_bytes for file in part.files)
            told = {"rank": part.order.rank, "node": node, "step": part.order.step, "size_bytes": size_bytes}
            self._link.ask({"op": "peer_memory", **told, "seconds": seconds, "why": why})
