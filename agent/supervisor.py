"""Owns the tasks of this node: one folder and one shim each, whatever happens to this process.

A task starts at most once per key, an older attempt of the same job is dead before a newer one starts, and
every task whose folder exists ends in a journal that holds `ended` or `refused`. Shims outlive this process.
"""

import asyncio
import contextlib
import logging
import os
import signal
import socket
import sys
import time
from collections.abc import Callable, Coroutine, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from google.protobuf import json_format

from ..proto.generated import agent_pb2
from ..spec.errors import NotFound
from ..spec.ids import Attempt, JobId, TaskKey
from . import containment, kernel
from .claims import forbid
from .disk import Disk
from .launch import PRELOAD, Launch, Refusal, base_environment, make_launch, patience_for, shadowing
from .rendezvous import RendezvousPorts
from .shim_link import ShimLink, dial
from .shim_pool import ReusableShim, ShimPool
from .spare_folders import SpareFolders, drop_folder
from .stillness import Patience
from .task import (
    Task,
    kill_leftovers,
    make_folder,
    make_socket_folder,
    missing_entries,
    write_acked,
    write_entries,
    write_launch,
)
from .warm import Zygote, ZygoteFailed, ZygotePool

log = logging.getLogger(__name__)

_FORK_TRIES = 3
_BEGUN_AT_ONCE = 8
"""Programs whose shim is being had: who waits for a fork may meanwhile get one that has become free."""
_DYING_S = 0.2
"""A shim that lives so long after its connection has ended has only dropped us."""
_WAIT_WORTH_SAYING_S = 0.05
_TRIM_BYTES = 256 * 1024


@dataclass(frozen=True, slots=True)
class SupervisorConfig:
    """What the agent tells its supervisor once, at start."""

    interpreter: str = sys.executable
    """The node's own; tasks with an empty `interpreter_environment` run in it."""
    environments: Mapping[str, str] = field(default_factory=dict)
    """Environment name -> interpreter."""
    warm: bool = True
    """Keep a process that has imported torch & co., and start Python jobs by forking it."""
    preload: tuple[str, ...] = PRELOAD
    """Modules that warm processes import; one that is not there is left out."""
    zygotes_max: int = 4
    """Warm processes for different interpreters and import-sensitive environments; least used go first."""
    rendezvous_address: str = "127.0.0.1"
    """On which the rendezvous ports listen."""
    rendezvous_ports: int = 8
    """How many are held ready."""
    groups_without_limits: bool = False
    """Put tasks into cgroups also where these can limit nothing: a last resort for finding processes."""
    answer_s: float = 5.0
    """A shim or zygote that does not answer in this time is killed."""
    idle_shim_s: float = 10.0
    """How long a shim without a task is kept for the next one."""
    patience: Patience = field(default_factory=Patience)
    """With ranks that make no step any more; `fixed_s` is each job's own."""
    pace_window_s: float = 30.0
    """Over which the time of the ranks' steps is told."""


class _Turn:
    """Starts of one job are done one after the other; gone when nobody waits."""

    def __init__(self) -> None:
        self.lock = asyncio.Lock()
        self.users = 0


class Supervisor:
    """Starts, stops and watches tasks. All methods belong to the event loop's thread.

    `on_growth(key)` is called whenever a task's journal has grown (also once per task during `recover`);
    `on_change()` when `rendezvous_ports()` or `warm_pool()` say something new: the inventory is to be sent
    again. Both must return at once.
    """

    def __init__(
        self,
        state: Path,
        config: SupervisorConfig,
        *,
        on_growth: Callable[[TaskKey], None] = lambda key: None,
        on_change: Callable[[], None] = lambda: None,
    ) -> None:
        """`state` is the agent's state folder; nothing is touched before `recover`."""
        self._state = state
        self._folder = state / "tasks"
        self._config = config
        self._on_growth = on_growth
        self._on_change = on_change
        self._base = base_environment(os.environ)
        self._tasks: dict[TaskKey, Task] = {}
        self._turns: dict[JobId, _Turn] = {}
        self._background: set[asyncio.Task[None]] = set()
        self._disk = Disk()
        self._pool = ZygotePool(
            state,
            self._base,
            sys.executable,
            preload=config.preload,
            warm_max=config.zygotes_max,
            on_change=self._tell_change,
        )
        self._shims = ShimPool(config.idle_shim_s)
        self._spares = SpareFolders(state / "spare")
        self._begun = asyncio.Semaphore(_BEGUN_AT_ONCE)
        self._groups = containment.CgroupTree(None, "not looked for yet")
        self._ports: RendezvousPorts | None = None
        self._closed = False

    async def recover(self) -> None:
        """Once, before anything else: adopt living shims, finish the journals of dead ones, start zygotes."""
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._spares.begin()
        make_socket_folder(self._state)
        self._groups = containment.find_cgroup_tree(
            self._state, without_limits=self._config.groups_without_limits
        )
        self._ports = RendezvousPorts(self._config.rendezvous_address, self._config.rendezvous_ports)
        self._pool.begin(self._pool.key(self._config.interpreter) if self._config.warm else None)
        found = [
            task for folder in sorted(self._folder.iterdir()) if (task := self._load(folder)) is not None
        ]
        for task in found:
            self._tasks[task.key] = task
        await asyncio.gather(*(self._adopt(task) for task in found))

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

    async def stop(self, key: TaskKey, grace_s: float, why: str) -> None:
        """Ask the task to end: notice byte and SIGTERM, after `grace_s` SIGKILL. Unknown and ended: nothing.
        Returns when the shim has taken it over, or, where it does not answer, when everything is dead."""
        task = self._tasks.get(key)
        if task is None or task.over.is_set():
            return
        task.stop_why = task.stop_why or why
        message = {"op": "stop", "grace_s": grace_s, "why": why}
        until = time.monotonic() + self._config.answer_s
        while not task.over.is_set():
            left_s = until - time.monotonic()
            if left_s <= 0:
                log.warning("task %s: its shim does not answer; killing it and all that it started", key)
                self._kill_shim(task)
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
        task = self._tasks.get(key)
        if task is not None and task.link is not None and not task.over.is_set():
            with contextlib.suppress(TimeoutError, ConnectionError):
                await task.link.ask({"op": "inspect"}, self._config.answer_s)

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
        self._let_go(task)
        if task.is_left:
            await self._disk.run(lambda: self._spares.keep(task.folder))
        else:
            await self._disk.run_alone(lambda: drop_folder(task.folder))

    def acknowledge(self, key: TaskKey, seq: int) -> None:
        """The scheduler has stored the journal up to `seq`: the shim may give that space back."""
        task = self._tasks.get(key)
        if task is None or task.over.is_set():
            return
        if (
            task.journal.has_checkpoints and not task.stop_why
        ):  # else it may have a successor: its checkpoints are not its own to clean up
            write_acked(task, seq)
        end = task.journal.end_of(seq)
        if task.link is not None and end - task.trimmed_bytes >= _TRIM_BYTES:
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
        for entry in found:
            entry.task.CopyFrom(task.request.task)
        return found

    def log_files(self, key: TaskKey) -> dict[int, Path]:
        """Global rank -> its output file (which may not exist yet). Unknown: none."""
        task = self._tasks.get(key)
        if task is None:
            return {}
        first = task.request.first_rank
        ranks = range(first, first + task.request.processes)
        return {rank: task.folder / f"rank-{rank}.log" for rank in ranks}

    def ended(self, key: TaskKey) -> bool:
        """True when the journal holds `ended` or `refused`: no process is left and nothing will be added.
        True for an unknown key."""
        task = self._tasks.get(key)
        return task is None or task.over.is_set()

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
        self._closed = True
        for running in self._background:
            running.cancel()
        await asyncio.gather(*self._background, return_exceptions=True)
        for task in self._tasks.values():
            self._let_go(task)
        self._shims.close()
        if self._ports is not None:
            self._ports.close()
        await self._pool.close()
        self._groups.close()
        self._disk.close()

    # Starting.

    async def _start(self, key: TaskKey, request: agent_pb2.StartTask) -> None:
        task = Task(key, self._folder / str(key), agent_pb2.StartTask.FromString(request.SerializeToString()))
        others = [each for each in self._tasks if each.job == key.job and each.attempt != key.attempt]
        newer = max((each.attempt for each in others), default=0)
        self._tasks[key] = task
        try:
            if newer > key.attempt:
                raise Refusal(
                    "stale-attempt",
                    f"attempt {newer} of this job has been started here already",
                    transient=False,
                )
            await asyncio.gather(*(self._end_older(each) for each in others))
            launch = self._plan(task)
            await self._launch(task, launch)
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

    async def _end_older(self, key: TaskKey) -> None:
        await self.stop(key, 0.0, "superseded")
        await self.wait_ended(key)

    def _plan(self, task: Task) -> Launch:
        name = task.request.interpreter_environment
        if name and name not in self._config.environments:
            raise Refusal(
                "no-environment",
                f"this node maps no interpreter to the environment {name!r}",
                transient=True,
                hint="Map it in the agent's configuration.",
                environment=name,
            )
        interpreter = self._config.environments[name] if name else self._config.interpreter
        return make_launch(task.request, task.folder, interpreter, self._base, warm=self._config.warm)

    async def _launch(self, task: Task, launch: Launch) -> None:
        listener = self._take_port(task.request) if task.request.hosts_rendezvous else None
        try:
            for _ in range(_FORK_TRIES):
                chosen, zygote = await self._choose(launch)
                if await self._fork(task, chosen, zygote, listener):
                    return
            raise Refusal(
                "zygote-failed", "the processes that start tasks on this node keep failing", transient=True
            )
        finally:
            if listener is not None:
                listener.close()

    def _take_port(self, request: agent_pb2.StartTask) -> socket.socket:
        assert self._ports is not None
        listener = self._ports.take(request.master_port)
        self._on_change()
        if listener is None:
            raise Refusal(
                "rendezvous-port-gone",
                f"port {request.master_port} is in use by another program on this node",
                transient=True,
                port=request.master_port,
            )
        return listener

    async def _choose(self, launch: Launch) -> tuple[Launch, Zygote]:
        """The zygote to fork from; where the warm one will not do, the same launch as a cold one."""
        if not launch.warm and not launch.torch_needed:
            return launch, self._pool.lean()
        begun = time.monotonic()
        zygote = self._pool.warm(launch.warm_key)
        try:
            await zygote.ready()
        except ZygoteFailed as failure:
            if launch.torch_needed:
                raise Refusal(
                    "no-rendezvous", f"cannot serve the rendezvous: {failure}", transient=True
                ) from failure
            return launch.cold(str(failure)), self._pool.lean()
        waited_s = time.monotonic() - begun
        if launch.torch_needed and "torch" in zygote.missing:
            text = f"the rendezvous needs torch in {launch.warm_key.interpreter}: {zygote.missing['torch']}"
            raise Refusal("no-torch", text, transient=False, hint="Install torch in that environment.")
        if launch.warm and zygote.has_cuda and launch.document["environment"].get("CUDA_VISIBLE_DEVICES"):
            return launch.cold("the preloaded modules have touched CUDA"), zygote
        if launch.warm and (name := shadowing(launch.script_folder, zygote.shadowable)):
            return launch.cold(
                f"{launch.script_folder} has {name}, which stands in for a preloaded module"
            ), zygote
        if launch.warm and waited_s > _WAIT_WORTH_SAYING_S:
            mode = f"warm: waited {waited_s:.1f} s for the imports"
            launch = replace(launch, document={**launch.document, "start_mode": mode})
        return launch, zygote

    async def _fork(self, task: Task, launch: Launch, zygote: Zygote, listener: socket.socket | None) -> bool:
        """False: the zygote failed and no shim came of it."""
        task.group = self._groups.make(
            str(task.key), task.request.resources.cpu_milli, task.request.resources.memory_bytes
        )
        document = {**launch.document, "cgroup": str(task.group) if task.group else None}
        document["pace_window_s"] = self._config.pace_window_s
        document["patience"] = patience_for(task.request, self._config.patience)._asdict()
        reusable = zygote is self._pool.lean()
        async with self._begun if reusable else contextlib.nullcontext():
            shim = self._shims.take() if reusable else None
            try:
                await self._disk.run(lambda: make_folder(task, self._spares if reusable else None))
                if task.stop_why:
                    raise Refusal("stopped", f"{task.stop_why} before it had started", transient=True)
                if shim is not None and shim.link.alive:
                    self._hand_over(task, shim, document)
                    return True
            finally:
                if shim is not None and task.shim_to_keep is not shim:
                    self._shims.put(shim)
            await self._disk.run(lambda: write_launch(task, document))
            return await self._fork_new(task, zygote, listener, reusable=reusable)

    def _hand_over(self, task: Task, shim: ReusableShim, document: dict[str, Any]) -> None:
        """The task is that free shim's next one."""
        self._bind(task, shim.link)
        task.shim_to_keep = shim
        shim.tasks += 1
        shim.link.send({"op": "take", "folder": str(task.folder), "launch": document})
        task.overdue = asyncio.get_running_loop().call_later(self._config.answer_s, self._on_overdue, task)

    def _on_overdue(self, task: Task) -> None:
        """A shim that is stopped takes no task; dead, it lets the task be refused."""
        shim = task.shim_to_keep
        if shim is not None and shim.link.alive and task.journal.started is None and not task.over.is_set():
            log.warning("task %s: the shim that it was given to does not start it; killing that", task.key)
            containment.signal_all([shim.pid], signal.SIGKILL)

    async def _fork_new(
        self, task: Task, zygote: Zygote, listener: socket.socket | None, *, reusable: bool
    ) -> bool:
        ours, theirs = socket.socketpair()
        task.starting = True
        shim = ReusableShim(self._link(task, ours), 0, tasks=1)
        task.shim_to_keep = shim if reusable else None
        try:
            with theirs:
                fds = [theirs.fileno()] + ([listener.fileno()] if listener is not None else [])
                shim.pid = await zygote.fork(task.folder, fds, self._config.answer_s)
        except ZygoteFailed as failure:
            log.warning("task %s: %s", task.key, failure)
            task.shim_to_keep = None
            if not await self._shim_came(task):
                return False
        task.starting = False
        if not task.over.is_set() and task.link is None:
            self._in_background(self._on_shim_lost(task))
        return True

    async def _shim_came(self, task: Task) -> bool:
        """After a zygote failed: a shim holds the other end of the link, and nobody else does."""
        until = time.monotonic() + self._config.answer_s
        while task.link is not None and task.journal.started is None and time.monotonic() < until:  # noqa: ASYNC110
            await asyncio.sleep(0.005)
        return task.link is not None or task.over.is_set() or task.journal.started is not None

    async def _refuse(self, task: Task, refusal: Refusal) -> None:
        reason = {"code": refusal.reason_code, "text": refusal.message, "hint": refusal.hint}
        fields = {name: str(value) for name, value in refusal.fields.items()}
        entry = {"reason": {**reason, "fields": fields}, "transient": refusal.transient}
        await self._append(task, [("refused", entry)])

    # Watching.

    def _link(self, task: Task, sock: socket.socket) -> ShimLink:
        link = ShimLink(sock)
        self._bind(task, link)
        return link

    def _bind(self, task: Task, link: ShimLink) -> None:
        task.link = link
        link.on_growth = lambda: self._grow(task)
        link.on_end = lambda: self._on_link_end(task)
        link.on_free = link.close

    def _grow(self, task: Task) -> None:
        grown = task.journal.grow()
        if task.journal.last is not None and not task.over.is_set():
            task.over.set()
            self._let_go(task)
        if grown and self._tasks.get(task.key) is task:
            self._on_growth(task.key)

    def _on_link_end(self, task: Task) -> None:
        task.link = None
        self._grow(task)
        if not task.over.is_set() and not task.starting:
            self._in_background(self._on_shim_lost(task))

    async def _on_shim_lost(self, task: Task) -> None:
        """The connection ended before the journal did: the shim died, or has only dropped us."""
        shim = task.shim()
        if shim is not None and await _lives_on(*shim, _DYING_S) and await self._redial(task):
            return
        await self._bury(task)

    async def _redial(self, task: Task) -> bool:
        """Connect to a shim that lives. False: it cannot be reached, and is dead now."""
        until = time.monotonic() + self._config.answer_s
        while (shim := task.shim()) is not None and kernel.is_alive(*shim):
            try:
                sock = dial(task.folder)
            except OSError as error:
                if time.monotonic() > until:
                    log.warning("task %s: its shim cannot be reached (%s); killing it", task.key, error)
                    self._kill_shim(task)
                    return False
                await asyncio.sleep(0.01)
                continue
            self._link(task, sock).send({"op": "watch"})
            return True
        return False

    def _kill_shim(self, task: Task) -> None:
        shim = task.shim()
        if shim is not None and kernel.is_alive(*shim):
            containment.signal_all([shim[0]], signal.SIGKILL)

    async def _bury(self, task: Task) -> None:
        """There is no shim: kill what it left, then write the end that it could not write."""
        await self._disk.run_alone(lambda: forbid(str(task.folder)))
        left = await self._disk.run_alone(lambda: kill_leftovers(task))
        self._grow(task)
        if task.over.is_set():
            return
        if task.journal.started is None:
            reason = {"code": "shim-died", "text": "the task's shim died before it had started the ranks"}
            await self._append(task, [("refused", {"reason": reason, "transient": True})])
            return
        unkillable = f"; {len(left)} processes cannot be killed: {left[:10]}" if left else ""
        await self._append(task, missing_entries(task, (task.stop_why or "shim died") + unkillable))

    async def _append(self, task: Task, entries: list[tuple[str, dict[str, Any]]]) -> None:
        """Write what no shim will. Where the disk refuses, it is kept in memory: somebody must hear of it."""
        try:
            await self._disk.run_alone(lambda: write_entries(task.folder, entries))
        except OSError as error:
            log.error("task %s: cannot write its journal: %s", task.key, error)
            for kind, fields in entries:
                task.journal.keep(kind, fields, time.monotonic())
            self._on_growth(task.key)
        self._grow(task)

    # After a restart of the agent.

    def _load(self, folder: Path) -> Task | None:
        try:
            key = TaskKey.parse(folder.name)
        except ValueError:
            log.warning("%s is not the folder of a task: left alone", folder)
            return None
        request = agent_pb2.StartTask()
        try:
            json_format.Parse((folder / "task.json").read_bytes(), request)
        except (FileNotFoundError, json_format.ParseError):  # cut short: no shim was asked for yet
            request = agent_pb2.StartTask()
            request.task.job, request.task.attempt, request.task.task = key.job, key.attempt, key.task
        task = Task(key, folder, request)
        task.group = self._groups.root / str(key) if self._groups.root else None
        return task

    async def _adopt(self, task: Task) -> None:
        await self._disk.run_alone(lambda: forbid(str(task.folder)))
        self._grow(task)
        if not task.request.processes and (started := task.journal.started):  # task.json did not survive
            task.request.processes = len(started["pids"])
            task.request.first_rank = started.get("first_rank", 0)
        if not task.over.is_set() and not await self._redial(task):
            await self._bury(task)

    # Helpers.

    def _tell_change(self) -> None:
        self._on_change()

    def _let_go(self, task: Task) -> None:
        link, shim = task.link, task.shim_to_keep
        task.link = task.shim_to_keep = None
        if task.overdue is not None:
            task.overdue.cancel()
            task.overdue = None
        if link is not None and shim is not None and task.over.is_set():
            self._shims.give(shim, lambda: _set_left(task))
        elif link is not None:
            link.close()
        if task.acked_fd >= 0:
            os.close(task.acked_fd)
            task.acked_fd = -1

    def _in_background(self, work: Coroutine[Any, Any, None]) -> None:
        if self._closed:
            work.close()
            return
        running = asyncio.ensure_future(work)
        self._background.add(running)
        running.add_done_callback(self._on_background_done)

    def _on_background_done(self, done: "asyncio.Future[None]") -> None:
        self._background.discard(done)
        if not done.cancelled() and (error := done.exception()) is not None:
            log.error("a task could not be looked after", exc_info=error)


def _key(request: agent_pb2.StartTask) -> TaskKey:
    return TaskKey(JobId(request.task.job), Attempt(request.task.attempt), request.task.task)


def _set_left(task: Task) -> None:
    task.is_left = True


async def _lives_on(pid: int, started: int, patience_s: float) -> bool:
    """False as soon as the process is dead; True when it still lives after that time."""
    until = time.monotonic() + patience_s
    while kernel.is_alive(pid, started):
        if time.monotonic() > until:
            return True
        await asyncio.sleep(0.005)
    return False
