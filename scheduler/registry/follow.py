"""What the news of jobs mean for the registry: what they were made of, and which outputs are due."""

from collections.abc import Iterable

from ...spec.ids import JobId
from ...spec.lifecycle import JobState
from ..core.job import Job
from ..core.state import Touched
from ..core.stimuli import NewJob
from .assets import Edge, Outputs, job_ref
from .registry import Registry


def submitted(registry: Registry, job: JobId, new: NewJob, more: Iterable[tuple[str, str]] = ()) -> None:
    """In the step that accepts it; `more`: whose child it is."""
    registry.connect(Edge(source, job_ref(job), relation) for source, relation in (*new.uses, *more))
    if new.registers:
        registry.put_outputs(Outputs(job))


def follow(registry: Registry, touched: Touched) -> bool:
    """True: outputs are due now."""
    if not isinstance(touched, Job) or not touched.over:
        return False
    waiting = registry.outputs.get(touched.number)
    if waiting is None or waiting.due or waiting.refused:
        return False
    if touched.state is JobState.SUCCEEDED:
        registry.put_outputs(Outputs(touched.number, due=True))
        return True
    registry.drop_outputs(touched.number)
    return False
