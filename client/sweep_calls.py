"""The verbs on sweeps: each request once, and how its reply becomes a view; see calls.py."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from ..proto.generated import common_pb2, sweeps_pb2
from ..spec.ids import JobId, Micros
from .calls import PAGE
from .rpc import Call
from .sweep_views import Fork, Objective, Sweep, Trial

Verb = sweeps_pb2.ChangeSweepRequest.Verb


def sweep(number: int) -> Call[Sweep]:
    return Call(lambda stubs: stubs.sweeps.Get, sweeps_pb2.GetSweepRequest(sweep=number), to_sweep)


def page(*, limit: int, cursor: str) -> Call[tuple[tuple[Sweep, ...], str]]:
    request = sweeps_pb2.ListSweepsRequest(page=common_pb2.Page(limit=min(limit, PAGE), cursor=cursor))
    return Call(
        lambda stubs: stubs.sweeps.List,
        request,
        lambda reply: (tuple(map(to_sweep, reply.sweeps)), reply.next_cursor),
    )


def trials(number: int, first: int, limit: int = 0) -> Call[tuple[Trial, ...]]:
    """Up to `limit` from that one on; 0: 1,000."""
    request = sweeps_pb2.ListTrialsRequest(sweep=number, first=first, limit=limit)
    return Call(lambda stubs: stubs.sweeps.Trials, request, lambda reply: tuple(map(to_trial, reply.trials)))


def change(number: int, verb: "Verb.ValueType", *, user: str, trials: int = 0) -> Call[Sweep]:
    request = sweeps_pb2.ChangeSweepRequest(sweep=number, verb=verb, trials=trials, user=user)
    return Call(lambda stubs: stubs.sweeps.Change, request, to_sweep)


def enqueue(number: int, points: Sequence[Mapping[str, Any]], *, key: str) -> Call[tuple[int, ...]]:
    texts = [json.dumps(dict(point)) for point in points]
    request = sweeps_pb2.EnqueueRequest(sweep=number, key=key, points=texts)
    return Call(lambda stubs: stubs.sweeps.Enqueue, request, lambda reply: tuple(reply.trials))


class SweepCursor:
    """A sweep as it stands, again whenever it has changed; a stream that broke is opened anew."""

    ends_by_itself = True

    def __init__(self, number: int) -> None:
        self.job = 0
        self._sweep = number

    def open(self, stubs: Any) -> tuple[Any, Any]:
        return stubs.sweeps.Watch, sweeps_pb2.GetSweepRequest(sweep=self._sweep)

    def accept(self, message: sweeps_pb2.SweepView) -> Sweep:
        return to_sweep(message)

    def gives_all(self, job: Any) -> bool:
        return True


def to_sweep(view: sweeps_pb2.SweepView) -> Sweep:
    return Sweep(
        view.sweep,
        view.name,
        view.user,
        view.state,
        view.why,
        Micros(view.submitted_us),
        Micros(view.ended_us) if view.ended_us else None,
        tuple(Objective(one.metric, one.goal) for one in view.objectives),
        view.trials_max,
        view.concurrent_max,
        view.waiting,
        view.queued,
        view.running,
        view.complete,
        view.pruned,
        view.failed,
        tuple(map(to_trial, view.best)),
        view.first_failure,
        view.sampler,
        view.early_termination,
        view.document,
        view.earlier,
        view.warm_start,
    )


def to_trial(view: sweeps_pb2.SweepTrial) -> Trial:
    return Trial(
        view.number,
        view.state,
        JobId(view.job) if view.job else None,
        view.job_state,
        json.loads(view.params),
        tuple(view.values),
        json.loads(view.told),
        Micros(view.started_us) if view.started_us else None,
        Micros(view.ended_us) if view.ended_us else None,
        view.why,
        None if view.step < 0 else view.step,
        view.feasible,
        Fork(view.fork.member, view.fork.generation, view.fork.trial, view.fork.step)
        if view.HasField("fork")
        else None,
    )
