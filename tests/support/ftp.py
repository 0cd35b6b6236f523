"""A small FTP server on loopback, in threads of this process: what fsspec's client says, and no more. FTP
stands here for the protocols that know folders and connections.
"""

import os
import shutil
import socket
import socketserver
import stat
from pathlib import Path


class FtpServer(socketserver.ThreadingTCPServer):
    """Serves `root` to anybody, in passive mode."""

    allow_reuse_address = True
    daemon_threads = True

    def __init__(self, root: Path) -> None:
        super().__init__(("127.0.0.1", 0), _Session)
        self.root = root
        self.connections: list[socket.socket] = []

    @property
    def url(self) -> str:
        return f"ftp://127.0.0.1:{self.server_address[1]}"

    def hang_up(self) -> None:
        """As a server does to whom says nothing for a while."""
        for connection in self.connections:
            connection.shutdown(socket.SHUT_RDWR)
        self.connections.clear()


class _Session(socketserver.StreamRequestHandler):
    server: FtpServer

    def handle(self) -> None:
        self.server.connections.append(self.connection)
        self.listener: socket.socket | None = None
        self.offset = 0
        self.say("220 here")
        while line := self.rfile.readline().decode().rstrip("\r\n"):
            verb, _, argument = line.partition(" ")
            try:
                getattr(self, f"on_{verb.lower()}", self.on_other)(argument)
            except OSError as error:
                self.say(f"550 {error.strerror}")

    def say(self, text: str) -> None:
        self.wfile.write(f"{text}\r\n".encode())

    def path(self, argument: str) -> Path:
        return self.server.root / argument.lstrip("/")

    def on_other(self, argument: str) -> None:
        self.say("502 not known here")

    def on_user(self, argument: str) -> None:
        self.say("230 welcome")

    def on_type(self, argument: str) -> None:
        self.say("200 as you like")

    def on_pasv(self, argument: str) -> None:
        self.listener = socket.create_server(("127.0.0.1", 0))
        port = self.listener.getsockname()[1]
        self.say(f"227 (127,0,0,1,{port >> 8},{port & 255})")

    def on_rest(self, argument: str) -> None:
        self.offset = int(argument)
        self.say("350 from there")

    def on_mlsd(self, argument: str) -> None:
        lines = []
        with os.scandir(self.path(argument)) as entries:
            for entry in entries:
                found = entry.stat()
                kind = "dir" if stat.S_ISDIR(found.st_mode) else "file"
                lines.append(f"type={kind};size={found.st_size}; {entry.name}\r\n")
        with self.data() as data:
            data.sendall("".join(lines).encode())
        self.say("226 done")

    def on_stor(self, argument: str) -> None:
        with self.path(argument).open("r+b" if self.offset else "wb") as file:
            file.seek(self.offset)
            with self.data() as data, data.makefile("rb") as stream:
                shutil.copyfileobj(stream, file)
        self.offset = 0
        self.say("226 done")

    def on_retr(self, argument: str) -> None:
        with self.path(argument).open("rb") as file:
            file.seek(self.offset)
            with self.data() as data:
                data.sendall(file.read())
        self.offset = 0
        self.say("226 done")

    def on_mkd(self, argument: str) -> None:
        self.path(argument).mkdir()
        self.say(f'257 "{argument}"')

    def on_rmd(self, argument: str) -> None:
        self.path(argument).rmdir()
        self.say("250 gone")

    def on_dele(self, argument: str) -> None:
        self.path(argument).unlink()
        self.say("250 gone")

    def data(self) -> socket.socket:
        assert self.listener is not None
        self.say("150 here it comes")
        with self.listener:
            return self.listener.accept()[0]
