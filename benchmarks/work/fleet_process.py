"""Some of a large fleet's nodes, in a process of their own: `python -m benchmarks.work.fleet_process
STATE ADDRESS FIRST COUNT AT_ONCE MEAN_S TOLD`.

They dial at most AT_ONCE at a time. Jobs last MEAN_S seconds in the mean, exponentially, each by its number:
so the tasks of a gang end together, although several processes hold them. How it stands is written to the
file TOLD once a second, as JSON. Ends with SIGTERM.
"""

import asyncio
import json
import math
import random
import sys
from collections.abc import Sequence
from pathlib import Path

from .fleet import Fleet, Lasting, SimNode


async def run(fleet: Fleet, at_once: int, told: Path) -> None:
    dialling = asyncio.create_task(dial(fleet, fleet.nodes, at_once))
    while True:
        if dialling.done():
            dialling.result()
        tell(fleet, told)
        await asyncio.sleep(1.0)


async def dial(fleet: Fleet, nodes: Sequence[SimNode], at_once: int) -> None:
    """All of them, at most so many at a time."""
    waiting: set[asyncio.Task[bool]] = set()
    for node in nodes:
        fleet.dial([node])
        waiting.add(asyncio.create_task(node.connected.wait()))
        if len(waiting) >= at_once:
            _, waiting = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)


def tell(fleet: Fleet, told: Path) -> None:
    """Whole or not at all."""
    nodes = fleet.nodes
    stands = {
        "connected": sum(node.connected.is_set() for node in nodes),
        "dials": sum(node.dials for node in nodes),
        "running": sum(len(node.tasks) for node in nodes),
        "ended": sum(node.ended for node in nodes),
        "doubled": len(fleet.doubled),
    }
    fresh = told.with_suffix(".new")
    fresh.write_text(json.dumps(stands))
    fresh.rename(told)


def lasting(mean_s: float) -> Lasting:
    return lambda job: -mean_s * math.log(1.0 - random.Random(job).random())


if __name__ == "__main__":
    state, address, first, count, at_once, mean_s, file = sys.argv[1:]
    made = Fleet(Path(state), address)
    made.add(int(count), 1, first=int(first), lasts_s=lasting(float(mean_s)))
    asyncio.run(run(made, int(at_once), Path(file)))
