"""Following a job: its output on stdout, what happens to it on stderr, until it is over.

A scheduler that goes away is waited for; both streams go on where they stood. Ctrl-C leaves the job
running and says how to come back.
"""

import asyncio
from typing import TYPE_CHECKING

import click

from ...spec.errors import PacelineError
from ...spec.lifecycle import JobState
from .. import views
from . import output as out
from . import stream
from .failures import failure_lines, summary_lines
from .main import EXIT_INTERRUPTED
from .timeline import goodput_line

if TYPE_CHECKING:
    from ..aio import AsyncClient
    from ..settings import Settings

ROUTINE = frozenset({"CheckpointAccepted"})
"""Kinds of events that come again and again while all is well: in the timeline, not between the output."""

STILL_QUEUED_S = 1.0
"""After this long in the queue, a person asks why."""


def follow(settings: "Settings", job: int, *, attempt: int = 0, rank: int = -1, offset: int = 0) -> views.Job:
    """Follow a job to its end; the job as it ended. On Ctrl-C says how to come back, and exits."""
    try:
        return asyncio.run(_Follower(settings, job, attempt, rank, offset).run())
    except KeyboardInterrupt:
        out.show(
            f"\njob {job} goes on. Come back: `pace logs -f {job}`; end it: `pace cancel {job}`", err=True
        )
        raise click.exceptions.Exit(EXIT_INTERRUPTED) from None


def exit_code_of(job: views.Job) -> int:
    """What `submit --follow` returns: the job's own code, 128 + N for signal N, 1 where it has none."""
    if job.state is JobState.SUCCEEDED:
        return 0
    code = job.exit_code or 1
    return 128 - code if code < 0 else min(code, 255)


class _Follower:
    def __init__(self, settings: "Settings", job: int, attempt: int, rank: int, offset: int) -> None:
        self._settings = settings
        self._job = job
        self._attempt = attempt
        self._rank = rank
        self._offset = offset
        self._away = False
        self._state: JobState | None = None

    async def run(self) -> views.Job:
        from ..aio import AsyncClient

        async with AsyncClient(config=self._settings, on_away=self._on_away) as client:
            job = await client.job(self._job)
            self._state = job.state
            watching = asyncio.create_task(self._watch(client))
            asking = asyncio.create_task(self._ask_why(client))
            try:
                await self._print_logs(client, job)
                await watching
            finally:
                for task in (watching, asking):
                    task.cancel()
                await asyncio.gather(watching, asking, return_exceptions=True)
            job = await client.job(self._job)
            await self._tell_end(client, job)
            return job

    async def _print_logs(self, client: "AsyncClient", job: views.Job) -> None:
        writer = stream.writer_for(job, self._rank)
        try:
            async for chunk in client.logs(
                self._job, attempt=self._attempt, rank=self._rank, offset=self._offset, follow=True
            ):
                self._on_back()
                writer.write(chunk)
        finally:
            writer.finish()

    async def _watch(self, client: "AsyncClient") -> None:
        async for change in client.watch(self._job):
            self._on_back()
            self._state = change.job.state
            if change.entry.kind not in ROUTINE:
                out.hint(f"-- {out.clean(change.entry.text)}", indent=3)

    async def _ask_why(self, client: "AsyncClient") -> None:
        await asyncio.sleep(STILL_QUEUED_S)
        if self._state is not JobState.QUEUED:
            return
        found = await client.why(self._job)
        if found.reasons and not found.job.is_over:
            when = "never, as the cluster stands" if found.never else "not now"
            out.hint(f"-- waits ({when}): {out.clean(found.reasons[0].text)}", indent=3)
            if found.reasons[0].hint:
                out.hint(f"   {out.clean(found.reasons[0].hint)}", indent=3)

    async def _tell_end(self, client: "AsyncClient", job: views.Job) -> None:
        style = out.STATE_STYLES.get(job.state, "")
        took = out.human_time((job.finished_us or out.now_us()) - job.submitted_us)
        reason = (
            f": {out.clean(job.reason.text)}" if job.reason and job.state is not JobState.SUCCEEDED else ""
        )
        out.show(f"job {job.job} {job.state} after {took}{reason}", style=style, err=True)
        if job.failure is not None:
            self._tell_failure(job)
        out.hint(goodput_line((await client.timeline(self._job)).ledger), indent=2)
        if job.state is JobState.FAILED:
            out.hint(f"next: `pace why {job.job}`, `pace timeline {job.job}`, `pace show {job.job}`")

    def _tell_failure(self, job: views.Job) -> None:
        """The output of a job with one rank is on the screen already."""
        assert job.failure is not None
        for text, style in failure_lines(job) if job.world_size > 1 else summary_lines(job, job.failure):
            out.show(text, style=style, err=True)

    def _on_away(self, error: PacelineError, wait_s: float) -> None:
        if not self._away:
            self._away = True
            click.echo(f"-- {out.clean(error.message)}; the job goes on, trying again ...", err=True)

    def _on_back(self) -> None:
        if self._away:
            self._away = False
            out.hint("-- the scheduler is back")
