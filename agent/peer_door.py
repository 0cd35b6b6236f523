"""This node's door for the peers of gangs: who may come, and the process that serves it.

The listening socket is the agent's, made at the first gang that wants it; the process (peer_receiver) is
started again when it has died (`watch`). Each attempt has a token of its own: in the job's folder in memory,
where that process looks, and with the port in its tasks' folders, where its ranks do, and the next agent.
All calls belong to the event loop's thread.
"""

import asyncio
import logging
import secrets
import socket
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Final, NamedTuple

from ..proto.peer_door import FILE, PEERS, Door, read_door
from ..spec.ids import Attempt, JobId, TaskKey

log = logging.getLogger(__name__)

_BACKLOG: Final = 128
_END_S: Final = 5.0
_LOOK_S: Final = 1.0
_TOKEN_BYTES: Final = 16


class _Guest(NamedTuple):
    """An attempt, with its tasks here."""

    token: str
    file: Path
    tasks: set[TaskKey]


def token_file(attempt: int) -> str:
    """In the job's folder in memory: with it in place, that attempt's token opens."""
    return f"door.a{attempt}"


class PeerDoor:
    """Of one agent. `address`: where peers reach it; it listens on `listen_address`."""

    def __init__(self, node: str, listen_address: str, address: str) -> None:
        self._node = node
        self._listen_address = listen_address
        self._address = address
        self._listener: socket.socket | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._guests: dict[tuple[JobId, Attempt], _Guest] = {}

    def admit(self, key: TaskKey, memory_folder: Path) -> Mapping[str, str]:
        """What its folder must have for the ranks to know of it: name -> text. Empty: peers go without."""
        guest = self._guests.get((key.job, key.attempt))
        token = guest.token if guest is not None else secrets.token_hex(_TOKEN_BYTES)
        try:
            return {FILE: self._let_in(key, memory_folder, token, 0).encode()}
        except OSError as error:
            log.warning("task %s: its door for peers stays shut: %s", key, error)
            return {}

    def admit_again(self, key: TaskKey, memory_folder: Path, task_folder: Path) -> None:
        """A task that an agent before this one has let in."""
        try:
            door = read_door(task_folder)
            if door is not None:
                self._let_in(key, memory_folder, door.token, door.port)
        except (OSError, ValueError) as error:  # its peers go without, and say so
            log.warning("task %s: its door for peers stays shut: %s", key, error)

    def revoke(self, key: TaskKey) -> None:
        """The task is over. With the last of its attempt here, nobody gets in for that any more."""
        guest = self._guests.get((key.job, key.attempt))
        if guest is None:
            return
        guest.tasks.discard(key)
        if not guest.tasks:
            del self._guests[key.job, key.attempt]
            guest.file.unlink(missing_ok=True)

    async def watch(self) -> None:
        """While anybody is let in, a process that has died has a successor. Runs until it is cancelled."""
        while True:
            await asyncio.sleep(_LOOK_S)
            if self._listener is not None and self._guests:
                memory_folder = next(iter(self._guests.values())).file.parent
                try:
                    self._see_to_the_process(self._listener.fileno(), memory_folder.parent)
                except OSError as error:
                    log.warning("the process that serves peers cannot be started, tried again: %s", error)

    def close(self) -> None:
        """Nobody is served until the next agent comes."""
        if self._process is not None:
            _end(self._process)
            self._process = None
        if self._listener is not None:
            self._listener.close()
            self._listener = None

    def _let_in(self, key: TaskKey, memory_folder: Path, token: str, port: int) -> Door:
        for folder in (memory_folder.parent, memory_folder, memory_folder / PEERS):
            folder.mkdir(mode=0o700, exist_ok=True)
        file = memory_folder / token_file(key.attempt)
        file.touch(mode=0o600)
        file.write_text(token)
        guest = self._guests.setdefault((key.job, key.attempt), _Guest(token, file, set()))
        guest.tasks.add(key)
        if self._listener is None:
            self._listener = _listen(self._listen_address, port)
        self._see_to_the_process(self._listener.fileno(), memory_folder.parent)
        return Door(self._node, self._address, self._listener.getsockname()[1], token)

    def _see_to_the_process(self, listener_fd: int, root: Path) -> None:
        if self._process is not None and self._process.poll() is not None:
            log.warning("the process that serves peers has ended with %s: another one", _end(self._process))
            self._process = None
        if self._process is None:
            module = [sys.executable, "-P", "-m", "paceline.agent.peer_receiver"]
            self._process = subprocess.Popen(
                [*module, str(listener_fd), str(root)],
                stdin=subprocess.PIPE,
                pass_fds=(listener_fd,),
                start_new_session=True,
            )


def _listen(address: str, port: int) -> socket.socket:
    """On that port if it is free, else on any."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    try:
        return socket.create_server((address, port), family=family, backlog=_BACKLOG)
    except OSError:
        if not port:
            raise
        log.warning("port %d, where peers knew this node, is in use: they are not served", port)
        return socket.create_server((address, 0), family=family, backlog=_BACKLOG)


def _end(process: "subprocess.Popen[bytes]") -> int:
    assert process.stdin is not None
    process.stdin.close()
    try:
        return process.wait(_END_S)
    except subprocess.TimeoutExpired:
        process.kill()
        return process.wait()
