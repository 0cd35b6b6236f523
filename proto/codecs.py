"""spec <-> messages. What comes in is checked here; a message that makes no sense raises InvalidRequest."""

from ..spec import ids, resources
from ..spec.errors import InvalidRequest
from .generated import common_pb2
from .limits import PAGE_DEFAULT, PAGE_MAX

_INT64_MAX = (1 << 63) - 1


def resources_message(amount: resources.Resources) -> common_pb2.Resources:
    return common_pb2.Resources(
        cpu_milli=amount.cpu_milli,
        memory_bytes=amount.memory_bytes,
        gpus=amount.gpus,
        gpu_milli=amount.gpu_milli,
    )


def resources_of(message: common_pb2.Resources) -> resources.Resources:
    if min(message.cpu_milli, message.memory_bytes, message.gpus, message.gpu_milli) < 0:
        raise InvalidRequest(f"an amount of resources cannot be negative: {message}".strip())
    return resources.Resources(message.cpu_milli, message.memory_bytes, message.gpus, message.gpu_milli)


def task_key_message(task: ids.TaskKey) -> common_pb2.TaskKey:
    return common_pb2.TaskKey(job=task.job, attempt=task.attempt, task=task.task)


def task_key_of(message: common_pb2.TaskKey) -> ids.TaskKey:
    if message.job < 1 or message.attempt < 1 or message.task < 0:
        raise InvalidRequest(f"{message.job}.{message.attempt}.{message.task} names no task")
    return ids.TaskKey(ids.JobId(message.job), ids.Attempt(message.attempt), message.task)


def job_id_of(number: int) -> ids.JobId:
    if number < 1:
        raise InvalidRequest(f"{number} is no job number", hint="job numbers start at 1: see `pace jobs`")
    return ids.JobId(number)


def page_of(message: common_pb2.Page) -> tuple[int, int | None]:
    """Limit, and the job number that the page ends before (None: from the newest)."""
    if not 0 <= message.limit <= PAGE_MAX:
        raise InvalidRequest(f"page.limit is {message.limit}; expected 0 to {PAGE_MAX}")
    if not message.cursor:
        return message.limit or PAGE_DEFAULT, None
    if not message.cursor.isascii() or not message.cursor.isdigit() or int(message.cursor[:20]) > _INT64_MAX:
        raise InvalidRequest(f"page.cursor {message.cursor[:40]!r} did not come from a previous reply")
    return message.limit or PAGE_DEFAULT, int(message.cursor)
