"""Model folders that start at once, and clients that count every request."""

import http.client
import threading
import time
from collections import Counter
from pathlib import Path
from urllib.parse import urlsplit

from paceline.client.endpoint_views import Endpoint

SCORE = """
import json, os, time

def init():
    time.sleep({load_s})
    {at_init}

def run(text):
    time.sleep({answer_s})
    return {{"model": {name!r}, "got": json.loads(text), "pid": os.getpid()}}
"""


def model(folder: Path, name: str, *, load_s: float = 0, answer_s: float = 0, at_init: str = "pass") -> Path:
    """A folder whose model says its name."""
    folder.mkdir(parents=True)
    script = SCORE.format(name=name, load_s=load_s, answer_s=answer_s, at_init=at_init)
    (folder / "score.py").write_text(script)
    return folder


class Load:
    """Clients that ask one endpoint, one request after the other each, until it is left; all are counted."""

    def __init__(self, endpoint: Endpoint, clients: int = 4, body: bytes = b'{"x": 1}') -> None:
        self._url = urlsplit(endpoint.url)
        self._headers = {"Authorization": f"Bearer {endpoint.key}", "Content-Type": "application/json"}
        self._body = body
        self._over = threading.Event()
        self._threads = [threading.Thread(target=self._ask) for _ in range(clients)]
        self.answers: Counter[tuple[int, str]] = Counter()
        """By status and deployment."""
        self.broken: list[str] = []
        self.models: Counter[str] = Counter()
        self._lock = threading.Lock()

    def __enter__(self) -> "Load":
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        for thread in self._threads:
            thread.join(60)

    @property
    def count(self) -> int:
        return sum(self.answers.values())

    def wait_more(self, count: int, timeout_s: float = 120) -> None:
        """Until so many more are answered."""
        wanted, until = self.count + count, time.monotonic() + timeout_s
        while self.count < wanted:
            assert time.monotonic() < until, f"{self.count} of {wanted} answers: {self.answers} {self.broken}"
            time.sleep(0.01)

    def all_answered(self) -> None:
        lost = {key: many for key, many in self.answers.items() if key[0] != 200}
        assert not lost, lost
        assert not self.broken, self.broken

    def _ask(self) -> None:
        connection = http.client.HTTPConnection(self._url.hostname, self._url.port, timeout=60)
        while not self._over.is_set():
            try:
                connection.request("POST", "/score", self._body, self._headers)
                reply = connection.getresponse()
                text = reply.read()
            except (OSError, http.client.HTTPException) as error:
                with self._lock:
                    self.broken.append(repr(error))
                connection.close()
                continue
            with self._lock:
                self.answers[reply.status, reply.headers.get("paceline-deployment", "")] += 1
                if b'"model":"' in text:
                    self.models[text.split(b'"model":"')[1].split(b'"')[0].decode()] += 1
        connection.close()
