"""Studies in the loop: answered after the commit, read between commits, dropped with a commit that fails."""

import asyncio
import threading
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

import pytest
from paceline.scheduler.core.settings import Settings
from paceline.scheduler.loop import Loop
from paceline.scheduler.loop_engine import Engine
from paceline.scheduler.store.base import Batch, TrialRow, TrialValueRow
from paceline.scheduler.sweeps import ops
from paceline.scheduler.sweeps.ops import CreateStudy, CreateTrial, SetIntermediate, StudyOps
from paceline.scheduler.sweeps.study import NewTrial, Study
from paceline.spec.errors import NotFound, StoreFailure, Unavailable
from support.memory_store import MemoryStore
from support.wire import until

CREATE = CreateStudy("k", "s", ("minimize",), "ann")


def reported(study: Study) -> dict[int, float]:
    return dict(study.trial(0).intermediate)


class GatedStore(MemoryStore):
    """Commits and reads of trials wait until the test lets them; notes whose trials are read."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = threading.Event()
        self.gate.set()
        self.reading = threading.Event()
        self.reading.set()
        self.read: list[int] = []

    def commit(self, batch: Batch) -> None:
        assert self.gate.wait(10)
        super().commit(batch)

    def trials(self, study: int) -> tuple[Sequence[TrialRow], Sequence[TrialValueRow]]:
        self.read.append(study)
        assert self.reading.wait(10)
        return super().trials(study)


@asynccontextmanager
async def running(store: MemoryStore) -> AsyncIterator[Loop]:
    loop = Loop(store, Settings())
    await loop.start()
    try:
        yield loop
    finally:
        await loop.close()


async def test_nothing_is_told_before_its_commit() -> None:
    store = GatedStore()
    async with running(store) as loop:
        study = await loop.submit(CREATE)
        watch = loop.watch_changes(study)
        store.gate.clear()
        asked = asyncio.create_task(loop.submit(StudyOps(study, (CreateTrial(NewTrial(), ""),))))
        await until("the commit begins", lambda: loop._committing or None)
        read = asyncio.create_task(loop.read_study(study, lambda study: len(study.trials)))
        news = asyncio.create_task(watch.changed())
        done, _ = await asyncio.wait([asked, read, news], timeout=0.05)
        assert not done
        store.gate.set()
        assert await asked and await read == 1
        await news
        watch.close()


async def test_a_commit_that_fails_leaves_nothing_of_it() -> None:
    store = MemoryStore()
    async with running(store) as loop:
        study = await loop.submit(CREATE)
        await loop.submit(StudyOps(study, (CreateTrial(NewTrial(), ""), SetIntermediate(0, 1, 0.5))[:1]))
        watch = loop.watch_changes(study)
        store.fail_before.add(store.commits + 1)
        with pytest.raises(Unavailable):
            await loop.submit(StudyOps(study, (SetIntermediate(0, 1, 0.5),)))
        with pytest.raises(Unavailable):
            await watch.changed()
        await until("the loop is back", lambda: loop.ready or None)
        assert await loop.read_study(study, reported) == {}
        await loop.submit(StudyOps(study, (SetIntermediate(0, 1, 0.5),)))
        assert await loop.read_study(study, reported) == {1: 0.5}


async def test_trials_are_read_from_the_store_the_first_time_that_somebody_wants_them() -> None:
    store = GatedStore()
    async with running(store) as loop:
        study = await loop.submit(CREATE)
        await loop.submit(StudyOps(study, (CreateTrial(NewTrial(), ""),)))
        await loop.submit(StudyOps(study, (SetIntermediate(0, 1, 0.5),)))
    assert store.read == []
    async with running(store) as loop:
        assert await loop.read_studies(lambda studies: studies.named("s").loaded) is False
        assert await loop.read_study(study, reported) == {1: 0.5}
        await loop.submit(StudyOps(study, (SetIntermediate(0, 2, 0.5),)))
        assert store.read == [study]
        with pytest.raises(NotFound):
            await loop.read_study(study + 1, reported)


async def test_while_a_study_is_read_nobody_else_waits() -> None:
    store = GatedStore()
    async with running(store) as loop:
        study = await loop.submit(CREATE)
        await loop.submit(StudyOps(study, (CreateTrial(NewTrial(), ""),)))
        other = await loop.submit(CreateStudy("k2", "other", ("minimize",), "ann"))
    async with running(store) as loop:
        store.reading.clear()
        first = asyncio.create_task(loop.submit(StudyOps(study, (SetIntermediate(0, 1, 0.5),))))
        second = asyncio.create_task(loop.submit(StudyOps(study, (SetIntermediate(0, 1, 0.25),))))
        seen = asyncio.create_task(loop.read_study(study, reported))
        await until("it is being read", lambda: store.read == [study] or None)
        await loop.submit(CreateStudy("k3", "third", ("minimize",), "ann"))
        assert other and not (first.done() or second.done() or seen.done())
        store.reading.set()
        await asyncio.gather(first, second)
        assert await loop.read_study(study, reported) == {1: 0.25}, "in their order"
        assert await seen in ({}, {1: 0.25}) and store.read == [study]


@pytest.mark.parametrize("ends", ["anew", "for good"])
async def test_who_waits_for_a_study_is_told_when_the_loop_ends(ends: str) -> None:
    store = GatedStore()
    async with running(store) as loop:
        study = await loop.submit(CREATE)
        await loop.submit(StudyOps(study, (CreateTrial(NewTrial(), ""),)))
    async with running(store) as loop:
        store.reading.clear()
        asked = asyncio.create_task(loop.submit(StudyOps(study, (SetIntermediate(0, 1, 0.5),))))
        await until("it is being read", lambda: store.read == [study] or None)
        if ends == "anew":
            store.fail_before.add(store.commits + 1)
            with pytest.raises(Unavailable):
                await loop.submit(CreateStudy("k2", "other", ("minimize",), "ann"))
        else:
            closing = asyncio.create_task(loop.close())
        with pytest.raises(Unavailable):
            await asked
        store.reading.set()
        if ends == "anew":
            await until("the loop is back", lambda: loop.ready or None)
            await loop.submit(StudyOps(study, (SetIntermediate(0, 1, 0.5),)))
            assert await loop.read_study(study, reported) == {1: 0.5}
        else:
            await closing


async def test_a_study_that_brings_a_bug_to_light_is_barred(monkeypatch: pytest.MonkeyPatch) -> None:
    async with running(MemoryStore()) as loop:
        study = await loop.submit(CREATE)
        other = await loop.submit(CreateStudy("k2", "other", ("minimize",), "ann"))

        def bug(*_: object) -> None:
            raise RuntimeError("a bug")

        with monkeypatch.context() as patched:
            patched.setattr(ops, "_apply", bug)
            for _ in range(3):
                with pytest.raises(Unavailable):
                    await loop.submit(StudyOps(study, (CreateTrial(NewTrial(), ""),)))
                await until("the loop is back", lambda: loop.ready or None)
        await loop.submit(StudyOps(other, (CreateTrial(NewTrial(), ""),)))
        with pytest.raises(Unavailable, match="the StudyOps of study 1 sent has stopped the scheduler 3"):
            await loop.submit(StudyOps(study, (CreateTrial(NewTrial(), ""),)))


async def test_a_damaged_row_says_which() -> None:
    store = MemoryStore()
    async with running(store) as loop:
        study = await loop.submit(CREATE)
        await loop.submit(StudyOps(study, (CreateTrial(NewTrial(), ""),)))
    row = store.trial_rows[study, 0]
    store.trial_rows[study, 0] = row._replace(record="{")
    async with running(store) as loop:
        for _ in range(2):
            with pytest.raises(StoreFailure, match="trial 0 of study 1 cannot be read"):
                await loop.read_study(study, reported)
        with pytest.raises(StoreFailure, match="trial 0 of study 1 cannot be read"):
            await loop.submit(StudyOps(study, (CreateTrial(NewTrial(), ""),)))
        assert loop.ready, "it is nobody else's loss"
        store.trial_rows[study, 0] = row
        assert await loop.read_study(study, reported) == {}
    store.study_rows[study] = store.study_rows[study]._replace(record="[]")
    with pytest.raises(StoreFailure, match="study 1 cannot be read"):
        Engine(store.load())
