"""The loop: answers only after the commit, one batch for all that waits, a failing store loses nothing."""

import asyncio
import threading
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import pytest
from paceline.scheduler.core import stimuli as s
from paceline.scheduler.core.effects import Effect, StartTask
from paceline.scheduler.core.settings import Settings
from paceline.scheduler.core.stimuli import Submit
from paceline.scheduler.loop import Loop
from paceline.scheduler.records import event_from_row, events_from_rows, job_from_row
from paceline.scheduler.store.base import Batch
from paceline.spec.errors import LimitExceeded, NotFound, StoreFailure, Unavailable
from paceline.spec.ids import JobId, NodeId, TaskKey
from paceline.spec.lifecycle import JobState, NodeContact
from support.memory_store import MemoryStore
from support.paddock import inventory, shape


def submission(key: str, count: int = 1) -> Submit:
    return Submit(key, "ann", tuple(s.NewJob(f"{key}-{at}", 0, shape(), '{"a": 1}') for at in range(count)))


@asynccontextmanager
async def running(store: MemoryStore, **options: object) -> AsyncIterator[Loop]:
    loop = Loop(store, **options)  # type: ignore[arg-type]
    await loop.start()
    try:
        yield loop
    finally:
        await loop.close()


async def until(true: Callable[[], Awaitable[bool] | bool], seconds: float = 60) -> None:
    """Wait until it is true; fails with what was waited for."""
    async with asyncio.timeout(seconds):
        while True:
            got = true()
            if got if isinstance(got, bool) else await got:
                return
            await asyncio.sleep(0.005)


class GatedStore(MemoryStore):
    """Commits wait until the test lets them."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = threading.Event()
        self.gate.set()
        self.batches: list[Batch] = []

    def commit(self, batch: Batch) -> None:
        assert self.gate.wait(10)
        super().commit(batch)
        self.batches.append(batch)


class Outbox:
    """What one session was sent; a text closes it."""

    def __init__(self) -> None:
        self.line: asyncio.Queue[tuple[Effect, ...] | str] = asyncio.Queue()

    def send(self, effects: tuple[Effect, ...]) -> None:
        self.line.put_nowait(effects)

    def close(self, why: str) -> None:
        self.line.put_nowait(why)


class ObedientAgent:
    """Takes every start, says that it started and ended well, dials in again when it is cut off."""

    def __init__(self, loop: Loop, name: str) -> None:
        self.loop, self.node = loop, NodeId(name)
        self.journals: dict[TaskKey, list[s.Entry]] = {}

    async def ride(self) -> None:
        while True:
            try:
                await self._session()
            except (Unavailable, StoreFailure):
                await asyncio.sleep(0.002)

    async def _session(self) -> None:
        outbox = Outbox()
        session = self.loop.next_session()
        self.loop.attach(self.node, session, outbox)
        hello = s.Hello(self.node, session, "boot", inventory(self.node), tuple(self.journals))
        welcome = await self.loop.submit(hello)
        for key in welcome.forget:
            self.journals.pop(key)
        for position in welcome.positions:
            await self._report(self.journals[position.task][position.seq :])
        while not isinstance(effects := await outbox.line.get(), str):
            for effect in effects:
                if isinstance(effect, StartTask) and effect.key not in self.journals:
                    said = (s.Started((1,), "warm"), s.Exited(0, 0), s.Ended((0,), (0,)))
                    entries = [s.Entry(effect.key, at, one) for at, one in enumerate(said, 1)]
                    self.journals[effect.key] = entries
                    await self._report(entries)

    async def _report(self, entries: list[s.Entry]) -> None:
        if entries:
            await self.loop.submit(s.Reports(self.node, tuple(entries)))


async def submit_until_answered(loop: Loop, submit: Submit) -> tuple[JobId, ...]:
    while True:
        try:
            return (await loop.submit(submit)).jobs
        except Unavailable:
            await asyncio.sleep(0.002)


async def all_done(store: MemoryStore) -> bool:
    return bool(store.job_rows) and not store.live


async def test_an_answer_means_that_it_is_stored() -> None:
    store = MemoryStore()
    async with running(store) as loop:
        answer = await loop.submit(submission("k", 3))
        assert answer.jobs == (1, 2, 3)
        assert store.key_rows["k"].jobs == answer.jobs
        assert [store.job_rows[JobId(number)].document for number in (1, 2, 3)] == ['{"a": 1}'] * 3


async def test_what_waits_is_committed_together() -> None:
    store = GatedStore()
    async with running(store) as loop:
        before = len(store.batches)
        store.gate.clear()
        calls = [asyncio.create_task(loop.submit(submission(f"k{at}"))) for at in range(50)]
        await asyncio.sleep(0.02)
        assert not any(call.done() for call in calls), "nothing is answered before its commit"
        store.gate.set()
        answers = await asyncio.gather(*calls)
        assert len({answer.jobs for answer in answers}) == 50
        assert len(store.batches) - before <= 2


async def test_the_same_key_twice_in_one_batch_and_over_a_restart() -> None:
    store = MemoryStore()
    async with running(store) as loop:
        first, second = await asyncio.gather(loop.submit(submission("k")), loop.submit(submission("k")))
        assert first.jobs == second.jobs == (1,)
        assert (first.repeated, second.repeated) == (False, True)
    async with running(store) as loop:
        assert (await loop.submit(submission("k"))).jobs == (1,)
        assert (await loop.submit(submission("other"))).jobs == (2,)


async def test_a_reader_sees_only_what_is_committed() -> None:
    store = GatedStore()
    async with running(store) as loop:
        store.gate.clear()
        call = asyncio.create_task(loop.submit(submission("k")))
        await asyncio.sleep(0.02)
        reading = asyncio.create_task(loop.read(lambda state: len(state.jobs)))
        await asyncio.sleep(0.02)
        assert not reading.done()
        store.gate.set()
        await call
        assert await reading == 1
        with pytest.raises(ZeroDivisionError):
            await loop.read(lambda state: 1 // 0)


async def test_a_refusal_is_the_callers_alone() -> None:
    async with running(MemoryStore()) as loop:
        cancel = loop.submit(s.Cancel(JobId(7)))
        good = loop.submit(submission("k"))
        refused, made = await asyncio.gather(cancel, good, return_exceptions=True)
        assert isinstance(refused, NotFound)
        assert not isinstance(made, BaseException)


async def test_too_much_at_once_is_refused() -> None:
    store = GatedStore()
    async with running(store, arrivals_max=10) as loop:
        store.gate.clear()
        waiting = [asyncio.create_task(loop.submit(submission("first")))]
        await asyncio.sleep(0.02)
        waiting += [asyncio.create_task(loop.submit(submission(f"k{at}"))) for at in range(10)]
        await asyncio.sleep(0.02)
        with pytest.raises(LimitExceeded):
            await loop.submit(submission("one-more"))
        store.gate.set()
        await asyncio.gather(*waiting)


async def test_a_failed_commit_is_told_and_the_loop_comes_back() -> None:
    store = MemoryStore()
    async with running(store) as loop:
        node, outbox = NodeId("n1"), Outbox()
        session = loop.next_session()
        loop.attach(node, session, outbox)
        await loop.submit(s.Hello(node, session, "boot", inventory("n1")))
        store.fail_before = {store.commits + 1}
        with pytest.raises(Unavailable, match="was killed before"):
            await loop.submit(submission("k"))
        await until(lambda: loop.ready)
        assert "recovering" in str(await outbox.line.get())
        assert not store.job_rows
        assert await loop.read(lambda state: state.nodes[node].contact) is NodeContact.UNKNOWN
        assert not loop.heard(node, session), "the old session is nobody's"
        assert (await loop.submit(submission("k"))).jobs == (1,)


async def test_a_store_that_stays_away_is_tried_again_with_patience() -> None:
    store = MemoryStore()
    async with running(store) as loop:
        store.fail_before = set(range(store.commits + 1, store.commits + 5))
        with pytest.raises(Unavailable):
            await loop.submit(submission("k"))
        with pytest.raises(Unavailable, match=r"store|recovering"):
            await loop.submit(submission("k"))
        await until(lambda: loop.ready)
        assert (await loop.submit(submission("k"))).jobs == (1,)


async def test_watchers_hear_a_life_to_its_end() -> None:
    store = MemoryStore()
    async with running(store) as loop:
        [job] = (await loop.submit(submission("k"))).jobs
        watch = loop.watch(job)
        riding = asyncio.create_task(ObedientAgent(loop, "n1").ride())
        heard = [committed async for committed in watch]
        assert [type(one.event).__name__ for one in heard] == [
            "AttemptStarted",
            "TaskStarted",
            "RankExited",
            "TaskEnded",
            "AttemptEnded",
        ]
        assert [one.seq for one in heard] == [row.seq for row in store.events(job=job) if row.seq > 2][-5:]
        assert heard[-1].job is not None and heard[-1].job.state is JobState.SUCCEEDED
        riding.cancel()


async def test_a_watch_ends_when_the_loop_starts_anew() -> None:
    store = MemoryStore()
    async with running(store) as loop:
        [job] = (await loop.submit(submission("k"))).jobs
        watch = loop.watch(job)
        store.fail_after = {store.commits + 1}
        with pytest.raises(Unavailable):
            await loop.submit(s.Cancel(job))
        with pytest.raises(Unavailable):
            await anext(watch)
        await until(lambda: loop.ready)
        assert job_from_row(store.job_rows[job]).state is JobState.CANCELLED, "it took effect nevertheless"


async def test_silence_is_noticed_without_any_stimulus() -> None:
    store = MemoryStore()
    settings = Settings(heartbeat_us=20_000)
    async with running(store, settings=settings) as loop:
        node, outbox = NodeId("n1"), Outbox()
        session = loop.next_session()
        loop.attach(node, session, outbox)
        await loop.submit(s.Hello(node, session, "boot", inventory("n1")))
        assert loop.heard(node, session)

        async def lost() -> bool:
            return await loop.read(lambda state: state.nodes[node].contact is NodeContact.LOST)

        await until(lost)
        assert not loop.heard(node, session)


async def test_a_newer_session_closes_the_older() -> None:
    async with running(MemoryStore()) as loop:
        node, old, new = NodeId("n1"), Outbox(), Outbox()
        loop.attach(node, 1, old)
        loop.attach(node, 2, new)
        assert "anew" in str(old.line.get_nowait())
        loop.detach(node, 1)
        await loop.submit(s.Hello(node, 2, "boot", inventory("n1")))
        await loop.submit(submission("k"))
        assert isinstance(new.line.get_nowait()[0], StartTask)


async def test_close_commits_what_has_arrived() -> None:
    store = MemoryStore()
    loop = Loop(store)
    with pytest.raises(Unavailable, match="not started"):
        await loop.submit(submission("early"))
    await loop.start()
    call = asyncio.create_task(loop.submit(submission("k")))
    await asyncio.sleep(0)
    await loop.close()
    assert (await call).jobs == (1,)
    with pytest.raises(Unavailable):
        await loop.submit(submission("late"))


async def test_the_first_load_failing_is_told_to_whoever_starts() -> None:
    store = MemoryStore()
    store.fail_before = {1}
    loop = Loop(store)
    with pytest.raises(StoreFailure):
        await loop.start()
    await loop.close()


async def scenario(store: MemoryStore) -> None:
    """Twenty jobs, one after another, and two agents, which send no heartbeats; nobody gives up."""
    async with running(store, settings=Settings(heartbeat_us=60_000_000)) as loop:
        agents = [asyncio.create_task(ObedientAgent(loop, name).ride()) for name in ("n1", "n2")]
        made = [await submit_until_answered(loop, submission(f"k{at}")) for at in range(20)]
        assert len({number for numbers in made for number in numbers}) == 20, "no job lost, none doubled"
        await until(lambda: all_done(store))
        for agent in agents:
            agent.cancel()


@pytest.mark.parametrize("fate", ["fail_before", "fail_after"])
async def test_a_failure_at_any_commit_loses_and_doubles_nothing(fate: str) -> None:
    whole = MemoryStore()
    await scenario(whole)
    assert whole.commits > 20
    for commit in range(2, 22):
        store = MemoryStore()
        setattr(store, fate, {commit})
        await scenario(store)
        assert store.commits >= commit, "the failure was never reached"
        assert len(store.job_rows) == 20
        for row in store.job_rows.values():
            job = job_from_row(row)
            assert (job.state, job.attempt) == (JobState.SUCCEEDED, 1), "no attempt was lost to the scheduler"
        events = events_from_rows(store.event_rows)
        assert [row.seq for row in store.event_rows] == list(range(1, len(events) + 1))


def test_a_damaged_row_is_named() -> None:
    store = MemoryStore()
    asyncio.run(_one_event(store))
    row = store.event_rows[0]
    with pytest.raises(StoreFailure, match=r"event 1 \(Nonsense\)"):
        event_from_row(type(row)(row.seq, row.at_us, "Nonsense", row.body))


async def _one_event(store: MemoryStore) -> None:
    async with running(store) as loop:
        await loop.submit(submission("k"))


async def test_a_poison_that_is_sent_again_for_ever_is_barred_and_others_go_on(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """An entry that no decision knows: a bug of ours, met again after each recovery."""
    store = MemoryStore()
    async with running(store) as loop:
        node, other = NodeId("n1"), NodeId("n2")
        for name in (node, other):
            await loop.submit(s.Hello(name, loop.next_session(), "boot", inventory(name)))
        made = await loop.submit(submission("a"))
        job = await loop.read(lambda state: state.jobs[made.jobs[0]])
        holder = job.tasks[0].node
        poison = s.Reports(holder, (s.Entry(job.key(0), 1, "nonsense"),))  # type: ignore[arg-type]
        for _ in range(3):
            await until(lambda: loop.ready)
            with pytest.raises(Unavailable, match="recovering"):
                await loop.submit(poison)
        await until(lambda: loop.ready)
        with pytest.raises(Unavailable, match=f"what node {holder} sent has stopped the scheduler 3 times"):
            await loop.submit(poison)
        assert "is not listened to for 10 min" in caplog.text
        with pytest.raises(Unavailable, match="is not listened to"):
            await loop.submit(s.Hello(holder, loop.next_session(), "boot", inventory(holder)))
        well = other if holder == node else node
        await loop.submit(s.Hello(well, loop.next_session(), "boot", inventory(well)))
        again = await loop.submit(submission("b"))
        assert await loop.read(lambda state: state.jobs[again.jobs[0]].tasks[0].node) == well
