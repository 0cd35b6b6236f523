"""Nodes come, go silent and return; what the cluster makes of it; and time passes."""

from msgspec import Struct

from ...spec.ids import Micros, NodeId
from .job import NEVER
from .node import NodeInventory


class NodeJoined(Struct, frozen=True):
    at_us: Micros
    node: NodeId
    inventory: NodeInventory


class NodeChanged(Struct, frozen=True):
    at_us: Micros
    node: NodeId
    inventory: NodeInventory


class NodeConnected(Struct, frozen=True):
    at_us: Micros
    node: NodeId
    incarnation: str
    session: int


class NodeUnknown(Struct, frozen=True):
    at_us: Micros
    node: NodeId
    last_heard_us: Micros
    why: str


class NodeLost(Struct, frozen=True):
    at_us: Micros
    node: NodeId
    last_heard_us: Micros


class NodeRested(Struct, frozen=True):
    """It refused a start by its own fault: it gets no work for a while. `refusals` 0: it starts again."""

    at_us: Micros
    node: NodeId
    refusals: int
    until_us: Micros = NEVER
    why: str = ""


class NodeDrained(Struct, frozen=True):
    """By policy: it gets no work until then; what runs there goes on."""

    at_us: Micros
    node: NodeId
    until_us: Micros
    why: str


class NodeCordoned(Struct, frozen=True):
    """By an operator: it gets no work until it is uncordoned. `drains`: what runs there is to leave, too."""

    at_us: Micros
    node: NodeId
    by: str
    why: str = ""
    drains: bool = False


class NodeUncordoned(Struct, frozen=True):
    at_us: Micros
    node: NodeId
    by: str


class NodeForgotten(Struct, frozen=True):
    at_us: Micros
    node: NodeId


class NodeHeard(Struct, frozen=True):
    at_us: Micros
    node: NodeId


class SchedulerStarted(Struct, frozen=True):
    """All contact is UNKNOWN, with a fresh grace."""

    at_us: Micros


class ClusterSuspected(Struct, frozen=True):
    """Most nodes vanished at once: it is more likely us. None is replaced."""

    at_us: Micros
    silent: int
    known: int


class ClusterTrusted(Struct, frozen=True):
    """Contact has returned, or an operator says so; silent nodes get a fresh grace."""

    at_us: Micros
    by: str


class TimersPassed(Struct, frozen=True):
    at_us: Micros
