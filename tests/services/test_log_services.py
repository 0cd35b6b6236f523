"""Logs over the real wire: what is shipped can be followed, live, late, from anywhere, to the last byte."""

import asyncio
import itertools
import os
import time
from pathlib import Path
from typing import Any

import grpc
import pytest
from paceline.proto.generated import common_pb2, logs_pb2
from support.wire import Agent, Wire, ship, until, wire


async def collect(wired: Wire, job: int, **request: Any) -> list[logs_pb2.LogChunk]:
    call = wired.logs.Follow(logs_pb2.FollowRequest(job=job, **{"rank": -1, **request}))
    return [chunk async for chunk in call]


def joined(chunks: list[logs_pb2.LogChunk], rank: int = 0, attempt: int = 1) -> bytes:
    data = b""
    for chunk in chunks:
        if chunk.rank == rank and chunk.attempt == attempt:
            assert chunk.offset == len(data), "a byte lost or doubled"
            data += chunk.data
    return data


class Shipper:
    """One Ship stream; `stored` is the newest reply of each rank."""

    def __init__(self, wired: Wire) -> None:
        self.call = wired.shipping.Ship()
        self.stored: dict[int, int] = {}
        self.refused: set[int] = set()
        self._reader = asyncio.create_task(self._read())

    async def _read(self) -> None:
        while (reply := await self.call.read()) is not grpc.aio.EOF:
            for each in reply.stored:
                self.stored[each.rank] = each.stored_bytes
                if each.refused:
                    self.refused.add(each.rank)

    async def send(self, task: common_pb2.TaskKey, rank: int, offset: int, data: bytes, **more: Any) -> None:
        await self.call.write(ship(task, rank, offset, data, **more))

    async def wait_stored(self, rank: int, size: int) -> None:
        await until(f"{size} bytes of rank {rank} are stored", lambda: self.stored.get(rank) == size or None)

    async def close(self) -> None:
        self.call.cancel()
        await asyncio.gather(self._reader, return_exceptions=True)


async def start(wired: Wire, agent: Agent, **spec: object) -> tuple[int, common_pb2.TaskKey]:
    [job] = await wired.submit(**spec)
    return job, await agent.run(job)


async def test_a_follower_gets_every_byte_and_then_the_end(tmp_path: Path) -> None:
    async with wire(tmp_path) as wired, wired.agent() as agent:
        job, task = await start(wired, agent)
        following = asyncio.create_task(collect(wired, job, follow=True))
        shipper = Shipper(wired)
        parts = [os.urandom(1 + 997 * n) for n in range(40)]
        offset = 0
        for part in parts:
            await shipper.send(task, 0, offset, part)
            offset += len(part)
        await agent.end(task, log_bytes=[offset])
        assert joined(await asyncio.wait_for(following, 20)) == b"".join(parts)
        await shipper.wait_stored(0, offset)
        assert joined(await collect(wired, job)) == b"".join(parts)
        await shipper.close()


async def test_the_end_waits_for_bytes_that_come_after_the_job_is_over(tmp_path: Path) -> None:
    async with wire(tmp_path) as wired, wired.agent() as agent:
        job, task = await start(wired, agent)
        await agent.end(task, log_bytes=[5])
        following = asyncio.create_task(collect(wired, job, follow=True))
        shipper = Shipper(wired)
        await shipper.send(task, 0, 0, b"la")
        await shipper.wait_stored(0, 2)
        assert not following.done()
        await shipper.send(task, 0, 2, b"st\n")
        assert joined(await asyncio.wait_for(following, 20)) == b"last\n"
        await shipper.close()


async def test_repeats_and_overlaps_over_reconnects_change_nothing(tmp_path: Path) -> None:
    async with wire(tmp_path) as wired, wired.agent() as agent:
        job, task = await start(wired, agent)
        data = os.urandom(300_000)
        for upto in (100_000, 220_000, 300_000):
            shipper = Shipper(wired)
            await shipper.send(task, 0, 0, b"")
            await until("an answer", lambda s=shipper: s.stored.get(0) is not None or None)
            from_ = max(0, shipper.stored[0] - 50_000)  # sent again although stored
            for at in range(from_, upto, 30_000):
                await shipper.send(task, 0, at, data[at : min(at + 30_000, upto)])
            await shipper.wait_stored(0, upto)
            await shipper.close()
        await agent.end(task, log_bytes=[len(data)])
        assert joined(await collect(wired, job, follow=True)) == data


async def test_the_last_byte_is_acknowledged_only_when_synced(tmp_path: Path) -> None:
    async with wire(tmp_path) as wired, wired.agent() as agent:
        _, task = await start(wired, agent)
        call = wired.shipping.Ship()
        await call.write(ship(task, 0, 0, b"x" * 100))
        seen = []
        while not seen or seen[-1] < 100:
            seen += [each.stored_bytes for each in (await asyncio.wait_for(call.read(), 20)).stored]
        assert seen == [99, 100]
        call.cancel()


async def test_a_stream_that_pauses_is_synced_though_its_neighbour_never_does(tmp_path: Path) -> None:
    async with wire(tmp_path) as wired, wired.agent(rendezvous_ports=[29500]) as agent:
        distribution = {"type": "pytorch", "process_count_per_instance": 2}
        _, task = await start(wired, agent, distribution=distribution)
        shipper = Shipper(wired)
        await shipper.send(task, 0, 0, b"said once")

        async def chatter() -> None:
            for at in itertools.count():
                await shipper.send(task, 1, at, b"x")

        chattering = asyncio.create_task(chatter())
        await shipper.wait_stored(0, 9)
        assert not chattering.done()
        chattering.cancel()
        await shipper.close()


async def test_one_message_brings_what_many_ranks_say(tmp_path: Path) -> None:
    async with wire(tmp_path) as wired, wired.agent(rendezvous_ports=[29500]) as agent:
        distribution = {"type": "pytorch", "process_count_per_instance": 3}
        job, task = await start(wired, agent, distribution=distribution)
        says = {0: b"first", 7: b"of a rank that is not there", 1: b"", 2: b"third"}
        shipper = Shipper(wired)
        pieces = [logs_pb2.LogPiece(task=task, rank=rank, size=len(data)) for rank, data in says.items()]
        data = b"".join(says.values())
        await shipper.call.write(logs_pb2.ShipRequest(data=data, pieces=pieces, node_id="n1"))
        for rank, stored in ((0, 5), (1, 0), (2, 5)):
            await shipper.wait_stored(rank, stored)
        assert shipper.refused == {7}
        chunks = await collect(wired, job)
        assert {chunk.rank: chunk.data for chunk in chunks} == {0: b"first", 2: b"third"}
        await shipper.close()


@pytest.mark.parametrize(
    ("sizes", "data"),
    [([1, 2], b"xx"), ([-1, 3], b"xx"), ([0] * 1001, b""), ([(1 << 20) + 1], bytes((1 << 20) + 1))],
)
async def test_pieces_that_are_not_there_or_too_much_are_refused(
    tmp_path: Path, sizes: list[int], data: bytes
) -> None:
    async with wire(tmp_path) as wired, wired.agent() as agent:
        _, task = await start(wired, agent)
        call = wired.shipping.Ship()
        pieces = [logs_pb2.LogPiece(task=task, size=size) for size in sizes]
        await call.write(logs_pb2.ShipRequest(data=data, pieces=pieces, node_id="n1"))
        with pytest.raises(grpc.aio.AioRpcError) as failed:
            while await call.read() is not grpc.aio.EOF:
                pass
        assert failed.value.code() is grpc.StatusCode.INVALID_ARGUMENT


async def test_dropped_bytes_are_said_and_never_read_as_zeros(tmp_path: Path) -> None:
    async with wire(tmp_path) as wired, wired.agent() as agent:
        job, task = await start(wired, agent)
        shipper = Shipper(wired)
        await shipper.send(task, 0, 0, b"a" * 5000)
        await shipper.send(task, 0, 20_000, b"b" * 10)  # the node's own bound dropped what was between
        await shipper.wait_stored(0, 20_010)
        await agent.end(task, log_bytes=[20_010])
        chunks = await collect(wired, job, follow=True)
        assert [(c.offset, bytes(c.data), c.dropped_bytes) for c in chunks] == [
            (0, b"a" * 5000, 0),
            (20_000, b"b" * 10, 15_000),
        ]
        await shipper.close()


async def test_the_bound_keeps_the_newest_and_says_what_is_gone(tmp_path: Path) -> None:
    async with wire(tmp_path) as wired, wired.agent() as agent:
        job, task = await start(wired, agent, limits={"log_size": 64 << 10})
        shipper = Shipper(wired)
        data = os.urandom(1 << 20)
        for at in range(0, len(data), 50_000):
            await shipper.send(task, 0, at, data[at : at + 50_000])
        await shipper.wait_stored(0, len(data))
        await agent.end(task, log_bytes=[len(data)])
        chunks = await collect(wired, job, follow=True)
        kept = b"".join(chunk.data for chunk in chunks)
        assert chunks[0].dropped_bytes == chunks[0].offset == len(data) - len(kept)
        assert 48 << 10 <= len(kept) <= 64 << 10
        assert kept == data[-len(kept) :]
        path = tmp_path / "logs" / str(job) / "1.0.log"
        assert path.stat().st_size == len(data)
        assert path.stat().st_blocks * 512 <= 80 << 10
        await shipper.close()


async def test_from_an_offset_the_tail_and_several_positions(tmp_path: Path) -> None:
    async with wire(tmp_path) as wired, wired.agent() as agent:
        job, task = await start(wired, agent)
        shipper = Shipper(wired)
        await shipper.send(task, 0, 0, b"0123456789")
        await shipper.wait_stored(0, 10)

        async def texts(**request: Any) -> list[tuple[int, bytes]]:
            return [(chunk.offset, bytes(chunk.data)) for chunk in await collect(wired, job, **request)]

        assert await texts(offset=4) == [(4, b"456789")]
        assert await texts(offset=-3) == [(7, b"789")]
        assert await texts(offset=-300) == [(0, b"0123456789")]
        assert await texts(offset=10) == []
        position = logs_pb2.LogPosition(attempt=1, rank=0, offset=8)
        assert await texts(positions=[position], offset=2) == [(8, b"89")]
        await shipper.close()


async def test_a_follower_goes_on_to_the_next_attempt(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("paceline.scheduler.services.logs.LOST_WAIT_S", 1e9)  # it must not be needed
    async with wire(tmp_path) as wired, wired.agent() as agent:
        job, task = await start(wired, agent)
        call = wired.logs.Follow(logs_pb2.FollowRequest(job=job, rank=-1, follow=True))
        shipper = Shipper(wired)
        await shipper.send(task, 0, 0, b"first ")
        assert (await asyncio.wait_for(call.read(), 20)).data == b"first "
        await agent.end(task, codes=(1,), log_bytes=[10])
        await until("attempt 2", lambda: agent.starts[job].task.attempt == 2 or None)
        second = await agent.run(job)
        await shipper.send(second, 0, 0, b"second try\n")
        await shipper.send(task, 0, 6, b"try\n")  # late, and yet before what the second attempt says
        await agent.end(second, log_bytes=[11])
        for attempt, data in ((1, b"try\n"), (2, b"second try\n")):
            chunk = await asyncio.wait_for(call.read(), 20)
            assert (chunk.attempt, chunk.data) == (attempt, data)
        assert await asyncio.wait_for(call.read(), 20) is grpc.aio.EOF
        again = await asyncio.wait_for(collect(wired, job, attempt=1, follow=True), 20)
        assert joined(again) == b"first try\n"
        await shipper.close()


async def test_arrivals_reach_a_follower_at_once(tmp_path: Path) -> None:
    async with wire(tmp_path) as wired, wired.agent() as agent:
        job, task = await start(wired, agent)
        call = wired.logs.Follow(logs_pb2.FollowRequest(job=job, rank=-1, follow=True))
        shipper = Shipper(wired)
        lags_s = []
        for n in range(20):
            sent_s = time.monotonic()
            await shipper.send(task, 0, n, b"x")
            chunk = await asyncio.wait_for(call.read(), 20)
            lags_s.append(time.monotonic() - sent_s)
            assert chunk.offset == n
        assert sorted(lags_s)[len(lags_s) // 4] < 0.1
        call.cancel()
        await shipper.close()


async def test_a_follower_that_does_not_read_holds_up_nobody(tmp_path: Path) -> None:
    async with wire(tmp_path) as wired, wired.agent() as agent:
        job, task = await start(wired, agent)
        lazy = [wired.logs.Follow(logs_pb2.FollowRequest(job=job, rank=-1, follow=True)) for _ in range(5)]
        eager = asyncio.create_task(collect(wired, job, follow=True))
        shipper = Shipper(wired)
        data = os.urandom(12 << 20)
        for at in range(0, len(data), 200_000):
            await shipper.send(task, 0, at, data[at : at + 200_000])
        await agent.end(task, log_bytes=[len(data)])
        assert joined(await asyncio.wait_for(eager, 20)) == data
        for call in lazy:
            call.cancel()
        await shipper.close()


async def test_only_the_tasks_own_node_ships_it(tmp_path: Path) -> None:
    async with wire(tmp_path) as wired, wired.agent() as agent:
        job, task = await start(wired, agent)
        strangers = Shipper(wired)
        await strangers.send(task, 0, 0, b"lies", node="n2")
        await until("a refusal", lambda: strangers.refused == {0} or None)
        own = Shipper(wired)
        await own.send(task, 1, 0, b"a rank that is not there")
        await own.send(common_pb2.TaskKey(job=999, attempt=1, task=0), 2, 0, b"a job that is not there")
        await own.send(common_pb2.TaskKey(job=job, attempt=2, task=0), 0, 0, b"an attempt that is not there")
        await until("refusals", lambda: own.refused == {0, 1, 2} or None)
        assert await collect(wired, job) == []
        await strangers.close()
        await own.close()


@pytest.mark.parametrize(
    ("request_", "code"),
    [
        ({"rank": 7}, grpc.StatusCode.INVALID_ARGUMENT),
        ({"rank": -2}, grpc.StatusCode.INVALID_ARGUMENT),
        ({"attempt": 5}, grpc.StatusCode.NOT_FOUND),
    ],
)
async def test_follow_refuses_what_is_not_there(tmp_path: Path, request_: dict[str, int], code: Any) -> None:
    async with wire(tmp_path) as wired:
        [job] = await wired.submit()
        with pytest.raises(grpc.aio.AioRpcError) as failed:
            await collect(wired, job, **request_)
        assert failed.value.code() is code


async def test_following_a_job_that_waits_begins_when_it_starts(tmp_path: Path) -> None:
    async with wire(tmp_path) as wired:
        [job] = await wired.submit()
        following = asyncio.create_task(collect(wired, job, follow=True))
        await asyncio.sleep(0)
        async with wired.agent() as agent:
            task = await agent.run(job)
            shipper = Shipper(wired)
            await shipper.send(task, 0, 0, b"hello\n")
            await agent.end(task, log_bytes=[6])
            assert joined(await asyncio.wait_for(following, 20)) == b"hello\n"
            await shipper.close()


async def test_a_cancelled_job_that_never_ran_ends_its_followers(tmp_path: Path) -> None:
    async with wire(tmp_path) as wired:
        [job] = await wired.submit()
        following = asyncio.create_task(collect(wired, job, follow=True))
        await wired.jobs.Cancel(_cancel(job))
        assert await asyncio.wait_for(following, 20) == []


async def test_a_node_that_is_gone_for_good_ends_the_wait(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("paceline.scheduler.services.logs.LOST_WAIT_S", 0.3)
    async with wire(tmp_path) as wired:
        async with wired.agent() as agent:
            job, task = await start(wired, agent)
            shipper = Shipper(wired)
            await shipper.send(task, 0, 0, b"half")
            await shipper.wait_stored(0, 4)
            await agent.end(task, log_bytes=[8])
            await shipper.close()
        assert joined(await asyncio.wait_for(collect(wired, job, follow=True), 20)) == b"half"


def _cancel(job: int) -> Any:
    from paceline.proto.generated import jobs_pb2

    return jobs_pb2.CancelRequest(job=job)
