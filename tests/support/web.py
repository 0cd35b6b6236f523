"""A real web server on loopback, in threads of this process: files with etags, which a test may change,
refuse, or hold back in the middle."""

import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit


class WebServer:
    """`files`: path -> bytes. `statuses`: path -> what is answered instead. Of a path in `held`, half is sent
    until `release` is set."""

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}
        self.etags: dict[str, str] = {}
        self.statuses: dict[str, int] = {}
        self.held: set[str] = set()
        self.half_sent = threading.Event()
        self.release = threading.Event()
        self.got: list[str] = []
        """Paths whose bytes were asked for, each time."""
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, name="web")
        self._thread.start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_port}"

    def put(self, path: str, data: bytes, etag: str) -> str:
        """Its URL."""
        self.files[path], self.etags[path] = data, etag
        return f"{self.url}{path}"

    def close(self) -> None:
        self.release.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        web = self

        class Handler(BaseHTTPRequestHandler):
            def do_HEAD(self) -> None:
                self._begin()

            def do_GET(self) -> None:
                data = self._begin()
                path = unquote(urlsplit(self.path).path)
                if data is None:
                    return
                web.got.append(path)
                if path in web.held:
                    self.wfile.write(data[: len(data) // 2])
                    self.wfile.flush()
                    web.half_sent.set()
                    web.release.wait()
                    data = data[len(data) // 2 :]
                self.wfile.write(data)

            def _begin(self) -> bytes | None:
                path = unquote(urlsplit(self.path).path)
                data = web.files.get(path)
                status = web.statuses.get(path, 200 if data is not None else 404)
                self.send_response(status)
                if status != 200 or data is None:
                    self.send_header("Content-Length", "0")
                    self.end_headers()
                    return None
                self.send_header("Content-Length", str(len(data)))
                if web.etags[path]:
                    self.send_header("ETag", f'"{web.etags[path]}"')
                self.end_headers()
                return data

            def log_message(self, *args: object) -> None:
                pass

        return Handler
