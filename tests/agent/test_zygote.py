"""A zygote whose agent is gone."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from paceline.agent import kernel, zygote
from support.cluster import wait_until


@pytest.mark.parametrize("gone", ["before it starts", "while it imports"])
def test_it_imports_no_more_when_its_agent_is_gone(tmp_path: Path, gone: str) -> None:
    """What it imports is hundreds of megabytes, which nobody would ever use."""
    (tmp_path / "imported.py").write_text(
        f"import os, time; open({str(tmp_path / 'begun')!r}, 'w').close(); time.sleep(60)\n"
        f"open({str(tmp_path / 'ended')!r}, 'w').close()"
    )
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    argv = [sys.executable, "-c", zygote.COMMAND, str(theirs.fileno()), "imported", "", zygote.ARGUMENTS_ROOM]
    environment = {**os.environ, "PYTHONPATH": str(tmp_path), kernel.MARK: "-" * kernel.MARK_BYTES_MAX}
    if gone == "before it starts":
        ours.close()
    process = subprocess.Popen(argv, env=environment, pass_fds=[theirs.fileno()], cwd="/")
    theirs.close()
    try:
        if gone == "while it imports":
            wait_until("it imports", (tmp_path / "begun").exists)
            ours.close()
        process.wait(30)
    finally:
        process.kill()
        process.wait()
    assert not (tmp_path / "ended").exists()
    assert (tmp_path / "begun").exists() == (gone == "while it imports")
