"""How long a job has to end that is told to save first: what its saves have taken, and a margin."""

from typing import Final

from .job import Job
from .settings import SECOND_US

GRACE_MARGIN_US: Final = 5 * SECOND_US
GRACE_MAX_US: Final = 600 * SECOND_US
SAVES_LOOKED_AT: Final = 5


def save_grace_us(job: Job) -> int:
    """What the slowest of its last saves took, as much again for a slower one, and a margin; at least what
    its document says, at most 10 minutes (or what the document says)."""
    own_us = job.shape.policy.grace_us
    took_us = [one.stall_us + one.persist_us for one in job.course.checkpoints[:SAVES_LOOKED_AT]]
    if not any(took_us):
        return own_us
    return max(own_us, min(2 * max(took_us) + GRACE_MARGIN_US, GRACE_MAX_US))
