"""Options of the tests that are seeded, by which one command replays what went wrong; and a small disk.

pytest tests/simulation -k one_seed --seed N    simulate one seed; `--seeds N`: how many each test runs
pytest tests/chaos --rounds N                   N rounds of chaos, with seeds 1 to N; `--seed S`: that one
"""

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings

settings.register_profile("busy machine", deadline=None)  # an example may take long: no time is asserted on
settings.load_profile("busy machine")


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
