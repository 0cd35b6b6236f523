"""Nodes come, go silent and return; what the cluster makes of it; and time passes."""

from ...spec.ids import Micros, NodeId
from ...spec.record import record
from .job import NEVER
from .node import NodeInventory


@record(frozen=True, slots=True)
class NodeJoined:
    at_us: Micros
    node: NodeId
    inventory: NodeInventory


@record(frozen=True, slots=True)
class NodeChanged:
    at_us: Micros
    node: NodeId
    inventory: NodeInventory


@record(frozen=True, slots=True)
class NodeConnected:
    at_us: Micros
    node: NodeId
    incarnation: str
    session: int


@record(frozen=True, slots=True)
class NodeUnknown:
    at_us: Micros
    node: NodeId
    last_heard_us: Micros
    why: str


@record(frozen=True, slots=True)
class NodeLost:
    at_us: Micros
    node: NodeId
    last_heard_us: Micros


@record(frozen=True, slots=True)
class NodeRested:
    """It refused a start by its own fault: it gets no work for a while. `refusals` 0: it starts again."""

    at_us: Micros
    node: NodeId
    refusals: int
    until_us: Micros = NEVER
    why: str = ""


@record(frozen=True, slots=True)
class NodeDrained:
    """By policy: it gets no work until then; what runs there goes on."""

    at_us: Micros
    node: NodeId
    until_us: Micros
    why: str


@record(frozen=True, slots=True)
class NodeCordoned:
    """By an operator: it gets no work until it is uncordoned. `drains`: what runs there is to leave, too."""

    at_us: Micros
    node: NodeId
    by: str
    why: str = ""
    drains: bool = False


@record(frozen=True, slots=True)
class NodeUncordoned:
    at_us: Micros
    node: NodeId
    by: str


@record(frozen=True, slots=True)
class NodeForgotten:
    at_us: Micros
    node: NodeId


@record(frozen=True, slots=True)
class NodeHeard:
    at_us: Micros
    node: NodeId


@record(frozen=True, slots=True)
class SchedulerStarted:
    """All contact is UNKNOWN, with a fresh grace."""

    at_us: Micros


@record(frozen=True, slots=True)
class ClusterSuspected:
    """Most nodes vanished at once: it is more likely us. None is replaced."""

    at_us: Micros
    silent: int
    known: int


@record(frozen=True, slots=True)
class ClusterTrusted:
    """Contact has returned, or an operator says so; silent nodes get a fresh grace."""

    at_us: Micros
    by: str


@record(frozen=True, slots=True)
class TimersPassed:
    at_us: Micros
