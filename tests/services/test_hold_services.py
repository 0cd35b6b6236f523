"""A job's place in line over the real wire: held, released, given another priority."""

from pathlib import Path
from typing import Any

import pytest
from paceline.proto.failures import translated
from paceline.proto.generated import jobs_pb2
from paceline.spec.errors import Conflict, InvalidRequest, NotFound, PacelineError
from support.wire import Wire, wire


async def ask(wired: Wire, verb: str, **request: Any) -> jobs_pb2.JobView:
    kinds = {
        "Hold": jobs_pb2.HoldRequest,
        "Release": jobs_pb2.ReleaseRequest,
        "SetPriority": jobs_pb2.SetPriorityRequest,
    }
    view: jobs_pb2.JobView = await getattr(wired.jobs, verb)(kinds[verb](**request))
    return view


async def test_a_held_job_waits_over_a_restart_until_it_is_released(tmp_path: Path) -> None:
    async with wire(tmp_path) as wired:
        [job] = await wired.submit()
        for _ in range(2):
            view = await ask(wired, "Hold", job=job, why="not yet", user="ann")
            assert view.reason.text.startswith("held by ann for ") and view.reason.text.endswith(": not yet")
        assert (await ask(wired, "SetPriority", job=job, priority=-7)).priority == -7
    async with wire(tmp_path) as wired, wired.agent() as agent:
        [other] = await wired.submit()
        await agent.end(await agent.run(other))
        assert (await wired.get(job)).reason.code == "held"
        assert (await wired.get(job)).priority == -7
        await ask(wired, "Release", job=job, user="bob")
        await agent.end(await agent.run(job))
        await wired.wait_state(job, "SUCCEEDED")
        with pytest.raises(Conflict, match=f"job {job} is over: SUCCEEDED"), translated():
            await ask(wired, "Hold", job=job)


@pytest.mark.parametrize(
    ("verb", "request_", "error"),
    [
        ("Hold", {"job": 99}, NotFound),
        ("Hold", {"job": 0}, InvalidRequest),
        ("Hold", {"job": 1, "why": "x" * 501}, InvalidRequest),
        ("Hold", {"job": 1, "user": "a\nb"}, InvalidRequest),
        ("Release", {"job": 99}, NotFound),
        ("SetPriority", {"job": 1, "priority": 1001}, InvalidRequest),
    ],
)
async def test_what_cannot_be_is_refused(
    tmp_path: Path, verb: str, request_: dict[str, Any], error: type[PacelineError]
) -> None:
    async with wire(tmp_path) as wired:
        await wired.submit()
        with pytest.raises(error), translated():
            await ask(wired, verb, **request_)
