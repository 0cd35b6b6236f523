"""The cluster's policy: in force from an event on, kept over restarts, told in words."""

from paceline.scheduler.core.cluster_policy import (
    HOUR_US,
    NO_POLICY,
    Amount,
    ClusterPolicy,
    PoolPolicy,
    QueuePolicy,
    UserAmount,
)
from paceline.scheduler.core.policy_changes import CHANGES_MAX, policy_changes
from paceline.scheduler.core.policy_events import PolicyChanged
from paceline.scheduler.core.settings import Order
from paceline.scheduler.core.timeline import describe
from support.paddock import Paddock
from support.sim_checks import picture

TWO = ClusterPolicy(
    {
        "research": QueuePolicy(2.0, Amount(16_000), Amount(32_000, 512_000)),
        "research/vision": QueuePolicy(max_per_user=UserAmount(2_500, 1), users=("ann", "bob")),
    },
    "research",
    {"h100": PoolPolicy(("h-*",), {"rack": "r3"}, default=True)},
    order=Order(preemption=False, min_run_us=HOUR_US),
)


def test_a_policy_is_in_force_at_once_and_survives_a_restart() -> None:
    paddock = Paddock()
    assert paddock.state.policy == NO_POLICY and paddock.state.policy_us == 0
    paddock.now_us += 5
    paddock.policy_becomes(TWO, by="eve")
    now_us = paddock.now_us
    for _ in range(2):
        state = paddock.state
        assert (state.policy, state.policy_by, state.policy_us) == (TWO, "eve", now_us)
        assert picture(state) == picture(paddock.replayed())
        paddock.now_us += 5
        paddock.scheduler_restarts()


def test_the_same_policy_again_is_no_event() -> None:
    paddock = Paddock()
    paddock.policy_becomes(TWO, key="k")
    paddock.policy_becomes(TWO)
    paddock.policy_becomes(NO_POLICY, key="k")
    changes = [event for event in paddock.history() if isinstance(event, PolicyChanged)]
    assert [event.policy for event in changes] == [TWO]
    assert describe(changes[0]) == (
        "policy changed by ann: queue research: new, weight 2, guaranteed 16 GPUs, max 32 GPUs, 512 cpus; "
        "queue research/vision: new, weight 1, max_per_user 2.5 GPUs, 1 job, users ann bob; "
        "pool h100: new, nodes h-*, labels rack=r3, default yes; default_queue none -> research, "
        "order.min_run 10 min 0 s -> 1 h 0 min, order.preemption on -> off"
    )


def test_what_changes_is_told_and_bounded() -> None:
    new = ClusterPolicy({"research": QueuePolicy(2.0, Amount(8_000), Amount(32_000), users=())})
    assert policy_changes(TWO, new)[:2] == (
        "queue research: guaranteed 16 GPUs -> 8 GPUs, max 32 GPUs, 512 cpus -> 32 GPUs, "
        "users none -> nobody",
        "queue research/vision: removed",
    )
    many = ClusterPolicy({f"q{number:03}": QueuePolicy() for number in range(CHANGES_MAX + 7)})
    lines = policy_changes(NO_POLICY, many)
    assert len(lines) == CHANGES_MAX + 1 and lines[-1] == "and 7 more"
