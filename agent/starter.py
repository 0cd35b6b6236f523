"""Starts tasks: chooses warm or cold, has a shim take the task or a zygote fork one.

A task that cannot be started here raises Refusal, or OSError where the node's disk or kernel refuses.
"""

import asyncio
import contextlib
import json
import logging
import signal
import socket
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from ..proto.generated import agent_pb2
from ..proto.marks import agent_mark
from ..spec.errors import Unavailable
from ..spec.ids import TaskKey
from . import containment
from .contained import Box, make_contained
from .disk import Disk
from .launch import Launch, Refusal, Store, make_launch, patience_for, shadowing
from .memory import MemoryFolders
from .peer_door import PeerDoor
from .preparing import Prepared, Preparing
from .ran_with import Records
from .rendezvous import RendezvousPorts
from .routes import Interface, interface_towards
from .shim_link import ShimLink
from .shim_pool import ReusableShim, ShimPool
from .spare_folders import SpareFolders
from .supervisor_config import SupervisorConfig
from .task import Task, check_storage, make_folder, storage_of, write_launch
from .warm import Zygote, ZygoteFailed, ZygotePool
from .watcher import Watcher

log = logging.getLogger(__name__)

_FORK_TRIES = 3
_BEGUN_AT_ONCE = 8
"""Programs whose shim is being had: who waits for a fork may meanwhile get one that has become free."""
_WAIT_WORTH_SAYING_S = 0.05
_HANDED_BYTES_MAX = 32 * 1024
"""A free shim hears of its task in one line (messages.LINE_BYTES_MAX), in which a byte may become six."""
_RESTED_S = 0.1
"""By then, a shim that is free has forked a rank for its next task."""
_AHEAD_S = 0.2
"""So long after a start from a warm zygote that found no such shim, one more is forked."""
_AHEAD_MAX = 8
"""Not where so many are free already."""


class Starter:
    """Belongs to the event loop's thread. `on_change()` when rendezvous ports were taken."""

    def __init__(
        self,
        config: SupervisorConfig,
        base: Mapping[str, str],
        *,
        watcher: Watcher,
        zygotes: ZygotePool,
        shims: ShimPool,
        spares: SpareFolders,
        memory: MemoryFolders,
        door: PeerDoor,
        groups: containment.CgroupTree,
        ports: RendezvousPorts,
        disk: Disk,
        preparing: Preparing,
        records: Records,
        uuids: Callable[[], Mapping[int, str]],
        on_change: Callable[[], None],
    ) -> None:
        """`base`: the environment that tasks inherit; `uuids`: those of GPUs and slices by index."""
        self._config = config
        self._base = base
        self._watcher = watcher
        self._zygotes = zygotes
        self._shims = shims
        self._spares = spares
        self._memory = memory
        self._door = door
        self._groups = groups
        self._ports = ports
        self._disk = disk
        self._preparing = preparing
        self._records = records
        self._uuids = uuids
        self._on_change = on_change
        self._base_bytes = sum(len(name) + len(value) for name, value in base.items())
        self._begun = asyncio.Semaphore(_BEGUN_AT_ONCE)
        self._ahead: set[asyncio.Task[None]] = set()

    async def start(self, task: Task, before: Task | None, end: Callable[[TaskKey], Awaitable[None]]) -> None:
        """Return when its shim has it. Raises Refusal and OSError. `before`: the last attempt here, whose
        ranks may go on in this one; else `end` is called for it first."""
        if task.request.needs:  # it may take long to provide them; make_folder looks again
            await self._disk.run(lambda: check_storage(task.request))
        if task.request.peer_address:
            task.network = await self._disk.run_alone(lambda: _way_to(task.request.peer_address))
        prepared = await self._preparing.prepare(task.request, lambda: task.stop_why)
        launch = self._plan(task, prepared)
        listener = self._take_port(task.request) if task.request.hosts_rendezvous else None
        if listener is not None and prepared.box is not None:  # rank 0 binds it, in its container
            listener.close()
            listener = None
        try:
            if before is not None:
                chosen, _ = await self._choose(launch)
                if not before.over.is_set() and await self._hand_on(before, task, chosen, listener):
                    return
                task.not_kept = before.why_not_kept
                await end(before.key)
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

    def _plan(self, task: Task, prepared: Prepared) -> Launch:
        request = prepared.applied(task.request)
        if prepared.box is not None:
            launch = self._contained(task, request, prepared.box, prepared.places.values())
        else:
            interpreter = prepared.interpreter or self._interpreter(request.interpreter_environment)
            launch = make_launch(
                request, task.folder, interpreter, self._base, self._uuids(), warm=self._config.warm
            )
            launch.document["environment"] |= self._added(task)
            self._record(task, launch, interpreter)
        launch.document["prepared"] = prepared.told
        if task.request.peer_memory and (memory := self._memory.folder(task.key.job)):
            task.files = {**task.files, **self._door.admit(task.key, Path(memory))}
        if prepared.build_log:
            log = prepared.build_log.decode("utf-8", "replace")
            task.files = {**task.files, f"rank-{request.first_rank}.log": log}
        return launch

    def _contained(self, task: Task, request: agent_pb2.StartTask, box: Box, places: Iterable[str]) -> Launch:
        admitted = bool(request.study_token or request.endpoint_token)
        ca_file = str(self._config.studies.get("ca_file", "")) if admitted else ""
        box = replace(box, paths=(*box.paths, *places, ca_file), limited=self._groups.limits)
        made = make_contained(
            request, task.folder, box, self._uuids(), base=self._base, added=self._added(task)
        )
        task.files, task.folders = made.files, made.folders
        if storage := storage_of(request):
            task.recording = self._records.ask_image(box.image, storage)
        return made.launch

    def _record(self, task: Task, launch: Launch, interpreter: str) -> None:
        """What it runs with, where that is known; else somebody finds out."""
        if storage := storage_of(task.request):
            launch.document["record"] = record = self._records.known(interpreter, storage)
            task.recording = None if record else self._records.ask(interpreter, storage)

    def _interpreter(self, name: str) -> str:
        """The node's own, or what it maps to that name."""
        if name and name not in self._config.environments:
            raise Refusal(
                "no-environment",
                f"this node maps no interpreter to the environment {name!r}",
                transient=True,
                hint="Map it in the agent's configuration.",
                environment=name,
            )
        return self._config.environments[name] if name else self._config.interpreter

    def _added(self, task: Task) -> dict[str, str]:
        """Variables that only some tasks have."""
        added = {}
        if memory := self._memory.folder(task.key.job):
            added["PACELINE_MEMORY_FOLDER"] = memory
        if task.network is not None:
            given = self._given(task)
            added |= {name: value for name, value in task.network.variables().items() if name not in given}
        if token := task.request.study_token:
            admission = {**self._config.studies, "study": task.request.study, "token": token}
            added["PACELINE_STUDY"] = json.dumps(admission)
        if token := task.request.endpoint_token:
            admission = {**self._config.studies, "token": token}
            added["PACELINE_ENDPOINT"] = json.dumps(admission)
            added["PACELINE_NODE_ADDRESS"] = self._config.rendezvous_address
        return added

    def _given(self, task: Task) -> Mapping[str, str]:
        """Variables that the node's own environment has, or the job's."""
        return {**self._base, **task.request.environment}

    def _take_port(self, request: agent_pb2.StartTask) -> socket.socket:
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
        if not launch.warm and launch.store is Store.NONE:
            return launch, self._zygotes.lean()
        begun = time.monotonic()
        zygote = self._zygotes.warm(launch.warm_key)
        try:
            await zygote.ready()
        except ZygoteFailed as failure:
            if launch.store is Store.NEEDED:
                raise Refusal(
                    "no-rendezvous", f"cannot serve the rendezvous: {failure}", transient=True
                ) from failure
            return launch.without_store().cold(str(failure)), self._zygotes.lean()
        waited_s = time.monotonic() - begun
        if launch.store is Store.OPTIONAL and "torch" in zygote.missing:
            launch = launch.without_store()
        if launch.store is Store.NEEDED and "torch" in zygote.missing:
            text = f"the rendezvous needs torch in {launch.warm_key.interpreter}: {zygote.missing['torch']}"
            raise Refusal("no-torch", text, transient=False, hint="Install torch in that environment.")
        if launch.warm and zygote.has_cuda and launch.document["environment"].get("CUDA_VISIBLE_DEVICES"):
            return launch.cold("the preloaded modules have started CUDA"), zygote
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
        document = self._document(task, launch)
        lean = zygote is self._zygotes.lean()
        handed = listener is None and document["client"] is None
        handed = handed and task.request.ByteSize() + self._base_bytes <= _HANDED_BYTES_MAX
        async with self._begun if lean else contextlib.nullcontext():
            shim = self._take_free(zygote, task.folder.parent) if handed else None
            try:
                await self._disk.run(lambda: make_folder(task, self._spares))
                if task.stop_why:
                    raise Refusal("stopped", f"{task.stop_why} before it had started", transient=True)
                if shim is not None and shim.link.alive:
                    self._hand_over(task, shim, document)
                    return True
            finally:
                if shim is not None and task.shim_to_keep is not shim:
                    self._shims.put(shim)
            await self._disk.run(lambda: write_launch(task, document))
            return await self._fork_new(task, zygote, listener)

    def _take_free(self, zygote: Zygote, tasks: Path) -> ReusableShim | None:
        """Of a warm zygote, one that has forked a rank ahead; where there is none, there is one more soon."""
        if zygote is self._zygotes.lean():
            return self._shims.take(zygote)
        shim = self._shims.take(zygote, _RESTED_S)
        if shim is None or time.monotonic() - shim.free_since_s < _RESTED_S:
            ahead = asyncio.ensure_future(self._fork_ahead(zygote, "idle" + agent_mark(tasks)))
            self._ahead.add(ahead)
            ahead.add_done_callback(self._ahead.discard)
        return shim

    async def _fork_ahead(self, zygote: Zygote, mark: str) -> None:
        await asyncio.sleep(_AHEAD_S)
        if not zygote.alive or self._shims.free(zygote) >= _AHEAD_MAX:
            return
        ours, theirs = socket.socketpair()
        shim = ReusableShim(ShimLink(ours), 0, zygote)
        with theirs:
            try:
                shim.pid = await zygote.fork_ahead(mark, theirs.fileno(), self._config.answer_s)
            except ZygoteFailed as failure:
                log.warning("no shim was forked ahead: %s", failure)
                shim.link.close()
                return
        self._shims.put(shim)

    def _document(self, task: Task, launch: Launch) -> dict[str, Any]:
        not_kept = f"; {task.not_kept}" if task.not_kept else ""
        unwatched = "" if launch.document["mode"] == "warm" else _watched_when(task.request)
        return {
            **launch.document,
            "start_mode": launch.document["start_mode"] + unwatched + not_kept,
            "network": task.network.told(self._given(task)) if task.network is not None else "",
            "cgroup": str(task.group) if task.group else None,
            "pace_window_s": self._config.pace_window_s,
            "patience": patience_for(task.request, self._config.patience)._asdict(),
        }

    async def _hand_on(
        self, before: Task, task: Task, launch: Launch, listener: socket.socket | None
    ) -> bool:
        """Ranks of the last attempt that can go on do so in this one, with their shim and their group.
        False: none can, or those that could did not come in time and are dead; the task starts anew."""
        link, shim = before.link, before.shim_to_keep
        if link is None:
            return False
        task.group = before.group
        document = self._document(task, launch)
        await self._disk.run(lambda: make_folder(task, None))
        await self._disk.run(lambda: write_launch(task, document))
        if before.over.is_set() or before.link is not link:  # meanwhile: its shim may be another task's
            return False
        before.hands_on = True
        try:
            message = {"op": "take", "folder": str(task.folder)}
            answer = await link.ask(message, self._config.answer_s, listener.fileno() if listener else -1)
            if answer.get("ok"):
                await before.over.wait()
        except (TimeoutError, ConnectionError):
            answer = {}
        if not before.was_handed_on:
            before.hands_on = False
            if before.over.is_set():
                link.close()
            return False
        task.shim_to_keep = shim
        self._watcher.hand_on(link, before, task)
        if task.stop_why and not task.over.is_set():  # asked for meanwhile: nobody has told the shim
            link.send({"op": "stop", "grace_s": task.request.grace_s, "why": task.stop_why})
        return True

    def _hand_over(self, task: Task, shim: ReusableShim, document: dict[str, Any]) -> None:
        """The task is that free shim's next one."""
        self._watcher.bind(task, shim.link)
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

    async def _fork_new(self, task: Task, zygote: Zygote, listener: socket.socket | None) -> bool:
        ours, theirs = socket.socketpair()
        task.starting = True
        shim = ReusableShim(self._watcher.link(task, ours), 0, zygote, tasks=1)
        task.shim_to_keep = shim
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
            self._watcher.look_after(task)
        return True

    async def _shim_came(self, task: Task) -> bool:
        """After a zygote failed: a shim holds the other end of the link, and nobody else does."""
        until = time.monotonic() + self._config.answer_s
        while task.link is not None and task.journal.started is None and time.monotonic() < until:  # noqa: ASYNC110
            await asyncio.sleep(0.005)
        return task.link is not None or task.over.is_set() or task.journal.started is not None


def _watched_when(request: agent_pb2.StartTask) -> str:
    """Of a cold start that is likely to train: only a warm process can have the steps of a script that calls
    nothing of ours seen."""
    trains = bool(request.master_port or request.gpu_indices)
    return "; watched for hangs only if it calls paceline" if trains and request.hang_timeout_s >= 0 else ""


def _way_to(peer: str) -> Interface | None:
    try:
        return interface_towards(peer)
    except Unavailable as error:
        raise Refusal(
            "no-route",
            f"the gang's other nodes cannot be reached from here: {error.message}",
            transient=True,
            hint="an agent's --address must be one that its peers reach",
        ) from error
