"""`python -m paceline.serving.server`: one model behind HTTP, from its load to its last answer.

It listens at once, and is ready when the model is loaded. Prints one line to stdout, `serving NAME on URL`,
when it listens; all else goes to the log on stderr. SIGTERM (or SIGINT) ends it once the requests that it
has are answered. Exit codes: 0 asked to end; 1 the model did not load; 2 wrong usage.
"""

import argparse
import logging
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final

import uvicorn
from starlette.types import ASGIApp

from ..spec.errors import PacelineError
from .app import make_app
from .doors import guarded
from .engines.base import ENGINES, Loaded, engine
from .folder import choose_engine, read_folder
from .served import BODY_BYTES_MAX, Served

DRAIN_S_MAX: Final = 30
CONNECTIONS_MAX: Final = 1024
_BACKLOG: Final = 256
_LOG: Final = logging.getLogger("paceline.serving")


def main(
    argv: Sequence[str] | None = None,
    *,
    secret: str = "",
    on_listening: Callable[[str], None] = lambda url: None,
) -> int:
    """Run the command; its exit code. `secret`: what requests must carry as `Authorization: Bearer SECRET`;
    `on_listening` is told the server's URL."""
    parser = _parser()
    args = parser.parse_args(argv)
    if args.script and args.engine not in ("auto", "score"):
        parser.error(f"--script is for the engine score, not for {args.engine}")
    logging.basicConfig(stream=sys.stderr, level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    served = Served(args.name, args.version, args.body_bytes_max)
    try:
        listener = _listen(args.host, args.port)
    except OSError as error:
        _LOG.error("cannot listen on %s port %d: %s", args.host, args.port, error.strerror)
        return 1
    web = Web(guarded(make_app(served, _beside(served, args)), secret), served, listener)
    web.start()
    print(f"serving {args.name} on {_url(listener)}", flush=True)  # noqa: T201 - who started it reads this
    on_listening(_url(listener))
    try:
        loaded = _load(args)
    except PacelineError as error:
        _LOG.error("model %s did not load: %s", args.name, str(error).replace("\n", ";"))
        web.stop()
        return 1
    except (Exception, SystemExit) as error:  # noqa: BLE001 - a model's own code may raise anything
        _LOG.exception("model %s did not load: %s: %s", args.name, type(error).__name__, error)
        web.stop()
        return 1
    web.serve_until_asked(loaded)
    loaded.close()
    return 0


class Web:
    """The HTTP side, in a thread of its own: a model's libraries may want the main thread."""

    def __init__(self, app: ASGIApp, served: Served, listener: socket.socket) -> None:
        self._served = served
        self._listener = listener
        self._over = threading.Event()
        self._server = uvicorn.Server(
            uvicorn.Config(
                app,
                log_config=None,
                log_level="warning",
                access_log=False,
                lifespan="on",
                limit_concurrency=CONNECTIONS_MAX,
                timeout_keep_alive=75,
                timeout_graceful_shutdown=DRAIN_S_MAX,
                server_header=False,
            )
        )
        self._thread = threading.Thread(target=self._run, name="http", daemon=True)

    def start(self) -> None:
        """Returns when it answers."""
        self._thread.start()
        while not self._server.started and self._thread.is_alive():
            self._thread.join(0.005)

    def serve_until_asked(self, loaded: Loaded) -> None:
        """Ready from now on; returns when it was asked to end and all requests are answered."""
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda _number, _frame: self._over.set())
        self._served.set_loaded(loaded)
        self._over.wait()
        _LOG.info("model %s ends: %d requests to answer yet", self._served.name, self._served.waiting)
        self.stop()

    def stop(self) -> None:
        """No new requests; those under way are answered."""
        self._served.draining = True
        self._server.should_exit = True
        self._thread.join()

    def _run(self) -> None:
        try:
            self._server.run([self._listener])
        finally:
            self._over.set()


def _load(args: argparse.Namespace) -> Loaded:
    started = time.monotonic()
    folder = read_folder(Path(args.model), args.script)
    name, why = (args.engine, "as asked") if args.engine != "auto" else choose_engine(folder)
    _LOG.info("model %s: engine %s, %s", args.name, name, why)
    loaded = engine(name).load(folder)
    _LOG.info("model %s is ready after %.1f s", args.name, time.monotonic() - started)
    return loaded


def _beside(served: Served, args: argparse.Namespace) -> Any:
    """gRPC costs an import, so it is there where it is asked for."""
    if args.grpc_port is None:
        return None
    from .grpc_front import grpc_beside

    host = f"[{args.host}]" if ":" in args.host else args.host
    return grpc_beside(served, f"{host}:{args.grpc_port}")


def _listen(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.create_server((host, port), family=family, backlog=_BACKLOG)
    # Connections inherit it. asyncio sets it for sockets that it makes itself, not for those of this one, and
    # each answer on a connection that stays open would wait for the client's delayed acknowledgement.
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return listener


def _url(listener: socket.socket) -> str:
    host, port = listener.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="paceline.serving.server", description="Serve a model folder.")
    parser.add_argument("--engine", choices=["auto", *ENGINES], default="auto")
    parser.add_argument("--model", required=True, metavar="DIR", help="the model's folder")
    parser.add_argument("--script", default="", metavar="FILE", help="a scoring script below this folder")
    parser.add_argument("--name", required=True, help="of the model, in URLs")
    parser.add_argument("--version", default="", help="of the model, in URLs")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=0, help="0: any that is free")
    parser.add_argument("--grpc-port", type=int, help="for gRPC, too; 0: any that is free, see the log")
    parser.add_argument("--body-bytes-max", type=int, default=BODY_BYTES_MAX, help="of a request")
    return parser


if __name__ == "__main__":
    code = main()
    logging.shutdown()
    sys.stdout.flush()
    os._exit(code)  # threads that a model's code left must not keep the process
