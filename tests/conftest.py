"""Options of the tests that are seeded, by which one command replays what went wrong; and a small disk.

pytest tests/simulation -k one_seed --seed N    simulate one seed; `--seeds N`: how many each test runs
pytest tests/chaos --rounds N                   N rounds of chaos, with seeds 1 to N; `--seed S`: that one
"""

import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import settings

if TYPE_CHECKING:
    from support.s3 import S3Server

settings.register_profile("busy machine", deadline=None)  # an example may take long: no time is asserted on
settings.load_profile("busy machine")
# A shell that starts this behind it has SIGINT ignored, nohup has SIGHUP: what the tests start would, too.
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGHUP, signal.SIG_DFL)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--seed", type=int, default=None, help="this seed only (simulation, chaos)")
    parser.addoption("--seeds", type=int, default=50, help="simulation: seeds for each of the 20 tests")
    parser.addoption("--rounds", type=int, default=1, help="chaos: rounds, each with a seed of its own")


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A tmpfs of 1 MiB."""
    if os.geteuid() != 0:
        pytest.skip("mounting a tmpfs needs root")
    place = tmp_path / "disk"
    place.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(place)],
        capture_output=True,
        text=True,
        check=False,
    )
    if mounted.returncode != 0:
        pytest.skip(f"no tmpfs here: {mounted.stderr.strip()}")
    yield place
    subprocess.run(["umount", "--lazy", str(place)], check=True)


@pytest.fixture(scope="module")
def s3_server() -> "Iterator[S3Server]":
    from support.s3 import S3Server

    made = S3Server()
    yield made
    made.close()


@pytest.fixture
def s3(s3_server: "S3Server", monkeypatch: pytest.MonkeyPatch) -> "Iterator[S3Server]":
    """The module's, for this process and what it starts; empty. fsspec keeps what it has opened, whatever the
    variables say by then: nothing else may point this process to a server of its own.
    """
    import fsspec

    for name, value in s3_server.variables.items():
        monkeypatch.setenv(name, value)
    yield s3_server
    for key in list(s3_server.keys()):
        s3_server.delete(key)
    fsspec.get_filesystem_class("s3").clear_instance_cache()
