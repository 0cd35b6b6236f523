"""What a store is, as tests. A new backend joins by a subclass that overrides the `location` fixture.

`location` gives what `open_store` takes: a place where no store is yet.
"""

import math
import os
import random
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from paceline.scheduler.store import open_store
from paceline.scheduler.store.base import (
    AccountRow,
    AssetNameRow,
    AssetRow,
    Batch,
    EdgeRow,
    EndpointRow,
    EventRow,
    JobRow,
    KeyRow,
    MetricRow,
    NodeRow,
    OutputsRow,
    RegistryBatch,
    Store,
    StudyBatch,
    StudyRow,
    TrialRow,
    TrialValueRow,
)
from paceline.spec.errors import StoreFailure
from paceline.spec.ids import JobId, Micros, NodeId

HARD_TEXTS = [
    "",
    "plain",
    "zeile\nzwei\ttab",
    "Grüße 漢字 🚴‍♀️ \u202eright-to-left",
    "quote ' \" ` ; -- /* % _ \\",
    "{}[]:,",
    "x" * 1_000_000,
]


def event(seq: int, *, job: int | None = None, kind: str = "Kind", body: str = "{}") -> EventRow:
    return EventRow(seq, Micros(1_000_000 + seq), kind, body, None if job is None else JobId(job))


def job(number: int, *, state: str = "QUEUED", document: str | None = None, **changes: object) -> JobRow:
    columns: dict[str, object] = {
        "name": f"job-{number}",
        "user": "ada",
        "priority": 0,
        "submitted_us": Micros(number),
        "finished_us": None,
        "demand": '{"d":1}',
        "record": '{"r":1}',
        **changes,
    }
    return JobRow(job=JobId(number), state=state, document=document, **columns)  # type: ignore[arg-type]


def numbers(rows: object) -> list[int]:
    return [row.job for row in rows]  # type: ignore[attr-defined]


class StoreConformance:
    """The executable meaning of scheduler.store.base.Store."""

    @pytest.fixture
    def location(self) -> str:
        raise NotImplementedError("a place where no store is yet")

    @pytest.fixture
    def open_(self, location: str) -> Iterator[Callable[[], Store]]:
        """Open the store again; the one before is closed first."""
        opened: list[Store] = []

        def again() -> Store:
            while opened:
                opened.pop().close()
            opened.append(open_store(location))
            return opened[0]

        yield again
        while opened:
            opened.pop().close()

    @pytest.fixture
    def store(self, open_: Callable[[], Store]) -> Store:
        store = open_()
        store.load()
        return store

    # What is written is there, all of it, also after reopening.

    def test_a_new_store_is_empty(self, store: Store) -> None:
        loaded = store.load()
        assert (loaded.last_seq, loaded.last_job, loaded.last_at_us) == (0, 0, 0)
        assert list(loaded.jobs) == [] and list(loaded.nodes) == []
        assert store.job(JobId(1)) is None and store.key("k") is None
        assert list(store.jobs()) == [] and list(store.events()) == []

    def test_a_batch_survives_reopening(self, store: Store, open_: Callable[[], Store]) -> None:
        rows = Batch(
            events=[event(1, job=1), event(2, kind="Other", body='{"x":2}')],
            jobs=[job(1, document='{"command":"true"}'), job(2, state="RUNNING")],
            nodes=[NodeRow(NodeId("n1"), '{"n":1}')],
            accounts=[AccountRow("", "{}"), AccountRow("a/b", '{"s":1.5}')],
            keys=[KeyRow("key-1", Micros(7), (JobId(1), JobId(2)))],
            metrics=[MetricRow(JobId(1), 1, 0, 10, "loss", 0.25, Micros(9))],
        )
        store.commit(rows)
        again = open_()
        loaded = again.load()
        assert (loaded.last_seq, loaded.last_job, loaded.last_at_us) == (2, 2, 1_000_002)
        assert list(loaded.jobs) == [job(1), job(2, state="RUNNING")]
        assert list(loaded.nodes) == list(rows.nodes)
        assert list(loaded.accounts) == list(rows.accounts)
        assert list(again.events()) == list(rows.events)
        assert again.key("key-1") == rows.keys[0]
        assert list(again.metrics(JobId(1))) == list(rows.metrics)
        assert again.job(JobId(1)) == rows.jobs[0]
        assert again.documents([JobId(1), JobId(2)]) == {1: '{"command":"true"}'}

    def test_the_policy_is_the_last_that_was_written(self, store: Store, open_: Callable[[], Store]) -> None:
        assert store.load().policy == ""
        store.commit(Batch(policy='{"p":1}'))
        store.commit(Batch(jobs=[job(1)]))
        assert store.load().policy == '{"p":1}'
        for text in HARD_TEXTS:
            store.commit(Batch(policy=text))
            assert store.load().policy == text
        store.commit(Batch(policy='{"p":2}'))
        assert open_().load().policy == '{"p":2}'

    def test_the_cluster_id_is_made_once(self, store: Store, open_: Callable[[], Store]) -> None:
        made = store.cluster_id
        assert len(made) >= 16
        assert open_().cluster_id == made

    def test_jobs_and_nodes_are_upserts_and_documents_stay(self, store: Store) -> None:
        store.commit(Batch(jobs=[job(1, document="first")], nodes=[NodeRow(NodeId("n"), "1")]))
        store.commit(Batch(jobs=[job(1, state="RUNNING", record="2")], nodes=[NodeRow(NodeId("n"), "2")]))
        assert store.job(JobId(1)) == job(1, state="RUNNING", record="2", document="first")
        assert list(store.load().nodes) == [NodeRow(NodeId("n"), "2")]

    def test_accounts_are_upserts(self, store: Store) -> None:
        store.commit(Batch(accounts=[AccountRow("b", "1"), AccountRow("a", "1")]))
        store.commit(Batch(accounts=[AccountRow("b", "2"), AccountRow("b", "3")]))
        assert list(store.load().accounts) == [AccountRow("a", "1"), AccountRow("b", "3")]

    def test_accounts_that_are_closed_go(self, store: Store, open_: Callable[[], Store]) -> None:
        store.commit(Batch(accounts=[AccountRow(name, "1") for name in ("", "a", "a/b", "c")]))
        store.commit(Batch(accounts=[AccountRow("c", "2")], accounts_closed=["a", "c", "never-there"]))
        assert list(store.load().accounts) == [AccountRow("", "1"), AccountRow("a/b", "1")]
        store.commit(Batch(accounts=[AccountRow("a", "3")]))
        assert list(open_().load().accounts) == [
            AccountRow("", "1"),
            AccountRow("a", "3"),
            AccountRow("a/b", "1"),
        ]

    def test_the_last_write_of_a_batch_counts(self, store: Store) -> None:
        store.commit(Batch(jobs=[job(1), job(1, state="RUNNING"), job(1, state="FAILED")]))
        found = store.job(JobId(1))
        assert found is not None and found.state == "FAILED"

    def test_an_empty_batch_is_nothing(self, store: Store) -> None:
        store.commit(Batch())
        assert store.load().last_seq == 0

    @pytest.mark.parametrize("text", HARD_TEXTS, ids=lambda text: f"{len(text)}-{text[:5]!r}")
    def test_text_comes_back_as_it_was(self, store: Store, text: str) -> None:
        row = job(1, name=text, user=text, demand=text, record=text, document=text)
        store.commit(Batch(events=[event(1, kind=text, body=text)], jobs=[row]))
        assert store.job(JobId(1)) == row
        assert store.events()[0].body == text

    @pytest.mark.parametrize("value", [0.0, -1.5, 1e-300, 1e308, math.inf, -math.inf, math.nan])
    def test_every_float_is_a_metric(self, store: Store, value: float) -> None:
        store.commit(Batch(metrics=[MetricRow(JobId(1), 1, 0, 1, "loss", value, Micros(1))]))
        found = store.metrics(JobId(1))[0].value
        assert found == value or (math.isnan(found) and math.isnan(value))

    def test_large_numbers_keep_every_digit(self, store: Store) -> None:
        large = 2**62 + 1
        store.commit(Batch(jobs=[job(large, submitted_us=large, finished_us=large, state="FAILED")]))
        found = store.job(JobId(large))
        assert found is not None and (found.job, found.submitted_us, found.finished_us) == (large,) * 3

    def test_a_large_batch_is_one_transaction(self, store: Store) -> None:
        count = 20_000
        store.commit(
            Batch(
                events=[event(n, job=n) for n in range(1, count + 1)],
                jobs=[job(n, document="{}") for n in range(1, count + 1)],
            )
        )
        assert len(list(store.load().jobs)) == count
        assert len(store.documents([JobId(n) for n in range(1, count + 1)])) == count

    def test_studies_are_upserts_and_their_trials_are_read_apart(
        self, store: Store, open_: Callable[[], Store]
    ) -> None:
        assert (list(store.load().studies), store.load().last_study) == ([], 0)
        first = StudyBatch(
            studies=[StudyRow(2, "b", 1, "{}"), StudyRow(1, "a", 1, "{}")],
            trials=[TrialRow(1, n, None, "RUNNING", n, "{}") for n in (1, 0, 2)]
            + [TrialRow(2, 0, JobId(7), "WAITING", 1, "{}")],
            values=[TrialValueRow(1, 1, 5, 0.5, 2), TrialValueRow(1, 0, 9, 1.0, 1)],
            last_study=2,
        )
        store.commit(Batch(studies=first))
        second = StudyBatch(
            studies=[StudyRow(1, "a", 9, "[1]")],
            trials=[TrialRow(1, 1, JobId(8), "FAIL", 9, "[]")],
            values=[TrialValueRow(1, 1, 5, 0.25, 9), TrialValueRow(1, 1, -1, 3.0, 8)],
        )
        store.commit(Batch(studies=second))
        again = open_()
        loaded = again.load()
        assert list(loaded.studies) == [StudyRow(1, "a", 9, "[1]"), StudyRow(2, "b", 1, "{}")]
        assert loaded.last_study == 2
        trials, values = again.trials(1)
        assert list(trials) == [
            TrialRow(1, 0, None, "RUNNING", 0, "{}"),
            TrialRow(1, 1, JobId(8), "FAIL", 9, "[]"),
            TrialRow(1, 2, None, "RUNNING", 2, "{}"),
        ]
        assert list(values) == [
            TrialValueRow(1, 0, 9, 1.0, 1),
            TrialValueRow(1, 1, -1, 3.0, 8),
            TrialValueRow(1, 1, 5, 0.25, 9),
        ]
        assert again.trials(2) == ([TrialRow(2, 0, JobId(7), "WAITING", 1, "{}")], [])
        assert again.trials(3) == ([], [])

    def test_a_study_goes_with_its_trials_and_its_number_is_not_forgotten(self, store: Store) -> None:
        made = StudyBatch(
            studies=[StudyRow(n, f"s{n}", 1, "{}") for n in (1, 2)],
            trials=[TrialRow(n, 0, None, "RUNNING", 1, "{}") for n in (1, 2)],
            values=[TrialValueRow(n, 0, 1, 1.0, 1) for n in (1, 2)],
            last_study=2,
        )
        store.commit(Batch(studies=made))
        store.commit(
            Batch(studies=StudyBatch(deleted=[2], studies=[StudyRow(3, "s2", 1, "{}")], last_study=3))
        )
        store.commit(Batch(studies=StudyBatch(deleted=[3])))
        loaded = store.load()
        assert list(loaded.studies) == [StudyRow(1, "s1", 1, "{}")] and loaded.last_study == 3
        assert store.trials(2) == ([], [])
        assert [len(rows) for rows in store.trials(1)] == [1, 1]

    def test_the_registry_is_upserts_and_what_goes_is_gone(self, store: Store, location: str) -> None:
        names = [AssetNameRow("model", "m", "{}"), AssetNameRow("data", "m", "{}")]
        assets = [AssetRow("model", "m", version, "{}") for version in ("1", "2")]
        endpoints = [EndpointRow("a", "{}"), EndpointRow("b", "{}")]
        outputs = [OutputsRow(JobId(1), "{}"), OutputsRow(JobId(2), "{}")]
        store.commit(Batch(registry=RegistryBatch(names, assets, endpoints=endpoints, outputs=outputs)))
        newer = AssetRow("model", "m", "2", '{"deleted":1}')
        store.commit(
            Batch(registry=RegistryBatch(assets=[newer], endpoints_deleted=["a"], outputs_deleted=[JobId(2)]))
        )
        store.close()
        again = open_store(location)
        loaded = again.load()
        assert list(loaded.asset_names) == sorted(names) and list(loaded.assets) == [assets[0], newer]
        assert list(loaded.endpoints) == endpoints[1:] and list(loaded.outputs) == outputs[:1]
        again.close()

    def test_edges_are_found_from_both_ends_and_stand_once(self, store: Store) -> None:
        edges = [EdgeRow("job:1", f"model:m:{n}", "outputs.m") for n in (1, 2)]
        edges += [EdgeRow("data:d:1", "job:1", name) for name in ("inputs.a", "inputs.b")]
        store.commit(Batch(registry=RegistryBatch(edges=edges)))
        store.commit(Batch(registry=RegistryBatch(edges=edges[:1])))
        assert store.edges(source="job:1") == edges[:2] and store.edges(target="job:1") == edges[2:]
        assert store.edges(source="job:1", limit=1) == edges[:1] and store.edges(target="data:d:1") == []

    @pytest.mark.parametrize("text", HARD_TEXTS, ids=lambda text: f"{len(text)}-{text[:5]!r}")
    def test_text_of_studies_comes_back_as_it_was(self, store: Store, text: str) -> None:
        study, trial = StudyRow(1, text[:500], 1, text), TrialRow(1, 0, None, text, 1, text)
        store.commit(Batch(studies=StudyBatch([study], [trial])))
        assert list(store.load().studies) == [study]
        assert store.trials(1) == ([trial], [])

    @pytest.mark.parametrize("value", [0.0, -1.5, 1e-300, 1e308, math.inf, -math.inf, math.nan])
    def test_every_float_is_an_intermediate_value(self, store: Store, value: float) -> None:
        store.commit(Batch(studies=StudyBatch(values=[TrialValueRow(1, 0, 2**62, value, 2**62 + 1)])))
        [row] = store.trials(1)[1]
        assert (row.step, row.version) == (2**62, 2**62 + 1)
        assert row.value == value or (math.isnan(row.value) and math.isnan(value))

    # All or nothing.

    @pytest.mark.parametrize("bad", ["repeated key", "gap", "repeated seq", "unstorable text", "huge number"])
    def test_a_batch_that_fails_leaves_nothing_and_harms_nothing(self, store: Store, bad: str) -> None:
        store.commit(Batch(events=[event(1)], jobs=[job(1)], keys=[KeyRow("k", Micros(1), (JobId(1),))]))
        good = {
            "events": [event(2)],
            "jobs": [job(1, state="RUNNING"), job(2)],
            "nodes": [NodeRow(NodeId("n"), "1")],
        }
        worse: dict[str, dict[str, object]] = {
            "repeated key": {"keys": [KeyRow("k", Micros(2), ())]},
            "gap": {"events": [event(3)]},
            "repeated seq": {"events": [event(1)]},
            "unstorable text": {"jobs": [job(2), job(3, name="\ud800")]},
            "huge number": {"jobs": [job(2), job(3, submitted_us=2**70)]},
        }
        with pytest.raises(StoreFailure):
            store.commit(Batch(**{**good, **worse[bad]}))  # type: ignore[arg-type]
        loaded = store.load()
        assert loaded.last_seq == 1
        assert list(loaded.jobs) == [job(1)]
        assert list(loaded.nodes) == []
        store.commit(Batch(events=[event(2)], jobs=[job(2)]))
        assert store.load().last_seq == 2

    def test_a_seq_gap_inside_a_batch_is_refused(self, store: Store) -> None:
        with pytest.raises(StoreFailure, match="event 3 does not follow"):
            store.commit(Batch(events=[event(1), event(3)]))
        assert list(store.events()) == []

    def test_a_kill_in_the_middle_leaves_whole_batches_and_every_acknowledged_one(
        self, location: str, tmp_path: Path
    ) -> None:
        seed = random.randrange(1 << 30)
        rng = random.Random(seed)
        open_store(location).close()
        for _ in range(3):
            acknowledged = _commit_until_killed(location, after=rng.randrange(5, 60))
            store = open_store(location)
            try:
                loaded = store.load()
                assert loaded.last_seq >= acknowledged, f"seed {seed}: an acknowledged batch is gone"
                assert loaded.last_seq % ROWS_OF_CHILD == 0, f"seed {seed}: half a batch"
                assert loaded.last_job == loaded.last_seq
                found = store.events(limit=1_000_000)
                assert [row.seq for row in found] == list(range(1, loaded.last_seq + 1))
            finally:
                store.close()

    # Reading.

    def test_load_gives_live_jobs_in_order_without_documents(self, store: Store) -> None:
        states = ["QUEUED", "STARTING", "RUNNING", "SUCCEEDED", "FAILED", "CANCELLED"]
        rows = [job(n + 1, state=state, document="d") for n, state in enumerate(states)]
        random.Random(3).shuffle(rows)
        store.commit(Batch(jobs=rows))
        loaded = store.load()
        assert list(loaded.jobs) == [job(1), job(2, state="STARTING"), job(3, state="RUNNING")]
        assert loaded.last_job == 6

    def test_a_load_may_be_left_half_way_and_begun_again(self, store: Store) -> None:
        rows = [job(n, state="RUNNING" if n % 3 else "QUEUED") for n in range(1, 1001)]
        store.commit(Batch(jobs=rows))
        half = iter(store.load().jobs)
        assert [next(half).job for _ in range(500)] == list(range(1, 501))
        assert list(store.load().jobs) == rows
        store.commit(Batch(jobs=[job(1001)]))
        del half
        assert numbers(store.load().jobs) == list(range(1, 1002))

    def test_listing_filters_and_pages(self, store: Store) -> None:
        states = ["QUEUED", "RUNNING", "FAILED"]
        store.commit(
            Batch(
                jobs=[
                    job(
                        n, state=states[n % 3], user=f"u{n % 2}", name=f"{'Bert' if n % 5 else 'resnet'}_{n}%"
                    )
                    for n in range(1, 61)
                ]
            )
        )
        assert numbers(store.jobs(limit=5)) == [60, 59, 58, 57, 56]
        assert numbers(store.jobs(limit=3, before=JobId(57))) == [56, 55, 54]
        assert numbers(store.jobs(states=["RUNNING"], limit=2)) == [58, 55]
        assert numbers(store.jobs(states=["RUNNING", "FAILED"], user="u0", limit=3)) == [58, 56, 52]
        assert numbers(store.jobs(name_contains="RESNET", limit=2)) == [60, 55]
        assert numbers(store.jobs(name_contains="_5%")) == [5]
        assert numbers(store.jobs(name_contains="%_")) == []
        assert store.jobs(before=JobId(1)) == []
        seen: list[int] = []
        while page := store.jobs(limit=7, before=JobId(seen[-1]) if seen else None):
            seen += numbers(page)
        assert seen == list(range(60, 0, -1))

    def test_events_of_one_job_and_of_all_page_by_seq(self, store: Store) -> None:
        store.commit(Batch(events=[event(n, job=n % 3 or None) for n in range(1, 31)]))
        assert [row.seq for row in store.events(after_seq=27)] == [28, 29, 30]
        assert [row.seq for row in store.events(job=JobId(2), after_seq=5, limit=3)] == [8, 11, 14]
        assert len(store.events()) == 30

    def test_metrics_come_in_the_order_of_their_commit(self, store: Store) -> None:
        rows = [
            MetricRow(JobId(1), 1, 0, step, name, step / 2, Micros(9)) for step in (3, 1, 2) for name in "ab"
        ]
        for row in rows:
            store.commit(Batch(metrics=[row]))
        assert list(store.metrics(JobId(1))) == rows
        assert list(store.metrics(JobId(1), name="b", limit=2)) == [rows[1], rows[3]]
        assert store.metrics(JobId(2)) == []

    def test_reads_beside_commits_see_whole_batches_only(self, store: Store) -> None:
        problems: list[str] = []
        over = threading.Event()

        def read() -> None:
            while not over.is_set():
                seen = len(store.events(limit=1_000_000))
                if seen % 10:
                    problems.append(f"{seen} events seen")

        readers = [threading.Thread(target=read) for _ in range(2)]
        for reader in readers:
            reader.start()
        try:
            for start in range(0, 1000, 10):
                store.commit(Batch(events=[event(start + n) for n in range(1, 11)]))
        finally:
            over.set()
            for reader in readers:
                reader.join()
        assert problems == []
        assert len(store.events()) == 1000

    def test_a_second_scheduler_is_refused_until_the_first_is_gone(self, store: Store, location: str) -> None:
        with pytest.raises(StoreFailure, match="held by another scheduler"):
            open_store(location)
        store.commit(Batch(events=[event(1)]))
        store.close()
        second = open_store(location)
        assert second.load().last_seq == 1
        second.close()


ROWS_OF_CHILD = 7

_CHILD = f"""
import sys
from conformance.store import event, job
from paceline.scheduler.store import open_store
from paceline.scheduler.store.base import Batch
store = open_store(sys.argv[1])
seq = store.load().last_seq
while True:
    rows = range(seq + 1, seq + {ROWS_OF_CHILD} + 1)
    store.commit(Batch(events=[event(n, body="x" * 20000) for n in rows], jobs=[job(n) for n in rows]))
    seq += {ROWS_OF_CHILD}
    print(seq, flush=True)
"""


def _commit_until_killed(location: str, *, after: int) -> int:
    """SIGKILL a committing process some batches later, wherever it is; returns what it had acknowledged."""
    tests = str(Path(__file__).parents[1])
    child = subprocess.Popen(
        [sys.executable, "-c", _CHILD, location],
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": tests},
    )
    assert child.stdout is not None
    try:
        for _ in range(after):
            assert child.stdout.readline(), "the child ended by itself"
    finally:
        child.send_signal(signal.SIGKILL)
        rest = child.stdout.read().split()
        child.wait()
        child.stdout.close()
    return int(rest[-1]) if rest and rest[-1].isdigit() else 0
