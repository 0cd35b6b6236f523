"""One node's agent: puts the parts together, says who tells whom, and takes them apart again.

Tasks belong to their shims: when this process ends, however it ends, they go on, and the next agent on the
same state folder takes them over.
"""

import asyncio
import logging
import signal
import uuid
from collections.abc import Collection
from typing import Final

import grpc

from .. import __version__
from ..proto.channels import Target, open_aio_channel, split_address
from ..proto.generated import agent_pb2, nodes_pb2
from ..spec.ids import TaskKey
from .config import AgentConfig
from .folder import BrokenFolder, StateFolder
from .gpu import Alarm, GpuReport
from .gpu_health import HealthBook
from .gpu_tests import GpuTester
from .inventory import GpuWatch, boot_id, capacity, gpu_message, gpu_samples
from .leases import LeaseFile, LeaseKeeper, boottime_s
from .routes import route_address
from .session import Identity, Session
from .shipping import LogShipper
from .streams import first_to_end
from .supervisor import Supervisor
from .supervisor_config import SupervisorConfig

log = logging.getLogger(__name__)

GPUS_FIRST_S: Final = 10.0
ENGINE_FIRST_S: Final = 5.0
"""Whatever is known of either then is told; more comes when it is known."""
LAST_WORDS_S: Final = 10.0
"""How long a stopping agent waits for the end of the tasks it was told to stop to reach the scheduler."""


class Agent:
    """Everything of one agent; `run` once, inside an event loop."""

    def __init__(self, config: AgentConfig, folder: StateFolder, where: Target) -> None:
        self._config = config
        self._folder = folder
        self._where = where
        self._boot_id = boot_id()
        self._route = route_address(*split_address(where.address))
        self._lease_file = _lease_file(folder, self._boot_id)
        self._leases = LeaseKeeper(self._lease_file, self._on_expired)
        self._supervisor = Supervisor(
            folder.path,
            SupervisorConfig(
                environments=config.environments,
                warm=config.warm,
                rendezvous_address=self._route,
                studies={
                    "scheduler": config.scheduler,
                    "ca_file": str(config.ca_file or ""),
                    "insecure": config.insecure,
                },
                node_name=config.name,
                peer_address=config.address or self._route,
                rendezvous_ports=config.rendezvous_ports,
                cache_bytes=config.cache_bytes,
            ),
            on_growth=self._on_growth,
            on_change=self._on_change,
            alarms=self._alarms,
            uuids=self._uuids,
            gpus=self._gpu_report,
        )
        self._shipper = LogShipper(folder.node_id, self._supervisor, self._dial)
        self._session = Session(
            identity=Identity(folder.node_id, uuid.uuid4().hex),
            tasks=self._supervisor,
            logs=self._shipper,
            leases=self._leases,
            dial=self._dial,
            inventory=self._inventory,
            samples=self._gpu_samples,
            check_cluster=folder.check_cluster,
            on_connected=self._on_connected,
            log_bytes_max=config.log_bytes_max,
        )
        self._alone = asyncio.Event()
        """Without a scheduler."""
        self._alone.set()
        self._leaves = False
        self._sampled: tuple[GpuReport, list[agent_pb2.GpuSample]] = (GpuReport(""), [])

    async def run(self) -> None:
        """Until SIGTERM or SIGINT. Raises PacelineError when going on is of no use."""
        stop = _stop_on_signals()
        loop = asyncio.get_running_loop()

        def on_gpus() -> None:
            loop.call_soon_threadsafe(self._on_change)
            loop.call_soon_threadsafe(self._tester.on_change)

        book = HealthBook(self._folder.path / "gpus.json")
        self._gpus = GpuWatch(on_gpus, book, self._config.gpus)
        self._tester = GpuTester(
            self._gpus,
            book,
            self._supervisor.holds_gpu,
            command=self._config.gpu_test,
            first_wait_s=self._config.gpu_test_after_s,
        )
        self._gpus.start()
        try:
            await self._supervisor.recover()
            await asyncio.gather(
                asyncio.to_thread(self._gpus.wait_first, GPUS_FIRST_S),
                self._supervisor.images.wait_known(ENGINE_FIRST_S),
            )
            self._say_hello()
            self._supervisor.look_around()
            await first_to_end(
                self._until(stop),
                self._leases.watch(),
                self._session.run(),
                self._shipper.run(),
                self._tester.run(),
            )
        finally:
            await self._session.close()
            self._shipper.close()
            await self._supervisor.close()
            self._gpus.stop()
            self._lease_file.close()

    async def _until(self, stop: asyncio.Event) -> None:
        await stop.wait()
        running = self._running()
        if self._config.stop_tasks:
            await self._stop(running)
        elif running:
            log.info(
                "stopped; %d tasks go on without the agent (%s), and the next one on %s takes them over",
                len(running),
                ", ".join(str(key) for key in running[:10]),
                self._folder.path,
            )
        else:
            log.info("stopped; no task was running")

    def _running(self) -> list[TaskKey]:
        return [key for key in self._supervisor.tasks() if not self._supervisor.ended(key)]

    async def _stop(self, running: list[TaskKey]) -> None:
        """By the scheduler, which knows how long saves take, and tells the ranks on other nodes, too."""
        log.info("stopping %d tasks", len(running))
        self._leaves = True
        self._on_change()
        ended, alone = (asyncio.ensure_future(each) for each in (self._all_ended(), self._alone.wait()))
        try:
            await asyncio.wait((ended, alone), return_when=asyncio.FIRST_COMPLETED)
            if not ended.done():
                log.warning("no scheduler says how long their saves take: each task has its grace_s")
                await asyncio.gather(*(self._stop_alone(key) for key in self._running()))
            await ended
        finally:
            alone.cancel()
            ended.cancel()
        try:
            async with asyncio.timeout(LAST_WORDS_S):
                await asyncio.gather(*(self._session.leaving.wait_left(key) for key in running))
        except TimeoutError:
            log.warning(
                "the scheduler has not heard of the end of all tasks; the next agent here will tell it"
            )
        log.info("stopped, with all tasks")

    async def _all_ended(self) -> None:
        while running := self._running():
            await self._supervisor.wait_ended(running[0])

    async def _stop_alone(self, key: TaskKey) -> None:
        if not self._supervisor.is_stopping(key):
            await self._supervisor.stop(key, self._supervisor.request(key).grace_s, "agent stopped")

    def _say_hello(self) -> None:
        inventory = self._inventory()
        log.info(
            "node %s (%s): %.3g cpus, %.1f GiB, %d GPUs (%s); %s; %d tasks here; scheduler %s",
            self._config.name,
            self._folder.node_id,
            inventory.capacity.cpu_milli / 1000,
            inventory.capacity.memory_bytes / (1 << 30),
            inventory.capacity.gpus,
            inventory.gpu_status,
            inventory.containment,
            len(self._supervisor.tasks()),
            self._where.address,
        )

    # Who tells whom.

    def _dial(self) -> grpc.aio.Channel:
        return open_aio_channel(self._where)

    def _on_growth(self, key: TaskKey) -> None:
        self._session.on_growth(key)

    def _alarms(self, indices: Collection[int], begin_s: float, end_s: float) -> list[Alarm]:
        return self._gpus.alarms(indices, begin_s, end_s)

    def _uuids(self) -> dict[int, str]:
        return self._gpus.uuids()

    def _gpu_report(self) -> GpuReport:
        return self._gpus.report()

    def _on_change(self) -> None:
        self._session.on_inventory()

    def _on_expired(self, exclusive: bool) -> None:
        self._session.on_expired(exclusive)

    def _on_connected(self, connected: bool) -> None:
        self._shipper.on_connected(connected)
        if not connected:
            self._alone.set()
            return
        self._alone.clear()
        log.info("connected to %s", self._where.address)
        try:
            self._folder.announce(self._config.name, self._where.address)
        except BrokenFolder as error:  # a full disk is no reason to leave the tasks alone
            log.error("%s", error)

    # What the session tells of the node.

    def _inventory(self) -> nodes_pb2.Inventory:
        config = self._config
        report = self._gpus.report()
        return nodes_pb2.Inventory(
            name=config.name,
            address=config.address or self._route,
            capacity=capacity(report, config.cpus, config.memory_bytes),
            gpus=[gpu_message(gpu) for gpu in report.gpus],
            gpu_status=report.status,
            containment=self._supervisor.containment(),
            labels=config.labels,
            taints=config.taints,
            environments=config.environments,
            container_engine=self._supervisor.images.status,
            version=__version__,
            interpreter=SupervisorConfig().interpreter,
            warm_pool=self._supervisor.warm_pool(),
            rendezvous_ports=self._supervisor.rendezvous_ports(),
            driver_version=report.driver_version,
            boot_id=self._boot_id,
            leaving=self._leaves,
        )

    def _gpu_samples(self) -> list[agent_pb2.GpuSample]:
        """The same list until there is a newer report."""
        report = self._gpus.report()
        if report is not self._sampled[0]:
            self._sampled = report, gpu_samples(report)
        return self._sampled[1]


def _lease_file(folder: StateFolder, boot: str) -> LeaseFile:
    try:
        return LeaseFile(folder.path / "lease", boot, boottime_s())
    except OSError as error:
        raise BrokenFolder(f"{folder.path / 'lease'} cannot be written: {error}") from error


def _stop_on_signals() -> asyncio.Event:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    return stop
