"""Output shipped by offset: complete, in order, in turn, bounded, late by little."""

import asyncio
import contextlib
import os
import time
from collections.abc import AsyncIterator
from pathlib import Path

import psutil
import pytest
from paceline.agent import kernel
from paceline.agent.shipping import FILE_WINDOW_BYTES, WINDOW_BYTES, LogShipper
from paceline.proto.channels import open_aio_channel, target
from paceline.proto.limits import CHUNK_BYTES_MAX
from support.folder_tasks import FolderTasks
from support.proxy import Proxy
from support.small_scheduler import SmallScheduler, key

TOKEN = "a-token-of-at-least-twenty-characters"


@contextlib.asynccontextmanager
async def shipping(folder: Path, address: str, tasks: FolderTasks) -> AsyncIterator[LogShipper]:
    shipper = LogShipper("node-1", tasks, lambda: open_aio_channel(target(address, TOKEN)))
    shipper.on_connected(True)
    running = asyncio.create_task(shipper.run())
    try:
        yield shipper
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
        shipper.close()


async def test_a_hundred_files_arrive_whole_and_none_waits_for_a_big_one(tmp_path: Path) -> None:
    tasks = FolderTasks(tmp_path)
    tasks.put(key(1), processes=100)
    big = os.urandom(1 << 20) * 32
    tasks.write(key(1), 0, big)
    for rank in range(1, 100):
        tasks.write(key(1), rank, b"%d " % rank * 100)
    async with SmallScheduler() as scheduler, shipping(tmp_path, scheduler.address, tasks) as shipper:
        shipper.watch(key(1))
        tasks.end(key(1))
        await asyncio.wait_for(shipper.wait_shipped(key(1)), 30)
        assert bytes(scheduler.logs[key(1), 0]) == big
        for rank in range(1, 100):
            assert bytes(scheduler.logs[key(1), rank]) == b"%d " % rank * 100
        small = [at for at, (_, rank, _) in enumerate(scheduler.chunks) if rank]
        big_before_last_small = [size for _, rank, size in scheduler.chunks[: small[-1]] if rank == 0]
        assert sum(big_before_last_small) <= FILE_WINDOW_BYTES + CHUNK_BYTES_MAX
        assert scheduler.offences == []


async def test_bytes_in_flight_are_bounded(tmp_path: Path) -> None:
    tasks = FolderTasks(tmp_path)
    tasks.put(key(1), processes=8)
    for rank in range(8):
        tasks.write(key(1), rank, bytes(8 << 20))
    async with SmallScheduler() as scheduler, shipping(tmp_path, scheduler.address, tasks) as shipper:
        scheduler.storing.clear()
        shipper.watch(key(1))
        await asyncio.sleep(0.5)
        assert shipper.flying_bytes <= WINDOW_BYTES + CHUNK_BYTES_MAX
        scheduler.storing.set()
        tasks.end(key(1))
        await asyncio.wait_for(shipper.wait_shipped(key(1)), 30)
        assert all(scheduler.stored[key(1), rank] == 8 << 20 for rank in range(8))
        assert shipper.flying_bytes == 0


async def test_files_that_fill_the_window_whole_make_room_for_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is stored of a file with no more to say lets the next one go."""
    size = 64 << 10
    monkeypatch.setattr("paceline.agent.shipping.WINDOW_BYTES", 2 * size)
    tasks = FolderTasks(tmp_path)
    tasks.put(key(1), processes=16)
    for rank in range(16):
        tasks.write(key(1), rank, bytes(size))
    async with SmallScheduler() as scheduler, shipping(tmp_path, scheduler.address, tasks) as shipper:
        shipper.watch(key(1))
        tasks.end(key(1))
        await asyncio.wait_for(shipper.wait_shipped(key(1)), 30)
        assert all(scheduler.stored[key(1), rank] == size for rank in range(16))


async def test_a_dropped_head_is_a_jump_and_never_zeros(tmp_path: Path) -> None:
    tasks = FolderTasks(tmp_path)
    tasks.put(key(1))
    text = b"".join(b"line %07d\n" % number for number in range(20_000))
    tasks.write(key(1), 0, text)
    path = tasks.log_files(key(1))[0]
    dropped = 100_000 // 4096 * 4096
    descriptor = os.open(path, os.O_RDWR)
    kernel.punch_hole(descriptor, 0, dropped)
    os.close(descriptor)
    async with SmallScheduler() as scheduler, shipping(tmp_path, scheduler.address, tasks) as shipper:
        shipper.watch(key(1))
        await scheduler.until(lambda: scheduler.stored[key(1), 0] == len(text))
        assert scheduler.jumps == [(key(1), 0, 0, dropped)]
        assert bytes(scheduler.logs[key(1), 0]) == text[dropped:]
        tasks.end(key(1))
        await asyncio.wait_for(shipper.wait_shipped(key(1)), 5)


async def test_a_head_that_is_dropped_while_it_ships_is_never_read_as_zeros(tmp_path: Path) -> None:
    tasks = FolderTasks(tmp_path)
    tasks.put(key(1))
    text = b"x" * 4095 + b"\n"
    async with SmallScheduler() as scheduler, shipping(tmp_path, scheduler.address, tasks) as shipper:
        shipper.watch(key(1))
        path = tasks.log_files(key(1))[0]
        tasks.write(key(1), 0, text)
        descriptor = os.open(path, os.O_RDWR)

        def write_and_drop() -> None:
            for block in range(4000):
                os.pwrite(descriptor, text, (block + 1) * 4096)
                if block > 16:
                    kernel.punch_hole(descriptor, 0, (block - 16) * 4096)

        await asyncio.to_thread(write_and_drop)
        os.close(descriptor)
        tasks.end(key(1))
        await asyncio.wait_for(shipper.wait_shipped(key(1)), 20)
        assert b"\0" not in scheduler.logs[key(1), 0]
        assert scheduler.logs[key(1), 0].endswith(text)
        assert scheduler.offences == []


async def test_output_that_cannot_be_read_hurts_nobody_else(tmp_path: Path) -> None:
    tasks = FolderTasks(tmp_path)
    tasks.put(key(1), processes=4)
    files = tasks.log_files(key(1))
    files[0].parent.mkdir(parents=True)
    files[0].symlink_to("/etc/hostname")
    os.mkfifo(files[1])
    tasks.write(key(1), 3, b"fine")
    async with SmallScheduler() as scheduler, shipping(tmp_path, scheduler.address, tasks) as shipper:
        shipper.watch(key(1))
        await scheduler.until(lambda: scheduler.stored[key(1), 3] == 4)
        tasks.end(key(1))
        await asyncio.wait_for(shipper.wait_shipped(key(1)), 5)
        assert not scheduler.logs[key(1), 0]


async def test_a_refused_task_is_left_alone(tmp_path: Path) -> None:
    tasks = FolderTasks(tmp_path)
    tasks.put(key(1))
    tasks.put(key(2))
    tasks.write(key(1), 0, b"nobody wants it")
    tasks.write(key(2), 0, b"wanted")
    async with SmallScheduler() as scheduler, shipping(tmp_path, scheduler.address, tasks) as shipper:
        scheduler.forget.add(key(1))
        for job in (1, 2):
            shipper.watch(key(job))
            tasks.end(key(job))
            await asyncio.wait_for(shipper.wait_shipped(key(job)), 5)
        assert scheduler.stored[key(1), 0] == 0 and scheduler.stored[key(2), 0] == 6


@pytest.mark.serial
async def test_lines_are_late_by_little_and_silence_costs_little(tmp_path: Path) -> None:
    tasks = FolderTasks(tmp_path)
    tasks.put(key(1), processes=100)
    async with SmallScheduler() as scheduler, shipping(tmp_path, scheduler.address, tasks) as shipper:
        shipper.watch(key(1))
        await asyncio.sleep(0.3)
        lags_s = []
        for number in range(10):
            await asyncio.sleep(0.11)
            tasks.write(key(1), number, b"hello\n")
            at_s = time.monotonic()
            await scheduler.until(lambda rank=number: scheduler.stored[key(1), rank] == 6)
            lags_s.append(time.monotonic() - at_s)
        assert sorted(lags_s)[-2] < 0.1, lags_s
        await asyncio.sleep(2.2)  # no longer busy
        process = psutil.Process()
        before = sum(process.cpu_times()[:2])
        await asyncio.sleep(2.0)
        assert sum(process.cpu_times()[:2]) - before < 0.1


async def test_connections_cut_at_random_bytes_lose_and_double_nothing(tmp_path: Path) -> None:
    tasks = FolderTasks(tmp_path)
    tasks.put(key(1), processes=3)
    texts = {rank: os.urandom(1 << 20) for rank in range(3)}
    async with SmallScheduler() as scheduler:
        with Proxy(("127.0.0.1", scheduler.port)) as proxy:
            async with shipping(tmp_path, f"127.0.0.1:{proxy.port}", tasks) as shipper:
                shipper.watch(key(1))
                proxy.cut_after(700_001)
                for at in range(0, 1 << 20, 1 << 17):
                    for rank, text in texts.items():
                        tasks.write(key(1), rank, text[at : at + (1 << 17)])
                    await asyncio.sleep(0.02)
                tasks.end(key(1))
                await asyncio.wait_for(shipper.wait_shipped(key(1)), 40)
        assert scheduler.log_streams >= 4
        assert {rank: bytes(scheduler.logs[key(1), rank]) for rank in range(3)} == texts
        assert scheduler.offences == [] and scheduler.jumps == []


async def test_silence_with_nothing_in_flight_is_no_stall(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("paceline.agent.shipping.SILENT_S", 0.3)
    tasks = FolderTasks(tmp_path)
    tasks.put(key(1))
    tasks.write(key(1), 0, b"words\n")
    async with SmallScheduler() as scheduler:
        host, _, port = scheduler.address.rpartition(":")
        with Proxy((host, int(port))) as proxy:
            async with shipping(tmp_path, f"127.0.0.1:{proxy.port}", tasks) as shipper:
                shipper.watch(key(1))
                tasks.end(key(1))
                await asyncio.wait_for(shipper.wait_shipped(key(1)), 30)
                await asyncio.sleep(1.5)  # the silence
                assert proxy.accepted == 1
