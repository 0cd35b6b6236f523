"""A thousand small clusters with users and faults, each from a seed, checked after every event.

A failing seed says so and how to replay it: `python tests/simulation/replay.py --seed N -v`.
"""

import pytest
from support.sim_run import simulate

BLOCKS = 20


@pytest.mark.timeout(900)
@pytest.mark.parametrize("block", range(BLOCKS))
def test_no_law_is_broken(block: int, request: pytest.FixtureRequest) -> None:
    if request.config.getoption("--seed", None) is not None:
        pytest.skip("one seed was asked for")
    count = request.config.getoption("--seeds", 50)
    for seed in range(block * count, (block + 1) * count):
        simulate(seed)


def test_one_seed(request: pytest.FixtureRequest) -> None:
    seed = request.config.getoption("--seed", None)
    simulate(4242 if seed is None else seed)


def test_gangs_grow_in_it() -> None:
    assert sum(simulate(seed).checks.growths for seed in range(40)) >= 10


def test_a_seed_tells_the_same_story_twice() -> None:
    first, second = simulate(17), simulate(17)
    assert first.world.story == second.world.story
    assert first.store.event_rows == second.store.event_rows
