"""The policy over the real wire, on a real store; also across a restart of the scheduler."""

import json
from pathlib import Path
from typing import Any

import pytest
from paceline.proto.failures import translated
from paceline.proto.generated import policy_pb2
from paceline.scheduler.core.cluster_policy import HOUR_US, NO_POLICY
from paceline.scheduler.core.policy_changes import policy_changes
from paceline.scheduler.core.settings import Order
from paceline.scheduler.policies import core_policy
from paceline.spec.cluster_policy import PolicySpec
from paceline.spec.errors import InvalidRequest
from paceline.spec.moments import moment_text
from paceline.spec.policy_reading import parse_policy
from support.wire import Wire, wire

TEXT = """
queues:
  research:
    guaranteed: {gpus: 16}
    queues:
      vision: {weight: 2, users: ann}
default_queue: research/vision
max_per_user: {jobs: 3}
pools:
  big:
    nodes: h-*
    max_gpus_per_job: 8
    max_timeout_hours: 48
    maintenance: [{from: 2026-12-01T07:00+01:00, to: 2026-12-01T10:00Z, why: new drives}]
    reservations:
      exam: {from: 2026-12-01T10:00Z, to: 2026-12-01T12:00Z, nodes: 2, users: [ann, bob]}
usage: {half_life_hours: 24}
order: {min_run_minutes: 1, class_limits_gpu_hours: [2, 8]}
"""


async def apply(wired: Wire, document: str, **more: Any) -> list[str]:
    request = policy_pb2.ApplyPolicyRequest(
        **{"key": "k", "document": document, "source": "p.yaml", "by": "eve", **more}
    )
    return list((await wired.policy.Apply(request)).changes)


async def test_a_policy_is_checked_applied_shown_and_kept(tmp_path: Path) -> None:
    spec = parse_policy(TEXT, "p.yaml")
    async with wire(tmp_path) as wired:
        found = await wired.policy.Get(policy_pb2.GetPolicyRequest())
        assert (found.by, found.changed_us) == ("", 0) and json.loads(found.document)["queues"] == {}
        told = await apply(wired, spec.to_json(), dry_run=True)
        assert told[0] == "queue (root): new, weight 1, max_per_user 3 jobs"
        assert (await wired.policy.Get(policy_pb2.GetPolicyRequest())) == found, "a dry run changes nothing"
        assert await apply(wired, spec.to_json()) == told
        assert await apply(wired, spec.to_json(), key="k2") == []
    async with wire(tmp_path) as wired:
        found = await wired.policy.Get(policy_pb2.GetPolicyRequest())
        assert found.document == spec.to_json() and found.by == "eve" and found.changed_us > 0
        policy = await wired.made.loop.read(lambda state: state.policy)
        assert policy == core_policy(spec)
        assert policy.order.class_limits_us == (7_200_000_000, 28_800_000_000)
        assert policy.pools["big"].max_gpu_milli_per_job == 8_000
        [pool] = (await wired.policy.Pools(policy_pb2.PoolsRequest())).pools
        assert (pool.timeout_us, pool.max_timeout_us) == (48 * HOUR_US, 48 * HOUR_US)
        [kept], [window] = pool.reservations, pool.maintenance
        assert (kept.name, kept.nodes, list(kept.node_names), list(kept.users)) == (
            "exam",
            2,
            [],
            ["ann", "bob"],
        )
        assert (kept.all_users, kept.all_queues, kept.from_us) == (False, True, window.to_us)
        assert (window.to_us - window.from_us, window.why) == (4 * 3_600_000_000, "new drives")
        assert moment_text(window.from_us) == "2026-12-01 06:00 UTC"


@pytest.mark.parametrize(
    ("bad", "word"),
    [
        ({"key": ""}, "idempotency key"),
        ({"by": "a\nb"}, "user"),
        ({"document": "{"}, "p.yaml"),
        ({"document": '{"queue":{}}'}, "did you mean 'queues'"),
        ({"document": '{"default_queue":"a"}'}, "expected a queue of this policy"),
    ],
)
async def test_what_cannot_be_is_refused_at_the_door(tmp_path: Path, bad: dict[str, Any], word: str) -> None:
    async with wire(tmp_path) as wired:
        with pytest.raises(InvalidRequest, match=word), translated():
            await apply(wired, **{"document": "{}", **bad})


def test_a_policy_that_says_nothing_changes_nothing() -> None:
    """The document's defaults are those of the core."""
    said = core_policy(PolicySpec())
    assert said.order == Order() and said.half_life_us == NO_POLICY.half_life_us
    assert not policy_changes(NO_POLICY, said)
