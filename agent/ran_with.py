"""What a task runs with: a record of interpreter, packages, system, driver and GPUs, kept by its content.

The journal's `started` has the record's hash. It and the list of packages that it names lie in the storage's
records (contributing/contracts.md has their form), so that the thousandth trial costs a hash. No start waits
for it: where it is not known yet, it is the word of the start that goes to the scheduler later.
"""

import asyncio
import contextlib
import json
import logging
import os
import platform
from collections import OrderedDict
from collections.abc import Callable, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any, Final, NamedTuple

from .. import __version__
from ..content.manifest import hash_of
from ..content.store import ContentStore, Piece, records_folder
from ..spec.errors import PacelineError
from .gpu import Gpu, GpuReport
from .interpreters import INTERPRETERS_MAX, Interpreters, Listing

log = logging.getLogger(__name__)

RECORD_S_MAX: Final = 30.0
"""So long, at most, a start is not told of for its record."""
_KEPT_MAX: Final = 1024


class Recorded(NamedTuple):
    """The hash of a record; or why there is none."""

    record: str
    why: str = ""


class _Made(NamedTuple):
    """A record, and what it was made of."""

    listing: Listing
    gpus: GpuReport
    record: str


class Records:
    """Belongs to the event loop's thread."""

    def __init__(
        self,
        environment: Mapping[str, str],
        gpus: Callable[[], GpuReport],
        on_change: Callable[[str], None] = lambda interpreter: None,
    ) -> None:
        """`environment`: what tasks inherit; `on_change(interpreter)`: it has other packages than before."""
        self._interpreters = Interpreters(environment, on_change)
        self._gpus = gpus
        self._made: dict[str, _Made] = {}
        self._kept: OrderedDict[tuple[Path, str], None] = OrderedDict()
        self._asked: dict[tuple[str, Path], asyncio.Task[Recorded]] = {}
        """Those that are listed yet: who asks meanwhile waits for the same."""
        self._under_way: set[asyncio.Task[Recorded]] = set()

    def look(self, interpreter: str) -> None:
        """Have it listed, before somebody asks."""
        self._interpreters.ask(interpreter)

    def known(self, interpreter: str, storage: Path) -> str:
        """The record of what starts now, where it is in that storage already; else nothing."""
        listing = self._interpreters.known(interpreter)
        if listing is None:
            return ""
        gpus = self._gpus()
        made = self._made.get(interpreter)
        if made is None or made.listing is not listing or made.gpus is not gpus:
            if len(self._made) >= INTERPRETERS_MAX:
                self._made.clear()
            record = hash_of(record_text(interpreter, listing, gpus))
            made = self._made[interpreter] = _Made(listing, gpus, record)
        return made.record if (storage, made.record) in self._kept else ""

    def ask(self, interpreter: str, storage: Path) -> asyncio.Task[Recorded]:
        """Have it made, once for all who ask meanwhile. It raises nothing."""
        return self._once(interpreter, storage, None)

    def ask_image(self, image: str, storage: Path) -> asyncio.Task[Recorded]:
        """The same of what runs in a container."""
        return self._once(image, storage, Listing(problem=f"its packages are those of the image {image}"))

    def _once(self, what: str, storage: Path, listing: Listing | None) -> asyncio.Task[Recorded]:
        asked = what, storage
        if asked not in self._asked:
            made = self._asked[asked] = asyncio.ensure_future(self._record(what, storage, listing))
            self._under_way.add(made)
            made.add_done_callback(self._under_way.discard)
        return self._asked[asked]

    async def close(self) -> None:
        """What is under way is given up."""
        under_way = list(self._under_way)
        for each in under_way:
            each.cancel()
        await asyncio.gather(*under_way, return_exceptions=True)
        self._interpreters.close()

    async def _listing(self, interpreter: str) -> Listing:
        """As it was after this call, or later."""
        for _ in range(2):  # one that was under way may have begun before a change
            found = await asyncio.shield(asyncio.wrap_future(self._interpreters.ask(interpreter)))
            if self._interpreters.known(interpreter) is found:  # and a change is told of now
                break
        return found

    async def _record(self, interpreter: str, storage: Path, listing: Listing | None) -> Recorded:
        try:
            async with asyncio.timeout(RECORD_S_MAX):
                try:
                    listing = listing or await self._listing(interpreter)
                finally:  # whoever asks from now on may have other packages
                    del self._asked[interpreter, storage]
                text = record_text(interpreter, listing, self._gpus())
                await asyncio.to_thread(_keep, storage, [text, listing.packages])
        except TimeoutError:
            return Recorded("", f"it took more than {RECORD_S_MAX:.0f} s")
        except (OSError, PacelineError) as error:
            log.warning("what runs in %s is not recorded: %s", interpreter, error)
            return Recorded("", str(error))
        record = hash_of(text)
        self._kept[storage, record] = None
        while len(self._kept) > _KEPT_MAX:
            self._kept.popitem(last=False)
        return Recorded(record)


def record_text(interpreter: str, listing: Listing, gpus: GpuReport) -> bytes:
    """Canonical JSON."""
    said = {
        "version": 1,
        "paceline": __version__,
        "interpreter": interpreter,
        "python": listing.python,
        "implementation": listing.implementation,
        "packages": listing.packages_hash,
        "packages_count": listing.count,
        "packages_left_out": listing.left_out,
        "problem": listing.problem,
        "libc": listing.libc,
        **_system(),
        "driver": gpus.driver_version,
        "cuda": gpus.cuda_version,
        "gpus": [device for gpu in gpus.gpus for device in _devices(gpu)],
    }
    return json.dumps(said, sort_keys=True, separators=(",", ":")).encode()


def _devices(gpu: Gpu) -> list[dict[str, Any]]:
    """What of it a task can have, by the index that the task is given it by."""
    names = {one.uuid: one.name for one in gpu.slices}
    return [
        {
            "index": index,
            "name": names.get(uuid, gpu.name),
            "uuid": uuid,
            "serial": gpu.serial,
            "slice_of": gpu.uuid if gpu.mig_enabled else "",
        }
        for index, uuid in gpu.devices.items()
    ]


@lru_cache(maxsize=1)
def _system() -> dict[str, str]:
    name = ""
    with contextlib.suppress(OSError):
        name = platform.freedesktop_os_release().get("PRETTY_NAME", "")
    system = os.uname()
    return {"machine": system.machine, "kernel": f"{system.sysname} {system.release}", "os": name}


def _keep(storage: Path, blobs: list[bytes]) -> None:
    """In a thread. Raises OSError, PacelineError."""
    if not storage.is_dir():  # never made here: it would be one that nobody else sees
        raise FileNotFoundError(f"the scheduler's storage folder {storage} is not on this node")
    pieces = [Piece(hash_of(blob), len(blob), 0, blob) for blob in blobs if blob]
    ContentStore(records_folder(storage)).put_pieces(pieces)
