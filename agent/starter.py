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
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from ..proto.generated import agent_pb2
from ..spec.ids import TaskKey
from . import containment
from .disk import Disk
from .keeping import KEPT
from .launch import Launch, Refusal, Store, make_launch, patience_for, shadowing
from .memory import MemoryFolders
from .peer_door import PeerDoor
from .rendezvous import RendezvousPorts
from .shim_pool import ReusableShim, ShimPool
from .spare_folders import SpareFolders
from .supervisor_config import SupervisorConfig
from .task import Task, make_folder, write_launch
from .warm import Zygote, ZygoteFailed, ZygotePool
from .watcher import Watcher

log = logging.getLogger(__name__)

_FORK_TRIES = 3
_BEGUN_AT_ONCE = 8
"""Programs whose shim is being had: who waits for a fork may meanwhile get one that has become free."""
_WAIT_WORTH_SAYING_S = 0.05


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
        self._uuids = uuids
        self._on_change = on_change
        self._begun = asyncio.Semaphore(_BEGUN_AT_ONCE)

    async def start(self, task: Task, before: Task | None, end: Callable[[TaskKey], Awaitable[None]]) -> None:
        """Return when its shim has it. Raises Refusal and OSError. `before`: the last attempt here, whose
        ranks may go on in this one; else `end` is called for it first."""
        launch = self._plan(task)
        listener = self._take_port(task.request) if task.request.hosts_rendezvous else None
        try:
            if before is not None:
                chosen, _ = await self._choose(launch)
                if not before.over.is_set() and await self._hand_on(before, task, chosen, listener):
                    return
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
        launch = make_launch(
            task.request, task.folder, interpreter, self._base, self._uuids(), warm=self._config.warm
        )
        if memory := self._memory.folder(task.key.job):
            launch.document["environment"]["PACELINE_MEMORY_FOLDER"] = memory
            task.files = self._door.admit(task.key, Path(memory)) if task.request.peer_memory else {}
        if token := task.request.study_token:
            admission = {**self._config.studies, "study": task.request.study, "token": token}
            launch.document["environment"]["PACELINE_STUDY"] = json.dumps(admission)
        return launch

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
        document = self._document(task, launch)
        reusable = zygote is self._zygotes.lean()
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

    def _document(self, task: Task, launch: Launch) -> dict[str, Any]:
        return {
            **launch.document,
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
        before.hands_on = True
        try:
            message = {"op": "take", "folder": str(task.folder)}
            answer = await link.ask(message, self._config.answer_s, listener.fileno() if listener else -1)
            if answer.get("ok"):
                await before.over.wait()
        except (TimeoutError, ConnectionError):
            answer = {}
        if not _was_handed_on(before):
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

    async def _fork_new(
        self, task: Task, zygote: Zygote, listener: socket.socket | None, *, reusable: bool
    ) -> bool:
        ours, theirs = socket.socketpair()
        task.starting = True
        shim = ReusableShim(self._watcher.link(task, ours), 0, tasks=1)
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
            self._watcher.look_after(task)
        return True

    async def _shim_came(self, task: Task) -> bool:
        """After a zygote failed: a shim holds the other end of the link, and nobody else does."""
        until = time.monotonic() + self._config.answer_s
        while task.link is not None and task.journal.started is None and time.monotonic() < until:  # noqa: ASYNC110
            await asyncio.sleep(0.005)
        return task.link is not None or task.over.is_set() or task.journal.started is not None


def _was_handed_on(task: Task) -> bool:
    last = task.journal.last
    return last is not None and str(last.get("why", "")).startswith(KEPT)
