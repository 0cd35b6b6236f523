"""storage: ask + tell a second on studies that hold 1, 100, 1,000 and 10,000 trials already.

Ours is `paceline.StudyStorage` over gRPC on loopback, beside Optuna's own storages: SQLite, a journal file,
and memory (which keeps nothing). A trial samples two floats and a choice and is told one value. With the
random sampler nearly all of the time is the storage's; with TPE, Optuna's default, it is what a user sees.
`8 threads` ask and tell at once. Ours, SQLite and the journal have on disk what a call has written when it
returns. The first trial, which reads what is there, is not timed.
"""

import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from typing import Any

import optuna
import paceline
from optuna.distributions import CategoricalDistribution, FloatDistribution
from optuna.storages import BaseStorage, InMemoryStorage, JournalStorage, RDBStorage
from optuna.storages.journal import JournalFileBackend
from paceline.proto.generated import studies_pb2
from paceline.studies.codecs import trial_to

from .cluster import PACE
from .cluster import version as our_version
from .harness import Options, Report, Row, alternate, options
from .peers.processes import Crew
from .peers.work.waiting import wait_until

SIZES = (1, 100, 1_000, 10_000)
ASKS = 20
THREADS, THREADS_AT = 8, 100
SAMPLERS: dict[str, Callable[[int], Any]] = {
    "random": lambda seed: optuna.samplers.RandomSampler(seed=seed),
    "TPE": lambda seed: optuna.samplers.TPESampler(seed=seed),
}
PEERS = ("SQLite", "journal file", "memory")
DISTRIBUTIONS = {
    "x": FloatDistribution(0.0, 1.0),
    "lr": FloatDistribution(1e-5, 1.0, log=True),
    "kind": CategoricalDistribution(("sgd", "adam", "lion")),
}
OPS_AT_ONCE = 500


def main(argv: Sequence[str] | None = None) -> None:
    given = options("storage", "Ask + tell a second on Optuna's storages and ours.", argv)
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    report = Report("storage", versions={"paceline": our_version(), "optuna": optuna.__version__})
    with tempfile.TemporaryDirectory(prefix="bench-storage-") as name, scheduler(Path(name)) as state:
        for size in SIZES[:1] if given.quick else SIZES:
            storages = filled(Path(name), state, size)
            measure(report, given, size, "random", storages)
            if not given.quick:
                measure(report, given, size, "TPE", storages)
            if size == THREADS_AT:
                measure(report, given, size, "random", storages, threads=THREADS)
    report.finish(given)


def measure(
    report: Report, given: Options, size: int, sampler: str, storages: list[BaseStorage], *, threads: int = 1
) -> None:
    asks = 3 if given.quick else ASKS
    ours, *theirs = alternate(
        given.pairs, *(Asked(storage, size, sampler, asks, threads) for storage in storages)
    )
    case = f"{size:,} trials, {sampler}" + (f", {threads} threads" if threads > 1 else "")
    for peer, sample in zip(PEERS, theirs, strict=True):
        report.rows.append(Row(case, "ask + tell", "1/s", ours, peer, sample))


class Asked:
    """Asks and tells in the study of that size; what it adds stays there."""

    def __init__(self, storage: BaseStorage, size: int, sampler: str, asks: int, threads: int) -> None:
        self._storage = storage
        self._name = f"filled-{size}"
        self._sampler = SAMPLERS[sampler]
        self._asks = asks
        self._threads = threads
        self._seeds = count(1)

    def __call__(self) -> float:
        studies = [self._load() for _ in range(self._threads)]
        with ThreadPoolExecutor(self._threads) as threads:
            began = time.perf_counter()
            for done in [threads.submit(self._many, study) for study in studies]:
                done.result()
        return self._asks * self._threads / (time.perf_counter() - began)

    def _load(self) -> optuna.Study:
        sampler = self._sampler(next(self._seeds))
        study = optuna.load_study(study_name=self._name, storage=self._storage, sampler=sampler)
        self._one(study)
        return study

    def _many(self, study: optuna.Study) -> None:
        for _ in range(self._asks):
            self._one(study)

    def _one(self, study: optuna.Study) -> None:
        trial = study.ask()
        x = trial.suggest_float("x", 0.0, 1.0)
        lr = trial.suggest_float("lr", 1e-5, 1.0, log=True)
        kind = trial.suggest_categorical("kind", ("sgd", "adam", "lion"))
        study.tell(trial, x + lr + len(kind))


@contextmanager
def scheduler(folder: Path) -> Iterator[Path]:
    """Its state folder, while it serves."""
    state = folder / "state"
    with Crew(folder) as crew:
        crew.start("scheduler", [PACE, "scheduler", "--state", str(state), "--listen", "127.0.0.1:0"])
        wait_until((state / "scheduler.json").exists, "the scheduler serves")
        yield state


def filled(folder: Path, state: Path, size: int) -> list[BaseStorage]:
    """Ours and the peers', each with a study of that many finished trials; opened as a user would."""
    trials = [made(at) for at in range(size)]
    name = f"filled-{size}"
    ours = paceline.StudyStorage(state=state)
    fill_ours(ours, name, trials)
    url = f"sqlite:///{folder}/{size}.db"
    fill(unsafe(RDBStorage(url)), name, trials)
    journal = str(folder / f"{size}.log")
    fill(JournalStorage(JournalFileBackend(journal)), name, trials)
    memory = InMemoryStorage()
    fill(memory, name, trials)
    return [
        ours,
        optuna.storages.get_storage(url),
        JournalStorage(JournalFileBackend(journal)),
        memory,
    ]


def made(at: int) -> optuna.trial.FrozenTrial:
    share = (at * 0.618033988749895) % 1.0
    params = {"x": share, "lr": 1e-5 ** (1 - share), "kind": ("sgd", "adam", "lion")[at % 3]}
    return optuna.trial.create_trial(value=share, params=params, distributions=DISTRIBUTIONS)


def fill(storage: BaseStorage, name: str, trials: Sequence[optuna.trial.FrozenTrial]) -> None:
    study = optuna.create_study(study_name=name, storage=storage)
    for trial in trials:
        storage.create_new_trial(study._study_id, trial)


def fill_ours(storage: paceline.StudyStorage, name: str, trials: Sequence[optuna.trial.FrozenTrial]) -> None:
    study = optuna.create_study(study_name=name, storage=storage)
    for start in range(0, len(trials), OPS_AT_ONCE):
        ops = [
            studies_pb2.StudyOp(
                create_trial=studies_pb2.CreateTrial(key=f"fill-{start + at}", trial=trial_to(trial))
            )
            for at, trial in enumerate(trials[start : start + OPS_AT_ONCE])
        ]
        storage._link.call("Write", studies_pb2.WriteStudyRequest(study=study._study_id, ops=ops))


def unsafe(storage: RDBStorage) -> RDBStorage:
    """Only to fill it: without waiting for the disk."""
    from sqlalchemy import event

    def connected(connection: Any, _: object) -> None:
        connection.execute("PRAGMA synchronous=OFF")

    storage.engine.dispose()
    event.listen(storage.engine, "connect", connected)
    return storage


if __name__ == "__main__":
    main(sys.argv[1:])
