"""Options of the tests that are seeded: one command replays what went wrong.

pytest tests/simulation -k one_seed --seed N    simulate one seed; `--seeds N`: how many each test runs
pytest tests/chaos --rounds N                   N rounds of chaos, with seeds 1 to N; `--seed S`: that one
"""

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--seed", type=int, default=None, help="this seed only (simulation, chaos)")
    parser.addoption("--seeds", type=int, default=50, help="simulation: seeds for each of the 20 tests")
    parser.addoption("--rounds", type=int, default=1, help="chaos: rounds, each with a seed of its own")
