"""A rank's persister brings its files to a peer's memory: what fails costs the copy, is told once, and holds
up nobody.
"""

import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from paceline.agent.peer_door import PeerDoor
from paceline.proto.peer_door import PEERS, read_door
from paceline.proto.shim_line import ShimLink
from paceline.spec.folder_names import FolderName
from paceline.spec.ids import Attempt, JobId, TaskKey
from paceline.spec.retention import Retention
from paceline.training.environment import read_environment
from paceline.training.manifest import FileEntry, hash_bytes
from paceline.training.orders import Order
from paceline.training.peer_calls import Caller
from paceline.training.peer_sending import PeerSender
from paceline.training.run import Run
from paceline.training.uploading import Commit, Upload
from support.fake_shim import FakeShim, FakeTask, wait_until

KEY = TaskKey(JobId(7), Attempt(1), 1)
LARGE = 64 << 20
"""More than sockets hold."""


class Peer:
    """The other node, and what this rank sends there."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.door = PeerDoor("node-b", "127.0.0.1", "127.0.0.1")
        self.memory = folder / "shm" / "7"
        self.task = folder / "peer-task"
        self.task.mkdir()
        self.admit()

    def admit(self) -> None:
        for name, text in self.door.admit(KEY, self.memory).items():
            (self.task / name).write_text(text)

    def sender(self, task: FakeTask, *, tells: bool = True) -> PeerSender:
        door = read_door(self.task)
        assert door is not None
        return PeerSender(Caller(door, 7, 1), ShimLink(task.folder), tells=tells)

    def part(self, step: int, *, rank: int = 0, size_bytes: int = 1000) -> Upload:
        data = bytes([step]) * size_bytes
        path = self.folder / f"part-{step}"
        path.write_bytes(data)
        file = f"__{rank}_0.distcp"
        entry = FileEntry(size_bytes, hash_bytes(data))
        descriptor = os.open(path, os.O_RDONLY)
        path.unlink()
        order = Order(root=str(self.folder), rank=rank, attempt=1, step=step)
        commit = Commit(self.folder, 2, b"{}", {}, None) if rank == 0 else None
        return Upload(order, {file: entry}, {file: descriptor}, commit)

    def kept(self) -> set[str]:
        peers = self.memory / PEERS
        return {str(path.relative_to(peers)) for path in peers.glob("*/*")}

    def signal(self, number: int) -> None:
        process = self.door._process
        assert process is not None
        os.kill(process.pid, number)


@pytest.fixture
def peer(tmp_path: Path) -> Iterator[Peer]:
    made = Peer(tmp_path)
    yield made
    made.signal(signal.SIGCONT)
    made.door.close()


def files(step: int, *names: str) -> set[str]:
    return {f"{FolderName(1, step)}/{name}" for name in names}


def wait_told(shim: FakeShim, count: int) -> list[dict[str, Any]]:
    wait_until(lambda: len(shim.of("peer_memory")) >= count, f"{count} words of it")
    return shim.of("peer_memory")


def test_the_manifest_follows_rank_0_s_files_and_the_timeline_hears_of_it_once(
    peer: Peer, task: FakeTask, shim: FakeShim
) -> None:
    sender = peer.sender(task)
    for step in (10, 20):
        sender.take(peer.part(step))
        wanted = files(step, "__0_0.distcp", "manifest.json")
        wait_until(lambda wanted=wanted: wanted <= peer.kept(), "it is there")
    [told] = wait_told(shim, 1)
    assert (told["rank"], told["node"], told["step"], told["size_bytes"]) == (0, "node-b", 10, 1000)
    assert told["why"] == ""


def test_other_ranks_tell_only_of_what_fails_and_of_its_end(
    peer: Peer, task: FakeTask, shim: FakeShim, capfd: pytest.CaptureFixture[str]
) -> None:
    sender = peer.sender(task)
    sender.take(peer.part(10, rank=3))
    wait_until(lambda: files(10, "__3_0.distcp") <= peer.kept(), "it is there")
    token = (peer.memory / "door.a1").read_text()
    (peer.memory / "door.a1").write_text("")
    for step in (20, 30):
        part = peer.part(step, rank=3)
        sender.take(part)
        wait_until(lambda part=part: not part.descriptors, "it was tried")
    [told] = wait_told(shim, 1)
    assert (told["rank"], told["step"]) == (3, 20)
    assert told["why"] == "attempt 1 of job 7 is not let in with this token at node-b"
    assert "NOT kept in the memory of node-b" in capfd.readouterr().err
    (peer.memory / "door.a1").write_text(token)
    sender.take(peer.part(40, rank=3))
    _, again = wait_told(shim, 2)
    assert (again["step"], again["why"]) == (40, "")


def test_only_one_rank_of_a_node_tells(peer: Peer, task: FakeTask, shim: FakeShim) -> None:
    sender = peer.sender(task, tells=False)
    sender.take(peer.part(10))
    wait_until(lambda: files(10, "manifest.json") <= peer.kept(), "it is there")
    assert not shim.of("peer_memory")


def test_while_one_is_sent_the_newest_waits_and_nobody_else(
    peer: Peer, task: FakeTask, shim: FakeShim
) -> None:
    sender = peer.sender(task)
    peer.signal(signal.SIGSTOP)
    sender.take(peer.part(10, size_bytes=LARGE))
    wait_until(lambda: sender._waiting is None, "the first is under way")
    overtaken, newest = peer.part(20), peer.part(30)
    sender.take(overtaken)
    sender.take(newest)
    assert not overtaken.descriptors, "its files are let go of at once"
    peer.signal(signal.SIGCONT)
    wait_until(lambda: files(30, "manifest.json") <= peer.kept(), "the newest is there")
    assert not {file for file in peer.kept() if file.startswith(str(FolderName(1, 20)))}


def test_a_peer_that_dies_in_the_middle_costs_that_copy(peer: Peer, task: FakeTask, shim: FakeShim) -> None:
    sender = peer.sender(task)
    peer.signal(signal.SIGSTOP)
    part = peer.part(10, size_bytes=LARGE)
    sender.take(part)
    peer.signal(signal.SIGKILL)
    [told] = wait_told(shim, 1)
    assert told["why"].endswith(" at node-b")
    assert not part.descriptors
    peer.admit()  # the agent there starts another process
    sender.take(peer.part(20))
    _, again = wait_told(shim, 2)
    assert (again["step"], again["why"]) == (20, "")
    assert files(20, "__0_0.distcp", "manifest.json") <= peer.kept()


def test_a_gang_of_which_no_node_has_a_door_is_told(tmp_path: Path) -> None:
    task = FakeTask(tmp_path, peer_memory=True)
    place = {"RANK": "0", "WORLD_SIZE": "1", "GROUP_RANK": "0", "GROUP_WORLD_SIZE": "2"}
    with FakeShim(task) as shim:
        run = Run(read_environment({**task.variables(), **place}), tmp_path / "unused", Retention())
        assert run.restore() is None
        [told] = wait_told(shim, 1)
        assert "none has opened its memory to peers" in told["why"]
        run.close()
