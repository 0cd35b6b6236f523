"""What became of each GPU: which are out of service, since when, why, how often, and when one comes back.

A GPU goes out of service by what the driver finds (a level) or told once (an XID, new ECC errors), and comes
back only when the driver asks for nothing any more and a test on it went well. `gpus.json` in the state
folder holds it, so that no restart of the agent makes a bad GPU good. Asks no driver and runs no test.
"""

import json
import logging
import threading
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Final

from ..spec.gpu_health import GpuState
from ..spec.xids import Blame, Remedy, Xid, xid_of
from .folder import BrokenFolder, write_file
from .gpu import Gpu

log = logging.getLogger(__name__)

_ORDER: Final = (GpuState.OK, GpuState.DRAINED, GpuState.QUARANTINED)


@dataclass(frozen=True, slots=True)
class Outage:
    """Why a GPU is out of service."""

    state: GpuState
    why: str
    since_us: int
    alarms: int = 0
    """How often something was heard of it since; a test during which that grows has not gone well."""
    failed_tests: int = 0
    last_test: str = ""
    """What the last one that failed said."""


@dataclass(frozen=True, slots=True)
class Record:
    """Of one GPU, known by its uuid; by its index when it never told one."""

    index: int
    ecc_uncorrected: int | None = None
    """As last read, so that errors which came while no agent ran are new ones."""
    outages: int = 0
    outage: Outage | None = None


@dataclass(frozen=True, slots=True)
class _Finding:
    state: GpuState
    why: str


def state_after(xid: Xid) -> GpuState:
    """What an XID means for its GPU. The program's own fault means nothing for it. One that NVIDIA says to
    ignore neither. Of a link's trouble, and of a number that nobody knows here, what runs there may die by
    itself and be restarted elsewhere, or go on: it only gets no new work."""
    if xid.blame is Blame.PROGRAM or xid.remedy is Remedy.NOTHING:
        return GpuState.OK
    return GpuState.QUARANTINED if xid.blame is Blame.DEVICE else GpuState.DRAINED


class HealthBook:
    """All records of one node. May be used from several threads."""

    def __init__(self, file: Path) -> None:
        """Raises BrokenFolder when the file is there and cannot be read."""
        self._file = file
        self._lock = threading.Lock()
        self._records = _load(file)
        self._saved = dict(self._records)

    def judge(self, gpu: Gpu, xids: Sequence[int], now_us: int) -> Gpu:
        """The GPU as it is to be told: what was read now, what was heard since the last look (0: a double-bit
        ECC error without a number), and what is remembered."""
        with self._lock:
            key = self._key(gpu)
            record = self._records.get(key, Record(gpu.index))
            heard = _heard(gpu, record, xids)
            record = _with_outage(record, gpu, heard, now_us)
            if gpu.ecc_uncorrected is not None:
                record = replace(record, ecc_uncorrected=gpu.ecc_uncorrected)
            self._records[key] = replace(record, index=gpu.index)
            return _told(gpu, record)

    def outage(self, gpu: Gpu) -> Outage | None:
        with self._lock:
            record = self._records.get(self._key(gpu))
            return record.outage if record is not None else None

    def on_tested(self, gpu: Gpu, tested: Outage, failure: str) -> None:
        """A test has ended that began when the outage was `tested`. `failure` empty: it went well, and the
        GPU is back, unless something was heard of it meanwhile."""
        with self._lock:
            key = self._key(gpu)
            record = self._records[key]
            if record.outage is None or record.outage.alarms != tested.alarms:
                return
            if failure:
                outage = replace(
                    record.outage, failed_tests=record.outage.failed_tests + 1, last_test=failure[:200]
                )
                self._records[key] = replace(record, outage=outage)
            else:
                self._records[key] = replace(record, outage=None)

    def save(self) -> None:
        """Make durable what has changed. When the disk takes nothing, it is tried again at the next look."""
        with self._lock:
            if self._records == self._saved:
                return
            text = json.dumps({key: asdict(record) for key, record in self._records.items()}, indent=1)
            try:
                write_file(self._file, text + "\n")
            except BrokenFolder as error:
                log.error("%s: a restart of the agent would forget which GPUs are bad", error)
                return
            self._saved = dict(self._records)

    def _key(self, gpu: Gpu) -> str:
        if gpu.uuid:
            return gpu.uuid
        by_index = (key for key, record in self._records.items() if record.index == gpu.index)
        return next(by_index, f"index {gpu.index}")


def _heard(gpu: Gpu, record: Record, xids: Sequence[int]) -> list[_Finding]:
    """What took it out of service and may not be seen again."""
    found = []
    for number in xids:
        if number == 0:
            why = "double-bit ECC error: memory is not to be trusted"
            found.append(_Finding(GpuState.QUARANTINED, why))
            continue
        xid = xid_of(number)
        remedy = f"; needs a {xid.remedy}" if xid.remedy in (Remedy.RESET, Remedy.REBOOT) else ""
        found.append(_Finding(state_after(xid), f"{xid}{remedy}"))
    errors, before = gpu.ecc_uncorrected, record.ecc_uncorrected
    if errors is not None and before is not None and errors > before:
        why = f"{errors - before} new uncorrected ECC errors ({errors} since the driver was loaded)"
        found.append(_Finding(GpuState.QUARANTINED, why))
    return [one for one in found if one.state is not GpuState.OK]


def _with_outage(record: Record, gpu: Gpu, heard: Sequence[_Finding], now_us: int) -> Record:
    level = [_Finding(gpu.state, gpu.health)] if gpu.state is not GpuState.OK else []
    if not heard and not level:
        return record
    # Of equals the first heard, which is the cause of those that follow; what was heard before what is seen.
    worst = max([*heard, *level], key=lambda one: _ORDER.index(one.state))
    outage = record.outage
    if outage is None:
        log.warning("GPU %d is %s: %s", gpu.index, worst.state, worst.why)
        outage = Outage(worst.state, worst.why, now_us)
        record = replace(record, outages=record.outages + 1)
    elif _ORDER.index(worst.state) > _ORDER.index(outage.state):
        log.warning("GPU %d is %s now: %s", gpu.index, worst.state, worst.why)
        outage = replace(outage, state=worst.state, why=worst.why)
    return replace(record, outage=replace(outage, alarms=outage.alarms + len(heard)))


def _told(gpu: Gpu, record: Record) -> Gpu:
    outage = record.outage
    if outage is None:
        return replace(gpu, quarantines=record.outages)
    parts = [outage.why]
    if gpu.needs and gpu.needs not in outage.why:
        parts.append(f"needs {gpu.needs}" if gpu.health == "ok" else gpu.health)
    if outage.failed_tests:
        times = "once" if outage.failed_tests == 1 else f"{outage.failed_tests} times"
        parts.append(f"failed its test {times}: {outage.last_test}")
    return replace(
        gpu,
        state=outage.state,
        health="; ".join(parts),
        since_us=outage.since_us,
        quarantines=record.outages,
    )


def _load(file: Path) -> dict[str, Record]:
    try:
        text = file.read_text()
    except FileNotFoundError:
        return {}
    except OSError as error:
        raise BrokenFolder(f"{file} cannot be read: {error}") from error
    try:
        return {key: _record(found) for key, found in json.loads(text).items()}
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise BrokenFolder(
            f"{file} does not hold what is known of this node's GPUs: {error!r}",
            hint="Restore it, or remove it: then GPUs that were quarantined are offered again.",
        ) from error


def _record(found: dict[str, object]) -> Record:
    record = Record(**found)  # type: ignore[arg-type]
    if record.outage is None:
        return record
    outage = Outage(**record.outage)  # type: ignore[arg-type]
    return replace(record, outage=replace(outage, state=GpuState(outage.state)))
