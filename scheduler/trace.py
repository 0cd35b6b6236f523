"""A trace replayed on a described cluster: `python -m paceline.scheduler.trace FILE NODES GPUS UNTIL_S [-]`.

FILE is CSV with a header: submit_s, duration_s, gpus, and perhaps user, name and queue. What it comes to goes
to stdout as one JSON object: `as_is` and, with a policy's canonical JSON on stdin (`-`), `changed`; progress
goes to stderr. Queues count where the policy has queues. Nothing is drawn: a trace says how long its jobs
ran. A job that wants more GPUs than a node has is a gang on several nodes.
"""

import csv
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import msgspec

from ..spec.errors import InvalidRequest, PacelineError
from ..spec.ids import JobId, Micros, NodeId
from ..spec.policy_reading import parse_canonical_policy
from ..spec.resources import GangDemand, Resources
from .core import stimuli as s
from .core.admin_stimuli import ApplyPolicy
from .core.cluster_policy import NO_POLICY, ClusterPolicy
from .core.job import Job, Shape
from .core.node import NodeGpu, NodeInventory
from .core.settings import SECOND_US, Settings
from .forecast import HORIZON_US
from .outlook import Draw, gpus_in_service, mark, outlook
from .policies import core_policy
from .rehearsal import PIT_STOP, DryEngine, PitStop, Rehearsal, Steady, silent
from .store.base import Loaded

ROWS_MAX: Final = 1_000_000
TELL_S: Final = 2.0
_COLUMNS: Final = ("submit_s", "duration_s", "gpus")
_NODE: Final = Resources(cpu_milli=1_000_000, memory_bytes=1 << 50)


@dataclass(frozen=True, slots=True)
class Arrival:
    """`tasks` equal parts with so many GPUs each."""

    submit_s: float
    duration_s: float
    tasks: int
    gpus: int
    user: str = "trace"
    name: str = "job"
    queue: str = ""


class Replay:
    """Jobs get the numbers 1, 2, ... in the order of their submission."""

    def __init__(
        self,
        arrivals: Sequence[Arrival],
        nodes: int,
        gpus: int,
        pit_stop: PitStop = PIT_STOP,
        policy: ClusterPolicy = NO_POLICY,
    ) -> None:
        """`arrivals` in the order of their submission."""
        self._arrivals = arrivals
        self._has_queues = bool(policy.queues)
        self._at = 0
        engine = DryEngine(Loaded(0, JobId(0), Micros(0), ()), silent(Settings(jobs_max=ROWS_MAX)))
        self.rehearsal = Rehearsal(engine, Micros(0), Steady(self._lasts_us, pit_stop), pit_stop)
        self.rehearsal.tell(ApplyPolicy("policy", "trace", policy))
        self.rehearsal.tell(*(_hello(number, gpus) for number in range(1, nodes + 1)))

    def advance(self, until_us: int = HORIZON_US * 1000) -> bool:
        """On to the next arrival or event; False: none until then."""
        if self._at == len(self._arrivals):
            return self.rehearsal.advance(until_us)
        arrival_us = round(self._arrivals[self._at].submit_s * SECOND_US)
        next_us = self.rehearsal.next_us
        if next_us is not None and next_us <= min(arrival_us, until_us):
            return self.rehearsal.advance(until_us)
        if arrival_us > until_us:
            return False
        self.rehearsal.go_to(Micros(max(arrival_us, self.rehearsal.now_us)))
        self._submit(self._arrivals[self._at])
        return True

    @property
    def all_came(self) -> bool:
        return self._at == len(self._arrivals)

    @property
    def over(self) -> bool:
        return self.all_came and not self.rehearsal.engine.state.jobs

    def _submit(self, arrival: Arrival) -> None:
        self._at += 1
        demand = GangDemand(
            Resources(gpus=arrival.gpus),
            arrival.tasks,
            instance_count_min=arrival.tasks,
            instance_count_max=arrival.tasks,
        )
        queue = arrival.queue if self._has_queues else ""
        new = s.NewJob(arrival.name, 0, Shape(demand, queue=queue), "{}")
        self.rehearsal.tell(s.Submit(str(self._at), arrival.user, (new,)))

    def _lasts_us(self, job: Job) -> int:
        return round(self._arrivals[job.number - 1].duration_s * SECOND_US)


def simulate(
    arrivals: Sequence[Arrival],
    cluster: tuple[int, int],
    until_us: int,
    tell: Callable[[int], None],
    policy: ClusterPolicy = NO_POLICY,
) -> dict[str, object]:
    """What it comes to on so many nodes of so many GPUs. Raises InvalidRequest for a job that they could
    never run, and what a refused submission raises."""
    nodes, gpus = cluster
    largest = max(arrivals, key=lambda one: one.tasks)
    if largest.tasks > nodes:
        raise InvalidRequest(
            f"a job of the trace wants {largest.tasks * largest.gpus} GPUs on {largest.tasks} nodes; "
            f"the cluster has {nodes}",
            hint="describe a larger cluster with --nodes and --gpus",
        )
    replay = Replay(arrivals, nodes, gpus, policy=policy)
    rehearsal = replay.rehearsal
    numbers = range(1, len(arrivals) + 1)
    draw = Draw(
        rehearsal.course,
        {JobId(n): Micros(round(arrivals[n - 1].submit_s * SECOND_US)) for n in numbers},
        {JobId(n): arrivals[n - 1].tasks * arrivals[n - 1].gpus for n in numbers},
        frozenset(),
        Micros(0),
        Micros(0),
        gpus_in_service(rehearsal.engine.state),
    )
    mark(rehearsal, draw)
    while not replay.over and replay.advance(until_us):
        mark(rehearsal, draw)
        tell(len(rehearsal.course.ended_us))
    told = outlook([draw])
    return {
        **{name: round(getattr(told, name)) for name in ("jobs", "started", "ended", "stops")},
        **{name: getattr(told, name) for name in _TOLD},
        "classes": [
            {"name": one.name, "jobs": one.jobs, "wait_mean_s": one.mean_s, "wait_p95_s": one.p95_s}
            for one in told.classes
        ],
        "points": [msgspec.structs.asdict(point) for point in told.points],
        "draws": 1,
        "cut": _cut(replay, until_us),
    }


def _cut(replay: Replay, until_us: int) -> str:
    if replay.over:
        return ""
    if not replay.all_came or replay.rehearsal.busy:
        return f"cut {until_us / 3600e6:g} h after the trace's begin"
    waits = len(replay.rehearsal.engine.state.jobs)
    return (
        f"{waits} job{'s' if waits > 1 else ''} can never start: what the policy lets them have is too little"
    )


_TOLD: Final = ("wait_mean_s", "wait_median_s", "wait_p95_s", "jct_mean_s", "gpu_allocation", "span_s")


def read_trace(path: Path, node_gpus: int) -> list[Arrival]:
    """In the order of submission. Raises InvalidRequest naming the line."""
    try:
        with path.open(newline="") as file:
            reader = csv.DictReader(file)
            missing = [name for name in _COLUMNS if name not in (reader.fieldnames or ())]
            if missing:
                raise InvalidRequest(
                    f"{path} has no column {', '.join(missing)}",
                    hint="expected a header line: submit_s,duration_s,gpus[,user,name,queue]",
                )
            arrivals = [_arrival(path, number, row, node_gpus) for number, row in enumerate(reader, 2)]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise InvalidRequest(f"cannot read the trace {path}: {error}") from None
    if not 1 <= len(arrivals) <= ROWS_MAX:
        raise InvalidRequest(f"{path} has {len(arrivals)} jobs; expected 1 to {ROWS_MAX:,}")
    return sorted(arrivals, key=lambda one: one.submit_s)


def _arrival(path: Path, line: int, row: dict[str, str], node_gpus: int) -> Arrival:
    try:
        submit_s, duration_s = float(row["submit_s"]), float(row["duration_s"])
        gpus = int(row["gpus"])
        if not (0 <= submit_s < 1e9 and 0 <= duration_s < 1e9 and 0 < gpus < 100_000):
            raise ValueError("out of range")
    except (TypeError, ValueError) as error:
        raise InvalidRequest(
            f"{path}, line {line}: {error}; expected times in seconds and a whole number of GPUs from 1 on"
        ) from None
    tasks = -(-gpus // node_gpus)
    user, name, queue = row.get("user") or "trace", row.get("name") or "job", row.get("queue") or ""
    return Arrival(submit_s, duration_s, tasks, -(-gpus // tasks), user, name, queue)


def _hello(number: int, gpus: int) -> s.Hello:
    name = f"node-{number:05}"
    inventory = NodeInventory(
        name,
        f"{name}.test",
        Resources(_NODE.cpu_milli, _NODE.memory_bytes, gpus),
        tuple(NodeGpu(index, "GPU") for index in range(gpus)),
    )
    return s.Hello(NodeId(name), number, "boot", inventory)


class _Progress:
    def __init__(self, jobs: int) -> None:
        self._jobs = jobs
        self._told_s = time.monotonic()

    def __call__(self, ended: int) -> None:
        if time.monotonic() - self._told_s >= TELL_S:
            self._told_s = time.monotonic()
            sys.stderr.write(f"{ended:,} of {self._jobs:,} jobs have ended ...\n")


def main() -> None:
    path, cluster, until_s = Path(sys.argv[1]), (int(sys.argv[2]), int(sys.argv[3])), float(sys.argv[4])
    told: dict[str, object]
    try:
        texts = [sys.stdin.read()] if sys.argv[5:] else []
        policies = [core_policy(parse_canonical_policy(text, "policy")) for text in texts]
        arrivals = read_trace(path, cluster[1])
        until_us = round(until_s * SECOND_US) or HORIZON_US * 1000
        sides = [
            simulate(arrivals, cluster, until_us, _Progress(len(arrivals)), policy)
            for policy in (NO_POLICY, *policies)
        ]
        told = dict(zip(("as_is", "changed"), sides, strict=False))
    except PacelineError as error:
        told = {"error": error.message, "hint": error.hint}
    sys.stdout.buffer.write(msgspec.json.encode(told))


if __name__ == "__main__":
    main()
