"""Starts that follow each other go in one message, within its bounds and in order."""

from paceline.proto.generated import agent_pb2
from paceline.proto.limits import STARTS_BYTES_MAX, STARTS_MAX
from paceline.scheduler.services.outbox import Rendered


def start(job: int, size: int = 10) -> agent_pb2.StartTask:
    made = agent_pb2.StartTask(command="x" * size)
    made.task.job = job
    return made


def jobs(message: agent_pb2.ToAgent) -> list[int]:
    return [each.task.job for each in message.start.tasks]


def test_starts_go_together_and_never_overtake_what_is_between_them() -> None:
    rendered = Rendered()
    stop = agent_pb2.ToAgent(stop=agent_pb2.StopTask(why="cancelled"))
    for job in (1, 2):
        rendered.add_start(start(job))
    rendered.add(stop)
    rendered.add_start(start(3))
    first, second, third = rendered.messages
    assert (jobs(first), second, jobs(third)) == ([1, 2], stop, [3])


def test_a_message_of_starts_is_bounded_in_number_and_bytes() -> None:
    rendered = Rendered()
    for job in range(STARTS_MAX + 1):
        rendered.add_start(start(job))
    assert [len(jobs(message)) for message in rendered.messages] == [STARTS_MAX, 1]
    rendered = Rendered()
    for job in range(5):
        rendered.add_start(start(job, STARTS_BYTES_MAX // 2 - 100))
    rendered.add_start(start(5, 2 * STARTS_BYTES_MAX))
    assert [jobs(message) for message in rendered.messages] == [[0, 1], [2, 3], [4], [5]]
    assert all(message.ByteSize() <= STARTS_BYTES_MAX for message in rendered.messages[:-1])
