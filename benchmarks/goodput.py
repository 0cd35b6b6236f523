"""goodput: a simulated month at the failure rates of Llama 3's report, with costs measured here.

Ours (staged in memory, published in the background, restarted warm) against restart from disk: `torchrun` and
a blocking `torch.save`, at the best interval of either. The costs are those of two ranks on this machine,
measured in the same run; what thousands of GPUs add to both (a collective library's start, a loaded file
system) is in neither.

Rates: "The Llama 3 Herd of Models" (arXiv:2407.21783), section 3.3.4: 466 interruptions in 54 days on 16,384
GPUs, 47 of them planned. Of the 419 others (table 5), 69 cost a process (54 software bugs, 7 watchdog
timeouts, 6 silent data corruptions, 2 dependencies); the rest are taken for the loss of a node.
Interval: Young, "A first order approximation to the optimum checkpoint interval", CACM 17(9), 1974.
"""

import math
import random
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from . import checkpoint, restart
from .cluster import Cluster
from .cluster import version as our_version
from .harness import Options, Report, Row, Sample, alternate, options
from .peers import torchrun

GPUS = (1_024, 4_096, 16_384, 65_536)
REPORTED = 16_384
MONTH_S = 30 * 86_400.0
PER_GPU_S = 466 / (54 * 86_400 * REPORTED)
PLANNED, PROCESS = 47 / 466, 69 / 466
STATE_MB = 500
PEER = "restart from disk"


@dataclass(frozen=True, slots=True)
class Costs:
    """What one side pays, in seconds."""

    stall: float
    """Training stands still for a save."""
    durable: float
    """From then until the loss of a node no longer costs it."""
    process: float
    """A process dies: to the next step, state loaded."""
    node: float
    """A node dies: to the next step, state loaded."""
    memory: bool
    """After the death of a process, the copy in its node's memory is used, durable or not."""


@dataclass(slots=True)
class Month:
    """Where its seconds went; they add up to MONTH_S."""

    productive: float = 0.0
    stalled: float = 0.0
    lost: float = 0.0
    restarting: float = 0.0

    @property
    def hours_lost(self) -> float:
        return (self.stalled + self.lost + self.restarting) / 3600


@dataclass(frozen=True, slots=True)
class Fault:
    at_s: float
    kind: str
    """planned | process | node"""


def faults(gpus: int, seed: int) -> Iterator[Fault]:
    """Independent of each other, at the report's rate per GPU."""
    dice = random.Random(seed)
    at_s = dice.expovariate(gpus * PER_GPU_S)
    while at_s < MONTH_S:
        share = dice.random()
        kind = "planned" if share < PLANNED else "process" if share < PLANNED + PROCESS else "node"
        yield Fault(at_s, kind)
        at_s += dice.expovariate(gpus * PER_GPU_S)


def interval_s(costs: Costs, gpus: int) -> float:
    """Young's: sqrt(2 x stall x mean time between failures); one save at a time."""
    return max(costs.durable, math.sqrt(2 * costs.stall / (gpus * PER_GPU_S)))


def month(costs: Costs, gpus: int, seed: int) -> Month:
    """Live through it, fault by fault. A fault in a restart begins the restart anew."""
    spent = Month()
    every_s = interval_s(costs, gpus)
    now_s = 0.0  # up to here all is accounted, and training goes from a checkpoint
    for fault in [*faults(gpus, seed), Fault(MONTH_S, "end")]:
        if fault.at_s < now_s:  # while it restarts
            spent.restarting -= now_s - fault.at_s
            now_s = fault.at_s
        else:
            _train(spent, costs, every_s, fault.at_s - now_s, fault.kind)
            now_s = fault.at_s
        if fault.kind != "end":
            restart_s = costs.process if fault.kind == "process" else costs.node
            spent.restarting += restart_s
            now_s += restart_s
    spent.restarting -= max(0.0, now_s - MONTH_S)
    return spent


def _train(spent: Month, costs: Costs, every_s: float, ran_s: float, end: str) -> None:
    """`ran_s` of training and saves, which `end` ended."""
    cycle_s = every_s + costs.stall
    saves, rest_s = divmod(ran_s, cycle_s)
    trained_s = saves * every_s + min(rest_s, every_s)
    stalled_s = ran_s - trained_s
    if end in ("planned", "end"):  # told in time: the last save is part of the notice
        last_s = min(costs.stall, trained_s) if end == "planned" else 0.0
        kept_s, stalled_s = trained_s - last_s, stalled_s + last_s
    else:
        since_s = 0.0 if end == "process" and costs.memory else costs.durable
        safe = saves if rest_s >= since_s else max(0.0, saves - math.ceil((since_s - rest_s) / cycle_s))
        kept_s = safe * every_s
    spent.productive += kept_s
    spent.lost += ran_s - stalled_s - kept_s
    spent.stalled += stalled_s


def main(argv: Sequence[str] | None = None) -> None:
    given = options("goodput", "A simulated month of faults, at costs measured here.", argv)
    report = Report("goodput", versions={"paceline": our_version(), "torch": torchrun.version()})
    ours, theirs = measured(report, given)
    shares: dict[int, tuple[Sample, Sample]] = {}
    for gpus in GPUS:
        months = [[month(costs, gpus, seed) for seed in range(given.pairs)] for costs in (ours, theirs)]
        case = f"{gpus:,} GPUs, 30 days"
        hours = [Sample(tuple(one.hours_lost for one in side)) for side in months]
        report.rows.append(Row(case, "not training", "h", hours[0], PEER, hours[1]))
        mine, peers = [Sample(tuple(100 * one.productive / MONTH_S for one in side)) for side in months]
        report.rows.append(Row(case, "goodput", "% of the time", mine, PEER, peers))
        shares[gpus] = mine, peers
    for name, costs in (("ours", ours), (PEER, theirs)):
        every = ", ".join(f"{interval_s(costs, gpus):.0f}" for gpus in GPUS)
        report.notes.append(
            f"{name}: a save stalls {costs.stall:.3f} s and is durable {costs.durable:.2f} s later; a process"
            f" lost costs {costs.process:.2f} s, a node {costs.node:.2f} s; a save every {every} s"
        )
    report.notes.append("costs of two ranks here; what thousands of GPUs add to both sides is in neither")
    report.finish(given, lambda path: draw(shares, path))


def measured(report: Report, given: Options) -> tuple[Costs, Costs]:
    """(Ours, restart from disk): medians of pairs."""
    with tempfile.TemporaryDirectory(prefix="bench-goodput-") as name:
        folder = Path(name)
        with Cluster(folder, agents=3, slots=restart.RANKS) as cluster:
            runs = restart.OurRuns(cluster, folder, steps=50 if given.quick else 150)
            process = alternate(
                given.pairs,
                runs.kill_rank,
                report.patient(torchrun.NAME, lambda: restart.torchrun_rank(folder)),
            )
            node = alternate(
                given.pairs,
                runs.kill_node,
                report.patient(torchrun.NAME, lambda: restart.torchrun_node(folder)),
            )
            report.notes.append(runs.verdict())
        megabytes = 20 if given.quick else STATE_MB
        (folder / "state").mkdir()
        with (
            tempfile.TemporaryDirectory(prefix="bench-goodput-", dir="/dev/shm") as memory,
            checkpoint.start_rank(folder / "state", Path(memory, "state"), megabytes) as rank,
        ):
            told: list[dict[str, float]] = []

            def stall() -> float:
                told.append(checkpoint.ask(rank, "ours"))
                return told[-1]["stall_s"]

            stalls = alternate(given.pairs, stall, lambda: float(checkpoint.ask(rank, "torch_save")))
            loads = alternate(
                given.pairs,
                lambda: float(checkpoint.ask(rank, "from_memory")),
                lambda: float(checkpoint.ask(rank, "from_disk")),
                lambda: float(checkpoint.ask(rank, "dcp_load")),
            )
            size_mb = float(checkpoint.ask(rank, "megabytes"))
    persist_s = size_mb / Sample(tuple(one["MB/s"] for one in told)).median
    report.notes.append(f"a state of {size_mb:.0f} MB a rank; its load is added to each restart")
    ours = Costs(
        stall=stalls[0].median,
        durable=persist_s,
        process=process[0].median + loads[0].median,
        node=node[0].median + loads[1].median,
        memory=True,
    )
    theirs = Costs(
        stall=stalls[1].median,
        durable=0.0,
        process=process[1].median + loads[2].median,
        node=node[1].median + loads[2].median,
        memory=False,
    )
    return ours, theirs


def draw(shares: dict[int, tuple[Sample, Sample]], path: Path) -> None:
    """Goodput over the number of GPUs."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    figure, panel = pyplot.subplots(figsize=(7, 4))
    for side, (name, colour) in enumerate((("paceline", "#2a6f97"), (PEER, "#b0b7bd"))):
        samples = [pair[side] for pair in shares.values()]
        panel.plot(list(shares), [one.median for one in samples], "o-", color=colour, label=name)
        panel.fill_between(
            list(shares), [one.low for one in samples], [one.high for one in samples], color=colour, alpha=0.3
        )
    panel.set_xscale("log", base=2)
    panel.set_xticks(list(shares), [f"{gpus:,}" for gpus in shares])
    panel.axvline(REPORTED, color="k", linewidth=0.5, linestyle=":")
    panel.set_xlabel("GPUs, each failing as often as in Llama 3's report (dotted: its run)")
    panel.set_ylabel("time spent on steps that count, %")
    panel.set_title(
        "Goodput of a simulated month, at restart and checkpoint costs measured here", fontsize=10
    )
    panel.legend()
    figure.tight_layout()
    figure.savefig(path)
    pyplot.close(figure)


if __name__ == "__main__":
    main()
