"""The cluster's policy: which one is in force, another put in its place, and what queues and pools have."""

from collections.abc import Callable
from typing import Any

import grpc.aio

from ...proto.generated import policy_pb2, policy_pb2_grpc
from ...proto.limits import DOCUMENT_BYTES_MAX, NAME_CHARACTERS_MAX
from ...spec.cluster_policy import PolicySpec
from ...spec.errors import LimitExceeded
from ...spec.ids import Micros
from ...spec.policy_reading import parse_canonical_policy
from ..core import cluster_policy as core
from ..core.admin_stimuli import ApplyPolicy
from ..core.policy_changes import check_kept, policy_changes
from ..core.standings import PoolStanding, QueueStanding, pool_standings, queue_standings
from ..core.state import ClusterState
from ..loop import Loop
from ..policies import core_policy
from .checks import check_asked, check_user

_Context = grpc.aio.ServicerContext[Any, Any]


class PolicyService(policy_pb2_grpc.PolicyServicer):
    """Role: client."""

    def __init__(self, loop: Loop, *, now_us: Callable[[], int]) -> None:
        self._loop = loop
        self._now_us = now_us

    async def Get(self, request: policy_pb2.GetPolicyRequest, context: _Context) -> policy_pb2.PolicyView:
        policy, by, changed_us = await self._loop.read(
            lambda state: (state.policy, state.policy_by, state.policy_us)
        )
        document = policy.document or PolicySpec().to_json()
        return policy_pb2.PolicyView(document=document, by=by, changed_us=changed_us)

    async def Apply(
        self, request: policy_pb2.ApplyPolicyRequest, context: _Context
    ) -> policy_pb2.ApplyPolicyReply:
        check_asked(request.key, request.by)
        policy = policy_of(request.document, request.source)
        asked = ApplyPolicy(request.key, request.by or "a client", policy)
        changes = await self._loop.read(lambda state: _checked(state, asked.policy))
        if not request.dry_run:
            await self._loop.submit(asked)
        return policy_pb2.ApplyPolicyReply(changes=changes)

    async def Queues(self, request: policy_pb2.QueuesRequest, context: _Context) -> policy_pb2.QueuesReply:
        check_user(request.user)
        now_us = Micros(self._now_us())
        found = await self._loop.read(lambda state: queue_standings(state, now_us, request.user))
        return policy_pb2.QueuesReply(queues=[_queue_message(one) for one in found])

    async def Pools(self, request: policy_pb2.PoolsRequest, context: _Context) -> policy_pb2.PoolsReply:
        found = await self._loop.read(lambda state: list(pool_standings(state)))
        return policy_pb2.PoolsReply(pools=[_pool_message(one) for one in found])


def policy_of(document: str, source: str) -> core.ClusterPolicy:
    """Raises InvalidDocument, naming the source, and LimitExceeded."""
    if len(document) > DOCUMENT_BYTES_MAX:
        raise LimitExceeded(f"the policy has {len(document)} characters; at most {DOCUMENT_BYTES_MAX}")
    return core_policy(parse_canonical_policy(document, source[:NAME_CHARACTERS_MAX] or "policy"))


def _queue_message(one: QueueStanding) -> policy_pb2.QueueView:
    queue = one.policy
    return policy_pb2.QueueView(
        path=one.path,
        declared=one.declared,
        weight=queue.weight,
        share=one.share,
        guaranteed=_quota(queue.guaranteed.gpu_milli, queue.guaranteed.cpu_milli),
        max=_quota(queue.max.gpu_milli, queue.max.cpu_milli),
        max_per_user=_quota(queue.max_per_user.gpu_milli, None, queue.max_per_user.jobs),
        users=queue.users or (),
        open=queue.users is None,
        in_use=_quota(one.in_use.gpu_milli, one.in_use.cpu_milli, one.in_use.jobs),
        waiting=one.waiting,
        used_gpu_hours=one.used_gpu_s / 3600,
        rank=one.rank,
        user_in_use=_quota(one.user.gpu_milli, one.user.cpu_milli, one.user.jobs),
    )


def _quota(gpu_milli: int | None, cpu_milli: int | None, jobs: int | None = None) -> policy_pb2.QuotaAmount:
    return policy_pb2.QuotaAmount(gpu_milli=gpu_milli, cpu_milli=cpu_milli, jobs=jobs)


def _pool_message(one: PoolStanding) -> policy_pb2.PoolView:
    pool = one.policy
    return policy_pb2.PoolView(
        name=one.name,
        node_names=pool.nodes,
        labels=pool.labels,
        users=pool.users or (),
        all_users=pool.users is None,
        queues=pool.queues or (),
        all_queues=pool.queues is None,
        max_gpu_milli_per_job=pool.max_gpu_milli_per_job or 0,
        timeout_us=pool.timeout_us,
        max_timeout_us=pool.max_timeout_us,
        default=pool.default,
        nodes=one.nodes,
        connected=one.connected,
        gpus=one.gpus,
        gpus_free=one.gpus_free,
        cpu_milli=one.cpu_milli,
        cpu_milli_free=one.cpu_milli_free,
        waiting=one.waiting,
        maintenance=[
            policy_pb2.WindowView(from_us=window.from_us, to_us=window.to_us, why=window.why)
            for window in pool.maintenance
        ],
        reservations=[
            policy_pb2.ReservationView(
                name=name,
                from_us=kept.from_us,
                to_us=kept.to_us,
                nodes=kept.nodes,
                node_names=one.reserved[name],
                users=kept.users or (),
                all_users=kept.users is None,
                queues=kept.queues or (),
                all_queues=kept.queues is None,
                why=kept.why,
            )
            for name, kept in pool.reservations.items()
        ],
    )


def _checked(state: ClusterState, policy: core.ClusterPolicy) -> tuple[str, ...]:
    check_kept(state, policy)
    return policy_changes(state.policy, policy)
