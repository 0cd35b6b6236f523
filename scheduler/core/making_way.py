"""Who leaves a node because its time has come: a maintenance window has begun, or a reservation of others."""

from ...spec.ids import Micros
from ...spec.lifecycle import AttemptOutcome
from ...spec.moments import moment_text
from .effects import Plan
from .grace import save_grace_us
from .job import Job, Stop
from .maintenance import closing_of, untold
from .node import Node
from .reservations import reserved_text, who_has
from .state import ClusterState
from .submit import request_stops


def make_way(state: ClusterState, node: Node, now_us: Micros) -> Plan[None]:
    """Notice as of a preemption to all that run there, may not any more, and are not leaving."""
    if node.node not in state.closed and node.node not in state.reserved:
        return Plan(None)
    leave, text = _who_leaves(state, node, now_us)
    stops = ((job, Stop(AttemptOutcome.PREEMPTED, now_us, save_grace_us(job), why=text)) for job in leave)
    return request_stops(state, stops)


def _who_leaves(state: ClusterState, node: Node, now_us: Micros) -> tuple[list[Job], str]:
    """And why."""
    closing = closing_of(state, node, now_us)
    if closing is not None and closing.window.from_us <= now_us:
        because = f": {closing.window.why}" if closing.window.why else ""
        until = moment_text(closing.window.to_us)
        return untold(state, node), f"{node.name} is under maintenance until {until}{because}"
    asked = who_has(state, node, now_us)
    if asked is None:
        return [], ""
    others = [job for job in untold(state, node) if job.demand.pool != asked.asked]
    return others, f"{node.name} is reserved as {reserved_text(*asked, now_us)}"
