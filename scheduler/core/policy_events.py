"""The cluster's policy changes while it runs."""

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
