"""A folder that is submitted again: the change is all that is sent, where the scheduler knows what it was."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from paceline.client import packing, rpc
from paceline.client.documents import prepare
from paceline.client.sdk import Client
from paceline.content.store import ContentStore, content_folder
from support.cluster import Cluster

FILES = 200


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    with Cluster(tmp_path_factory.mktemp("cluster"), agents=0) as made:
        yield made


@pytest.fixture
def project(tmp_path: Path) -> Path:
    folder = tmp_path / "project"
    for number in range(FILES):
        path = folder / f"f{number % 10}" / f"{number}.py"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{tmp_path.name} {number}")
    return folder


def storage(cluster: Cluster) -> ContentStore:
    return ContentStore(content_folder(cluster.state / "storage"))


class Recording(Client):
    """Knows the calls that it has made."""

    def __init__(self, cluster: Cluster) -> None:
        super().__init__(config=cluster.client.settings)
        self.made: list[rpc.Call] = []

    def _call(self, call: rpc.Call, patience_s: float | None = None) -> object:
        self.made.append(call)
        return super()._call(call, patience_s)


def pack(cluster: Cluster, project: Path) -> tuple[str, list[rpc.Call]]:
    """The tree that it is packed as, and the calls that this took."""
    prepared = prepare({"command": "true", "code": str(project)})
    with Recording(cluster) as client:
        [ready] = client._drive(packing.packed([prepared], client.settings))
        return ready.spec.code_tree, client.made


def sent_bytes(made: list[rpc.Call]) -> int:
    return sum(call.request.ByteSize() for call in made)


def comes_out(cluster: Cluster, tree: str, out: Path) -> dict[str, bytes]:
    storage(cluster).materialise(tree, out)
    return {str(path.relative_to(out)): path.read_bytes() for path in out.rglob("*.py")}


def is_there(project: Path) -> dict[str, bytes]:
    return {str(path.relative_to(project)): path.read_bytes() for path in project.rglob("*.py")}


def test_only_the_change_is_sent(cluster: Cluster, project: Path, tmp_path: Path) -> None:
    _, first = pack(cluster, project)
    assert sent_bytes(first) > FILES * 100
    (project / "f0" / "0.py").write_text("changed")
    (project / "f1" / "1.py").unlink()
    (project / "f2" / "2.py").rename(project / "moved.py")
    tree, again = pack(cluster, project)
    assert [type(call.request).__name__ for call in again] == [
        "MissingRequest",
        "PutRequest",
        "CommitRequest",
    ]
    assert sent_bytes(again) < 1000
    assert comes_out(cluster, tree, tmp_path / "out") == is_there(project)
    same, unchanged = pack(cluster, project)
    assert same == tree and [len(call.request.hashes) for call in unchanged] == [0]


def damaged(path: Path) -> None:
    path.chmod(0o644)
    path.write_bytes(path.read_bytes() + b" ")


@pytest.mark.parametrize("fault", [Path.unlink, damaged])
def test_a_scheduler_that_has_not_the_last_tree_any_more_gets_all_of_it(
    cluster: Cluster, project: Path, tmp_path: Path, fault: object
) -> None:
    tree, _ = pack(cluster, project)
    assert callable(fault)
    fault(storage(cluster).tree_path(tree))
    (project / "f0" / "0.py").write_text("changed")
    later, made = pack(cluster, project)
    assert len(made[-1].request.manifest) > FILES * 80 and not made[-1].request.base
    assert comes_out(cluster, later, tmp_path / "out") == is_there(project)
    _, unchanged = pack(cluster, project)
    assert len(unchanged) == 1, "what was sent is what the next change is compared with"


def test_blobs_of_the_last_tree_that_have_gone_are_sent_again(
    cluster: Cluster, project: Path, tmp_path: Path
) -> None:
    tree, _ = pack(cluster, project)
    store = storage(cluster)
    for hash_ in store.manifest(tree).blobs():
        store.blob_path(hash_).unlink()
    os.utime(store.tree_path(tree), (0, 0))  # nobody was told of it for long
    (project / "f0" / "0.py").write_text("changed")
    later, _ = pack(cluster, project)
    assert comes_out(cluster, later, tmp_path / "out") == is_there(project)


def test_a_scheduler_that_never_had_it_gets_all_of_it(
    cluster: Cluster, project: Path, tmp_path: Path
) -> None:
    pack(cluster, project)
    (project / "f0" / "0.py").write_text("changed")
    (tmp_path / "another").mkdir()
    with Cluster(tmp_path / "another", agents=0) as another:
        tree, _ = pack(another, project)
        assert comes_out(another, tree, tmp_path / "out") == is_there(project)


@pytest.mark.parametrize("text", [b"", b"{", b"[]", b'{"files":[[1]],"links":[],"version":1}'])
def test_what_is_noted_of_the_last_tree_and_makes_no_sense_is_not_looked_at(
    cluster: Cluster, project: Path, tmp_path: Path, text: bytes
) -> None:
    pack(cluster, project)
    real = packing.pack(str(project), cluster.client.settings).last
    real.note(text)
    (project / "f0" / "0.py").write_text("changed")
    tree, _ = pack(cluster, project)
    assert comes_out(cluster, tree, tmp_path / "out") == is_there(project)


def test_where_nearly_all_has_changed_the_whole_is_sent(cluster: Cluster, project: Path) -> None:
    pack(cluster, project)
    for path in project.rglob("*.py"):
        path.rename(path.with_suffix(".txt"))
    _, made = pack(cluster, project)
    assert not any(call.request.base for call in made if hasattr(call.request, "base"))
