"""What is at a URL is looked at, and fetched as it was then; failures tell what can help."""

import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from paceline.client.documents import prepare
from paceline.client.looking import looked
from paceline.content.errors import TreeTooLarge, UrlAway, UrlChanged, UrlRefused
from paceline.content.urls import fetch, look
from paceline.spec.stores import Seen, file_name, shown_url, why_not_fetched
from support.s3 import BUCKET, S3Server
from support.web import WebServer


@pytest.fixture
def web() -> Iterator[WebServer]:
    made = WebServer()
    yield made
    made.close()


def fetched(seen: Seen, folder: Path, bytes_max: int = 1 << 30) -> dict[str, bytes]:
    """By path, what came."""
    folder.mkdir()
    told: list[int] = []
    manifest = fetch(seen, folder, bytes_max, told.append)
    assert told == sorted(told) and (told or [0])[-1] == manifest.size
    return {entry.path: (folder / entry.hash).read_bytes() for entry in manifest.files}


def test_a_file_of_a_web_server(web: WebServer, tmp_path: Path) -> None:
    url = web.put("/d/x y.csv", b"1,2\n", "v1").replace(" ", "%20") + "?sig=secret"
    seen = look(url)
    assert seen == Seen(url, "v1", 4, 1)
    assert fetched(seen, tmp_path / "a") == {"x y.csv": b"1,2\n"}


def test_an_empty_file(web: WebServer, tmp_path: Path) -> None:
    assert fetched(look(web.put("/empty", b"", "e")), tmp_path / "a") == {"empty": b""}


def test_a_page_is_no_folder(web: WebServer) -> None:
    with pytest.raises(UrlRefused, match="is a page and no file"):
        look(f"{web.url}/folder/")


@pytest.mark.parametrize(
    ("status", "error", "text"),
    [
        (404, UrlRefused, r"its server answers 404 \(Not Found\)"),
        (403, UrlRefused, r"its server answers 403 \(Forbidden\)"),
        (401, UrlRefused, "401"),
        (429, UrlAway, "429"),
        (503, UrlAway, r"its server answers 503 \(Service Unavailable\)"),
    ],
)
def test_what_a_web_server_refuses(web: WebServer, status: int, error: type[Exception], text: str) -> None:
    url = web.put("/x", b"1", "v1") + "?sig=secret"
    web.statuses["/x"] = status
    with pytest.raises(error, match=text) as caught:
        look(url)
    assert "secret" not in str(caught.value)


def test_a_server_that_is_not_there_may_come(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    with pytest.raises(UrlAway, match="cannot be read: ConnectionRefusedError"):
        look(f"http://127.0.0.1:{port}/x")


def test_what_changed_since_is_refused_with_both_states(web: WebServer, tmp_path: Path) -> None:
    seen = look(web.put("/x", b"1", "v1"))
    web.put("/x", b"22", "v2")
    (tmp_path / "a").mkdir()
    with pytest.raises(UrlChanged, match="was 1 file of 1 bytes, etag v1; it is 1 file of 2 bytes, etag v2"):
        fetch(seen, tmp_path / "a", 100, lambda size: None)
    assert web.got == [], "nothing of it was fetched"


def test_what_changes_amid_the_fetch_is_refused(web: WebServer, tmp_path: Path) -> None:
    import threading

    seen = look(web.put("/x", b"1" * 100, "v1"))
    web.held.add("/x")

    def change() -> None:
        assert web.half_sent.wait(30)
        web.put("/x", b"2" * 100, "v2")
        web.release.set()

    changing = threading.Thread(target=change)
    changing.start()
    (tmp_path / "a").mkdir()
    with pytest.raises(UrlChanged, match="etag v1; it is 1 file of 100 bytes, etag v2"):
        fetch(seen, tmp_path / "a", 100, lambda size: None)
    changing.join()


def test_more_bytes_than_were_asked_for_are_not_kept(web: WebServer, tmp_path: Path) -> None:
    seen = look(web.put("/x", bytes(1000), "v1"))
    (tmp_path / "a").mkdir()
    with pytest.raises(TreeTooLarge, match="more than 999 bytes came"):
        fetch(seen, tmp_path / "a", 999, lambda size: None)


def test_a_folder_of_an_object_store(s3: S3Server, tmp_path: Path) -> None:
    files = {"a": b"1", "deep/er/b": b"22" * 5000, "c d": b""}
    for path, data in files.items():
        s3.write(f"set/{path}", data)
    seen = look(f"s3://{BUCKET}/set")
    assert (seen.bytes, seen.files, seen.file) == (10_001, 3, "")
    assert fetched(seen, tmp_path / "a") == files
    s3.write("set/a", b"2")  # as long as before
    with pytest.raises(UrlChanged, match="3 files of 10001 bytes, etag listing"):
        fetched(seen, tmp_path / "b")


def test_one_object(s3: S3Server, tmp_path: Path) -> None:
    s3.write("big", bytes(70 << 20))  # in parts, several at once
    seen = look(f"s3://{BUCKET}/big")
    assert (seen.bytes, seen.file) == (70 << 20, "big")
    assert fetched(seen, tmp_path / "a") == {"big": bytes(70 << 20)}


def test_an_object_store_that_refuses(s3: S3Server) -> None:
    with pytest.raises(UrlRefused, match="none"):
        look(f"s3://{BUCKET}/none")
    with pytest.raises(UrlRefused):
        look("s3://no-such-bucket-here/x")


def test_a_sweep_and_a_job_are_looked_at_once(web: WebServer) -> None:
    url = web.put("/x", b"1", "v1")
    job = {"command": "cat ${{inputs.x}}", "inputs": {"x": {"path": url}, "n": 1}}
    sweep = {
        "type": "sweep",
        "trial": {"command": "cat ${{inputs.x}} ${{search_space.y}}"},
        "inputs": {"x": {"path": url}, "as_text": {"path": f"{web.url}/none", "mode": "direct"}},
        "search_space": {"y": {"type": "choice", "values": [1, 2]}},
        "sampling_algorithm": "random",
        "objective": {"primary_metric": "loss", "goal": "minimize"},
        "limits": {"max_total_trials": 1},
    }
    found = looked([prepare(job), prepare(sweep)])
    web.put("/x", b"22", "v2")
    pinned = [one.spec.inputs["x"].pinned for one in found]
    assert [(one.etag, one.bytes) for one in pinned] == [("v1", 1), ("v1", 1)]
    assert found[1].spec.inputs["as_text"].pinned is None
    again = looked(found)
    assert again[0].spec.inputs["x"].pinned == pinned[0], "a fork reads what its parent read"


def test_what_nothing_opens_says_what_to_install() -> None:
    with pytest.raises(UrlRefused, match="Protocol not known: nosuch") as caught:
        look("nosuch://a/b")
    assert caught.value.hint == "pip install what speaks nosuch: to fsspec"
    with pytest.raises(UrlRefused, match="gcsfs") as caught:
        look("gs://bucket/x")
    assert caught.value.hint == "pip install fsspec gcsfs"


def test_a_path_that_leads_out_is_refused(s3: S3Server, tmp_path: Path) -> None:
    from paceline.content.errors import UnsafePath

    s3.write("bad/..\\x", b"1")
    seen = look(f"s3://{BUCKET}/bad")
    (tmp_path / "a").mkdir()
    with pytest.raises(UnsafePath):
        fetch(seen, tmp_path / "a", 100, lambda size: None)


def test_names_and_what_is_shown() -> None:
    assert file_name("https://h/a/b%20c.csv?x=/y#z") == "b c.csv"
    assert file_name("s3://b/what?.csv") == "what?.csv"
    assert shown_url("https://me:pass@h:1/a?sig=1") == "https://h:1/a"
    assert shown_url("s3://b/a?") == "s3://b/a?"
    for url in ("memory://a/b", "file:///x", "simplecache::s3://b/x", "azureml:x", "s3://"):
        assert why_not_fetched(url), url
    for url in ("s3://b/x", "https://h/x", "hf://datasets/x/y"):
        assert not why_not_fetched(url), url


def test_fsspec_is_imported_where_it_is_needed_alone() -> None:
    code = "import sys, paceline.content.urls, paceline.agent.main; sys.exit('fsspec' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
