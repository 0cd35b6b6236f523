"""The SDK's `Client`: verbs that block, typed results, errors of spec.errors.

A verb's request and reply live in calls.py, once for both clients; here and in aio.py are two thin
transports. Every verb has a deadline; a call that the scheduler did not answer is repeated for `patience_s`,
with the same idempotency key, so that a submit whose reply was lost makes one job. Streams (`watch`, `logs`)
reconnect by themselves and go on where they stood: nothing is lost or doubled.
"""

import time
from collections.abc import Iterator, Sequence
from typing import Any

from .submitter import Submitter  # before grpc, which it keeps quiet

# isort: split
import grpc

from ..proto.failures import error_of
from ..spec.lifecycle import JobState
from . import calls, rpc, views
from .answer_verbs import AnswerVerbs
from .base import DRAIN_LOOK_S, not_drained, not_yet, timed_out
from .checkpoint_verbs import CheckpointVerbs
from .endpoint_verbs import EndpointVerbs
from .patience import Patience
from .policy_verbs import PolicyVerbs
from .registry_verbs import RegistryVerbs
from .sweep_verbs import SweepVerbs


class Client(Submitter, CheckpointVerbs, PolicyVerbs, AnswerVerbs, SweepVerbs, EndpointVerbs, RegistryVerbs):
    """Blocking client; may be used from several threads. A context manager."""

    def jobs(
        self,
        *,
        states: Sequence[JobState | str] = (),
        user: str = "",
        name_contains: str = "",
        limit: int = 100,
    ) -> tuple[views.Job, ...]:
        """The newest `limit` jobs, newest first, without documents."""
        found: list[views.Job] = []
        cursor = ""
        while len(found) < limit:
            page, cursor = self._call(
                calls.jobs_page(
                    states=states,
                    user=user,
                    name_contains=name_contains,
                    limit=limit - len(found),
                    cursor=cursor,
                )
            )
            found += page
            if not cursor:
                break
        return tuple(found)

    def job(self, job: int) -> views.Job:
        """All about one job. Raises NotFound."""
        return self._call(calls.job(job))

    def cancel(self, job: int, *, grace_s: float = 0.0) -> views.Job:
        """Ask a job to stop; `grace_s` between SIGTERM and SIGKILL, 0: the job's own. May be repeated."""
        return self._call(calls.cancel(job, grace_s=grace_s))

    def why(self, job: int, *, patience_s: float = 0.0) -> views.Why:
        """Why it waits, or how it ended. `patience_s`: for the predicted start, where it is not known yet."""
        return self._call(calls.why(job, patience_s=patience_s))

    def timeline(self, job: int) -> views.Timeline:
        """What happened, and where the time went."""
        return self._call(calls.timeline(job))

    def nodes(self) -> views.Cluster:
        """All nodes."""
        nodes: list[views.Node] = []
        cursor = ""
        while True:
            page, cursor = self._call(calls.nodes_page(cursor=cursor))
            nodes += page.nodes
            if not cursor:
                return views.Cluster(tuple(nodes), page.suspected)

    def trust(self) -> views.Trust:
        """Say that the nodes which are silent are really gone: their jobs start elsewhere."""
        return self._call(calls.trust(by=rpc.user_name()))

    def cordon(self, *nodes: str, why: str = "") -> views.Cordoned:
        """No new task is placed on these nodes (names or ids); what runs there goes on. Raises NotFound."""
        call = calls.cordon(nodes, why=why, key=rpc.new_key(), by=rpc.user_name())
        return self._call(call)

    def drain(self, *nodes: str, why: str = "", deadline_s: float = 0.0) -> views.Cordoned:
        """Cordon these nodes, and have what runs there save and go on elsewhere. A job has what its saves
        take, and at most `deadline_s` (0: no bound of yours). Raises NotFound."""
        call = calls.drain(nodes, why=why, deadline_s=deadline_s, key=rpc.new_key(), by=rpc.user_name())
        return self._call(call)

    def watch_drain(
        self, *nodes: str, why: str = "", deadline_s: float = 0.0, timeout_s: float | None = None
    ) -> Iterator[views.Cordoned]:
        """`drain`, and how these nodes stand, again whenever that has changed, until nothing runs there or
        they are back in service. Raises WaitTimedOut after `timeout_s`."""
        until_s = None if timeout_s is None else time.monotonic() + timeout_s
        call = calls.drain(nodes, why=why, deadline_s=deadline_s, key=rpc.new_key(), by=rpc.user_name())
        done, told = self._call(call), None
        while True:
            if told is None or done.stands != told.stands:
                told = done
                yield done
            if not done.tasks_left:
                return
            left_s = DRAIN_LOOK_S if until_s is None else until_s - time.monotonic()
            if left_s <= 0:
                raise not_drained(done, timeout_s)
            time.sleep(min(DRAIN_LOOK_S, left_s))
            done = self._call(call, self._stream_patience_s)  # of the same key: it drains nothing anew

    def uncordon(self, *nodes: str) -> views.Cordoned:
        """Put these nodes back into service. Raises NotFound."""
        return self._call(calls.uncordon(nodes, key=rpc.new_key(), by=rpc.user_name()))

    def watch(self, job: int, *, after_seq: int = 0) -> Iterator[views.Change]:
        """A job's events after `after_seq`, then live, until it is over."""
        return self._stream(calls.WatchCursor(job, after_seq))

    def logs(
        self, job: int, *, attempt: int = 0, rank: int = -1, offset: int = 0, follow: bool = False
    ) -> Iterator[views.LogChunk]:
        """A job's output: of one rank or all (-1), of one attempt or the current one (0), from `offset`
        (-N: the last N bytes); with `follow`, later attempts too, until the job is over and all was given."""
        return self._stream(calls.LogCursor(job, attempt=attempt, rank=rank, offset=offset, follow=follow))

    def wait(self, job: int, timeout_s: float | None = None) -> views.Job:
        """Block until the job is over; the job. Raises WaitTimedOut after `timeout_s`."""
        deadline = None if timeout_s is None else time.monotonic() + timeout_s
        last = self.job(job)
        if last.is_over:
            return last
        try:
            for change in self._stream(calls.WatchCursor(job, 0), deadline):
                last = change.job
                if last.is_over:
                    break
        except _Late:
            raise timed_out(last, timeout_s) from None
        return self.job(job)

    def _stream(self, cursor: calls.Cursor, deadline: float | None = None) -> Iterator[Any]:
        patience = Patience(self._stream_patience_s)
        while True:
            method, request = cursor.open(self._stubs)
            stream = method(
                request, timeout=None if deadline is None else max(0.0, deadline - time.monotonic())
            )
            try:
                for message in stream:
                    patience.on_success()
                    item = cursor.accept(message)
                    if item is not None:
                        yield item
                if cursor.ends_by_itself:
                    return
                # It ended, which a stopping scheduler may also bring about: look, and ask once more.
                cursor.ends_by_itself = cursor.gives_all(self.job(cursor.job))
            except grpc.RpcError as failed:
                self._check_late(deadline)
                time.sleep(self._pause_s(patience, error_of(failed)))
            finally:
                stream.cancel()

    def _watch_for(self, job: int, after_seq: int, timeout_s: float | None) -> Iterator[views.Change]:
        deadline = None if timeout_s is None else time.monotonic() + timeout_s
        try:
            yield from self._stream(calls.WatchCursor(job, after_seq), deadline)
        except _Late:
            raise not_yet(job, timeout_s) from None

    def _check_late(self, deadline: float | None) -> None:
        if deadline is not None and time.monotonic() >= deadline:
            raise _Late


class _Late(Exception):
    """The caller's own deadline has passed."""
