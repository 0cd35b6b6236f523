"""Whom a request goes to: shares evenly spread, the least busy replica, waits with a reason."""

import asyncio
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st
from paceline.proto.generated import endpoints_pb2
from paceline.serving.balancing import Balancer, NoReplica, Shares

NAMES = st.sampled_from(["a", "b", "c", "d"])


def routes(
    *urls: str,
    traffic: dict[str, int] | None = None,
    concurrent_max: int = 0,
    queue_s: float = 0.05,
    **more: object,
) -> endpoints_pb2.Routes:
    """`urls`: DEPLOYMENT/N; the first digit is the job."""
    found = [one.partition("/") for one in urls]
    settings = endpoints_pb2.RequestSettings(timeout_s=1, concurrent_max=concurrent_max, queue_s=queue_s)
    return endpoints_pb2.Routes(
        endpoint="e",
        routes=[
            endpoints_pb2.Route(job=int(job), url=f"http://n:{job}", deployment=name)
            for name, _, job in found
        ],
        traffic=traffic or {"a": 100},
        settings={name: settings for name, _, _ in found},
        **more,
    )


def balancer(*urls: str, **more: object) -> Balancer:
    made = Balancer()
    made.take(routes(*urls, **more))
    for one in made.replicas:
        one.well = True
    return made


@given(st.dictionaries(NAMES, st.integers(0, 100), min_size=1).filter(lambda shares: any(shares.values())))
def test_shares_are_exact_over_a_round_and_even_within(shares: dict[str, int]) -> None:
    chooser, total = Shares(shares), sum(shares.values())
    seen: Counter[str] = Counter()
    for number in range(1, total + 1):
        seen[chooser.next(list(shares))] += 1
        for name, share in shares.items():
            assert abs(seen[name] - number * share / total) < len(shares), (name, number)
    assert seen == {name: share for name, share in shares.items() if share}


def test_a_share_whose_replicas_are_all_ill_goes_to_the_others() -> None:
    made = balancer("a/1", "b/2", traffic={"a": 50, "b": 50})
    assert {made.deployment("") for _ in range(4)} == {"a", "b"}
    made.groups["a"].replicas[0].well = False
    assert {made.deployment("") for _ in range(4)} == {"b"}
    made.groups["b"].replicas[0].well = False
    assert {made.deployment("") for _ in range(4)} == {"a", "b"}, "then they wait, each for its own"
    assert made.deployment("a") == "a"
    with pytest.raises(NoReplica, match=r"there is no deployment 'c'; there are: a, b"):
        made.deployment("c")


async def test_the_replica_with_the_least_to_do_is_next() -> None:
    made = balancer("a/1", "a/2", "a/3")
    jobs = [(await made.acquire("a")).job for _ in range(6)]
    assert Counter(jobs) == {1: 2, 2: 2, 3: 2}
    made.release(made.replicas[1])
    made.release(made.replicas[1])
    assert (await made.acquire("a")).job == 2
    tried = [made.replicas[1]]
    assert (await made.acquire("a", tried)).job != 2


async def test_a_request_waits_for_a_place_and_is_told_why_it_got_none() -> None:
    made = balancer("a/1", concurrent_max=1, queue_s=5.0)
    first = await made.acquire("a")
    waiting = asyncio.create_task(made.acquire("a"))
    await asyncio.sleep(0)
    assert not waiting.done()
    made.release(first)
    assert (await waiting).job == 1
    made.take(routes("a/1", concurrent_max=1, queue_s=0.01))
    with pytest.raises(NoReplica, match=r"all 1 replicas of a have 1 requests; waited 0\.01 s") as busy:
        await made.acquire("a")
    assert busy.value.busy
    made.replicas[0].well, made.replicas[0].why = False, "connection refused"
    with pytest.raises(
        NoReplica, match=r"none of the 1 replicas of a is well: job 1: connection refused"
    ) as ill:
        await made.acquire("a")
    assert not ill.value.busy


async def test_who_waits_gets_a_replica_that_comes_and_none_of_a_deployment_that_goes() -> None:
    made = balancer("a/1", queue_s=5.0)
    made.replicas[0].well = False
    waiting = asyncio.create_task(made.acquire("a"))
    await asyncio.sleep(0)
    made.take(routes("a/1", "a/2", queue_s=5.0))
    made.replicas[1].well = True
    made.take(routes("a/1", "a/2", queue_s=5.0))
    assert (await waiting).job == 2
    made.replicas[1].well = False
    waiting = asyncio.create_task(made.acquire("a"))
    await asyncio.sleep(0)
    made.take(routes("b/3", traffic={"b": 100}))
    with pytest.raises(NoReplica, match="the deployment a is gone"):
        await waiting


async def test_one_that_leaves_gets_nothing_new_and_keeps_its_count() -> None:
    made = balancer("a/1", "a/2")
    for _ in range(2):
        await made.acquire("a")
    leaving = routes("a/1", "a/2")
    leaving.routes[0].leaving = True
    made.take(leaving)
    assert [one.in_flight for one in made.replicas] == [1, 1]
    assert [(await made.acquire("a")).job for _ in range(3)] == [2, 2, 2]


def test_so_many_percent_are_copied() -> None:
    made = balancer("a/1", "b/2", mirror={"b": 30})
    assert sum("b" in made.copies() for _ in range(100)) == 30
