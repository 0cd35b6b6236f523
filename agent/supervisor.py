"""Owns the tasks of this node: one folder and one shim each, whatever happens to this process.

A task starts at most once per key, an older attempt of the same job is dead before a newer one starts, and
every task whose folder exists ends in a journal that holds `ended` or `refused`. Shims outlive this process.
"""

import asyncio
import contextlib
import logging
import os
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from ..proto.generated import agent_pb2
from ..proto.marks import mark_of
from ..spec.errors import NotFound
from ..spec.ids import Attempt, JobId, TaskKey
from ..spec.slices import gpus_of
from . import containment
from .additions import Alarms, add_record, explain
from .disk import Disk
from .gpu import GpuReport
from .launch import Refusal, base_environment
from .memory import MemoryFolders
from .peer_door import PeerDoor
from .preparing import Preparing
from .ran_with import Records
from .rendezvous import RendezvousPorts
from .shim_pool import ShimPool
from .spare_folders import SpareFolders, drop_folder
from .starter import Starter
from .supervisor_config import SupervisorConfig
from .task import Task, found_task, make_socket_folder, read_group, write_acked
from .warm import ZygotePool
from .watcher import Watcher

log = logging.getLogger(__name__)

_TRIM_BYTES = 256 * 1024


class _Turn:
    """Starts of one job are done one after the other; gone when nobody waits."""

    def __init__(self) -> None:
        self.lock = asyncio.Lock()
        self.users = 0


class Supervisor:
    """Starts, stops and watches tasks. All methods belong to the event loop's thread.

    `on_growth(key)` is called whenever a task's journal has grown (also once per task during `recover`);
    `on_change()` when `rendezvous_ports()`, `warm_pool()` or `images.status` say something new: the inventory
    is to be sent again. Both must return at once.
    """

    def __init__(
        self,
        state: Path,
        config: SupervisorConfig,
        *,
        on_growth: Callable[[TaskKey], None] = lambda key: None,
        on_change: Callable[[], None] = lambda: None,
        alarms: Alarms = lambda gpus, begin_s, end_s: [],
        uuids: Callable[[], Mapping[int, str]] = dict,
        gpus: Callable[[], GpuReport] = lambda: GpuReport(""),
    ) -> None:
        """`state`: the agent's folder, untouched before `recover`; `uuids`: of GPUs and slices by index."""
        self._state = state
        self._folder = state / "tasks"
        self._config = config
        self._on_growth = on_growth
        self._on_change = on_change
        self._alarms, self._uuids = alarms, uuids
        self._base = base_environment(os.environ)
        self._tasks: dict[TaskKey, Task] = {}
        self._turns: dict[JobId, _Turn] = {}
        self._disk = Disk()
        self._pool = ZygotePool(
            state,
            self._base,
            sys.executable,
            preload=config.preload,
            warm_max=config.zygotes_max,
            on_change=on_change,
        )
        self._shims = ShimPool(config.idle_shim_s)
        self._spares = SpareFolders(state / "spare")
        self._memory = MemoryFolders(self._folder)
        self._preparing = Preparing(
            state, config.cache_bytes, config.interpreter, config.environments, on_change
        )
        self.images = self._preparing.images
        self._records = Records(self._base, gpus, self._pool.renew)
        self._door = PeerDoor(config.node_name, config.rendezvous_address, config.peer_address)
        self._watcher = Watcher(
            self._disk, self._shims, self._memory, config.answer_s, self._on_task_growth, door=self._door
        )
        self._groups = containment.CgroupTree(None, "not looked for yet")
        self._ports: RendezvousPorts | None = None
        self._starter: Starter | None = None
        self._door_watch: asyncio.Task[None] | None = None

    async def recover(self) -> None:
        """Once, before anything else: adopt living shims, finish the journals of dead ones, start zygotes."""
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._spares.begin()
        self._memory.begin()
        make_socket_folder(self._state)
        self._groups = containment.find_cgroup_tree(
            self._state, without_limits=self._config.groups_without_limits
        )
        self._ports = RendezvousPorts(self._config.rendezvous_address, self._config.rendezvous_ports)
        self._starter = Starter(
            self._config,
            self._base,
            watcher=self._watcher,
            zygotes=self._pool,
            shims=self._shims,
            spares=self._spares,
            memory=self._memory,
            door=self._door,
            groups=self._groups,
            ports=self._ports,
            disk=self._disk,
            preparing=self._preparing,
            records=self._records,
            uuids=self._uuids,
            on_change=self._on_change,
        )
        self._pool.begin(self._pool.key(self._config.interpreter) if self._config.warm else None)
        found = [
            task for folder in sorted(self._folder.iterdir()) if (task := self._load(folder)) is not None
        ]
        for task in found:
            self._tasks[task.key] = task
            self._memory.hold(task.key.job)
        await self._preparing.begin([task.request for task in found])
        await asyncio.gather(*(self._watcher.adopt(task) for task in found))
        self._memory.sweep()
        for task in found:
            memory = self._memory.folder(task.key.job)
            if memory and not task.over.is_set():
                self._door.admit_again(task.key, Path(memory), task.folder)
        self._door_watch = asyncio.create_task(self._door.watch())

    def look_around(self) -> None:
        """See what the node's own interpreter has, before the first task runs in it."""
        self._records.look(self._config.interpreter)

    async def start(self, request: agent_pb2.StartTask) -> None:
        """Start the task, unless its key is known already. Returns when its shim was forked or a `refused`
        entry is in its journal. Older attempts of the job on this node are killed first, completely. May be
        called for many tasks at once; calls for one job are done in turn. A start for an attempt older than
        one already here is refused (`stale-attempt`)."""
        key = _key(request)
        turn = self._turns.setdefault(key.job, _Turn())
        turn.users += 1
        try:
            async with turn.lock:
                if key not in self._tasks:
                    await self._start(key, request)
        finally:
            turn.users -= 1
            if not turn.users:
                del self._turns[key.job]

    async def stop(self, key: TaskKey, grace_s: float, why: str, keep_s: float = 0.0) -> None:
        """Ask the task to end: notice byte and SIGTERM, after `grace_s` SIGKILL. Unknown and ended: nothing.
        With `keep_s`, ranks that can go on in the next attempt wait so long for it instead. Returns when the
        shim has taken it over, or, where it does not answer, when everything is dead."""
        task = self._tasks.get(key)
        if task is None or task.over.is_set():
            return
        task.stop_why = task.stop_why or why
        mark = mark_of(task.folder)  # by the time this arrives, the shim may have gone on to the next task
        message = {"op": "stop", "grace_s": grace_s, "why": why, "keep_s": keep_s, "mark": mark}
        until = time.monotonic() + self._config.answer_s
        while not task.over.is_set():
            left_s = until - time.monotonic()
            if left_s <= 0:
                log.warning("task %s: its shim does not answer; killing it and all that it started", key)
                self._watcher.kill_shim(task)
                await task.over.wait()
            elif task.link is None and task.shim() is None:  # `start` sees that it need not go on
                await task.over.wait()
            elif task.link is None:  # it is being dialled again, or buried
                await asyncio.sleep(0.005)
            else:
                with contextlib.suppress(TimeoutError, ConnectionError):
                    await task.link.ask(message, left_s)
                    return

    async def inspect(self, key: TaskKey) -> None:
        """Have the stacks of the task's ranks taken; what comes of it is an `inspected` entry. Unknown, ended
        or not to be reached now: nothing, for whoever asked waits for a bounded time only."""
        await self._ask(key, {"op": "inspect"})

    async def ask_save(self, key: TaskKey, request: int) -> None:
        """Have the ranks told that a checkpoint is wanted. Unknown, ended or not to be reached now: nothing;
        the scheduler tells again when this agent dials in anew."""
        await self._ask(key, {"op": "save", "request": request})

    async def forget(self, key: TaskKey) -> None:
        """Kill what is left of the task and drop its folder. Unknown: nothing."""
        task = self._tasks.get(key)
        if task is None:
            return
        if not task.over.is_set():
            await self.stop(key, 0.0, "superseded")
            await task.over.wait()
        if self._tasks.pop(key, None) is None:
            return
        self._watcher.let_go(task)
        job_is_here = any(each.job == key.job for each in self._tasks)
        await self._preparing.release(task.request, last=not job_is_here, kept=task.was_handed_on)
        if task.is_left:
            await self._disk.run(lambda: self._spares.keep(task.folder))
        else:
            await self._disk.run_alone(lambda: drop_folder(task.folder))

    def acknowledge(self, key: TaskKey, seq: int) -> None:
        """The scheduler has stored the journal up to `seq`: the shim may give that space back."""
        task = self._tasks.get(key)
        if task is None or task.over.is_set():
            return
        if task.journal.has_checkpoints and not task.stop_why:  # one that was stopped may have a successor
            write_acked(task, seq)
        end = task.journal.end_of(seq)
        may_trim = task.link is not None and not task.hands_on
        if may_trim and end - task.trimmed_bytes >= _TRIM_BYTES:
            assert task.link is not None
            task.trimmed_bytes = end
            task.link.send({"op": "trim", "bytes": end})

    def tasks(self) -> tuple[TaskKey, ...]:
        """All whose folders are here, running or ended."""
        return tuple(self._tasks)

    def request(self, key: TaskKey) -> agent_pb2.StartTask:
        """What `start` was given. Raises NotFound."""
        if key not in self._tasks:
            raise NotFound(f"task {key} is not on this node", task=str(key))
        return self._tasks[key].request

    def entries(self, key: TaskKey, after_seq: int, limit: int) -> list[agent_pb2.JournalEntry]:
        """Journal entries with seq > after_seq, in order, at most `limit`. Unknown: none."""
        task = self._tasks.get(key)
        if task is None:
            return []
        found = task.journal.entries(after_seq, limit)
        if found and found[0].HasField("started") and not add_record(task, found[0].started):
            return []  # what it runs with is told with its start
        for entry in found:
            entry.task.CopyFrom(task.request.task)
            if entry.exited.exit_code and task.request.gpu_indices:
                explain(task, entry, self._alarms)
        return found

    def holds_gpu(self, index: int) -> bool:
        """A task here has that GPU or a slice of it, and processes that may use it."""
        return any(
            index in gpus_of(task.request.gpu_indices) and not task.over.is_set()
            for task in self._tasks.values()
        )

    def log_files(self, key: TaskKey) -> dict[int, Path]:
        """Global rank -> its output file (which may not exist yet). Unknown: none."""
        task = self._tasks.get(key)
        return {} if task is None else task.log_files()

    def ended(self, key: TaskKey) -> bool:
        """True when the journal holds `ended` or `refused`: no process is left and nothing will be added.
        True for an unknown key."""
        task = self._tasks.get(key)
        return task is None or task.over.is_set()

    def is_stopping(self, key: TaskKey) -> bool:
        """It was asked to end."""
        return key in self._tasks and bool(self._tasks[key].stop_why)

    async def wait_ended(self, key: TaskKey) -> None:
        """Return as soon as `ended(key)`."""
        task = self._tasks.get(key)
        if task is not None:
            await task.over.wait()

    def rendezvous_ports(self) -> tuple[int, ...]:
        """Ports that listen now and are free to give to a gang (Inventory.rendezvous_ports)."""
        return self._ports.ports() if self._ports else ()

    def warm_pool(self) -> str:
        """For Inventory.warm_pool: "ready", "starting", "none: <why>"."""
        return self._pool.status() if self._config.warm else "none: turned off"

    def containment(self) -> str:
        """For Inventory.containment: "cgroup v2", or "process groups and subreaper: <why>"."""
        return self._groups.describe()

    async def close(self) -> None:
        """Let go of everything and end the zygotes; shims and their tasks live on."""
        if self._door_watch is not None:
            self._door_watch.cancel()
        await self._watcher.close()
        for task in self._tasks.values():
            self._watcher.let_go(task)
        self._shims.close()
        self._memory.close()
        self._door.close()
        if self._ports is not None:
            self._ports.close()
        await self._records.close()
        await self._pool.close()
        self._groups.close()
        await self._preparing.close()
        self._disk.close()

    # Starting.

    async def _start(self, key: TaskKey, request: agent_pb2.StartTask) -> None:
        task = Task(key, self._folder / str(key), agent_pb2.StartTask.FromString(request.SerializeToString()))
        others = [each for each in self._tasks if each.job == key.job and each.attempt != key.attempt]
        newer = max((each.attempt for each in others), default=0)
        self._tasks[key] = task
        self._memory.hold(key.job)
        try:
            if newer > key.attempt:
                raise Refusal(
                    "stale-attempt",
                    f"attempt {newer} of this job has been started here already",
                    transient=False,
                )
            before = self._predecessor(key)
            await asyncio.gather(
                *(self._end_older(each) for each in others if before is None or each != before.key)
            )
            assert self._starter is not None, "recover comes first"
            await self._starter.start(task, before, self._end_older)
            if task.recording is not None:
                task.recording.add_done_callback(lambda _: self._on_task_growth(task))
        except Refusal as refusal:
            await self._refuse(task, refusal)
        except OSError as error:
            text = f"this node could not start it: {error.strerror}" + (
                f": {error.filename}" if error.filename else ""
            )
            await self._refuse(task, Refusal("node-trouble", text, transient=True, errno=error.errno))
        except Exception:
            await self._refuse(
                task, Refusal("internal", "the agent failed; its log says how", transient=True)
            )
            raise

    def _predecessor(self, key: TaskKey) -> Task | None:
        """The task of the attempt before whose ranks may go on in this one. A gang that has closed up numbers
        its tasks anew: where none has this number here, it is the first of those that were here."""
        last = [
            task
            for task in self._tasks.values()
            if task.key.job == key.job and task.key.attempt == key.attempt - 1 and not task.over.is_set()
        ]
        return min(last, key=lambda task: (task.key.task != key.task, task.key.task), default=None)

    async def _end_older(self, key: TaskKey) -> None:
        await self.stop(key, 0.0, "superseded")
        await self.wait_ended(key)

    async def _refuse(self, task: Task, refusal: Refusal) -> None:
        reason = {"code": refusal.reason_code, "text": refusal.message, "hint": refusal.hint}
        fields = {name: str(value) for name, value in refusal.fields.items()}
        entry = {"reason": {**reason, "fields": fields}, "transient": refusal.transient}
        await self._watcher.append(task, [("refused", entry)])

    # After a restart of the agent.

    def _load(self, folder: Path) -> Task | None:
        task = found_task(folder)
        if task is None:
            return None
        task.group = self._groups.root / str(task.key) if self._groups.root else None
        if task.group is not None and (kept_in := read_group(task)) is not None:
            task.group = kept_in
        return task

    # Helpers.

    async def _ask(self, key: TaskKey, message: dict[str, Any]) -> None:
        task = self._tasks.get(key)
        if task is not None and task.link is not None and not task.over.is_set():
            with contextlib.suppress(TimeoutError, ConnectionError):
                await task.link.ask(message, self._config.answer_s)

    def _on_task_growth(self, task: Task) -> None:
        if self._tasks.get(task.key) is task:
            self._on_growth(task.key)


def _key(request: agent_pb2.StartTask) -> TaskKey:
    return TaskKey(JobId(request.task.job), Attempt(request.task.attempt), request.task.task)
