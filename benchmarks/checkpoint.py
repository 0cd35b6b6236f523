"""checkpoint: how long training stands still for a save, how fast it is on disk, and how fast it comes back.

One rank, a model and AdamW's moments in float32, the same tensors for all. Ours is run.save and run.restore,
hashes and all; persisting counts from the end of the copy until the checkpoint is durable under its name
(what is deleted of older ones is in nobody's time). The floors: memcpy is torch's copy_ of each tensor;
direct write+fsync is the faster raw way, past the page cache (O_DIRECT); read is a plain one of files of
which the page cache has nothing. With `--device cuda` the state is on the GPU, memcpy is the copy into pinned
memory that is there (of a restore: out of it), and DCP's async_save is also measured with a stager that keeps
such memory.
"""

import shutil
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from .cluster import version as our_version
from .harness import Options, Report, Row, Sample, alternate, parser, read
from .peers.work.driver import Driver

SCRIPT = Path(__file__).parent / "work" / "checkpoint_rank.py"
SIZES_MB = (100, 500, 2000)
SLOWED_MB = 500
SAVE_EVERY_S = 30.0
WINDOW_S = 8.0
"""Training is timed for so long before a save, from it on, and after that."""
_ASK_S = 600.0
ASYNC = {"dcp.async_save thread": "thread", "dcp.async_save process": "process"}
PINNED = {"dcp.async_save pinned": "pinned"}


def main(argv: Sequence[str] | None = None) -> None:
    reader = parser("checkpoint", "Stall, persistence and restore of a checkpoint, beside torch's.")
    reader.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="where the state is")
    reader.add_argument("--megabytes", type=int, nargs="+", metavar="MB", help="its sizes")
    parsed = reader.parse_args(argv)
    given, device = read(reader, parsed), parsed.device
    report = Report("checkpoint", versions={"paceline": our_version(), "torch": version("torch")})
    with (
        tempfile.TemporaryDirectory(prefix="bench-checkpoint-") as name,
        tempfile.TemporaryDirectory(prefix="bench-checkpoint-", dir="/dev/shm") as memory,
    ):
        for megabytes in parsed.megabytes or ((20,) if given.quick else SIZES_MB):
            folder = Path(name, str(megabytes))
            folder.mkdir()
            with start_rank(folder, Path(memory, str(megabytes)), megabytes, device) as rank:
                case = f"{ask(rank, 'megabytes'):.0f} MB" + (" on the GPU" if device == "cuda" else "")
                asyncs = ASYNC | (PINNED if device == "cuda" and ask(rank, "keeps_stager") else {})
                saving(report, given, rank, case, asyncs)
                restoring(report, given, rank, case)
                if megabytes == SLOWED_MB or given.quick:
                    slowed(report, given, rank, case)
            shutil.rmtree(Path(memory, str(megabytes)))
    report.notes.append("restores from disk find nothing in the page cache")
    if device == "cuda" and asyncs == ASYNC:
        report.left_out(
            "dcp.async_save with a stager that keeps pinned memory: this torch's does not keep it"
        )
    report.finish(given)


def saving(report: Report, given: Options, rank: Driver, case: str, asyncs: Mapping[str, str]) -> None:
    rates: dict[str, list[float]] = {"ours": [], "dcp.save": []}

    def both(operation: str, name: str) -> Callable[[], float]:
        def measure() -> float:
            told: dict[str, float] = ask(rank, operation)
            rates[name].append(told["MB/s"])
            return told["stall_s"]

        return measure

    names = ["torch.save", "dcp.save", *asyncs]
    ours, floor, direct, write, *peers = alternate(
        given.pairs,
        both("ours", "ours"),
        lambda: float(ask(rank, "memcpy")),
        lambda: float(ask(rank, "write_direct")),
        lambda: float(ask(rank, "write")),
        lambda: float(ask(rank, "torch_save")),
        both("dcp_save", "dcp.save"),
        *(lambda kind=kind: float(ask(rank, "async_save", kind=kind)) for kind in asyncs.values()),
    )
    for name, peer in zip(names, peers, strict=True):
        report.rows.append(Row(case, "stall", "s", ours, name, peer, "memcpy", floor))
    persist, theirs = (Sample(tuple(rates[name])) for name in ("ours", "dcp.save"))
    report.rows.append(
        Row(case, "persist", "MB/s", persist, "dcp.save", theirs, "direct write+fsync", direct)
    )
    report.rows.append(Row(case, "persist", "MB/s", persist, "write+fsync", write))


def restoring(report: Report, given: Options, rank: Driver, case: str) -> None:
    memory, disk, load, read, copy = alternate(
        given.pairs,
        *(
            lambda name=name: float(ask(rank, name))
            for name in ("from_memory", "from_disk", "dcp_load", "read", "memcpy_back")
        ),
    )
    report.rows.append(Row(case, "restore from memory", "s", memory, "ours from disk", disk, "memcpy", copy))
    report.rows.append(Row(case, "restore from memory", "s", memory, "dcp.load from disk", load))
    report.rows.append(Row(case, "restore from disk", "s", disk, "dcp.load from disk", load, "read", read))


def slowed(report: Report, given: Options, rank: Driver, case: str) -> None:
    """What one save in SAVE_EVERY_S leaves of training, beside what the same measurement finds without it."""
    window_s = 1.0 if given.quick else WINDOW_S

    def left(*, saves: bool) -> float:
        return 100 - 100 * float(ask(rank, "lost", seconds=window_s, saves=saves)) / SAVE_EVERY_S

    taken = alternate(given.pairs, lambda: left(saves=True), lambda: left(saves=False))
    metric = f"training beside one save in {SAVE_EVERY_S:.0f} s"
    report.rows.append(Row(case, metric, "% of the time", taken[0], "without a save", taken[1]))


def start_rank(folder: Path, memory: Path, megabytes: int, device: str = "cpu") -> Driver:
    command = [sys.executable, str(SCRIPT), str(folder), str(memory), str(megabytes), device]
    return Driver("rank", command, folder, {})


def ask(rank: Driver, operation: str, **arguments: object) -> Any:
    return rank.ask(operation, timeout_s=_ASK_S, **arguments)


if __name__ == "__main__":
    main()
