"""All that an agent is told, in one frozen object: parsed once at start, checked at the door.

Nothing else in the agent reads options, files of options or the environment.
"""

import socket
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from ..proto.channels import split_address
from ..spec.errors import InvalidRequest
from ..spec.labels import fault_in_labels, fault_in_taints

NAME_CHARS_MAX = 100


@dataclass(frozen=True, slots=True)
class AgentConfig:
    """`pace agent`'s options. `None` and empty mean: find out."""

    scheduler: str
    """HOST:PORT; IPv6 in brackets."""
    state: Path
    """This agent's own state folder; one agent per folder."""
    name: str = field(default_factory=socket.gethostname)
    address: str = ""
    """At which peers reach this node's ranks. Empty: the local address of the route to the scheduler."""
    cpus: float | None = None
    """`--slots`: cpus to offer, whatever the node has. None: what this process may use."""
    memory_bytes: int | None = None
    """To offer. None: what the node has, less a head room."""
    gpus: str = "all"
    """"all", "none", or NVML indices and uuids separated by commas."""
    labels: Mapping[str, str] = field(default_factory=dict)
    taints: Mapping[str, str] = field(default_factory=dict)
    """Key -> value, which may be empty: only jobs that tolerate them come here."""
    environments: Mapping[str, str] = field(default_factory=dict)
    """Environment name -> interpreter (absolute path)."""
    token_file: Path | None = None
    """Holds the agent token."""
    ca_file: Path | None = None
    """Certificate that the scheduler's must be signed by; None: plaintext to loopback, else the system's."""
    insecure: bool = False
    """Plaintext to a scheduler beyond loopback, without TLS."""
    log_bytes_max: int = 1 << 30
    """Per rank, on this node: a task may ask for less, never for more."""
    stop_tasks: bool = False
    """On SIGTERM: end the tasks too. By default they go on and the next agent takes them over."""
    rendezvous_ports: int = 8
    """How many gangs may have their rank 0 here at once."""
    cache_bytes: int = 50 << 30
    """Of code and data that are kept on this node for the jobs to come; the least recently used go first."""
    gpu_test: str = ""
    """Tests one GPU (its uuid in CUDA_VISIBLE_DEVICES), exits 0 when that is well. Empty: our own test."""
    gpu_test_after_s: float = 60.0
    """From when a GPU went out of service to its first test; longer after each that fails."""
    warm: bool = True
    """Keep processes that have imported torch, so that jobs start by forking them."""

    def __post_init__(self) -> None:
        """Raises InvalidRequest naming the option."""
        split_address(self.scheduler)
        _check_text("name", self.name)
        if self.address:
            _check_text("address", self.address)
        _check_amount("slots", self.cpus, 0.001, 100_000)
        _check_amount("memory", self.memory_bytes, 1 << 20, 1 << 60)
        _check_amount("log bound", self.log_bytes_max, 1 << 16, 1 << 50)
        _check_amount("cache", self.cache_bytes, 1 << 20, 1 << 60)
        _check_amount("rendezvous ports", self.rendezvous_ports, 0, 1000)
        _check_amount("wait before a GPU's test", self.gpu_test_after_s, 0.1, 86400.0)
        if fault := fault_in_labels(self.labels):
            raise InvalidRequest(fault, hint="Write --label rack=r3")
        if fault := fault_in_taints(self.taints):
            raise InvalidRequest(fault, hint="Write --taint spot or --taint dedicated=vision")
        for name, interpreter in self.environments.items():
            _check_text("environment", name)
            if not Path(interpreter).is_absolute():
                raise InvalidRequest(
                    f"environment {name}: {interpreter!r} is not an absolute path",
                    hint="Write --environment NAME=/path/to/bin/python",
                )


def _check_text(what: str, text: str) -> None:
    if not text or len(text) > NAME_CHARS_MAX or not text.isprintable():
        raise InvalidRequest(
            f"{what} {text[:NAME_CHARS_MAX]!r} must be 1 to {NAME_CHARS_MAX} printable characters",
            hint="Give the node another name with --name" if what == "name" else "",
        )


def _check_amount(what: str, amount: float | None, least: float, most: float) -> None:
    if amount is not None and not least <= amount <= most:  # also refuses NaN
        raise InvalidRequest(f"{what} {amount} is not between {least} and {most}")
