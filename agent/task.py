"""A task's folder and what the agent does in it: making it, claiming it, and finishing what a dead shim left.

These block on the disk or on dying processes: the supervisor calls them in its threads.
"""

import asyncio
import contextlib
import json
import logging
import os
import shutil
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from google.protobuf import json_format

from ..content import storage_mark
from ..content.errors import ForeignStorage
from ..proto.generated import agent_pb2
from ..proto.marks import mark_of
from ..spec.ids import TaskKey
from . import containment, kernel
from .claims import forbid, owner
from .entries import JournalReader
from .evidence import error_path, what_is_left
from .flight_recorder import trace_folder
from .journal import Journal
from .keeping import KEPT
from .launch import Refusal
from .launchers import LAUNCHERS, Launcher
from .ran_with import Recorded
from .routes import Interface
from .shim_link import ShimLink
from .shim_pool import ReusableShim
from .spare_folders import SpareFolders

log = logging.getLogger(__name__)

KILL_S = 60.0


class Task:
    """One folder, as the supervisor knows it."""

    def __init__(self, key: TaskKey, folder: Path, request: agent_pb2.StartTask) -> None:
        self.key = key
        self.folder = folder
        self.request = request
        self.journal = JournalReader(folder / "journal.jsonl")
        self.link: ShimLink | None = None
        self.stop_why = ""
        self.group: Path | None = None
        self.files: Mapping[str, str] = {}
        """Name -> text, for its folder."""
        self.folders: Collection[str] = ()
        """Others that must be there before its ranks start."""
        self.network: Interface | None = None
        """The way to its gang's other nodes."""
        self.over = asyncio.Event()
        self.recording: asyncio.Task[Recorded] | None = None
        """What its `started` says it runs with, where the journal does not."""
        self.starting = False
        """A zygote was asked to fork its shim: the end of the link means that there is none."""
        self.shim_to_keep: ReusableShim | None = None
        """At the other end of `link`: when the task is over, it may serve another."""
        self.hands_on = False
        """Its shim was asked to go on with the next attempt's task: the link is then that one's."""
        self.not_kept = ""
        """Why ranks of the attempt before that live do not go on in it."""
        self.is_left = False
        """Its shim has said that it has closed all of it, and nothing else is at the folder."""
        self.overdue: asyncio.TimerHandle | None = None
        self.trimmed_bytes = 0
        self.acked_fd = -1

    @property
    def was_handed_on(self) -> bool:
        """Its ranks went on in the next attempt."""
        last = self.journal.last
        return last is not None and str(last.get("why", "")).startswith(KEPT)

    @property
    def why_not_kept(self) -> str:
        """What its end says of ranks that could have gone on in the next attempt; empty: nothing."""
        last = self.journal.last
        return str(last.get("why", "")).partition("; ")[2] if last is not None else ""

    def log_files(self) -> dict[int, Path]:
        """Global rank -> its output file (which may not exist yet)."""
        first = self.request.first_rank
        return {
            rank: self.folder / f"rank-{rank}.log" for rank in range(first, first + self.request.processes)
        }

    def shim(self) -> tuple[int, int] | None:
        """(pid, start time) of whoever claimed the task; (0, 0): nobody ever may. None: not claimed."""
        return owner(str(self.folder))


def found_task(folder: Path) -> Task | None:
    """What an earlier agent has left there; None: it is not the folder of a task."""
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
    return Task(key, folder, request)


def make_folder(task: Task, spares: SpareFolders | None) -> None:
    """With task.json, which need not survive a crash of the machine: the journal says what must be known."""
    check_storage(task.request)
    if task.folder.exists():  # of an earlier life that could not be dropped, or of a zygote that failed
        shutil.rmtree(task.folder)
    if spares is None or task.request.first_rank or not spares.take(task.folder):
        task.folder.mkdir(mode=0o700)
    text = json_format.MessageToJson(
        task.request, preserving_proto_field_name=True, always_print_fields_with_no_presence=True, indent=None
    )
    _write(task.folder / "task.json", text.encode())
    for name, content in {**LAUNCHERS[task.request.launcher].files(task.request), **task.files}.items():
        _write(task.folder / name, content.encode())
    traces = [trace_folder(task.request.job_folder, task.key.attempt)] if _records_nccl(task) else []
    for folder in (*task.request.output_folders, *traces, *task.folders):
        Path(folder).mkdir(parents=True, exist_ok=True)


def check_storage(request: agent_pb2.StartTask) -> None:
    """Before anything is made there. Raises Refusal where this node has not the scheduler's."""
    storage = storage_of(request)
    if storage is None or not request.cluster_id:
        return
    try:
        storage_mark.check(storage, request.cluster_id)
    except ForeignStorage as error:
        raise Refusal("no-storage", error.message, transient=True, hint=error.hint) from error


def storage_of(request: agent_pb2.StartTask) -> Path | None:
    """The scheduler's; None: an older scheduler names none."""
    return Path(request.content_folder).parent if request.content_folder else None


def _records_nccl(task: Task) -> bool:
    return bool(task.request.master_port and task.request.gpu_indices)


def make_socket_folder(state: Path) -> None:
    """STATE/shims, where shims have their sockets; those of the dead go."""
    folder = state / "shims"
    folder.mkdir(mode=0o700, exist_ok=True)
    for sock in folder.iterdir():
        if kernel.start_time(int(sock.stem)) is None:
            sock.unlink(missing_ok=True)


def write_launch(task: Task, launch: dict[str, Any]) -> None:
    """For a shim that is to be forked: a free one gets it over its connection."""
    _write(task.folder / "launch.json", json.dumps(launch).encode())


def read_group(task: Task) -> Path | None:
    """The group that its ranks are in, as launch.json says: an earlier attempt's, where they were kept."""
    with contextlib.suppress(OSError, ValueError):
        group = json.loads((task.folder / "launch.json").read_bytes()).get("cgroup")
        return Path(group) if group else None
    return None


def _write(path: Path, data: bytes) -> None:
    """Readable by this user alone: there are the job's secrets in it."""
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    with open(fd, "wb") as file:  # noqa: PTH123 - a descriptor
        file.write(data)


def write_acked(task: Task, seq: int) -> None:
    try:
        if task.acked_fd < 0:
            task.acked_fd = os.open(task.folder / "acked", os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
        os.pwrite(task.acked_fd, f"{seq:020d}".encode(), 0)
    except OSError as error:  # training then keeps more checkpoints than it need
        log.warning("task %s: cannot note what is acknowledged: %s", task.key, error)


def kill_leftovers(task: Task) -> list[int]:
    """All that carries the task's mark, or is in its group; returns what cannot be killed. Ranks that were
    kept carry the mark of the attempt in which they began."""
    key = task.key
    folders = (f"{key.job}.{attempt}.{key.task}" for attempt in range(1, key.attempt + 1))
    marks = [mark_of(task.folder.with_name(name)) for name in folders]
    group = str(task.group) if task.group is not None else ""

    def find() -> list[int]:
        return list({*kernel.marked(*marks), *(containment.group_pids(group) if group else [])})

    if group:
        containment.kill_group(group)
    left = containment.kill_until_gone(find, KILL_S)
    containment.drop_left(LAUNCHERS.get(task.request.launcher, Launcher()).leaves(task.request))
    if group:
        containment.drop_group(group)
    return left


def write_entries(folder: Path, entries: list[tuple[str, dict[str, Any]]]) -> None:
    folder.mkdir(mode=0o700, exist_ok=True)
    forbid(str(folder))
    journal = Journal(str(folder / "journal.jsonl"))
    try:
        for kind, fields in entries:
            journal.append(kind, fields)
        journal.flush()
    finally:
        journal.close()


def missing_entries(task: Task, why: str) -> list[tuple[str, dict[str, Any]]]:
    """`exited` of every rank that has none, and `ended`."""
    entries: list[tuple[str, dict[str, Any]]] = []
    codes, sizes = [], []
    started = task.journal.started or {"pids": []}
    for local_rank in range(len(started["pids"])):
        rank = task.request.first_rank + local_rank
        log_file = task.folder / f"rank-{rank}.log"
        known = task.journal.exited.get(local_rank)
        if known is None:
            killed_by_us = bool(task.stop_why)
            error_file = error_path(str(task.folder), rank)
            last_line, evidence = what_is_left(str(log_file), error_file, killed_by_us=killed_by_us)
            fields = {
                "local_rank": local_rank,
                "exit_code": -9,
                "last_line": last_line,
                "killed_by_us": killed_by_us,
                **({"evidence": evidence} if evidence else {}),
            }
            entries.append(("exited", fields))
        codes.append(known["exit_code"] if known else -9)
        sizes.append(log_file.stat().st_size if log_file.exists() else 0)
    entries.append(("ended", {"exit_codes": codes, "log_bytes": sizes, "why": why}))
    return entries
