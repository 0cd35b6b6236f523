"""What can go wrong inside a job. Each says what was wrong, where, what was expected and what to do."""

from ..spec.errors import Conflict, InvalidRequest, PacelineError, Unavailable


class InvalidEnvironment(InvalidRequest):
    """A variable that the launcher sets (RANK, WORLD_SIZE ...) does not hold what it must."""


class InvalidMetric(InvalidRequest):
    """`run.report` was given something that is not a number, or too much of it."""


class UnsavableState(InvalidRequest):
    """`run.save` was given something that could not be read back safely; said at the save, not at the
    restart.
    """


class GangNotReady(Conflict):
    """A checkpoint concerns all ranks, but the process group that joins them does not exist yet."""


class GangLost(Unavailable):
    """A peer was lost, and this rank is not wanted in the next attempt."""


class CheckpointMismatch(Conflict):
    """The checkpoint is good, but it does not fit the objects or the names given to `restore`."""


class RestoreFailed(PacelineError):
    """No checkpoint was good, and starting anew is no answer: the state had been touched and is undefined, or
    the job was to begin from another job's checkpoint.
    """

    code = "restore-failed"
    retryable = True


class StorageFailed(PacelineError):
    """The checkpoint's storage could not take or give what was asked: full, read-only, gone, I/O error."""

    code = "storage"
    retryable = True


class Damaged(StorageFailed):
    """What is there is not what was saved: it could be read, and differs, or a part of it is gone."""

    code = "damaged"
    retryable = False


class NotAccepted(PacelineError):
    """The checkpoint is on disk, but without the agent's word that a restart will use it."""

    code = "not-accepted"
    retryable = True


class Unanswered(NotAccepted):
    """The agent may have taken note of it all the same: it was told, and did not answer."""


class InvalidSampler(InvalidRequest):
    """A sampler was asked for that there cannot be."""


class SamplerMismatch(Conflict):
    """A sampler cannot do what it was asked without skipping samples or giving them twice."""
