"""What the agent adds to entries of a task's journal while it sends them: its shim cannot know it."""

from collections.abc import Callable, Collection

from ..proto.generated import agent_pb2
from ..spec.slices import gpus_of
from ..spec.xids import SYMPATHETIC
from .gpu import Alarm
from .task import Task

Alarms = Callable[[Collection[int], float, float], list[Alarm]]
"""What was heard of GPUs between two times of time.monotonic()."""


def add_record(task: Task, started: agent_pb2.TaskStarted) -> bool:
    """What it runs with, where the journal does not say. False: it is not known yet."""
    if started.record or not task.request.content_folder:
        return True
    if task.recording is None:
        started.unrecorded = "its agent was restarted before that was known"
    elif not task.recording.done():
        return False
    else:
        started.record, started.unrecorded = task.recording.result()
    return True


def explain(task: Task, entry: agent_pb2.JournalEntry, alarms: Alarms) -> None:
    """Say which XID a rank may have ended of: of those that explain something, the first."""
    begin_s = task.journal.entries(0, 1)[0].at_monotonic_s
    heard = alarms(gpus_of(task.request.gpu_indices), begin_s, entry.at_monotonic_s)
    if told := next((alarm for alarm in heard if alarm.xid and alarm.xid not in SYMPATHETIC), None):
        entry.exited.xid, entry.exited.xid_gpu = told.xid, told.index
