"""The simulated month of the goodput benchmark: its seconds add up, each cost is felt where it belongs."""

from dataclasses import replace

import pytest

from benchmarks.goodput import GPUS, MONTH_S, Costs, Fault, faults, month

COSTS = Costs(stall=0.5, durable=4.0, process=3.0, node=9.0, memory=True)


def parts(costs: Costs, gpus: int, seed: int) -> tuple[float, ...]:
    spent = month(costs, gpus, seed)
    return spent.productive, spent.stalled, spent.lost, spent.restarting


@pytest.mark.parametrize("gpus", [*GPUS, 5_000_000])
def test_the_month_adds_up_even_where_faults_come_faster_than_restarts(gpus: int) -> None:
    for seed in range(5):
        told = parts(COSTS, gpus, seed)
        assert sum(told) == pytest.approx(MONTH_S)
        assert min(told) >= 0


def test_every_cost_makes_it_worse() -> None:
    usual = month(COSTS, 16_384, 1)
    for change in ({"stall": 2.0}, {"durable": 400.0}, {"process": 60.0}, {"node": 60.0}, {"memory": False}):
        assert month(replace(COSTS, **change), 16_384, 1).productive < usual.productive, change


def test_faults_come_at_the_reported_rate() -> None:
    found: list[Fault] = [fault for seed in range(30) for fault in faults(16_384, seed)]
    assert len(found) / 30 == pytest.approx(466 / 54 * 30, rel=0.05)
    assert sum(fault.kind == "planned" for fault in found) / len(found) == pytest.approx(47 / 466, rel=0.15)
