"""Chaos: a gang and small jobs ride on through a random mix of faults; whatever fell, all is accounted for.

`make chaos` runs 100 rounds, `pytest tests/chaos --seed S` replays the choices of one. A round draws its
faults from its seed; what the machine's own timing adds is not replayed.
"""

from pathlib import Path

import pytest
from support.chaos import Round


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    seed, rounds = metafunc.config.getoption("--seed"), metafunc.config.getoption("--rounds")
    seeds = range(1, rounds + 1) if seed is None else [seed]
    metafunc.parametrize("seed", seeds, ids=lambda value: f"seed{value}")


@pytest.mark.slow
@pytest.mark.timeout(1800)  # each wait has a bound of its own
def test_round(tmp_path: Path, seed: int) -> None:
    Round(tmp_path, seed).run()
