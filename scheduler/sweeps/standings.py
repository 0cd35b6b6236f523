"""How a sweep stands, from its study and the jobs that work for it."""

import json
from collections.abc import Sequence

from ...spec.sweep import SweepSpec
from ...studies.attributes import WHY
from ..core.job import Job
from .steer import Limits, Standing
from .study import Study, SweepState
from .tally import Tally

CONCURRENT_MAX = 10_000
"""Trials at once of a sweep that names no limit."""


def limits_of(spec: SweepSpec, study: Study) -> Limits:
    """Of a sweep as it stands. The time counts from its submit, or from when it was extended."""
    limits = spec.limits
    since_us = study.extended_us or study.made_us
    return Limits(
        study.trials_max,
        limits.max_concurrent_trials or CONCURRENT_MAX,
        limits.firm_trials,
        limits.max_failed_trials,
        None if limits.timeout is None else since_us + limits.timeout * 1_000_000,
    )


def standing_of(
    spec: SweepSpec, study: Study, tally: Tally, jobs: Sequence[Job], now_us: int, *, exhausted: bool = False
) -> Standing:
    """`jobs`: that run its trials and are not over."""
    firm = [job for job in jobs if job.priority >= spec.effective_priority]
    failed = None if study.first_failed is None else study.trials[study.first_failed]
    return Standing(
        state=study.state or SweepState.CANCELLED,
        ends_as=study.ends_as,
        why=study.why,
        made=len(study.trials),
        waiting=sorted(tally.waiting),
        running=[job.number for job in jobs],
        queued=sum(not job.placed for job in jobs),
        firm=len(firm),
        firm_queued=sum(not job.placed for job in firm),
        complete=tally.complete,
        failed_in_row=study.failed_in_row,
        first_failure="" if failed is None else json.loads(failed.user_attrs.get(WHY, '""')),
        exhausted=exhausted,
        now_us=now_us,
    )
