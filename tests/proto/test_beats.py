"""A beat is stores into memory: a process that may make no system call makes beats, and lives."""

import os
import platform
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from paceline.proto.beats import NAME, read_beats

BEATS = 10_000
REFUSED = 77
EXIT_CALLS = {"x86_64": 231, "aarch64": 94}
"""The number of `exit_group`: what is left to the process."""

SCRIPT = f"""
import ctypes, gc, os, platform, struct, sys
from time import monotonic
from paceline.proto.beats import BEAT

PR_SET_NO_NEW_PRIVS, PR_SET_SECCOMP, FILTER = 38, 22, 2
LOAD_WORD, SKIP_IF_EQUAL, RETURN = 0x20, 0x15, 0x06  # of the kernel's packet filters
ALLOW, KILL = 0x7FFF0000, 0x80000000
libc = ctypes.PyDLL(None)
steps = (
    (LOAD_WORD, 0, 0, 0),  # the call's number
    (SKIP_IF_EQUAL, 1, 0, {EXIT_CALLS}[platform.machine()]),
    (RETURN, 0, 0, KILL),
    (RETURN, 0, 0, ALLOW),
)
lines = ctypes.create_string_buffer(b"".join(struct.pack("=HBBI", *each) for each in steps))
program = struct.pack("@HP", len(steps), ctypes.addressof(lines))

def beats():
    for _ in range({BEATS}):
        BEAT.stepped()
        BEAT.reported(7)
        BEAT.fetched(0.5)

act = {{"beats": beats, "clock": monotonic, "calls": os.getppid}}[sys.argv[1]]
beats()  # what is made once is made: the slot, and room for what Python keeps
gc.disable()
if libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) or libc.prctl(PR_SET_SECCOMP, FILTER, program, 0, 0):
    os._exit({REFUSED})
act()
os._exit(0)
"""


def ran(folder: Path, act: str) -> int:
    """The exit code of a process that does that and may only exit."""
    if platform.machine() not in EXIT_CALLS:
        pytest.skip(f"the number of exit_group is not known for {platform.machine()}")
    own = {"PACELINE_TASK_FOLDER": str(folder), "LOCAL_RANK": "0"}
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, act], env={**os.environ, **own}, check=False, timeout=60
    )
    if done.returncode == REFUSED:
        pytest.skip("prctl refuses a seccomp filter here")
    return done.returncode


def test_a_beat_makes_no_system_call(tmp_path: Path) -> None:
    if ran(tmp_path, "clock"):
        pytest.skip("to read the clock is a system call on this machine")
    (tmp_path / NAME).unlink()
    assert ran(tmp_path, "beats") == 0
    with (tmp_path / NAME).open("rb") as file:
        [beats] = read_beats(file.fileno())
    assert (beats.steps, beats.reports) == (2 * BEATS, 2 * BEATS)


def test_one_would_end_the_process(tmp_path: Path) -> None:
    assert ran(tmp_path, "calls") == -signal.SIGSYS
