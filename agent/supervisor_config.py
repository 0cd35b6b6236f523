"""What an agent tells its supervisor once, at start."""

import sys
from collections.abc import Mapping
from dataclasses import dataclass, field

from .launch import PRELOAD
from .stillness import Patience


@dataclass(frozen=True, slots=True)
class SupervisorConfig:
    """What the agent tells its supervisor once, at start."""

    interpreter: str = sys.executable
    """The node's own; tasks with an empty `interpreter_environment` run in it."""
    environments: Mapping[str, str] = field(default_factory=dict)
    """Environment name -> interpreter."""
    warm: bool = True
    """Keep a process that has imported torch & co., and start Python jobs by forking it."""
    preload: tuple[str, ...] = PRELOAD
    """Modules that warm processes import; one that is not there is left out."""
    zygotes_max: int = 4
    """Warm processes for different interpreters and import-sensitive environments; least used go first."""
    rendezvous_address: str = "127.0.0.1"
    """On which the rendezvous ports listen."""
    studies: Mapping[str, str | bool] = field(default_factory=dict)
    """How a sweep's worker, or an endpoint's router, reaches the scheduler: address, ca_file, insecure."""
    node_name: str = ""
    peer_address: str = "127.0.0.1"
    """At which peers reach this node."""
    rendezvous_ports: int = 8
    """How many are held ready."""
    groups_without_limits: bool = False
    """Put tasks into cgroups also where these can limit nothing: a last resort for finding processes."""
    answer_s: float = 5.0
    """A shim or zygote that does not answer in this time is killed."""
    idle_shim_s: float = 10.0
    """How long a shim without a task is kept for the next one."""
    patience: Patience = field(default_factory=Patience)
    """With ranks that make no step any more; `fixed_s` is each job's own."""
    cache_bytes: int = 50 << 30
    """Of trees that are kept on this node for the jobs to come."""
    pace_window_s: float = 30.0
    """Over which the time of the ranks' steps is told."""
