"""The agent's stream to the scheduler: real gRPC on loopback, over a proxy that misbehaves on demand."""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator
from pathlib import Path

import grpc
import pytest
from paceline.agent import streams
from paceline.agent.folder import StateFolder, WrongCluster
from paceline.agent.leases import LeaseFile, LeaseKeeper, boottime_s
from paceline.agent.session import Identity, Refused, Session
from paceline.agent.shipping import LogShipper
from paceline.proto.channels import open_aio_channel, target
from paceline.proto.generated import agent_pb2, nodes_pb2
from support.folder_tasks import FolderTasks, request_for
from support.proxy import Proxy
from support.small_scheduler import SmallScheduler, key

TOKEN = "a-token-of-at-least-twenty-characters"


class Node:
    """Session, shipper and leases as in agent.node, over tasks without processes."""

    def __init__(self, folder: Path, address: str, tasks: FolderTasks | None = None) -> None:
        self.tasks = tasks or FolderTasks(folder / "tasks")
        self.state = StateFolder(folder / "state")
        self.lease_file = LeaseFile(folder / "state" / "lease", "boot", boottime_s())
        self.leases = LeaseKeeper(self.lease_file, self._on_expired)
        self.gpus: list[agent_pb2.GpuSample] = [agent_pb2.GpuSample(index=0, temperature_c=40)]
        self.name = "node-1"
        dial = lambda: open_aio_channel(target(address, TOKEN))  # noqa: E731
        self.shipper = LogShipper(self.state.node_id, self.tasks, dial)
        self.session = Session(
            identity=Identity(self.state.node_id, "1"),
            tasks=self.tasks,
            logs=self.shipper,
            leases=self.leases,
            dial=dial,
            inventory=lambda: nodes_pb2.Inventory(name=self.name),
            samples=lambda: self.gpus,
            check_cluster=self.state.check_cluster,
            on_connected=self.shipper.on_connected,
        )
        self.tasks.on_growth = self.session.on_growth
        self._running: list[asyncio.Task[None]] = []

    def _on_expired(self, exclusive: bool) -> None:
        self.session.on_expired(exclusive)

    async def __aenter__(self) -> "Node":
        self._running = [
            asyncio.create_task(each)
            for each in (self.session.run(), self.shipper.run(), self.leases.watch())
        ]
        return self

    async def __aexit__(self, *exc: object) -> None:
        for task in self._running:
            task.cancel()
        await asyncio.gather(*self._running, return_exceptions=True)
        await self.session.close()
        self.shipper.close()
        self.lease_file.close()
        self.state.close()


@contextlib.asynccontextmanager
async def joined(folder: Path, **settings: object) -> AsyncIterator[tuple[SmallScheduler, Proxy, Node]]:
    """A scheduler, a proxy before it, and a node that is connected through it."""
    async with SmallScheduler(**settings) as scheduler:  # type: ignore[arg-type]
        with Proxy(("127.0.0.1", scheduler.port)) as proxy:
            async with Node(folder, f"127.0.0.1:{proxy.port}") as node:
                await scheduler.until_connected()
                yield scheduler, proxy, node
        assert scheduler.offences == []


async def test_hello_heartbeats_and_samples_only_when_new(tmp_path: Path) -> None:
    async with joined(tmp_path, heartbeat_s=0.2) as (scheduler, _, node):  # a new session sends all anew
        hello = scheduler.hellos[0]
        assert (hello.node_id, hello.inventory.name) == (node.state.node_id, "node-1")
        await scheduler.until(lambda: len(scheduler.heartbeats) >= 4)
        assert [len(beat.gpus) for beat in scheduler.heartbeats[:4]] == [1, 0, 0, 0]
        node.gpus = [agent_pb2.GpuSample(index=0, temperature_c=41)]
        beat = await scheduler.until(lambda: [each for each in scheduler.heartbeats[4:] if each.gpus])
        assert beat[0].gpus[0].temperature_c == 41
        assert not beat[0].gpus[0].HasField("power_mw")
        node.name = "renamed"
        node.session.on_inventory()
        await scheduler.until(lambda: scheduler.inventories)
        assert scheduler.inventories[0].name == "renamed"


async def test_a_task_from_start_to_dropped_folder(tmp_path: Path) -> None:
    async with joined(tmp_path) as (scheduler, _, node):
        scheduler.start(request_for(key(1)))
        await scheduler.until(lambda: scheduler.kinds(key(1)) == ["started"])
        node.tasks.write(key(1), 0, b"hello\n")
        node.tasks.metrics(key(1), 1)
        node.tasks.end(key(1))
        await scheduler.until(lambda: node.tasks.forgotten == [key(1)])
        assert scheduler.kinds(key(1)) == ["started", "metrics", "ended"]
        assert bytes(scheduler.logs[key(1), 0]) == b"hello\n"
        assert node.tasks.acknowledged[key(1)] == 3
        # A start that comes late, again, starts nothing.
        scheduler.start(request_for(key(1)))
        scheduler.start(request_for(key(2)))
        await scheduler.until(lambda: scheduler.kinds(key(2)) == ["started"])
        assert node.tasks.started == [key(1), key(2)]


async def test_a_stop_does_not_overtake_its_start(tmp_path: Path) -> None:
    async with joined(tmp_path) as (scheduler, _, node):
        node.tasks.start_takes_s = 0.2
        scheduler.start(request_for(key(1)))
        scheduler.stop(key(1), 2.5, "cancelled")
        await scheduler.until(lambda: scheduler.ended(key(1)))
        assert node.tasks.stopped == [(key(1), 2.5, "cancelled")]
        scheduler.stop(key(99))  # not known here: nothing to do
        scheduler.start(request_for(key(2)))
        await scheduler.until(lambda: scheduler.kinds(key(2)) == ["started"])
        assert len(node.tasks.stopped) == 1


async def test_after_a_stop_acknowledgements_count_for_nothing(tmp_path: Path) -> None:
    """Else an attempt with a successor would clean up checkpoints by what was only taken note of."""
    async with joined(tmp_path) as (scheduler, proxy, node):
        node.tasks.ends_when_stopped = False
        scheduler.start(request_for(key(1)))
        await scheduler.until(lambda: node.tasks.acknowledged.get(key(1)) == 1)
        scheduler.stop(key(1), 2.5, "superseded")
        await scheduler.until(lambda: node.tasks.stopped)
        node.tasks.metrics(key(1), 1)
        await scheduler.until(lambda: scheduler.kinds(key(1)) == ["started", "metrics"])
        hellos = len(scheduler.hellos)
        proxy.cut()
        await scheduler.until(lambda: len(scheduler.hellos) > hellos)
        node.tasks.end(key(1))
        await scheduler.until(lambda: node.tasks.forgotten == [key(1)])
        assert scheduler.kinds(key(1)) == ["started", "metrics", "ended"]
        assert node.tasks.acknowledged[key(1)] == 1


async def test_the_folder_stays_until_the_output_is_stored(tmp_path: Path) -> None:
    async with joined(tmp_path) as (scheduler, _, node):
        scheduler.storing.clear()
        scheduler.start(request_for(key(1)))
        await scheduler.until(lambda: node.tasks.started)
        node.tasks.write(key(1), 0, b"x" * 1000)
        node.tasks.end(key(1))
        await scheduler.until(lambda: node.tasks.acknowledged.get(key(1)) == 2)
        assert node.tasks.forgotten == []
        scheduler.storing.set()
        await scheduler.until(lambda: node.tasks.forgotten == [key(1)])
        assert scheduler.stored[key(1), 0] == 1000


async def test_what_was_not_acknowledged_is_told_again(tmp_path: Path) -> None:
    async with joined(tmp_path) as (scheduler, proxy, node):
        scheduler.start(request_for(key(1)))
        await scheduler.until(lambda: node.tasks.acknowledged.get(key(1)) == 1)
        scheduler.acknowledging = False
        for step in range(20):
            node.tasks.metrics(key(1), step)
        await scheduler.until(lambda: len(scheduler.entries[key(1)]) == 21)
        del scheduler.entries[key(1)][5:]  # a commit that failed: the scheduler knows five
        scheduler.acknowledging = True
        proxy.cut()
        node.tasks.end(key(1))
        await scheduler.until(lambda: scheduler.ended(key(1)))
        assert [entry.seq for entry in scheduler.entries[key(1)]] == list(range(1, 23))
        await scheduler.until(lambda: node.tasks.forgotten == [key(1)])


async def test_many_entries_go_in_bounded_batches_and_a_bounded_window(tmp_path: Path) -> None:
    """Heartbeats are rare here: a stream that is cut for a late answer would move the window."""
    async with joined(tmp_path, heartbeat_s=60.0) as (scheduler, _, node):
        scheduler.acknowledging = False
        scheduler.start(request_for(key(1)))
        scheduler.start(request_for(key(2)))
        await scheduler.until(lambda: len(node.tasks.started) == 2)
        for step in range(6000):
            node.tasks.metrics(key(1), step)
            node.tasks.metrics(key(2), step)
        total = lambda: len(scheduler.entries[key(1)]) + len(scheduler.entries[key(2)])  # noqa: E731
        await scheduler.until(lambda: total() == 8000)
        await asyncio.sleep(0.2)
        assert total() == 8000  # the window is full
        assert min(len(scheduler.entries[key(job)]) for job in (1, 2)) > 2500  # and shared
        scheduler.acknowledging = True
        scheduler.hang_up()
        await scheduler.until(lambda: total() == 12002, timeout_s=20)


@pytest.mark.serial
async def test_a_worker_s_death_is_on_the_wire_at_once(tmp_path: Path) -> None:
    async with joined(tmp_path, heartbeat_s=1.0) as (scheduler, _, node):
        scheduler.start(request_for(key(1)))
        await scheduler.until(lambda: scheduler.kinds(key(1)) == ["started"])
        took_s = []
        for _ in range(20):
            at_s = time.monotonic()
            entry = node.tasks.append(key(1), exited=agent_pb2.RankExited(local_rank=0, exit_code=-9))
            await scheduler.until(lambda seq=entry.seq: (key(1), seq) in scheduler.entry_at)
            took_s.append(scheduler.entry_at[key(1), entry.seq] - at_s)
        assert sorted(took_s)[10] < 0.01, took_s


async def test_forget_kills_ships_and_drops(tmp_path: Path) -> None:
    async with SmallScheduler() as scheduler:
        node = Node(tmp_path, scheduler.address)
        node.tasks.put(key(7))
        node.tasks.write(key(7), 0, b"last words")
        async with node:
            await scheduler.until(lambda: node.tasks.forgotten == [key(7)])
        assert node.tasks.stopped == [(key(7), 0.0, "superseded")]
        assert bytes(scheduler.logs[key(7), 0]) == b"last words"
        # Its end is told all the same: followers of its output wait to hear how long that is.
        assert [entry.WhichOneof("kind") for entry in scheduler.entries[key(7)]] == ["ended"]


async def test_another_cluster_is_refused(tmp_path: Path) -> None:
    async with SmallScheduler(cluster_id="a") as scheduler:
        async with Node(tmp_path, scheduler.address) as node:
            await scheduler.until_connected()
            await scheduler.until((tmp_path / "state" / "cluster-id").exists)
        scheduler.cluster_id = "b"
        node = Node(tmp_path, scheduler.address)
        with pytest.raises(WrongCluster, match=r"cluster a.*cluster b"):
            await asyncio.wait_for(node.session.run(), 10)
        node.state.close()


async def test_a_refused_token_ends_a_new_agent_but_not_one_that_was_in(tmp_path: Path) -> None:
    async with SmallScheduler() as scheduler:
        scheduler.refuse_with = grpc.StatusCode.UNAUTHENTICATED, "the token is not known"
        node = Node(tmp_path, scheduler.address)
        with pytest.raises(Refused, match="the token is not known"):
            await asyncio.wait_for(node.session.run(), 10)
        scheduler.refuse_with = None
        async with node:
            await scheduler.until_connected()
            scheduler.refuse_with = grpc.StatusCode.UNAUTHENTICATED, "the token is not known"
            streams = scheduler.streams
            scheduler.hang_up()
            await scheduler.until(lambda: scheduler.streams > streams)
            scheduler.refuse_with = None
            await scheduler.until(lambda: len(scheduler.hellos) >= 2)


async def test_a_silent_scheduler_is_dialled_again(tmp_path: Path) -> None:
    async with joined(tmp_path, heartbeat_s=0.05) as (scheduler, _, _):
        scheduler.answering = False
        await scheduler.until(lambda: len(scheduler.hellos) >= 2)


async def test_reconnects_back_off_with_jitter(tmp_path: Path) -> None:
    async with joined(tmp_path) as (scheduler, proxy, _):
        proxy.refuse()
        proxy.cut()
        before = proxy.accepted
        await asyncio.sleep(2.0)
        assert 1 <= proxy.accepted - before <= 40
        proxy.refuse(False)
        await scheduler.until(lambda: len(scheduler.hellos) >= 2)


@pytest.mark.parametrize("size", [1, 17, 100, 400, 1000, 5000])
async def test_a_connection_cut_after_any_number_of_bytes_loses_nothing(tmp_path: Path, size: int) -> None:
    async with joined(tmp_path, heartbeat_s=0.5) as (scheduler, proxy, node):
        scheduler.start(request_for(key(1)))
        await scheduler.until(lambda: node.tasks.started)
        proxy.cut_after(size)
        text = b""
        for step in range(50):
            node.tasks.metrics(key(1), step)
            line = b"line %d\n" % step
            node.tasks.write(key(1), 0, line)
            text += line
        node.tasks.end(key(1))
        await asyncio.sleep(0.3)
        proxy.cut_after(None)
        await scheduler.until(lambda: node.tasks.forgotten == [key(1)])
        assert [entry.seq for entry in scheduler.entries[key(1)]] == list(range(1, 53))
        assert bytes(scheduler.logs[key(1), 0]) == text


async def test_duplicated_connections_are_harmless(tmp_path: Path) -> None:
    async with SmallScheduler() as scheduler:
        with Proxy(("127.0.0.1", scheduler.port)) as proxy:
            proxy.duplicate()
            async with Node(tmp_path, f"127.0.0.1:{proxy.port}") as node:
                await scheduler.until(lambda: len(scheduler.hellos) >= 1)
                node.tasks.put(key(1))
                scheduler.live.add(key(1))
                proxy.duplicate(False)
                proxy.cut()
                node.tasks.metrics(key(1), 1)
                node.tasks.end(key(1))
                await scheduler.until(lambda: scheduler.ended(key(1)))
        assert scheduler.kinds(key(1)) == ["metrics", "ended"]


async def test_exclusive_tasks_die_by_their_lease_in_a_partition_and_fenced_ones_live(tmp_path: Path) -> None:
    async with SmallScheduler(heartbeat_s=0.1) as scheduler:
        scheduler.lease_exclusive_s = 1.5
        with Proxy(("127.0.0.1", scheduler.port)) as proxy:
            async with Node(tmp_path, f"127.0.0.1:{proxy.port}") as node:
                await scheduler.until_connected()
                scheduler.start(request_for(key(1), exclusive=True))
                scheduler.start(request_for(key(2)))
                await scheduler.until(lambda: len(node.tasks.started) == 2)
                await asyncio.sleep(2.0)  # longer than the lease: heartbeats renew it
                assert node.tasks.stopped == []
                proxy.stall()
                renewed_s = node.leases.lease.renewed_s
                await scheduler.until(lambda: node.tasks.stopped)
                took_s = boottime_s() - renewed_s
                assert 1.5 <= took_s < 3.0
                assert node.tasks.stopped == [(key(1), 0.0, "lease ran out")]
                assert not node.tasks.ended(key(2))
                proxy.heal()
                ended = await scheduler.until(lambda: scheduler.ended(key(1)), timeout_s=15)
                assert ended.why == "lease ran out"
                assert node.tasks.stopped == [(key(1), 0.0, "lease ran out")]


async def test_a_partition_shorter_than_the_lease_stops_nothing(tmp_path: Path) -> None:
    async with SmallScheduler(heartbeat_s=0.05) as scheduler:
        scheduler.lease_exclusive_s = 3.0
        with Proxy(("127.0.0.1", scheduler.port)) as proxy:
            async with Node(tmp_path, f"127.0.0.1:{proxy.port}") as node:
                await scheduler.until_connected()
                scheduler.start(request_for(key(1), exclusive=True))
                await scheduler.until(lambda: scheduler.kinds(key(1)) == ["started"])
                proxy.stall(up=False)  # we are heard, and hear nothing: the lease is not renewed
                await asyncio.sleep(0.6)
                proxy.heal()
                beats = len(scheduler.heartbeats)
                await scheduler.until(lambda: len(scheduler.heartbeats) > beats + 3)
                assert node.tasks.stopped == []
                assert node.leases.lease.remaining_s(True, boottime_s()) > 2.0


async def test_a_storm_of_reconnects_is_spread_and_all_come_back(tmp_path: Path) -> None:
    agents = 30
    async with contextlib.AsyncExitStack() as stack:
        scheduler = await stack.enter_async_context(SmallScheduler(heartbeat_s=0.5))
        proxy = stack.enter_context(Proxy(("127.0.0.1", scheduler.port)))
        for number in range(agents):
            await stack.enter_async_context(Node(tmp_path / str(number), f"127.0.0.1:{proxy.port}"))
        who = lambda hellos: {hello.node_id for hello in hellos}  # noqa: E731
        await scheduler.until(lambda: len(who(scheduler.hellos)) == agents)
        for _ in range(2):
            before = len(scheduler.hellos)
            proxy.refuse()
            assert proxy.cut() >= agents
            accepted = proxy.accepted
            await asyncio.sleep(0.7)
            # Two streams each: without backoff and jitter these would be thousands.
            assert proxy.accepted - accepted < agents * 2 * 6
            proxy.refuse(False)
            await scheduler.until(
                lambda before=before: len(who(scheduler.hellos[before:])) == agents, timeout_s=20
            )
        assert scheduler.offences == []


async def test_after_a_loss_it_dials_as_often_as_the_scheduler_bears(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(streams, "SETTLED_S", 0.0)  # every stream that was welcome is settled
    waits = lambda: [r.args[1] for r in caplog.records if "trying again" in r.msg]  # type: ignore[index]  # noqa: E731
    async with SmallScheduler(heartbeat_s=0.5) as scheduler:
        scheduler.redial_s = 0.06
        with Proxy(("127.0.0.1", scheduler.port)) as proxy:
            async with Node(tmp_path, f"127.0.0.1:{proxy.port}"):
                await scheduler.until(lambda: bool(scheduler.heartbeats))  # the welcome has been read
                proxy.refuse()
                proxy.cut()
                await scheduler.until(lambda: len(waits()) >= 8)
                hellos = len(scheduler.hellos)
                proxy.refuse(False)
                await scheduler.until(lambda: len(scheduler.hellos) > hellos)
    assert max(waits()) <= 0.06


def test_backoff_dials_soon_after_a_settled_stream_then_ever_less_often(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now_s = 100.0
    monkeypatch.setattr(streams.time, "monotonic", lambda: now_s)
    monkeypatch.setattr(streams.random, "uniform", lambda least, most: most)
    backoff = streams.Backoff()

    def after(seconds: float) -> float:
        """The wait when a stream that began now has lived so long."""
        nonlocal now_s
        backoff.began()
        now_s += seconds
        return backoff.failed(2.0, redial_s=0.1)

    assert [after(0.1) for _ in range(5)] == [0.2, 0.4, 0.8, 1.6, 2.0], "never settled: no soon"
    assert after(streams.SETTLED_S) == 0.1
    soon = [after(0.5) for _ in range(round(streams.SOON_S / 0.5) - 1)]
    assert set(soon) == {0.1}
    assert [after(0.5) for _ in range(4)] == [0.2, 0.4, 0.8, 1.6], "then exponential, from its beginning"
    assert after(streams.SETTLED_S) == 0.1
    backoff.began()
    assert backoff.failed(2.0) == 0.2, "a scheduler that said nothing"
    assert backoff.failed(0.05, redial_s=0.1) == 0.05, "never more than the caller bears"
