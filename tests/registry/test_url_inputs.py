"""Jobs that read what is at a URL: nodes fetch it, as it was when it was registered or submitted."""

import json
from collections.abc import Iterator

import pytest
from paceline.client.registry_views import OfUrl
from paceline.content.errors import UrlRefused
from paceline.spec.errors import InvalidRequest
from paceline.spec.problems import InvalidDocument
from support.cluster import Cluster, wait_until
from support.s3 import BUCKET, S3Server
from support.web import WebServer

READS = "command: cat ${{inputs.x}}%s\ninputs: {x: {path: '%s'}}\nresources: {cpus: 0.5}\n"


@pytest.fixture(scope="module")
def web() -> Iterator[WebServer]:
    made = WebServer()
    yield made
    made.close()


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory, s3_server: S3Server) -> Iterator[Cluster]:
    with Cluster(tmp_path_factory.mktemp("urls"), environment=s3_server.variables) as made:
        yield made


def failed(cluster: Cluster, job: int) -> str:
    found = wait_until("it is over", lambda: (seen := cluster.client.job(job)).is_over and seen)
    assert found.state == "FAILED", cluster.story(job, found.state)
    return cluster.story(job, "")


def test_a_url_in_a_job_file_is_a_path_in_the_command(cluster: Cluster, web: WebServer) -> None:
    url = web.put("/plain.csv", b"1,2\n", "v1")
    jobs = [cluster.submit_text(READS % ("", url)) for _ in range(2)]
    for job in jobs:
        cluster.wait_state(job, "SUCCEEDED")
        assert cluster.output(job) == b"1,2\n"
    assert web.got.count("/plain.csv") == 1
    told = [cluster.pace("timeline", str(job)).stdout for job in jobs]
    assert sum(f"4 bytes fetched from {url}" in each for each in told) == 1, "by the one that came first"
    pinned = json.loads(cluster.client.job(jobs[0]).document)["inputs"]["x"]["pinned"]
    assert (pinned["etag"], pinned["bytes"], pinned["file"]) == ("v1", 4, "plain.csv")


def test_a_registered_folder_of_an_object_store(cluster: Cluster, s3: S3Server) -> None:
    for path in ("a", "deep/b"):
        s3.write(f"set/{path}", path.encode())
    made = cluster.client.register("data", "far", OfUrl(f"s3://{BUCKET}/set"))
    assert (made.type, made.files) == ("uri_folder", 2)
    job = cluster.submit_text(READS % ("/a ${{inputs.x}}/deep/b", "far@latest"))
    cluster.wait_state(job, "SUCCEEDED")
    assert cluster.output(job) == b"adeep/b"
    s3.write("set/a", b"A")
    again = cluster.submit_text(READS % ("/a", "far:1"))
    cluster.wait_state(again, "SUCCEEDED")
    assert cluster.output(again) == b"a", "the node has what was registered"


def test_what_changed_since_it_was_registered_is_refused_for_good(cluster: Cluster, web: WebServer) -> None:
    made = cluster.client.register("data", "moving", OfUrl(web.put("/moving.csv", b"1", "v1")))
    assert (made.type, made.file) == ("uri_file", "moving.csv")
    web.put("/moving.csv", b"22", "v2")
    told = failed(cluster, cluster.submit_text(READS % ("", "moving@latest")))
    assert "etag v1; it is 1 file of 2 bytes, etag v2" in told and "pace data create" in told, told
    cluster.client.register("data", "moving", OfUrl(made.url))
    job = cluster.submit_text(READS % ("", "moving@latest"))
    cluster.wait_state(job, "SUCCEEDED")
    assert cluster.output(job) == b"22"


def test_a_job_that_waits_reads_what_it_was_submitted_with(cluster: Cluster, web: WebServer) -> None:
    url = web.put("/waits.csv", b"1", "v1")
    waits = cluster.submit_text(READS % ("", url) + "placement: {labels: {rack: later}}\n")
    web.put("/waits.csv", b"2", "v2")
    cluster.start_agent(1, "--label", "rack=later")
    assert "etag v1; it is 1 file of 1 bytes, etag v2" in failed(cluster, waits)
    cluster.stop_agent(1)


def test_an_agent_that_is_killed_amid_the_fetch_begins_it_again(cluster: Cluster, web: WebServer) -> None:
    url = web.put("/big.bin", bytes(1 << 20), "v1")
    web.held.add("/big.bin")
    job = cluster.submit_text(READS % (" | wc -c", url))
    assert web.half_sent.wait(60)
    cluster.kill_agent()
    web.held.clear()
    web.release.set()
    cluster.start_agent()
    cluster.wait_state(job, "SUCCEEDED")
    assert cluster.output(job).split() == [b"1048576"]
    assert list((cluster.agent_state() / "content" / "incoming").iterdir()) == []
    assert web.got.count("/big.bin") == 2


def test_a_url_as_text(cluster: Cluster, web: WebServer) -> None:
    text = "command: echo ${{inputs.x}}\ninputs: {x: {path: '%s', mode: direct}}\nresources: {cpus: 0.5}\n"
    job = cluster.submit_text(text % f"{web.url}/nowhere")
    cluster.wait_state(job, "SUCCEEDED")
    assert cluster.output(job).decode() == f"{web.url}/nowhere\n"


def test_what_cannot_be_fetched_is_refused_at_the_submit(cluster: Cluster, web: WebServer) -> None:
    with pytest.raises(InvalidDocument, match="what memory: names is in one process or on one machine"):
        cluster.submit_text(READS % ("", "memory://a/b"))
    with pytest.raises(UrlRefused, match=r"job\.yaml: inputs\.x\.path: .*/none: its server answers 404"):
        cluster.submit_text(READS % ("", f"{web.url}/none"))
    with pytest.raises(UrlRefused, match="gcsfs"):
        cluster.submit_text(READS % ("", "gs://bucket/x"))


def test_a_registered_one_that_nodes_cannot_fetch_says_so(cluster: Cluster) -> None:
    import fsspec

    fsspec.filesystem("memory").pipe("/here/x", b"1")
    cluster.client.register("data", "near", OfUrl("memory://here/x"))
    with pytest.raises(InvalidRequest, match="data:near:1 is at memory://here/x: what memory: names"):
        cluster.submit_text(READS % ("", "near@latest"))
