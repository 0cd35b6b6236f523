"""Memory that is put into huge pages stays what it was, and is in huge pages where the kernel has them."""

import platform
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = """
import os, sys
from paceline.agent.huge_pages import HugePages

def huge_kb():
    for line in open("/proc/self/smaps_rollup"):
        if line.startswith("AnonHugePages"): return int(line.split()[1])

block = bytearray(os.urandom(1 << 20) * 64)
before = bytes(block)
pages, looks = HugePages(), 0
while pages.left:
    pages.collapse_some()
    looks += 1
child = os.fork()
if child == 0:
    block[5] ^= 1
    os._exit(bytes(block) == before)
assert os.waitpid(child, 0)[1] == 0, "the child's own write is its own"
print(bytes(block) == before, looks, huge_kb())
"""
ENABLED = Path("/sys/kernel/mm/transparent_hugepage/enabled")


def collapses() -> bool:
    kernel = tuple(int(part) for part in platform.release().split(".")[:2])
    return kernel >= (6, 1) and ENABLED.exists() and "[never]" not in ENABLED.read_text()


def test_memory_stays_what_it_was() -> None:
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT], capture_output=True, text=True, timeout=60, check=True
    )
    same, looks, huge_kb = done.stdout.split()
    assert same == "True"
    assert int(looks) >= 4, "16 MB at once"
    if not collapses():
        pytest.skip("this kernel does not collapse pages on demand, or has no huge pages")
    assert int(huge_kb) >= 32 * 1024
