"""serving: an endpoint's requests through its router, beside the same engine asked directly; how long a
deploy takes to the first answer; an update under load, in which no request may be lost.

The model is a score.py that answers at once, so that what is timed is the way to it. Clients are threads of
this process, each with one connection that stays open, on the machine that serves.
"""

import http.client
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from .cluster import Cluster
from .cluster import version as our_version
from .harness import Options, Report, Row, Sample, alternate, options, quantile
from .peers.work.waiting import wait_until

SCORE = "import json\ndef run(text):\n    return {'model': %r, 'got': json.loads(text)}\n"
BODY = b'{"x": [1, 2, 3]}'
NAME = "bench"
WAIT_S = 300.0
PEER = "the engine alone"


@dataclass(frozen=True, slots=True)
class Size:
    """Requests of one client for latency; seconds and clients for the rate."""

    requests: int
    seconds: float
    clients: int


FULL = Size(requests=1_000, seconds=5.0, clients=8)
QUICK = Size(requests=20, seconds=0.3, clients=2)


@dataclass(frozen=True, slots=True)
class Target:
    """Where to ask, and with what key."""

    url: str
    key: str = ""

    def connect(self) -> "Connection":
        return Connection(self)


class Connection:
    """One that stays open."""

    def __init__(self, target: Target) -> None:
        url = urlsplit(target.url)
        self._http = http.client.HTTPConnection(url.hostname or "", url.port, timeout=60)
        self._headers = {"Content-Type": "application/json"}
        if target.key:
            self._headers["Authorization"] = f"Bearer {target.key}"

    def ask(self) -> int:
        """The answer's status."""
        self._http.request("POST", "/score", BODY, self._headers)
        reply = self._http.getresponse()
        reply.read()
        return reply.status


def main(argv: Sequence[str] | None = None) -> None:
    given = options("serving", "Requests through a router, beside the engine alone.", argv)
    size = QUICK if given.quick else FULL
    report = Report("serving", versions={"paceline": our_version()})
    with tempfile.TemporaryDirectory(prefix="bench-serving-") as name:
        folder = Path(name)
        models = [model(folder / f"model-{number}", f"m{number}") for number in range(2)]
        with Cluster(folder, agents=1, slots=6) as cluster, alone(models[0], folder / "alone.log") as engine:
            deploys = Sample(tuple(deploy_s(cluster, models[0], number) for number in range(given.pairs)))
            report.rows.append(Row("one replica", "deploy to the first answer", "s", deploys))
            router = deployed(cluster, models[0])
            latencies(report, given, size, router, engine)
            taken = alternate(given.pairs, lambda: rate(router, size), lambda: rate(engine, size))
            case = f"{size.clients} clients"
            report.rows.append(Row(case, "answered", "/s", taken[0], PEER, taken[1]))
            report.notes.append(update(report, cluster, models, router, size))
    report.finish(given)


def latencies(report: Report, given: Options, size: Size, router: Target, engine: Target) -> None:
    runs: dict[Target, list[list[float]]] = {router: [], engine: []}
    for _ in range(given.pairs):
        for target, found in runs.items():
            found.append(times_s(target, size.requests))
    for word, share in (("p50", 0.5), ("p99", 0.99)):
        ours, theirs = (
            Sample(tuple(quantile(run, share) * 1e3 for run in runs[target])) for target in (router, engine)
        )
        report.rows.append(Row("one client", f"request, {word}", "ms", ours, PEER, theirs))


def times_s(target: Target, count: int) -> list[float]:
    """Of each request."""
    connection, times = target.connect(), []
    for _ in range(count):
        began = time.perf_counter()
        status = connection.ask()
        times.append(time.perf_counter() - began)
        assert status == 200, status
    return times


def rate(target: Target, size: Size) -> float:
    """Answers a second."""
    counts, lost = load(target, size.clients, lambda: time.sleep(size.seconds))
    assert not lost, lost[:3]
    return counts / size.seconds


def load(target: Target, clients: int, meanwhile: Callable[[], None]) -> tuple[int, list[str]]:
    """Requests that were answered with 200 while something was done, and what became of the others."""
    over, answered, lost = threading.Event(), [0] * clients, list[str]()

    def ask(number: int) -> None:
        connection = target.connect()
        while not over.is_set():
            try:
                status = connection.ask()
            except (OSError, http.client.HTTPException) as error:
                lost.append(repr(error))
                connection = target.connect()
                continue
            if status == 200:
                answered[number] += 1
            else:
                lost.append(f"status {status}")

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(clients)]
    for thread in threads:
        thread.start()
    try:
        meanwhile()
    finally:
        over.set()
        for thread in threads:
            thread.join()
    return sum(answered), lost


def update(report: Report, cluster: Cluster, models: Sequence[Path], router: Target, size: Size) -> str:
    """Another model, while clients ask. Raises AssertionError when a request is lost."""
    took_s = 0.0

    def replace() -> None:
        nonlocal took_s
        began = time.monotonic()
        deployed(cluster, models[1])
        took_s = time.monotonic() - began

    answered, lost = load(router, size.clients, replace)
    assert not lost, f"{len(lost)} requests were lost: {lost[:3]}"
    case = f"one replica, {size.clients} clients"
    report.rows.append(Row(case, "another model, until it alone answers", "s", Sample((took_s,))))
    return f"during the update {answered} requests were answered, 0 lost"


def deployed(cluster: Cluster, folder: Path) -> Target:
    """The endpoint, when its newest revision alone answers."""
    cluster.client.deploy({"endpoint_name": NAME, "model": str(folder)})

    def ready() -> bool:
        found = cluster.client.endpoint(NAME).deployments[0]
        return found.state == "ready" and all(one.revision == found.revision for one in found.replicas)

    wait_until(ready, "the endpoint is ready", timeout_s=WAIT_S)
    found = cluster.client.endpoint(NAME)
    return Target(found.url, found.key)


def deploy_s(cluster: Cluster, folder: Path, number: int) -> float:
    """From the call until a new endpoint answers."""
    name = f"cold-{number}"
    began = time.monotonic()
    cluster.client.deploy({"endpoint_name": name, "model": str(folder)})
    wait_until(lambda: cluster.client.endpoint(name).url, "its router is there", timeout_s=WAIT_S)
    found = cluster.client.endpoint(name)
    connection = Target(found.url, found.key).connect()
    wait_until(lambda: connection.ask() == 200, "it answers", timeout_s=WAIT_S)
    took_s = time.monotonic() - began
    cluster.client.undeploy(name)
    wait_until(
        lambda: name not in [one.endpoint for one in cluster.client.endpoints()],
        "it is gone",
        timeout_s=WAIT_S,
    )
    return took_s


@contextmanager
def alone(folder: Path, log: Path) -> Iterator[Target]:
    """The engine's own server, as anybody may start it."""
    command = [sys.executable, "-m", "paceline.serving.server", "--model", str(folder), "--name", NAME]
    with (
        log.open("wb") as file,
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=file, text=True) as server,
    ):
        assert server.stdout is not None
        target = Target(server.stdout.readline().split()[-1])
        connection = target.connect()
        wait_until(lambda: connection.ask() == 200, "the engine answers", timeout_s=WAIT_S)
        try:
            yield target
        finally:
            server.terminate()


def model(folder: Path, name: str) -> Path:
    folder.mkdir()
    (folder / "score.py").write_text(SCORE % name)
    return folder


if __name__ == "__main__":
    main()
