"""The blocking client's connection, and what submits.

`Client` (sdk.py) adds all other verbs. A command that submits is slower by a fifth of a second where it
imports what they need.
"""

import contextlib
import time
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from types import TracebackType
from typing import Any, Self, TypeVar

from ..proto import channels  # before grpc, which it keeps quiet

# isort: split
import grpc

from ..proto.failures import error_of
from ..spec.errors import PacelineError
from ..spec.ids import JobId
from . import rpc, submit_calls
from .base import Base
from .documents import JobSource, Prepared, prepare, prepared_sweep, sent_jobs
from .packing import Calling, packed
from .patience import Patience
from .stubs import Stubs

T = TypeVar("T")


class Submitter(Base):
    """Submits jobs and sweeps; may be used from several threads. A context manager."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._channel = channels.open_channel(self._target)
        self._stubs = Stubs(self._channel)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the connection; open streams end."""
        self._channel.close()

    def submit(self, job: JobSource, *, overrides: Sequence[str] = (), name: str = "") -> JobId:
        """Submit one job: a file's path, a mapping, or a JobSpec. `overrides` are `inputs.lr=0.1` texts."""
        return self.submit_prepared([prepare(job, overrides=overrides, name=name)])[0]

    def submit_many(self, jobs: Iterable[JobSource]) -> tuple[JobId, ...]:
        """Submit many; all or none of each 1,000. All documents are checked before the first is sent."""
        return self.submit_prepared([prepare(job) for job in jobs])

    def submit_prepared(self, jobs: Sequence[Prepared]) -> tuple[JobId, ...]:
        """Submit what `documents.prepare` has checked."""
        ready = self._drive(packed(jobs, self.settings))
        return tuple(
            job
            for part in submit_calls.batches(sent_jobs(ready))
            for job in self._call(submit_calls.jobs(part, key=rpc.new_key(), user=rpc.user_name()))
        )

    def submit_sweep(
        self, sweep: "JobSource | Prepared", *, overrides: Sequence[str] = (), name: str = ""
    ) -> int:
        """Submit a sweep: a file's path, a mapping, a SweepSpec, or what `prepare` has checked. Its number.
        Raises InvalidDocument."""
        [ready] = self._drive(packed([prepared_sweep(sweep, overrides, name)], self.settings))
        return self._call(submit_calls.sweep(ready.sent, key=rpc.new_key(), user=rpc.user_name()))

    def _call(self, call: rpc.Call[T], patience_s: float | None = None) -> T:
        patience = Patience(self._patience_s if patience_s is None else patience_s)
        while True:
            try:
                return call.decode(call.method(self._stubs)(call.request, timeout=call.try_s))
            except grpc.RpcError as failed:
                time.sleep(self._pause_s(patience, error_of(failed)))

    def _drive(self, calling: Calling[T]) -> T:
        """Make the calls that it yields; it hears of one that fails, too."""
        go_on: Callable[[], rpc.Call[Any]] = partial(calling.send, None)
        with contextlib.closing(calling):
            while True:
                try:
                    call = go_on()
                except StopIteration as done:
                    return done.value  # type: ignore[no-any-return]
                try:
                    go_on = partial(calling.send, self._call(call))
                except PacelineError as error:
                    go_on = partial(calling.throw, error)
