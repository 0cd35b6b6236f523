"""Where a job stands in the tree of queues, and what counts of it.

Below each queue, every user whose jobs wait or run there has a leaf: `research/vision/ann`. A queue that is
called like the user is their leaf itself, so that an admin may give it a weight and limits of its own.
"""

from functools import lru_cache

from .job import Job


@lru_cache(maxsize=65_536)
def leaf_of(queue: str, user: str) -> str:
    """`research/vision/ann`; without a user, or in a queue called like the user, the queue itself."""
    name = user.replace("/", "_")
    if not name or queue.rpartition("/")[2] == name:
        return queue
    return f"{queue}/{name}" if queue else name


@lru_cache(maxsize=65_536)
def path_of(leaf: str) -> tuple[str, ...]:
    """The root, then each queue down to the leaf: `("", "research", "research/ann")`."""
    names = leaf.split("/") if leaf else []
    return ("", *("/".join(names[: count + 1]) for count in range(len(names))))


def parent_of(path: str) -> str:
    """The root is above all."""
    return path.rpartition("/")[0]


def leaf_of_job(job: Job) -> str:
    return leaf_of(job.shape.queue, job.user)


def gpu_milli_of(job: Job, count: int) -> int:
    """What `count` of its tasks take."""
    return count * job.demand.per_task.gpus_milli


def cpu_milli_of(job: Job, count: int) -> int:
    return count * job.demand.per_task.cpu_milli
