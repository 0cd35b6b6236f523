"""The clients' verbs for admins, on the policy and on jobs' places in line: blocking and asyncio."""

import os
from abc import abstractmethod
from pathlib import Path
from typing import TypeVar

from ..spec.cluster_policy import PolicySpec
from ..spec.policy_reading import parse_policy
from . import calls, policy_views, rpc, views
from .documents import read_job_file

T = TypeVar("T")

PolicySource = str | os.PathLike[str] | PolicySpec | rpc.Sent
"""A policy file's path, a PolicySpec, or what `sent_policy` has checked already."""


class PolicyVerbs:
    """Of the blocking client."""

    def policy(self) -> policy_views.Policy:
        """The policy that is in force."""
        return self._call(calls.policy())

    def apply_policy(self, policy: PolicySource, *, dry_run: bool = False) -> tuple[str, ...]:
        """Put a policy in force, all of it; what changes by it, a line each. With `dry_run` nothing does.
        Raises InvalidDocument with all that is wrong, Conflict."""
        return self._call(_apply(policy, dry_run))

    def queues(self, *, user: str = "") -> tuple[policy_views.Queue, ...]:
        """The tree of queues, the root first; with what `user` has in each."""
        return self._call(calls.queues(user=user))

    def pools(self) -> tuple[policy_views.Pool, ...]:
        """The policy's pools of nodes."""
        return self._call(calls.pools())

    def hold(self, job: int, *, why: str = "") -> views.Job:
        """Keep a job from starting until it is released; what runs goes on. Raises NotFound, Conflict."""
        return self._call(calls.hold(job, why=why, user=rpc.user_name()))

    def release(self, job: int) -> views.Job:
        """Let a job start that was held. Raises NotFound, Conflict."""
        return self._call(calls.release(job, user=rpc.user_name()))

    def set_priority(self, job: int, priority: int) -> views.Job:
        """Give a job another priority, -1000 to 1000. Raises NotFound, Conflict."""
        return self._call(calls.set_priority(job, priority, user=rpc.user_name()))

    @abstractmethod
    def _call(self, call: rpc.Call[T]) -> T: ...


class AsyncPolicyVerbs:
    """Of the asyncio client."""

    async def policy(self) -> policy_views.Policy:
        """The policy that is in force."""
        return await self._call(calls.policy())

    async def apply_policy(self, policy: PolicySource, *, dry_run: bool = False) -> tuple[str, ...]:
        """Put a policy in force; see Client.apply_policy."""
        return await self._call(_apply(policy, dry_run))

    async def queues(self, *, user: str = "") -> tuple[policy_views.Queue, ...]:
        """The tree of queues; see Client.queues."""
        return await self._call(calls.queues(user=user))

    async def pools(self) -> tuple[policy_views.Pool, ...]:
        """The policy's pools of nodes."""
        return await self._call(calls.pools())

    async def hold(self, job: int, *, why: str = "") -> views.Job:
        """Keep a job from starting; see Client.hold."""
        return await self._call(calls.hold(job, why=why, user=rpc.user_name()))

    async def release(self, job: int) -> views.Job:
        """Let a job start that was held."""
        return await self._call(calls.release(job, user=rpc.user_name()))

    async def set_priority(self, job: int, priority: int) -> views.Job:
        """Give a job another priority."""
        return await self._call(calls.set_priority(job, priority, user=rpc.user_name()))

    @abstractmethod
    async def _call(self, call: rpc.Call[T]) -> T: ...


def sent_policy(policy: PolicySource) -> rpc.Sent:
    """Checked. Raises InvalidDocument with all that is wrong."""
    if isinstance(policy, rpc.Sent):
        return policy
    if isinstance(policy, PolicySpec):
        return rpc.Sent(policy.to_json(), "policy")
    return rpc.Sent(parse_policy(read_job_file(Path(policy)), str(policy)).to_json(), str(policy))


def _apply(policy: PolicySource, dry_run: bool) -> rpc.Call[tuple[str, ...]]:
    sent = sent_policy(policy)
    return calls.apply_policy(sent, dry_run=dry_run, key=rpc.new_key(), by=rpc.user_name())
