"""A node's door for its peers, served by its real process: who is let in, what is kept, what is refused."""

import asyncio
import json
import os
import shutil
import signal
import socket
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from paceline.agent.peer_door import PeerDoor, token_file
from paceline.agent.peer_receiver import Receiver
from paceline.proto.peer_door import FILE, PEERS, Door, Line, read_door
from paceline.spec.folder_names import FolderName
from paceline.spec.ids import Attempt, JobId, TaskKey
from paceline.training.errors import StorageFailed
from paceline.training.manifest import FileEntry, hash_bytes
from paceline.training.peer_calls import Caller
from support.cluster import wait_until

KEY = TaskKey(JobId(7), Attempt(2), 0)
DATA = bytes(range(256)) * 20_000


class Node:
    """What an agent has of its door, and what a rank of a task there knows of it."""

    def __init__(self, folder: Path) -> None:
        self.root = folder / "memory"
        self.tasks = folder / "tasks"
        self.door = self.made()

    def made(self) -> PeerDoor:
        return PeerDoor("node-b", "127.0.0.1", "127.0.0.1")

    def memory(self, job: int) -> Path:
        return self.root / str(job)

    def admit(self, key: TaskKey = KEY) -> Caller:
        folder = self.tasks / str(key)
        folder.mkdir(parents=True, exist_ok=True)
        for name, text in self.door.admit(key, self.memory(key.job)).items():
            (folder / name).write_text(text)
        return self.caller(key)

    def caller(self, key: TaskKey = KEY) -> Caller:
        door = read_door(self.tasks / str(key))
        assert door is not None
        return Caller(door, key.job, key.attempt)

    def kept(self, job: int = 7) -> set[str]:
        """All that is there, also what has no name yet."""
        peers = self.memory(job) / PEERS
        return {str(path.relative_to(peers)) for path in peers.glob("*/*")}


@pytest.fixture
def node(tmp_path: Path) -> Iterator[Node]:
    made = Node(tmp_path)
    yield made
    made.door.close()


def name(step: int, attempt: int = 2) -> FolderName:
    return FolderName(attempt, step)


def test_what_is_put_is_kept_and_given_again(node: Node, tmp_path: Path) -> None:
    caller = node.admit()
    caller.put_bytes(name(10), "__1_0.distcp", DATA)
    [path] = (node.memory(7) / PEERS).glob("*/*")
    assert (path.read_bytes(), path.stat().st_mode & 0o777) == (DATA, 0o600)
    assert path.relative_to(node.memory(7) / PEERS) == Path(str(name(10)), "__1_0.distcp")
    assert all(folder.stat().st_mode & 0o77 == 0 for folder in list(path.parents)[:4])

    entry, target = FileEntry(len(DATA), hash_bytes(DATA)), tmp_path / "fetched" / "there"
    assert caller.fetch(name(10), "__1_0.distcp", entry, target) == ""
    assert target.read_bytes() == DATA
    assert caller.read_small(name(10), "__1_0.distcp", entry) == DATA
    flipped, longer = FileEntry(len(DATA), "0" * 32), FileEntry(len(DATA) + 1, hash_bytes(DATA))
    assert caller.fetch(name(10), "__1_0.distcp", flipped, target) == "hash differs at node-b"
    assert caller.fetch(name(10), "__1_0.distcp", longer, target) == f"has {len(DATA)} bytes at node-b"
    assert caller.fetch(name(20), "__1_0.distcp", entry, target) == "not in memory there at node-b"
    assert not target.exists()


def test_an_open_file_is_put_whatever_becomes_of_its_name(node: Node, tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.write_bytes(DATA)
    descriptor = os.open(source, os.O_RDONLY)
    source.unlink()
    node.admit().put_file(name(10), "__1_0.distcp", descriptor, FileEntry(len(DATA), hash_bytes(DATA)))
    os.close(descriptor)
    assert (node.memory(7) / PEERS / str(name(10)) / "__1_0.distcp").read_bytes() == DATA


def test_two_are_kept_and_an_older_one_does_not_come_back(node: Node) -> None:
    caller = node.admit()
    for step in (10, 20, 30):
        caller.put_bytes(name(step), "__1_0.distcp", DATA)
        caller.put_bytes(name(step), "__2_0.distcp", DATA)
    there = {f"{name(step)}/__{rank}_0.distcp" for step in (20, 30) for rank in (1, 2)}
    assert node.kept() == there
    with pytest.raises(StorageFailed, match=r"10\.a2 is older than what is kept: step-00000030\.a2"):
        caller.put_bytes(name(10), "__1_0.distcp", DATA)
    assert node.kept() == there


def test_the_node_s_own_images_are_given_too(node: Node) -> None:
    caller = node.admit()
    slot = node.memory(7) / "1"
    slot.mkdir()
    (slot / "__0_0.distcp").write_bytes(DATA)
    (slot / "__0_0.distcp.of").write_text(str(name(10, attempt=1)))
    entry = FileEntry(len(DATA), hash_bytes(DATA))
    assert caller.read_small(name(10, attempt=1), "__0_0.distcp", entry) == DATA
    with pytest.raises(StorageFailed, match="not in memory there"):
        caller.read_small(name(20, attempt=1), "__0_0.distcp", entry)


@pytest.mark.parametrize("verb", ["put", "get"])
@pytest.mark.parametrize(
    "change",
    [{"token": "0" * 32}, {"token": ""}, {"job": 8}, {"attempt": 1}, {"attempt": 3}],
    ids=["wrong token", "no token", "other job", "stale attempt", "attempt to come"],
)
def test_a_stranger_is_not_let_in(node: Node, verb: str, change: dict[str, object]) -> None:
    caller = node.admit()
    node.admit(TaskKey(JobId(9), Attempt(2), 0))
    if "token" in change:
        stranger = replace(caller, door=replace(caller.door, **change))  # type: ignore[arg-type]
    else:
        stranger = replace(caller, **change)  # type: ignore[arg-type]
    caller.put_bytes(name(10), "__1_0.distcp", DATA)
    with pytest.raises(StorageFailed, match="is not let in with this token at node-b"):
        if verb == "put":
            stranger.put_bytes(name(20, stranger.attempt), "__1_0.distcp", DATA)
        else:
            stranger.read_small(name(10), "__1_0.distcp", None)
    assert node.kept() == {f"{name(10)}/__1_0.distcp"}
    assert node.kept(9) == set()


def test_an_attempt_that_is_over_and_one_s_own_name_for_another_s_are_refused(node: Node) -> None:
    caller = node.admit()
    with pytest.raises(StorageFailed, match=r"10\.a1 is not of attempt 2"):
        caller.put_bytes(name(10, attempt=1), "__1_0.distcp", DATA)
    node.door.revoke(KEY)
    after = node.admit(TaskKey(JobId(7), Attempt(3), 0))
    with pytest.raises(StorageFailed, match="attempt 2 of job 7 is not let in"):
        caller.put_bytes(name(20), "__1_0.distcp", DATA)
    after.put_bytes(name(20, attempt=3), "__1_0.distcp", DATA)
    assert node.kept() == {f"{name(20, 3)}/__1_0.distcp"}


def test_two_tasks_of_an_attempt_have_one_door_until_both_are_over(node: Node) -> None:
    other = TaskKey(JobId(7), Attempt(2), 1)
    first, second = node.admit(), node.admit(other)
    assert first.door == second.door
    node.door.revoke(KEY)
    second.put_bytes(name(10), "__1_0.distcp", DATA)
    node.door.revoke(other)
    with pytest.raises(StorageFailed, match="not let in"):
        second.put_bytes(name(20), "__1_0.distcp", DATA)


@pytest.mark.parametrize("file", ["../x", "/x", "..", "", "a/b", "a" * 201, "~x", "x\0"])
def test_only_a_file_s_name_is_one(node: Node, file: str) -> None:
    with pytest.raises(StorageFailed, match="is no file of a checkpoint"):
        node.admit().put_bytes(name(10), file, DATA)


def raw(caller: Caller) -> tuple[socket.socket, Line]:
    connection = socket.create_connection(caller.door.place, 10)
    return connection, Line(connection)


def asking(caller: Caller, **more: object) -> dict[str, object]:
    who = {"job": 7, "attempt": 2, "token": caller.door.token, "checkpoint": str(name(10))}
    return {"op": "put", **who, "file": "__1_0.distcp", "size_bytes": len(DATA), **more}


def test_what_is_cut_short_leaves_nothing(node: Node) -> None:
    caller = node.admit()
    connection, line = raw(caller)
    with connection:
        line.say(asking(caller, xxh3=hash_bytes(DATA)))
        assert line.hear() == {"ok": True}
        line.send(DATA[:100_000])
        wait_until("it comes", lambda: node.kept() == {f"{name(10)}/~__1_0.distcp"})
    wait_until("nothing is left of it", lambda: not node.kept())


@pytest.mark.parametrize("sent", [DATA[:-1] + b"x", DATA[:1000] + DATA], ids=["flipped", "too much"])
def test_what_has_another_hash_or_is_longer_is_not_kept(node: Node, sent: bytes) -> None:
    caller = node.admit()
    connection, line = raw(caller)
    with connection:
        line.say(asking(caller, xxh3=hash_bytes(DATA)))
        assert line.hear() == {"ok": True}
        line.send(sent[: len(DATA)])
        assert line.hear() == {"ok": False, "error": "__1_0.distcp: hash differs"}
    assert not node.kept()


@pytest.mark.parametrize(
    "said",
    [
        b"{}\n",
        b"[]\n",
        b"nonsense\n",
        b"x" * 5000,
        b"[" * 4000 + b"\n",
        b'{"op": "put", "job": -1}\n',
        b'{"op": "list"}\n',
    ],
)
def test_nonsense_is_refused_and_others_are_served(node: Node, said: bytes) -> None:
    caller = node.admit()
    connection, line = raw(caller)
    with connection:
        connection.sendall(said)
        assert line.hear()["ok"] is False
    caller.put_bytes(name(10), "__1_0.distcp", DATA)


def test_more_than_memory_allows_is_refused_with_numbers(tmp_path: Path) -> None:
    receiver, folder = Receiver(tmp_path, share_left=0.9999), tmp_path / "7"
    (folder / PEERS).mkdir(parents=True)
    (folder / token_file(2)).write_text("token")
    ours, theirs = socket.socketpair()
    with ours:
        line = Line(ours)
        door = Door("node-b", "", 0, "token")
        line.say(asking(Caller(door, 7, 2), size_bytes=123_000_000))
        receiver.serve(theirs)
        told = line.hear()
    assert told["ok"] is False
    assert str(told["error"]).startswith("no room: 123 MB wanted beside 0 MB that are promised, ")
    assert str(told["error"]).endswith(" are free, and 100% stay so")
    assert not list((folder / PEERS).glob("*/*"))


def test_what_a_node_needs_for_its_own_images_is_not_given_away(tmp_path: Path) -> None:
    receiver, folder = Receiver(tmp_path, share_left=0), tmp_path / "7"
    for part in (PEERS, "0"):
        (folder / part).mkdir(parents=True)
    with (folder / "0" / "__0_0.distcp").open("wb") as own:
        own.truncate(1 << 43)  # a hole: it has that size, and takes nothing
    (folder / token_file(2)).write_text("token")
    ours, theirs = socket.socketpair()
    with ours:
        line = Line(ours)
        line.say(asking(Caller(Door("node-b", "", 0, "token"), 7, 2), size_bytes=1000))
        receiver.serve(theirs)
        error = str(line.hear()["error"])
    assert error.startswith("no room: 0 MB wanted beside 8,796,093 MB that are promised"), error


def test_the_folder_of_a_job_that_has_gone_is_not_made_again(node: Node) -> None:
    caller = node.admit()
    shutil.rmtree(node.memory(7))
    with pytest.raises(StorageFailed, match="attempt 2 of job 7 is not let in"):
        caller.put_bytes(name(10), "__1_0.distcp", DATA)
    assert not node.memory(7).exists()


def test_a_process_that_died_is_started_again_and_knows_all(node: Node) -> None:
    caller = node.admit()
    caller.put_bytes(name(10), "__1_0.distcp", DATA)
    process = node.door._process
    assert process is not None
    process.send_signal(signal.SIGKILL)
    process.wait()
    node.admit(TaskKey(JobId(9), Attempt(1), 0))
    caller.put_bytes(name(20), "__1_0.distcp", DATA)
    assert node.kept() == {f"{name(step)}/__1_0.distcp" for step in (10, 20)}


async def test_a_process_that_died_is_missed_while_anybody_is_let_in(node: Node) -> None:
    caller = node.admit()
    process = node.door._process
    assert process is not None
    process.send_signal(signal.SIGKILL)
    watch = asyncio.create_task(node.door.watch())
    await asyncio.to_thread(caller.put_bytes, name(10), "__1_0.distcp", DATA)  # it waits in the listen queue
    watch.cancel()
    assert node.kept() == {f"{name(10)}/__1_0.distcp"}


def test_the_next_agent_serves_at_the_same_place(node: Node) -> None:
    before = node.admit()
    node.door.close()
    with pytest.raises(StorageFailed, match="Connection refused at node-b"):
        before.put_bytes(name(10), "__1_0.distcp", DATA)
    node.door = node.made()
    node.door.admit_again(KEY, node.memory(7), node.tasks / str(KEY))
    before.put_bytes(name(10), "__1_0.distcp", DATA)
    assert node.kept() == {f"{name(10)}/__1_0.distcp"}


def test_nobody_listens_before_a_gang_wants_it(node: Node) -> None:
    node.door.revoke(KEY)
    assert node.door._process is None
    told = json.loads(node.door.admit(KEY, node.memory(7))[FILE])
    assert (told["node"], told["address"], len(told["token"])) == ("node-b", "127.0.0.1", 32)


@pytest.mark.parametrize("answers", [True, False], ids=["takes no byte", "says no word"])
def test_an_end_that_is_silent_is_given_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, answers: bool
) -> None:
    monkeypatch.setattr("paceline.proto.peer_door.STILL_S", 0.3)
    source = tmp_path / "source"
    source.write_bytes(b"x")
    os.truncate(source, 1 << 30)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        if answers:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        caller = Caller(Door("node-b", *listener.getsockname(), "token"), 7, 2)
        with source.open("rb") as file, pytest.raises(StorageFailed, match="timed out at node-b"):
            if answers:
                _put_to_one_who_answers(listener, caller, file.fileno())
            else:
                caller.put_file(name(10), "__1_0.distcp", file.fileno(), FileEntry(1 << 30, ""))


def _put_to_one_who_answers(listener: socket.socket, caller: Caller, descriptor: int) -> None:
    import threading

    held: list[socket.socket] = []

    def answer() -> None:
        connection, _ = listener.accept()
        held.append(connection)
        Line(connection).hear()
        Line(connection).say({"ok": True})

    thread = threading.Thread(target=answer)
    thread.start()
    try:
        caller.put_file(name(10), "__1_0.distcp", descriptor, FileEntry(1 << 30, ""))
    finally:
        thread.join()
        for connection in held:
            connection.close()
