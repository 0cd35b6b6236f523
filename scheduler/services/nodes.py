"""Nodes: what there is, what is free on it, and why a node takes no work."""

from collections.abc import Callable, Sequence
from typing import Any, Final

import grpc.aio
from google.protobuf.json_format import Parse

from ...proto.codecs import resources_message, task_key_message
from ...proto.generated import nodes_pb2, nodes_pb2_grpc
from ...proto.limits import (
    NAME_CHARACTERS_MAX,
    PAGE_BYTES_MAX,
    PAGE_DEFAULT,
    PAGE_MAX,
)
from ...spec.errors import InvalidRequest
from ...spec.ids import Micros, NodeId, TaskKey
from ...spec.lifecycle import NodeContact
from ...spec.resources import Resources
from ..core.cordons import tasks_left
from ..core.node import Cordon, Node
from ..core.reason import Reason
from ..core.reasons import node_reason
from ..core.state import ClusterState
from ..core.stimuli import CordonNodes, TrustCluster, UncordonNodes
from ..loop import Loop
from .agents import Samples
from .checks import check_asked, check_user, check_why
from .messages import reason_message

_Context = grpc.aio.ServicerContext[Any, Any]
_CURSOR_MAX: Final = 200
_SECOND_US: Final = 1_000_000
_DEADLINE_MAX_S: Final = 86_400

_Seen = tuple[Node, Resources, tuple[TaskKey, ...], int, Reason | None]
"""With how many of its tasks have not ended."""


class NodeService(nodes_pb2_grpc.NodesServicer):
    """Role: client. In the order of node ids."""

    def __init__(self, loop: Loop, samples: Samples, *, now_us: Callable[[], int]) -> None:
        self._loop = loop
        self._now_us = now_us
        self._samples = samples

    async def List(self, request: nodes_pb2.ListNodesRequest, context: _Context) -> nodes_pb2.ListNodesReply:
        if not 0 <= request.page.limit <= PAGE_MAX or len(request.page.cursor) > _CURSOR_MAX:
            raise InvalidRequest(f"page.limit is {request.page.limit}; expected 0 to {PAGE_MAX}")
        limit = request.page.limit or PAGE_DEFAULT
        seen, suspected = await self._loop.read(
            lambda state: (_page(state, request.page.cursor, limit, self._now_us()), state.suspected)
        )
        reply = nodes_pb2.ListNodesReply(cluster_suspected=suspected)
        size = 0
        for one in seen:
            view = self._view(one)
            size += view.ByteSize()
            if reply.nodes and size > PAGE_BYTES_MAX:
                break
            reply.nodes.append(view)
        if len(seen) == limit or len(reply.nodes) < len(seen):
            reply.next_cursor = reply.nodes[-1].node_id
        return reply

    async def Trust(self, request: nodes_pb2.TrustRequest, context: _Context) -> nodes_pb2.TrustReply:
        check_user(request.by)
        suspected, silent = await self._loop.read(
            lambda state: (state.suspected, state.contacts[NodeContact.UNKNOWN])
        )
        await self._loop.submit(TrustCluster(request.by))
        return nodes_pb2.TrustReply(was_suspected=suspected, silent=silent)

    async def Cordon(self, request: nodes_pb2.CordonRequest, context: _Context) -> nodes_pb2.CordonReply:
        check_asked(request.key, request.by)
        _check_names(request.nodes)
        check_why(request.why)
        if not 0 <= request.deadline_s <= _DEADLINE_MAX_S:
            raise InvalidRequest(f"deadline_s is {request.deadline_s}; expected 0 to {_DEADLINE_MAX_S}")
        asked = CordonNodes(
            request.key,
            tuple(request.nodes),
            request.by or "a client",
            request.why,
            request.drain,
            round(request.deadline_s * _SECOND_US) or None,
        )
        return await self._cordoned(request.nodes, asked)

    async def Uncordon(self, request: nodes_pb2.UncordonRequest, context: _Context) -> nodes_pb2.CordonReply:
        check_asked(request.key, request.by)
        _check_names(request.nodes)
        asked = UncordonNodes(request.key, tuple(request.nodes), request.by or "a client")
        return await self._cordoned(request.nodes, asked)

    async def _cordoned(
        self, names: Sequence[str], asked: CordonNodes | UncordonNodes
    ) -> nodes_pb2.CordonReply:
        jobs = await self._loop.submit(asked)
        seen = await self._loop.read(lambda state: _called(state, names, Micros(self._now_us())))
        return nodes_pb2.CordonReply(nodes=[self._view(one) for one in seen], jobs=jobs)

    def _view(self, seen: _Seen) -> nodes_pb2.NodeView:
        node, free, tasks, left, reason = seen
        inventory = Parse(node.inventory.details or "{}", nodes_pb2.Inventory(), ignore_unknown_fields=True)
        _add_samples(inventory, self._samples.by_node.get(node.node, ()))
        return nodes_pb2.NodeView(
            node_id=node.node,
            inventory=inventory,
            contact=node.contact,
            last_heard_us=node.last_heard_us,
            free=resources_message(free),
            tasks=[task_key_message(task) for task in tasks],
            reason=None if reason is None else reason_message(reason),
            cordon=None if node.cordon is None else _cordon_message(node.cordon, left),
        )


def _page(state: ClusterState, after: str, limit: int, now_us: int) -> list[_Seen]:
    chosen = sorted(node for node in state.nodes if node > after)[:limit]
    return [_seen(state, node, Micros(now_us)) for node in chosen]


def _seen(state: ClusterState, number: NodeId, now_us: Micros) -> _Seen:
    node, load = state.nodes[number], state.loads.get(number)
    reason = node_reason(state, node, now_us)
    if load is None:
        return node, Resources(), (), 0, reason
    return node, load.free, tuple(sorted(load.tasks)), tasks_left(state, node), reason


def _called(state: ClusterState, names: Sequence[str], now_us: Micros) -> list[_Seen]:
    """Those that are still there: one that was long lost is forgotten as soon as it is put back."""
    wanted = frozenset(names)
    called = (node for node in state.nodes.values() if node.node in wanted or node.name in wanted)
    return [_seen(state, node.node, now_us) for node in sorted(called, key=lambda node: node.name)]


def _check_names(names: Sequence[str]) -> None:
    if not 1 <= len(names) <= PAGE_MAX:
        raise InvalidRequest(f"{len(names)} nodes in one call; expected 1 to {PAGE_MAX}")
    for name in names:
        if not 0 < len(name) <= NAME_CHARACTERS_MAX or not name.isprintable():
            raise InvalidRequest(
                f"a node's name is not one: expected 1 to {NAME_CHARACTERS_MAX} printable characters"
            )


def _cordon_message(cordon: Cordon, tasks_left: int) -> nodes_pb2.CordonView:
    return nodes_pb2.CordonView(
        by=cordon.by,
        why=cordon.why,
        since_us=cordon.since_us,
        drains=cordon.drains,
        tasks_left=tasks_left,
    )


def _add_samples(inventory: nodes_pb2.Inventory, samples: tuple[Any, ...]) -> None:
    """Newer readings over those of the inventory."""
    by_index = {gpu.index: gpu for gpu in inventory.gpus}
    for sample in samples:
        gpu = by_index.get(sample.index)
        if gpu is None:
            continue
        for name in ("memory_used_bytes", "utilization_percent", "temperature_c", "power_mw"):
            if sample.HasField(name):
                setattr(gpu, name, getattr(sample, name))
