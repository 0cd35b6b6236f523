"""Each verb once, for both clients: the request, where it goes, how its reply becomes a view; see rpc.py."""

from collections.abc import Sequence
from typing import Any, Protocol, TypeVar

from ..proto.generated import (
    answers_pb2,
    common_pb2,
    jobs_pb2,
    logs_pb2,
    nodes_pb2,
    policy_pb2,
)
from ..proto.payload import Payload
from ..spec.ids import JobId
from ..spec.lifecycle import JobState
from . import answer_codecs, answer_views, codecs, policy_views, views
from .rpc import SUBMIT_S, UNARY_S, Call, Sent
from .stubs import Stubs
from .submit_calls import ids

T = TypeVar("T")

PAGE = 1000
FORECAST_S = 130.0
"""Two forecasts, each with its own bound at the scheduler."""


def jobs_page(
    *, states: Sequence[JobState | str], user: str, name_contains: str, limit: int, cursor: str
) -> Call[tuple[tuple[views.Job, ...], str]]:
    """One page of a listing, newest first, and the cursor of the next (empty at the end)."""
    request = jobs_pb2.ListJobsRequest(
        page=common_pb2.Page(limit=min(limit, PAGE), cursor=cursor),
        states=[str(state) for state in states],
        user=user,
        name_contains=name_contains,
    )
    return Call(
        lambda stubs: stubs.jobs.List,
        request,
        lambda reply: (tuple(codecs.to_job(job) for job in reply.jobs), reply.next_cursor),
    )


def job(job_id: int) -> Call[views.Job]:
    return Call(lambda stubs: stubs.jobs.Get, jobs_pb2.GetJobRequest(job=job_id), codecs.to_job)


def cancel(job_id: int, *, grace_s: float) -> Call[views.Job]:
    request = jobs_pb2.CancelRequest(job=job_id, grace_s=grace_s)
    return Call(lambda stubs: stubs.jobs.Cancel, request, codecs.to_job)


def preempt(job_id: int, *, grace_s: float, key: str, user: str) -> Call[views.Job]:
    request = jobs_pb2.PreemptRequest(key=key, job=job_id, grace_s=grace_s, user=user)
    return Call(lambda stubs: stubs.jobs.Preempt, request, codecs.to_job)


def ask_checkpoint(job_id: int, *, key: str, user: str) -> Call[views.SaveAsked]:
    request = jobs_pb2.CheckpointRequest(key=key, job=job_id, user=user)
    return Call(lambda stubs: stubs.jobs.Checkpoint, request, codecs.to_save_asked)


def checkpoints(job_id: int) -> Call[tuple[views.Checkpoint, ...]]:
    request = jobs_pb2.GetJobRequest(job=job_id)
    return Call(
        lambda stubs: stubs.jobs.ListCheckpoints,
        request,
        lambda reply: tuple(codecs.to_checkpoint(one) for one in reply.checkpoints),
    )


def restore(job_id: int, step: int, *, key: str, user: str) -> Call[views.Job]:
    request = jobs_pb2.RestoreRequest(key=key, job=job_id, step=step, user=user)
    return Call(lambda stubs: stubs.jobs.Restore, request, codecs.to_job)


def fork(
    job_id: int, step: int, document: Sent, *, key: str, user: str, reproduces: int = 0
) -> Call[tuple[JobId, ...]]:
    request = jobs_pb2.ForkRequest(
        key=key,
        job=job_id,
        step=step,
        document=jobs_pb2.JobDocument(document=document.document, source=document.source),
        user=user,
        reproduces=reproduces,
    )
    return Call(lambda stubs: stubs.jobs.Fork, request, ids, SUBMIT_S)


def hold(job_id: int, *, why: str, user: str) -> Call[views.Job]:
    request = jobs_pb2.HoldRequest(job=job_id, why=why, user=user)
    return Call(lambda stubs: stubs.jobs.Hold, request, codecs.to_job)


def release(job_id: int, *, user: str) -> Call[views.Job]:
    request = jobs_pb2.ReleaseRequest(job=job_id, user=user)
    return Call(lambda stubs: stubs.jobs.Release, request, codecs.to_job)


def set_priority(job_id: int, priority: int, *, user: str) -> Call[views.Job]:
    request = jobs_pb2.SetPriorityRequest(job=job_id, priority=priority, user=user)
    return Call(lambda stubs: stubs.jobs.SetPriority, request, codecs.to_job)


def why(job_id: int, *, patience_s: float) -> Call[views.Why]:
    request = jobs_pb2.GetJobRequest(job=job_id, patience_s=patience_s)
    return Call(lambda stubs: stubs.jobs.Why, request, codecs.to_why, UNARY_S + patience_s)


def plan(documents: Sequence[Sent], *, user: str, seed: int) -> Call[answer_views.Plan]:
    request = answers_pb2.PlanRequest(jobs=_documents(documents), user=user, seed=seed)
    return Call(lambda stubs: stubs.answers.Plan, request, answer_codecs.to_plan, FORECAST_S)


def decision(seq: int) -> Call[answer_views.Decision]:
    request = answers_pb2.DecisionRequest(seq=seq)
    return Call(lambda stubs: stubs.answers.Decision, request, answer_codecs.to_decision, FORECAST_S)


def simulate(
    documents: Sequence[Sent],
    remove: Sequence[str],
    policy: Sent | None,
    *,
    until_s: float,
    user: str,
    seed: int,
) -> Call[answer_views.Simulated]:
    request = answers_pb2.SimulateRequest(
        add=_documents(documents), remove=remove, until_s=until_s, user=user, seed=seed
    )
    if policy is not None:
        request.policy, request.policy_source = policy.document, policy.source
    return Call(lambda stubs: stubs.answers.Simulate, request, answer_codecs.to_simulated, FORECAST_S)


def timeline(job_id: int) -> Call[views.Timeline]:
    return Call(lambda stubs: stubs.jobs.Timeline, jobs_pb2.GetJobRequest(job=job_id), codecs.to_timeline)


def nodes_page(*, cursor: str) -> Call[tuple[views.Cluster, str]]:
    """One page of nodes, and the cursor of the next."""
    request = nodes_pb2.ListNodesRequest(page=common_pb2.Page(limit=PAGE, cursor=cursor))
    return Call(
        lambda stubs: stubs.nodes.List,
        request,
        lambda reply: (
            views.Cluster(tuple(codecs.to_node(node) for node in reply.nodes), reply.cluster_suspected),
            reply.next_cursor,
        ),
    )


def trust(*, by: str) -> Call[views.Trust]:
    return Call(
        lambda stubs: stubs.nodes.Trust,
        nodes_pb2.TrustRequest(by=by),
        lambda reply: views.Trust(reply.was_suspected, reply.silent),
    )


def cordon(nodes: Sequence[str], *, why: str, key: str, by: str) -> Call[views.Cordoned]:
    request = nodes_pb2.CordonRequest(key=key, nodes=nodes, why=why, by=by)
    return Call(lambda stubs: stubs.nodes.Cordon, request, codecs.to_cordoned)


def drain(nodes: Sequence[str], *, why: str, deadline_s: float, key: str, by: str) -> Call[views.Cordoned]:
    request = nodes_pb2.CordonRequest(key=key, nodes=nodes, why=why, drain=True, deadline_s=deadline_s, by=by)
    return Call(lambda stubs: stubs.nodes.Cordon, request, codecs.to_cordoned)


def uncordon(nodes: Sequence[str], *, key: str, by: str) -> Call[views.Cordoned]:
    request = nodes_pb2.UncordonRequest(key=key, nodes=nodes, by=by)
    return Call(lambda stubs: stubs.nodes.Uncordon, request, codecs.to_cordoned)


def policy() -> Call[policy_views.Policy]:
    return Call(lambda stubs: stubs.policy.Get, policy_pb2.GetPolicyRequest(), codecs.to_policy)


def apply_policy(sent: Sent, *, dry_run: bool, key: str, by: str) -> Call[tuple[str, ...]]:
    """What changes by it, a line each."""
    request = policy_pb2.ApplyPolicyRequest(
        key=key, document=sent.document, source=sent.source, by=by, dry_run=dry_run
    )
    return Call(lambda stubs: stubs.policy.Apply, request, lambda reply: tuple(reply.changes))


def queues(*, user: str) -> Call[tuple[policy_views.Queue, ...]]:
    return Call(
        lambda stubs: stubs.policy.Queues,
        policy_pb2.QueuesRequest(user=user),
        lambda reply: tuple(codecs.to_queue(queue) for queue in reply.queues),
    )


def pools() -> Call[tuple[policy_views.Pool, ...]]:
    return Call(
        lambda stubs: stubs.policy.Pools,
        policy_pb2.PoolsRequest(),
        lambda reply: tuple(codecs.to_pool(pool) for pool in reply.pools),
    )


class WatchCursor:
    """Where a watcher of one job stands: what to ask for, and what of the answer is new."""

    def __init__(self, job_id: int, after_seq: int) -> None:
        self.job = job_id
        self.ends_by_itself = False
        """True once an ended stream has surely given all."""
        self._after_seq = after_seq

    def open(self, stubs: Stubs) -> tuple[Any, Any]:
        """Method and request of the stream that goes on from here."""
        return stubs.jobs.Watch, jobs_pb2.WatchRequest(job=self.job, after_seq=self._after_seq)

    def accept(self, message: Any) -> views.Change | None:
        """The change, or None for one that was already seen."""
        change = codecs.to_change(message)
        if change.entry.seq <= self._after_seq:
            return None
        self._after_seq = change.entry.seq
        return change

    def gives_all(self, job: views.Job) -> bool:
        """Whether a stream opened from now on will end having given all, `job` being as it stands."""
        return job.is_over


class LogCursor:
    """Where a follower of a job's output stands, per stream: nothing is yielded twice, nothing left out."""

    def __init__(self, job_id: int, *, attempt: int, rank: int, offset: int, follow: bool) -> None:
        self.job = job_id
        self.ends_by_itself = not follow
        """True once an ended stream has surely given all."""
        self._attempt = attempt
        self._rank = rank
        self._offset = offset
        self._follow = follow
        self._seen: dict[tuple[int, int], int] = {}

    def open(self, stubs: Stubs) -> tuple[Any, Any]:
        """Method and request of the stream that goes on from here."""
        request = logs_pb2.FollowRequest(
            job=self.job, attempt=self._attempt, rank=self._rank, offset=self._offset, follow=self._follow
        )
        for (attempt, rank), offset in sorted(self._seen.items()):
            request.positions.add(attempt=attempt, rank=rank, offset=offset)
        return stubs.logs.Follow, request

    def accept(self, message: Payload[logs_pb2.LogChunk]) -> views.LogChunk | None:
        """The chunk without what was already seen; None when nothing of it is new."""
        chunk = codecs.to_chunk(message)
        stream = (chunk.attempt, chunk.rank)
        seen = self._seen.get(stream)
        end = chunk.offset + len(chunk.data)
        if seen is not None and end <= seen:
            return None
        self._seen[stream] = end
        if seen is None or chunk.offset >= seen:
            return chunk
        return views.LogChunk(chunk.job, chunk.attempt, chunk.rank, seen, chunk.data[seen - chunk.offset :])

    def gives_all(self, job: views.Job) -> bool:
        """Whether a stream opened from now on will end having given all, `job` being as it stands."""
        return job.is_over or 0 < self._attempt < job.attempt


class UsageCursor:
    """A sum over all jobs, told while it is made; one that broke off is made anew."""

    ends_by_itself = True

    def __init__(self, by: str, since_us: int) -> None:
        self.job = 0
        self._request = answers_pb2.UsageRequest(by=by, since_us=since_us)

    def open(self, stubs: Stubs) -> tuple[Any, Any]:
        return stubs.answers.Usage, self._request

    def accept(self, message: Any) -> answer_views.UsageSoFar | answer_views.Usage:
        return answer_codecs.to_usage(message, self._request.by, self._request.since_us)

    def gives_all(self, job: views.Job) -> bool:
        return True


class Cursor(Protocol):
    """Where the reader of a stream stands: what to ask for, and what of the answer is new."""

    job: int
    """Whom to ask after when the stream has ended."""
    ends_by_itself: bool

    def open(self, stubs: Stubs) -> tuple[Any, Any]: ...

    def accept(self, message: Any) -> Any: ...

    def gives_all(self, job: views.Job) -> bool: ...


def _documents(documents: Sequence[Sent]) -> list[jobs_pb2.JobDocument]:
    return [jobs_pb2.JobDocument(document=sent.document, source=sent.source) for sent in documents]
