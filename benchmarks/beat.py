"""beat: what seeing a rank's steps costs it, by the smallest step there is: SGD on five numbers, on a CPU.

The peer is the same loop without the hook; the beat's own row has nothing around it.
"""

import os
import sys
import tempfile
import time
from collections.abc import Sequence
from typing import Any

from .cluster import version as our_version
from .harness import Options, Report, Row, alternate, options
from .peers import torchrun


def main(argv: Sequence[str] | None = None) -> None:
    given = options("beat", "The cost of a heartbeat, in each step of an optimizer.", argv)
    with tempfile.TemporaryDirectory(prefix="bench-beat-") as folder:
        os.environ |= {"PACELINE_TASK_FOLDER": folder, "LOCAL_RANK": "0"}
        _measure(given).finish(given)


def _measure(given: Options) -> Report:
    import torch
    from paceline.proto.beats import BEAT
    from paceline.training import steps

    torch.set_num_threads(1)
    model = torch.nn.Linear(4, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    model(torch.ones(2, 4)).sum().backward()
    rounds = 2_000 if given.quick else 50_000

    def with_the_hook() -> float:
        steps.watch_training()
        try:
            return _ns(optimizer.step, rounds)
        finally:
            steps._watched.pop().remove()

    with_the_hook()
    ours, theirs, alone = alternate(
        given.pairs, with_the_hook, lambda: _ns(optimizer.step, rounds), lambda: _ns(BEAT.stepped, rounds)
    )
    report = Report("beat", versions={"paceline": our_version(), "torch": torchrun.version()})
    report.rows.append(Row("the smallest optimizer step", "time", "ns", ours, "without", theirs))
    report.rows.append(Row("the beat alone", "time", "ns", alone))
    return report


def _ns(do: Any, rounds: int) -> float:
    begun = time.perf_counter()
    for _ in range(rounds):
        do()
    return (time.perf_counter() - begun) / rounds * 1e9


if __name__ == "__main__":
    main(sys.argv[1:])
