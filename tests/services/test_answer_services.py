"""What has been and what would be, over the real wire on a real store."""

from pathlib import Path
from typing import Any

import pytest
from paceline.proto.failures import translated
from paceline.proto.generated import answers_pb2
from paceline.spec.errors import InvalidRequest
from support.wire import Wire, wire


async def usage(wired: Wire, by: str, since_us: int = 0) -> answers_pb2.UsageReply:
    last = answers_pb2.UsageReply()
    async for reply in wired.answers.Usage(answers_pb2.UsageRequest(by=by, since_us=since_us)):
        last = reply
    return last


async def test_usage_is_summed_over_running_and_finished_jobs(tmp_path: Path) -> None:
    async with wire(tmp_path) as wired, wired.agent(cpus=8) as agent:
        [first] = await wired.submit(experiment_name="vision", resources={"cpus": 2})
        await agent.end(await agent.run(first))
        [second] = await wired.submit(experiment_name="vision", resources={"cpus": 1})
        [third] = await wired.submit(resources={"cpus": 1})
        await agent.run(second)
        await agent.run(third)
        [waits] = await wired.submit(resources={"cpus": 100})
        reply = await usage(wired, "project")
        assert (reply.jobs, reply.jobs_read) == (waits, waits)
        assert [(row.name, row.jobs) for row in sorted(reply.rows, key=lambda row: row.name)] == [
            ("", 1),
            ("vision", 2),
        ]
        vision = next(row for row in reply.rows if row.name)
        assert vision.allocated_cpu_s > 0 and vision.allocated_gpu_s == 0
        [row] = (await usage(wired, "user")).rows
        assert (row.name, row.jobs) == ("tester", 3)
        [row] = (await usage(wired, "queue")).rows
        assert row.jobs == 3
        assert row.allocated_cpu_s >= sum(each.allocated_cpu_s for each in reply.rows)
        assert not (await usage(wired, "user", since_us=reply.until_us + 3_600_000_000)).rows


@pytest.mark.parametrize(
    ("bad", "word"), [({"by": "cat"}, "user, queue, project"), ({"since_us": -1}, "since")]
)
async def test_a_usage_that_makes_no_sense_is_refused(tmp_path: Path, bad: Any, word: str) -> None:
    async with wire(tmp_path) as wired:
        with pytest.raises(InvalidRequest, match=word), translated():
            await usage(wired, **{"by": "user", **bad})
