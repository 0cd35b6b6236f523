"""The cluster's policy changes while it runs; accounts of what was used are closed when little is left."""

from dataclasses import dataclass

from ...spec.ids import Micros
from .cluster_policy import ClusterPolicy


@dataclass(frozen=True, slots=True)
class PolicyChanged:
    """`policy` is in force from now on, all of it; `changes` says in words how it differs from the last."""

    at_us: Micros
    by: str
    policy: ClusterPolicy
    changes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class AccountsClosed:
    """What these queues and users have used is next to nothing by now, and nothing of them runs."""

    at_us: Micros
    paths: tuple[str, ...]
