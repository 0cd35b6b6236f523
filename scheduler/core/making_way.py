"""Who leaves a node because its time has come: a maintenance window has begun."""

from ...spec.ids import Micros
from ...spec.lifecycle import AttemptOutcome
from ...spec.moments import moment_text
from .effects import Effect, Plan
from .events import Event
from .grace import save_grace_us
from .job import Stop
from .maintenance import closing_of, untold
from .node import Node
from .state import ClusterState
from .submit import request_stop


def make_way(state: ClusterState, node: Node, now_us: Micros) -> Plan[None]:
    """Notice as of a preemption to all that run there and are not leaving."""
    closing = closing_of(state, node, now_us)
    if closing is None or closing.window.from_us > now_us:
        return Plan(None)
    because = f": {closing.window.why}" if closing.window.why else ""
    events: list[Event] = []
    effects: list[Effect] = []
    for job in untold(state, node):
        text = f"{node.name} is under maintenance until {moment_text(closing.window.to_us)}{because}"
        stop = Stop(AttemptOutcome.PREEMPTED, now_us, save_grace_us(job), why=text)
        plan = request_stop(state, job, stop)
        events += plan.events
        effects += plan.effects
    return Plan(None, tuple(events), tuple(effects))
