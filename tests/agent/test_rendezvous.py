"""The store of a gang, served until its clients have gone."""

import os
import resource
import socket
import subprocess
import sys

import psutil
import pytest
from support.cluster import wait_until

SERVES = """
import sys
from paceline.agent.rendezvous import serve_store
listener_fd, port, drain_fd = map(int, sys.argv[1:])
serve_store(listener_fd, "127.0.0.1", port, drain_fd, 120.0)
"""


def peers_of(pid: int) -> list[tuple[str, int]]:
    return [tuple(each.raddr) for each in psutil.Process(pid).net_connections("tcp") if each.raddr]


def test_it_waits_for_the_last_client_with_few_descriptors() -> None:
    """Each look at who is there gives back all that it took."""
    reader, writer = os.pipe()
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        command = [sys.executable, "-c", SERVES, str(listener.fileno()), str(port), str(reader)]
        store = subprocess.Popen(command, pass_fds=(listener.fileno(), reader))
    try:
        resource.prlimit(store.pid, resource.RLIMIT_NOFILE, (64, 64))
        with socket.create_connection(("127.0.0.1", port)) as client:
            wait_until("the store has accepted it", lambda: client.getsockname() in peers_of(store.pid))
            os.close(writer)
            with pytest.raises(subprocess.TimeoutExpired):
                store.wait(2)
        assert store.wait(60) == 0
    finally:
        os.close(reader)
        store.kill()
        store.wait()
