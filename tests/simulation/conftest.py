"""`pytest tests/simulation -k one_seed --seed N` runs one seed; `--seeds N` sets how many each test runs."""

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--seed", type=int, default=None, help="simulate this seed only")
    parser.addoption("--seeds", type=int, default=50, help="seeds for each of the 20 tests")
