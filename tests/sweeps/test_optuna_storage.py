"""`StudyStorage` is an Optuna storage, by Optuna's own tests, against a real scheduler over gRPC.

And what those do not ask: threads and processes, a scheduler that dies, sweeps that the scheduler drives.
"""

import json
import pickle
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import optuna
import paceline
import pytest
from optuna.distributions import FloatDistribution, distribution_to_json
from optuna.exceptions import DuplicatedStudyError, UpdateFinishedTrialError
from optuna.storages import BaseStorage
from optuna.study import StudyDirection
from optuna.testing.pytest_storages import StorageTestCase
from optuna.trial import FrozenTrial, TrialState
from paceline.scheduler.sweeps.ops import CreateStudy, CreateTrial, StudyOps
from paceline.scheduler.sweeps.study import NewTrial, Param, SweepState
from paceline.scheduler.sweeps.study import TrialState as TrialStateHere
from paceline.spec.errors import Conflict, Unavailable
from support.studies import SchedulerProcess, Served, served

optuna.logging.set_verbosity(optuna.logging.WARNING)
MINIMIZE = [StudyDirection.MINIMIZE]


@pytest.fixture(scope="module")
def scheduler(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    with served(tmp_path_factory.mktemp("state")) as scheduler:
        yield scheduler


@pytest.fixture
def storage(scheduler: Served) -> Iterator[paceline.StudyStorage]:
    """Empty at first."""
    storage = paceline.StudyStorage(state=scheduler.state)
    for study in storage.get_all_studies():
        storage.delete_study(study._study_id)
    yield storage
    storage.close()


class TestStudyStorage(StorageTestCase):
    """Optuna's own."""


def test_importing_paceline_imports_neither_optuna_nor_grpc() -> None:
    code = "import paceline, sys; assert not {'optuna', 'grpc'} & set(sys.modules); paceline.StudyStorage"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_without_optuna_it_says_what_to_install() -> None:
    code = (
        "import sys; sys.modules['optuna'] = None\n"
        "import paceline\n"
        "try: paceline.StudyStorage\n"
        "except ModuleNotFoundError as error: assert 'paceline[sweeps]' in str(error)\n"
        "else: raise AssertionError\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


class Counted:
    """How often each method of the service was called."""

    def __init__(self, storage: paceline.StudyStorage, monkeypatch: pytest.MonkeyPatch) -> None:
        self.calls: list[str] = []
        plain = storage._link.call

        def call(method: str, request: Any, **more: Any) -> Any:
            self.calls.append(method)
            return plain(method, request, **more)

        monkeypatch.setattr(storage._link, "call", call)


def test_only_what_has_changed_is_read(
    storage: paceline.StudyStorage, monkeypatch: pytest.MonkeyPatch
) -> None:
    study = storage.create_new_study(MINIMIZE)
    made = [storage.create_new_trial(study) for _ in range(3)]
    storage.set_trial_state_values(made[0], TrialState.COMPLETE, [1.0])
    before = storage.get_all_trials(study, deepcopy=False)
    counted = Counted(storage, monkeypatch)
    assert storage.get_trial(made[0]) is before[0]
    assert counted.calls == []
    storage.set_trial_intermediate_value(made[2], 1, 0.5)
    storage.set_trial_intermediate_value(made[2], 2, 0.25)
    after = storage.get_all_trials(study, deepcopy=False)
    assert counted.calls == ["Write", "Write", "Read"]
    assert [new is old for new, old in zip(after, before, strict=True)] == [True, True, False]
    assert after[2].intermediate_values == {1: 0.5, 2: 0.25} and before[2].intermediate_values == {}
    assert storage.get_study_name_from_id(study) == storage.get_study_name_from_id(study)
    assert counted.calls == ["Write", "Write", "Read"]


class NotedLock:
    """Says that somebody wants it, before they have it."""

    def __init__(self) -> None:
        self.wanted = threading.Semaphore(0)
        self._lock = threading.Lock()

    def __enter__(self) -> None:
        self.wanted.release()
        self._lock.acquire()

    def __exit__(self, *_: object) -> None:
        self._lock.release()


def test_threads_that_wait_for_a_read_share_the_next_that_succeeds(
    storage: paceline.StudyStorage, monkeypatch: pytest.MonkeyPatch
) -> None:
    known = storage._known(storage.create_new_study(MINIMIZE))
    lock, go, reads = NotedLock(), threading.Event(), []
    plain = storage._link.call

    def call(method: str, request: Any, **more: Any) -> Any:
        reads.append(method)
        assert go.wait(30)
        if len(reads) == 2:
            raise Unavailable("the second fails")
        return plain(method, request, **more)

    monkeypatch.setattr(storage._link, "call", call)
    monkeypatch.setattr(known, "_lock", lock)
    with ThreadPoolExecutor(4) as pool:
        asked = []
        for _ in range(4):
            asked.append(pool.submit(known.refresh))
            assert lock.wanted.acquire(timeout=30)
        go.set()
        failed = [one.exception(30) for one in asked]
    assert len(reads) == 3, "one, one that failed, and one for both others"
    assert [type(error) for error in failed if error is not None] == [Unavailable]


def test_who_tells_a_trial_knows_it_then(
    storage: paceline.StudyStorage, monkeypatch: pytest.MonkeyPatch
) -> None:
    study = storage.create_new_study(MINIMIZE)
    made = [storage.create_new_trial(study) for _ in range(2)]
    storage.get_all_trials(study)
    other = paceline.StudyStorage(state=storage._link.settings.state)
    other.set_trial_user_attr(made[1], "by", "another")
    other.set_trial_user_attr(made[0], "by", "another")
    counted = Counted(storage, monkeypatch)
    storage.set_trial_state_values(made[1], TrialState.COMPLETE, [1.0])
    told = storage.get_trial(made[1])
    assert (told.value, told.user_attrs) == (1.0, {"by": "another"})
    assert counted.calls == ["Write"]
    assert storage.get_trial(made[0]).user_attrs == {"by": "another"}
    other.close()


def test_thousands_of_trials_are_read_page_by_page(
    scheduler: Served, storage: paceline.StudyStorage, monkeypatch: pytest.MonkeyPatch
) -> None:
    study = storage.create_new_study(MINIMIZE)
    x = Param(0.5, distribution_to_json(FloatDistribution(0, 1)))
    new = NewTrial(
        TrialStateHere.COMPLETE, {"x": x}, (1.0,), dict.fromkeys(range(20), 1.0), {"a": f'"{"a" * 2_000}"'}
    )
    ops = tuple(CreateTrial(new, f"k{at}") for at in range(1_200))
    scheduler.run(scheduler.wired.made.loop.submit(StudyOps(study, ops)))
    counted = Counted(storage, monkeypatch)
    found = storage.get_all_trials(study, deepcopy=False)
    assert counted.calls.count("Read") == 6
    assert [trial.number for trial in found] == list(range(1_200))
    assert all(trial.params == {"x": 0.5} and len(trial.intermediate_values) == 20 for trial in found)
    assert len({id(trial.distributions["x"]) for trial in found}) == 1


def test_threads_share_one(storage: paceline.StudyStorage) -> None:
    study = optuna.create_study(storage=storage, sampler=optuna.samplers.RandomSampler(seed=1))

    def objective(trial: optuna.Trial) -> float:
        x = trial.suggest_float("x", 0, 1)
        for step in range(3):
            trial.report(x * step, step)
        trial.set_user_attr("thread", threading.get_ident())
        return x

    study.optimize(objective, n_trials=60, n_jobs=6)
    assert [trial.number for trial in study.trials] == list(range(60))
    for trial in study.trials:
        assert trial.value == trial.params["x"] and len(trial.intermediate_values) == 3
        assert "thread" in trial.user_attrs


def test_a_pickled_one_connects_anew(storage: paceline.StudyStorage) -> None:
    study = optuna.create_study(storage=storage, study_name="pickled")
    study.ask()
    again: paceline.StudyStorage = pickle.loads(pickle.dumps(storage))
    assert again.get_all_trials(study._study_id)[0].state is TrialState.RUNNING
    assert again._link is not storage._link
    again.close()
    assert len(pickle.loads(pickle.dumps(study)).trials) == 1


def test_a_forked_process_makes_its_own_connection(storage: paceline.StudyStorage) -> None:
    study = storage.create_new_study(MINIMIZE)
    storage.create_new_trial(study)
    assert len(storage.get_all_trials(study)) == 1
    code = (
        "import os, paceline, sys\n"
        "from optuna.trial import TrialState\n"
        f"storage = paceline.StudyStorage(state={str(storage._link.settings.state)!r})\n"
        f"[first] = storage.get_all_trials({study})\n"
        "child = os.fork()\n"
        "if child == 0:\n"
        "    storage.set_trial_state_values(first._trial_id, TrialState.COMPLETE, [1.0])\n"
        f"    storage.create_new_trial({study})\n"
        "    os._exit(0)\n"
        "assert os.waitpid(child, 0)[1] == 0\n"
        f"first, second = storage.get_all_trials({study})\n"
        "assert first.value == 1.0 and second.state is TrialState.RUNNING\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_a_study_that_another_process_has_deleted_is_gone(storage: paceline.StudyStorage) -> None:
    study = storage.create_new_study(MINIMIZE, "gone")
    trial = storage.create_new_trial(study)
    other = paceline.StudyStorage(state=storage._link.settings.state)
    assert len(other.get_all_trials(study)) == 1
    storage.delete_study(study)
    gone: list[Callable[[], object]] = [
        lambda: other.get_all_trials(study),
        lambda: other.get_trial(trial),
        lambda: other.create_new_trial(study),
        lambda: other.set_trial_param(trial, "x", 0.5, FloatDistribution(0, 1)),
        lambda: other.set_study_user_attr(study, "a", 1),
        lambda: other.get_study_id_from_name("gone"),
        lambda: other.delete_study(study),
    ]
    for call in gone:
        with pytest.raises(KeyError):
            call()
    other.close()


@pytest.mark.parametrize("value", [{"a": {1, 2}}, object()])
def test_an_attribute_that_is_no_json_is_refused_here(storage: paceline.StudyStorage, value: object) -> None:
    study = storage.create_new_study(MINIMIZE)
    with pytest.raises(TypeError):
        storage.set_study_user_attr(study, "a", value)
    assert storage.get_study_user_attrs(study) == {}


def test_a_scheduler_that_is_not_there_is_said_so(tmp_path: Path) -> None:
    with pytest.raises(Unavailable, match="no scheduler is known here"):
        paceline.StudyStorage(state=tmp_path)
    storage = paceline.StudyStorage("127.0.0.1:1", token="x" * 40, patience_s=0.2)
    with pytest.raises(Unavailable, match="cannot be reached"):
        storage.get_all_studies()


# --- sweeps that the scheduler drives


@pytest.fixture
def sweep(scheduler: Served, storage: paceline.StudyStorage) -> Iterator[optuna.Study]:
    """Live while the test runs; nobody drives it."""
    loop = scheduler.wired.made.loop
    asked = CreateStudy("", "sweep", ("minimize",), "ann", document="{}")
    number = scheduler.run(loop.submit(asked))

    def put(state: SweepState) -> None:
        async def change() -> None:
            await loop.read_studies(lambda studies: studies.set_sweep_state(studies.get(number), state))

        scheduler.run(change())

    put(SweepState.RUNNING)
    yield optuna.load_study(study_name="sweep", storage=storage)
    put(SweepState.CANCELLED)


def test_a_sweep_takes_points_and_notes_from_outside_and_nothing_else(sweep: optuna.Study) -> None:
    sweep.enqueue_trial({"x": 0.5}, user_attrs={"by": "hand"})
    sweep.set_user_attr("note", "mine")
    [waiting] = sweep.trials
    assert waiting.state is TrialState.WAITING
    assert waiting.system_attrs["fixed_params"] == {"x": 0.5}
    for refused in (sweep.ask, lambda: sweep.add_trial(optuna.trial.create_trial(value=1.0))):
        with pytest.raises(Conflict, match="is a sweep: the scheduler"):
            refused()
    with pytest.raises(Conflict, match="RUNNING"):
        sweep._storage.delete_study(sweep._study_id)


# --- processes


WORKER = """
import json, sys, optuna, paceline
optuna.logging.set_verbosity(optuna.logging.ERROR)
state, name, count = sys.argv[1:]
study = optuna.load_study(
    study_name=name, storage=paceline.StudyStorage(state=state), sampler=optuna.samplers.RandomSampler()
)
print("ready", flush=True)
sys.stdin.readline()
got = []
for _ in range(int(count)):
    trial = study.ask()
    got.append((trial.number, trial.suggest_float("x", 0, 100)))
    study.tell(trial, got[-1][1])
print(json.dumps(got), flush=True)
"""


def test_two_processes_that_ask_at_once_get_different_waiting_trials(storage: paceline.StudyStorage) -> None:
    study = optuna.create_study(storage=storage, study_name="shared")
    for at in range(20):
        study.enqueue_trial({"x": at})
    state = str(storage._link.settings.state)
    workers = [
        subprocess.Popen(
            [sys.executable, "-c", WORKER, state, "shared", "10"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for _ in range(2)
    ]
    try:
        for worker in workers:
            assert worker.stdout is not None and worker.stdout.readline() == "ready\n"
        for worker in workers:
            assert worker.stdin is not None
            worker.stdin.write("go\n")
            worker.stdin.flush()
        got = [json.loads(worker.communicate(timeout=60)[0]) for worker in workers]
    finally:
        for worker in workers:
            worker.kill()
            worker.wait()
    numbers = sorted(number for one in got for number, _ in one)
    assert numbers == list(range(20)), "each was taken once"
    assert all(x == number for one in got for number, x in one)
    assert [trial.value for trial in study.trials] == list(range(20))


def test_one_process_asks_and_another_tells(storage: paceline.StudyStorage) -> None:
    study = optuna.create_study(storage=storage, study_name="apart")
    trial = study.ask({"x": FloatDistribution(0, 1)})
    code = (
        "import optuna, paceline, sys\n"
        "study = optuna.load_study(study_name='apart', storage=paceline.StudyStorage(state=sys.argv[1]))\n"
        "x = study.trials[int(sys.argv[2])].params['x']\n"
        "study.tell(int(sys.argv[2]), x)\n"
    )
    state = str(storage._link.settings.state)
    subprocess.run([sys.executable, "-c", code, state, str(trial.number)], check=True, timeout=60)
    assert study.best_trial.number == trial.number
    assert study.best_value == trial.params["x"]


# --- the scheduler dies


class Worker(threading.Thread):
    """Asks and tells until it is told to stop; keeps what was acknowledged."""

    def __init__(self, storage: BaseStorage, study: int, over: threading.Event) -> None:
        super().__init__()
        self.storage, self.study, self.over = storage, study, over
        self.told: dict[int, float] = {}
        self.error: Exception | None = None

    def run(self) -> None:
        try:
            while not self.over.is_set():
                self.one()
        except Exception as error:  # noqa: BLE001 - the test looks at it
            self.error = error

    def one(self) -> None:
        trial = self.storage.create_new_trial(self.study)
        x = len(self.told) / 7
        self.storage.set_trial_param(trial, "x", x, FloatDistribution(0, 1e9))
        self.storage.set_trial_intermediate_value(trial, 1, x)
        self.storage.set_trial_user_attr(trial, "x", x)
        assert self.storage.set_trial_state_values(trial, TrialState.COMPLETE, [x])
        assert trial not in self.told
        self.told[trial] = x


def told_by(workers: list[Worker]) -> int:
    return sum(len(worker.told) for worker in workers)


@pytest.mark.slow
def test_kills_of_the_scheduler_lose_nothing_and_double_nothing(tmp_path: Path) -> None:
    with SchedulerProcess(tmp_path / "state") as scheduler:
        storage = paceline.StudyStorage(scheduler.address, state=tmp_path / "state", patience_s=60.0)
        study = storage.create_new_study(MINIMIZE)
        over = threading.Event()
        workers = [Worker(storage, study, over) for _ in range(4)]
        for worker in workers:
            worker.start()
        try:
            for _ in range(3):
                wanted = told_by(workers) + 20
                scheduler.wait(lambda wanted=wanted: told_by(workers) >= wanted)
                scheduler.kill_and_start()
        finally:
            over.set()
            for worker in workers:
                worker.join()
        assert [worker.error for worker in workers] == [None] * 4
        told = {trial: x for worker in workers for trial, x in worker.told.items()}
        for trial in fresh_look(storage, study):
            x = told.pop(trial._trial_id)
            assert (trial.state, trial.value, trial.params) == (TrialState.COMPLETE, x, {"x": x})
            assert (trial.intermediate_values, trial.user_attrs) == ({1: x}, {"x": x})
        assert told == {}
        storage.close()


def fresh_look(storage: paceline.StudyStorage, study: int) -> list[FrozenTrial]:
    other: paceline.StudyStorage = pickle.loads(pickle.dumps(storage))
    try:
        return other.get_all_trials(study)
    finally:
        other.close()


class Lost(grpc.RpcError):
    """A connection that broke before the reply came."""

    def code(self) -> grpc.StatusCode:
        return grpc.StatusCode.UNAVAILABLE

    def details(self) -> str:
        return "lost"

    def trailing_metadata(self) -> tuple[()]:
        return ()


class LosesReplies:
    """A stub that makes each call twice: the first reply is lost on the way."""

    def __init__(self, stub: Any) -> None:
        self._stub = stub
        self._sent: list[Any] = []

    def __getattr__(self, method: str) -> Any:
        def call(request: Any, **more: Any) -> Any:
            reply = getattr(self._stub, method)(request, **more)
            if not any(request is one for one in self._sent):
                self._sent.append(request)
                raise Lost
            return reply

        return call


def test_a_reply_that_is_lost_is_asked_for_again_and_nothing_is_made_twice(
    storage: paceline.StudyStorage, monkeypatch: pytest.MonkeyPatch
) -> None:
    lossy = LosesReplies(storage._link._stub())
    monkeypatch.setattr(storage._link, "_stub", lambda: lossy)
    study = storage.create_new_study(MINIMIZE, "lossy")
    second = storage.create_new_study(MINIMIZE, "second")
    with pytest.raises(DuplicatedStudyError):
        storage.create_new_study(MINIMIZE, "second")
    waiting = storage.create_new_trial(study, optuna.trial.create_trial(state=TrialState.WAITING))
    trial = storage.create_new_trial(study)
    assert storage.set_trial_state_values(waiting, TrialState.RUNNING)
    assert not storage.set_trial_state_values(waiting, TrialState.RUNNING)
    assert storage.set_trial_state_values(trial, TrialState.COMPLETE, [1.0])
    with pytest.raises(UpdateFinishedTrialError):
        storage.set_trial_state_values(trial, TrialState.COMPLETE, [1.0])
    storage.delete_study(second)
    with pytest.raises(KeyError):
        storage.delete_study(second + 1)
    assert [one.study_name for one in storage.get_all_studies()] == ["lossy"]
    assert [one.state for one in storage.get_all_trials(study)] == [TrialState.RUNNING, TrialState.COMPLETE]
