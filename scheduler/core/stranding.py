"""Gangs of which a part is on a LOST node, and which are safe under fencing: stranded.

Nobody has failed. Such a gang keeps its places and stands in line as well: when its turn comes and the nodes
in contact can take all of it, it moves; when the node returns first, it goes on unharmed; when the long lease
of the fenced has run out, its part there is dead, and the attempt ends. One that is being stopped does not
move, nor one that shall not be tried again after the loss of a node.
"""

from ...spec.failures import FailureClass
from ...spec.lifecycle import NodeContact
from .job import Job, TaskState
from .node import Node
from .state import ClusterState


def is_stranded(state: ClusterState, job: Job) -> bool:
    """Follows from the state proper; `ClusterState.stranded` remembers it."""
    if not state.contacts[NodeContact.LOST] or not job.placed or job.demand.exclusive:
        return False
    may_move = job.course.stop is None and FailureClass.NODE_LOST in job.shape.policy.retry_on
    return may_move and bool(lost_nodes(state, job))


def lost_nodes(state: ClusterState, job: Job) -> list[Node]:
    """LOST nodes that have a task of it which has not ended, each once."""
    names = dict.fromkeys(task.node for task in job.tasks if task.state is not TaskState.ENDED)
    nodes = (state.nodes[name] for name in names)
    return [node for node in nodes if node.contact is NodeContact.LOST]


def within_reach(state: ClusterState, job: Job) -> bool:
    """A task that has not ended can still be told to stop, or is expected back."""
    return any(
        task.state is not TaskState.ENDED and state.nodes[task.node].contact is not NodeContact.LOST
        for task in job.tasks
    )
