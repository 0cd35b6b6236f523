"""Nodes: what there is, what is free on it, and why a node takes no work."""

from collections.abc import Callable
from typing import Any, Final

import grpc.aio
from google.protobuf.json_format import Parse

from ...proto.codecs import resources_message, task_key_message
from ...proto.generated import nodes_pb2, nodes_pb2_grpc
from ...proto.limits import NAME_CHARACTERS_MAX, PAGE_BYTES_MAX, PAGE_DEFAULT, PAGE_MAX
from ...spec.errors import InvalidRequest
from ...spec.ids import Micros, NodeId, TaskKey
from ...spec.lifecycle import NodeContact
from ...spec.resources import Resources
from ..core.node import Node
from ..core.reason import Reason
from ..core.reasons import node_reason
from ..core.state import ClusterState
from ..core.stimuli import TrustCluster
from ..loop import Loop
from .agents import Samples
from .messages import reason_message

_Context = grpc.aio.ServicerContext[Any, Any]
_CURSOR_MAX: Final = 200

_Seen = tuple[Node, Resources, tuple[TaskKey, ...], Reason | None]


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
        if len(request.by) > NAME_CHARACTERS_MAX or not request.by.isprintable():
            raise InvalidRequest(
                f"`by` is no name: expected at most {NAME_CHARACTERS_MAX} printable characters"
            )
        suspected, silent = await self._loop.read(
            lambda state: (state.suspected, state.contacts[NodeContact.UNKNOWN])
        )
        await self._loop.submit(TrustCluster(request.by))
        return nodes_pb2.TrustReply(was_suspected=suspected, silent=silent)

    def _view(self, seen: _Seen) -> nodes_pb2.NodeView:
        node, free, tasks, reason = seen
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
        )


def _page(state: ClusterState, after: str, limit: int, now_us: int) -> list[_Seen]:
    chosen = sorted(node for node in state.nodes if node > after)[:limit]
    return [_seen(state, node, Micros(now_us)) for node in chosen]


def _seen(state: ClusterState, number: NodeId, now_us: Micros) -> _Seen:
    node, load = state.nodes[number], state.loads.get(number)
    reason = node_reason(state, node, now_us)
    if load is None:
        return node, Resources(), (), reason
    return node, load.free, tuple(sorted(load.tasks)), reason


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
