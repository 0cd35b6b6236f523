"""A registry of images that serves what podman has written into an OCI layout, read-only, on loopback."""

import http.server
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


class ImageRegistry:
    """`address`: HOST:PORT. `asked`: paths that it was asked for."""

    def __init__(self, layout: Path) -> None:
        """`layout`: folder with index.json and blobs/."""
        registry = self
        self.asked: list[str] = []

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                registry.asked.append(self.path)
                found = registry.find(layout, self.path)
                kind, body = found if found is not None else ("application/json", _UNKNOWN)
                self.send_response(200 if found is not None else 404)
                self.send_header("Content-Type", kind)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                if self.command == "GET":
                    self.wfile.write(body)

            do_HEAD = do_GET

            def log_message(self, *args: object) -> None:
                pass

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.address = f"localhost:{self.server.server_port}"

    def find(self, layout: Path, path: str) -> tuple[str, bytes] | None:
        """Type and bytes; tags are those of the layout, whatever the name of the image."""
        if path == "/v2/":
            return "application/json", b"{}"
        what, _, reference = path.rpartition("/")
        if what.endswith("/manifests"):
            index = json.loads((layout / "index.json").read_text())
            for one in index["manifests"]:
                tag = one.get("annotations", {}).get("org.opencontainers.image.ref.name")
                if reference in (tag, one["digest"]):
                    return one["mediaType"], _blob(layout, one["digest"]).read_bytes()
            return None
        file = _blob(layout, reference)
        return ("application/octet-stream", file.read_bytes()) if file.exists() else None


_UNKNOWN = b'{"errors": [{"code": "MANIFEST_UNKNOWN", "message": "manifest unknown"}]}'


def _blob(layout: Path, digest: str) -> Path:
    return layout / "blobs" / digest.replace(":", "/")


@contextmanager
def serving(layout: Path) -> Iterator[ImageRegistry]:
    registry = ImageRegistry(layout)
    thread = threading.Thread(target=registry.server.serve_forever)
    thread.start()
    try:
        yield registry
    finally:
        registry.server.shutdown()
        thread.join()
        registry.server.server_close()
