"""Queues, pools and what counts of them: where jobs belong, and what each queue and user has and has had."""

from dataclasses import replace
from math import exp2, log

import pytest
from hypothesis import given
from hypothesis import strategies as st
from paceline.scheduler import loop_engine
from paceline.scheduler.core.attempt_events import StopRequested
from paceline.scheduler.core.cluster_policy import HOUR_US, ClusterPolicy, PoolPolicy, QueuePolicy
from paceline.scheduler.core.job import Course, Job, TaskRun
from paceline.scheduler.core.queues import leaf_of, path_of
from paceline.scheduler.core.standings import pool_standings, queue_standings
from paceline.scheduler.core.timeline import describe
from paceline.scheduler.core.usage import Usage
from paceline.scheduler.records import event_from_row
from paceline.spec.errors import Conflict, InvalidRequest, NotFound, PacelineError
from paceline.spec.ids import JobId, Micros, NodeId
from paceline.spec.lifecycle import AttemptOutcome, JobState
from support.paddock import Paddock, shape
from support.sim_checks import picture
from support.sim_laws import state_is_sane

RESEARCH = ClusterPolicy(
    {"research": QueuePolicy(users=("ann", "bob")), "research/vision": QueuePolicy(), "prod": QueuePolicy()},
    default_queue="research/vision",
)


@pytest.fixture
def paddock() -> Paddock:
    return Paddock()


def refusal(paddock: Paddock, kind: type[PacelineError], **job: object) -> str:
    user = str(job.pop("user", "ann"))
    with pytest.raises(kind) as refused:
        paddock.submit(shape(**job), user=user)  # type: ignore[arg-type]
    return str(refused.value)


# Queues


def test_a_job_waits_in_the_queue_that_it_names_or_in_the_default(paddock: Paddock) -> None:
    paddock.policy_becomes(RESEARCH)
    jobs = paddock.submit(shape(), shape(queue="prod"), shape(queue="research/vision/ann"))
    assert [paddock.job(job).shape.queue for job in jobs] == ["research/vision", "prod", "research/vision"]


def test_an_unknown_queue_and_a_forbidden_user_are_refused(paddock: Paddock) -> None:
    assert refusal(paddock, NotFound, queue="prod") == (
        "job train: there is no queue prod\n  `pace queues` lists what there is"
    )
    paddock.policy_becomes(RESEARCH)
    assert refusal(paddock, NotFound, queue="research/vison") == (
        "job train: there is no queue research/vison\n  did you mean research/vision?"
    )
    assert refusal(paddock, InvalidRequest, user="eve").startswith(
        "job train: queue research is for ann, bob; eve may not submit to it"
    )
    assert not paddock.state.jobs
    paddock.submit(shape(queue="prod"), user="eve")


def test_a_queue_stays_while_jobs_are_in_it(paddock: Paddock) -> None:
    paddock.policy_becomes(RESEARCH)
    [job] = paddock.submit(shape(queue="prod"))
    with pytest.raises(Conflict, match="queue prod is gone by this policy, and 1 job waits or runs there"):
        paddock.policy_becomes(ClusterPolicy())
    paddock.cancel(job)
    paddock.policy_becomes(ClusterPolicy())


@pytest.mark.parametrize(
    ("queue", "user", "leaf"),
    [
        ("", "", ""),
        ("", "ann", "ann"),
        ("a/b", "", "a/b"),
        ("a/b", "ann", "a/b/ann"),
        ("a/ann", "ann", "a/ann"),
        ("a", "x/y", "a/x_y"),
    ],
)
def test_a_user_has_a_leaf_below_the_queue(queue: str, user: str, leaf: str) -> None:
    assert leaf_of(queue, user) == leaf
    assert path_of(leaf)[0] == "" and path_of(leaf)[-1] == leaf


# Pools


def test_a_job_goes_to_its_pool_alone_and_waits_with_that_reason(paddock: Paddock) -> None:
    for name in ("h-1", "h-2", "other"):
        paddock.node_joins(name, gpus=8, cpus=64)
    paddock.policy_becomes(ClusterPolicy(pools={"big": PoolPolicy(("h-*",)), "new": PoolPolicy(("x",))}))
    jobs = paddock.submit(*[shape(gpus=8, pool="big")] * 3)
    assert [paddock.nodes_of(job) for job in jobs] == [["h-1"], ["h-2"], []]
    assert (
        paddock.why(jobs[2])
        .reasons[0]
        .text.startswith(
            "needs 1 task with 8 GPUs, 1 cpu of pool big; 0 of 1 fit now; h-1 has 0 GPUs free of 8"
        )
    )
    paddock.policy_becomes(
        ClusterPolicy(pools={"big": PoolPolicy(("h-*", "other")), "new": PoolPolicy(("x",))})
    )
    assert paddock.nodes_of(jobs[2]) == ["other"]
    [lonely] = paddock.submit(shape(pool="new"))
    assert paddock.why(lonely).reasons[0].text == (
        "needs 1 task with 1 cpu of pool new; no node of pool new has joined yet"
    )
    [never] = paddock.submit(shape(gpus=9, pool="big"))
    assert paddock.why(never).never


def test_labels_say_which_nodes_are_in_a_pool(paddock: Paddock) -> None:
    paddock.policy_becomes(ClusterPolicy(pools={"r3": PoolPolicy(labels={"rack": "3", "net": "ib"})}))
    [job] = paddock.submit(shape(pool="r3"))
    paddock.node_joins("a", labels={"rack": "3"})
    assert paddock.state_of(job) is JobState.QUEUED
    paddock.node_joins("b", labels={"net": "ib", "rack": "3", "zone": "1"})
    assert paddock.nodes_of(job) == ["b"]


def test_nodes_that_are_set_apart_are_not_for_everybody(paddock: Paddock) -> None:
    paddock.node_joins("apart")
    paddock.policy_becomes(ClusterPolicy(pools={"own": PoolPolicy(("apart",), users=("eve",))}))
    [job] = paddock.submit(shape())
    assert paddock.why(job).reasons[0].text == ("needs 1 task with 1 cpu; all 1 nodes are set apart by pools")
    assert refusal(paddock, InvalidRequest, pool="own").startswith(
        "job train: pool own is for eve; not for ann"
    )
    [hers] = paddock.submit(shape(pool="own"), user="eve")
    assert paddock.nodes_of(hers) == ["apart"]
    paddock.node_joins("free")
    assert paddock.nodes_of(job) == ["free"]


def test_a_pool_has_its_rules(paddock: Paddock) -> None:
    pools = {
        "big": PoolPolicy(("h-*",), queues=("prod",), max_gpu_milli_per_job=16_000),
        "small": PoolPolicy(("s-*",), default=True),
    }
    paddock.policy_becomes(ClusterPolicy({"prod": QueuePolicy(), "prod/a": QueuePolicy()}, pools=pools))
    [job] = paddock.submit(shape())
    assert paddock.job(job).demand.pool == "small"
    assert "did you mean small?" in refusal(paddock, NotFound, pool="smal")
    assert "pool big is for the queues prod; not for the root" in refusal(paddock, InvalidRequest, pool="big")
    assert "pool big takes jobs of at most 16 GPUs; asked 24 GPUs" in refusal(
        paddock, InvalidRequest, pool="big", queue="prod/a", tasks=3, gpus=8
    )
    paddock.submit(shape(2, gpus=8, pool="big", queue="prod/a"))
    with pytest.raises(Conflict, match="pool big is gone"):
        paddock.policy_becomes(ClusterPolicy({"prod": QueuePolicy(), "prod/a": QueuePolicy()}))


def test_a_pool_bounds_the_time_of_its_jobs_and_gives_one_to_those_that_say_none(paddock: Paddock) -> None:
    paddock.node_joins("s-1")
    limits = PoolPolicy(("s-*",), default=True, timeout_us=2 * HOUR_US, max_timeout_us=48 * HOUR_US)
    paddock.policy_becomes(ClusterPolicy(pools={"small": limits, "free": PoolPolicy(("s-*",))}))
    [usual] = paddock.submit(shape())
    [own] = paddock.submit(shape(timeout_s=3600 * 48, pool="small"))
    [none] = paddock.submit(shape(pool="free"))
    assert [paddock.job(job).shape.policy.timeout_us for job in (usual, own, none)] == [
        2 * HOUR_US,
        48 * HOUR_US,
        0,
    ]
    assert "pool small takes jobs with a limits.timeout of at most 48 h 0 min; asked 72 h 0 min" in refusal(
        paddock, InvalidRequest, timeout_s=3600 * 72
    )
    paddock.starts(usual)
    paddock.pass_time(3600 * 2 + 1, step_s=60)
    [asked] = [event for event in paddock.history(usual) if isinstance(event, StopRequested)]
    assert asked.stop.outcome is AttemptOutcome.TIMED_OUT


def test_the_default_pool_has_its_rules_for_those_that_name_none_too(paddock: Paddock) -> None:
    pool = PoolPolicy(("n",), users=("eve",), max_gpu_milli_per_job=1_000, default=True)
    paddock.policy_becomes(ClusterPolicy(pools={"own": pool}))
    assert "pool own is for eve; not for ann" in refusal(paddock, InvalidRequest)
    with pytest.raises(InvalidRequest, match="of at most 1 GPU; asked 2 GPUs"):
        paddock.submit(shape(gpus=2), user="eve")


def test_without_pools_any_node_will_do(paddock: Paddock) -> None:
    paddock.node_joins("n")
    [job] = paddock.submit(shape(pool="gpu-cluster"))
    assert paddock.nodes_of(job) == ["n"]


def test_who_waits_is_counted_wherever_it_waits(paddock: Paddock) -> None:
    """In line, held back after a refused start, on hold; not who runs, and not twice."""
    pools = {"big": PoolPolicy(("n*",), default=True), "small": PoolPolicy(("s",))}
    paddock.policy_becomes(replace(RESEARCH, pools=pools))
    paddock.node_joins("n", cpus=1)
    paddock.node_joins("s", cpus=1)
    paddock.submit(*[shape()] * 3)
    paddock.submit(shape(pool="small"), shape(pool="small"), user="bob")
    held, _ = paddock.submit(shape(queue="prod"), shape(queue="prod", pool="small"))
    paddock.hold(held)
    for _ in range(2):
        queues = {one.path: one.waiting for one in queue_standings(paddock.state, Micros(paddock.now_us))}
        assert queues == {
            "": 5,
            "prod": 2,
            "prod/ann": 2,
            "research": 3,
            "research/vision": 3,
            "research/vision/ann": 2,
            "research/vision/bob": 1,
        }
        assert {one.name: one.waiting for one in pool_standings(paddock.state)} == {"big": 3, "small": 2}
        state_is_sane(paddock.state)
        paddock.scheduler_restarts()


# Usage


def test_usage_is_counted_on_the_way_to_the_root_and_kept(paddock: Paddock) -> None:
    paddock.policy_becomes(RESEARCH)
    paddock.node_joins("n", gpus=8, cpus=64)
    ann, bob = paddock.submit(shape(gpus=2, cpus=4)), paddock.submit(shape(cpus=32), user="bob")
    usage = paddock.state.usage
    assert (usage.of("research").gpu_milli, usage.of("").cpu_milli) == (2_000, 36_000)
    assert usage.of("research").charge_milli == 2_000 + 2_000, "32 cpus count as 2 GPUs"
    assert usage.of_user("research", "bob").jobs == 1 and usage.of("prod").jobs == 0
    paddock.pass_time(3600, step_s=900)
    for _ in range(2):
        state, now_us = paddock.state, Micros(paddock.now_us)
        half_life_us = state.policy.half_life_us
        used = 2 * half_life_us / 1e6 / log(2) * (1 - exp2(-HOUR_US / half_life_us))
        for path in ("research/vision/ann", "research/vision/bob"):
            assert state.usage.account(path, now_us, half_life_us).gpu_s == pytest.approx(used)
        assert state.usage.account("", now_us, half_life_us).gpu_s == pytest.approx(2 * used)
        state_is_sane(state)
        assert picture(state) == picture(paddock.replayed())
        paddock.scheduler_restarts()
        paddock.node_joins("n")
    paddock.cancel(ann[0], grace_s=0)
    paddock.cancel(bob[0], grace_s=0)
    for job in (*ann, *bob):
        paddock.task_ends(job, 0)
    paddock.scheduler_restarts()
    state = paddock.state
    assert not state.usage.queues and not state.usage.users
    later_us = Micros(paddock.now_us + half_life_us)
    assert state.usage.account("research", later_us, half_life_us).gpu_s == pytest.approx(used)
    assert picture(state) == picture(paddock.replayed())


def test_a_new_half_life_counts_from_now_on(paddock: Paddock) -> None:
    paddock.node_joins("n", gpus=8)
    paddock.policy_becomes(ClusterPolicy(half_life_us=HOUR_US))
    [job] = paddock.submit(shape(gpus=8))
    paddock.pass_time(7200, step_s=900)
    usage, now_us = paddock.state.usage, Micros(paddock.now_us)
    used = usage.account("ann", now_us, HOUR_US).gpu_s
    assert used == pytest.approx(8 * 3600 / log(2) * 0.75)
    paddock.policy_becomes(ClusterPolicy(half_life_us=24 * HOUR_US))
    assert usage.account("ann", now_us, 24 * HOUR_US).gpu_s == used
    paddock.scheduler_restarts()
    assert paddock.state.usage.account("ann", now_us, 24 * HOUR_US).gpu_s == used
    assert picture(paddock.state) == picture(paddock.replayed())
    assert paddock.state_of(job) is JobState.STARTING


def test_accounts_of_those_who_have_long_used_nothing_are_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loop_engine, "ACCOUNTS_MIN", 2)
    paddock = Paddock()
    paddock.node_joins("n", gpus=8, cpus=64)
    paddock.policy_becomes(ClusterPolicy(half_life_us=HOUR_US))

    def uses(user: str) -> None:
        [job] = paddock.submit(shape(gpus=8), user=user)
        paddock.starts(job)
        paddock.pass_time(600)
        paddock.finishes(job)

    for user in ("ann", "bob", "cy", "di"):
        uses(user)
    [runs] = paddock.submit(shape(gpus=0, cpus=1), user="eve")
    paddock.starts(runs)
    before = paddock.state.usage.accounts.keys()
    assert before == {"", "ann", "bob", "cy", "di", "eve"}, "all of them still count"
    paddock.pass_hours(24)
    uses("di")
    assert paddock.state.usage.accounts.keys() == before, "there are not yet so many that it matters"
    for user in ("fay", "gus", "hal", "ida", "jo", "kim", "lea"):
        uses(user)
    state = paddock.state
    assert state.usage.accounts.keys() == {"", "di", "eve", "fay", "gus", "hal", "ida", "jo", "kim", "lea"}
    assert paddock.store.account_rows.keys() == state.usage.accounts.keys()
    [closed] = [row for row in paddock.store.event_rows if row.kind == "AccountsClosed"]
    assert describe(event_from_row(closed), {}) == (
        "3 accounts of usage closed: next to nothing is left of what was used"
    )
    assert picture(state) == picture(paddock.replayed())
    paddock.scheduler_restarts()
    assert picture(paddock.state) == picture(paddock.replayed())
    paddock.node_joins("n")
    uses("bob")
    assert paddock.state.usage.account("bob", Micros(paddock.now_us), HOUR_US).gpu_s > 4000
    state_is_sane(paddock.state)


RUNNING = {
    gpus: Job(
        JobId(gpus), "j", "ann", 0, Micros(0), shape(gpus=gpus), Course(tasks=(TaskRun(0, NodeId("n")),))
    )
    for gpus in range(1, 9)
}
spans = st.tuples(st.integers(0, 10**6), st.integers(1, 10**6), st.integers(1, 8), st.sampled_from("ab"))


@given(st.lists(spans, max_size=12), st.integers(1, 10**6), st.randoms())
def test_usage_is_the_decayed_integral_in_whatever_order(
    told: list[tuple[int, int, int, str]], half_life_s: int, shuffled: object
) -> None:
    """Against the closed form of each job's part; what happens at one time may come in any order."""
    half_life_us, end_us = half_life_s * 1_000_000, 2 * 10**12
    moves = []
    expected = 0.0
    for start_s, length_s, gpus, _ in told:
        moves += [(start_s, 1, gpus), (start_s + length_s, -1, gpus)]
        ages = (end_us / 1e6 - start_s - length_s, end_us / 1e6 - start_s)
        expected += (
            gpus * half_life_s / log(2) * (exp2(-ages[0] / half_life_s) - exp2(-ages[1] / half_life_s))
        )
    shuffled.shuffle(moves)  # type: ignore[attr-defined]
    usage = Usage()
    for at_s, sign, gpus in sorted(moves, key=lambda move: move[0]):
        move = usage.take if sign > 0 else usage.give_back
        move(RUNNING[gpus], Micros(at_s * 1_000_000), half_life_us)
    assert not usage.queues and not usage.users
    found = usage.account("ann", Micros(end_us), half_life_us).gpu_s
    assert found == pytest.approx(expected, rel=1e-6, abs=1e-6)
