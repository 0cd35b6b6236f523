"""What has been and what would be, over the real wire on a real store."""

import json
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest
from paceline.proto.failures import translated
from paceline.proto.generated import answers_pb2, jobs_pb2, policy_pb2
from paceline.scheduler.core.settings import Order, Settings
from paceline.spec.cluster_policy import PolicySpec, UserAmount
from paceline.spec.errors import InvalidRequest, LimitExceeded, NotFound, Unavailable
from support.wire import Wire, until, wire

QUIET = Settings(heartbeat_us=60_000_000)
"""Nodes that say nothing for as long as a test may take are still there."""


async def usage(wired: Wire, by: str, since_us: int = 0) -> answers_pb2.UsageReply:
    last = answers_pb2.UsageReply()
    async for reply in wired.answers.Usage(answers_pb2.UsageRequest(by=by, since_us=since_us)):
        last = reply
    return last


async def test_usage_is_summed_over_running_and_finished_jobs(tmp_path: Path) -> None:
    async with wire(tmp_path, settings=QUIET) as wired, wired.agent(cpus=8) as agent:
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
        assert (row.name, row.jobs) == ("", 3)
        assert row.allocated_cpu_s >= sum(each.allocated_cpu_s for each in reply.rows)
        assert not (await usage(wired, "user", since_us=reply.until_us + 3_600_000_000)).rows


@pytest.mark.parametrize(
    ("bad", "word"), [({"by": "cat"}, "user, queue, project"), ({"since_us": -1}, "since")]
)
async def test_a_usage_that_makes_no_sense_is_refused(tmp_path: Path, bad: Any, word: str) -> None:
    async with wire(tmp_path, settings=QUIET) as wired:
        with pytest.raises(InvalidRequest, match=word), translated():
            await usage(wired, **{"by": "user", **bad})


def job_document(**spec: object) -> jobs_pb2.JobDocument:
    text = json.dumps({"type": "command", "command": "true", "code": "/tmp", **spec})
    return jobs_pb2.JobDocument(document=text, source="job.yaml")


async def why(wired: Wire, job: int, patience_s: float = 30) -> dict[str, Any]:
    request = jobs_pb2.GetJobRequest(job=job, patience_s=patience_s)
    reply = await wired.jobs.Why(request)
    return {reason.code: reason for reason in reply.reasons}


async def test_why_says_when_a_job_is_expected_to_start_and_who_is_before_it(tmp_path: Path) -> None:
    async with wire(tmp_path, settings=QUIET) as wired, wired.agent() as agent:
        for _ in range(4):
            [job] = await wired.submit(name="short", resources={"cpus": 4})
            await agent.end(await agent.run(job))
        [running] = await wired.submit(name="short", resources={"cpus": 4}, priority=9)
        await agent.run(running)
        await wired.wait_state(running, "RUNNING")
        [last] = await wired.submit(resources={"cpus": 4})
        [urgent] = await wired.submit(resources={"cpus": 4}, priority=7)
        [never] = await wired.submit(resources={"cpus": 5})
        expected = await until_expected(wired, last)
        reason = expected["expected"]
        assert reason.text.startswith("expected to start ")
        assert int(reason.fields["early_us"]) <= int(reason.fields["start_us"])
        assert reason.fields["after"] == str(urgent)
        assert f"job {urgent} makes room then, " in reason.text
        assert (
            expected["before"].text
            == f"1 job that waits starts before it: job {urgent} (priority 7, this one has 0)"
        )
        assert (await why(wired, urgent))["expected"].fields["after"] == str(running)
        assert "expected" not in await why(wired, never)
        end = (await why(wired, running))["expected-end"]
        assert end.text.startswith("expected to end in ") and int(end.fields["end_us"]) > 0


async def until_expected(wired: Wire, job: int) -> dict[str, Any]:
    """Once the standing forecast knows the job."""

    async def there() -> dict[str, Any] | None:
        found = await why(wired, job)
        return found if "expected" in found and "before" in found else None

    return await until(f"job {job} is in the forecast", there)  # type: ignore[no-any-return]


async def test_a_plan_says_where_and_when_and_keeps_nothing(tmp_path: Path) -> None:
    async with wire(tmp_path, settings=QUIET) as wired, wired.agent() as agent:
        [running] = await wired.submit(resources={"cpus": 3})
        await agent.run(running)
        documents = [
            job_document(name="fits", resources={"cpus": 1}),
            job_document(name="waits", resources={"cpus": 4}),
            job_document(name="never", resources={"cpus": 9}),
        ]
        reply = await wired.answers.Plan(answers_pb2.PlanRequest(jobs=documents, user="ann"))
        fits, waits, never = reply.jobs
        assert (fits.name, [task.node for task in fits.tasks]) == ("fits", ["n1-name"])
        assert fits.reasons[0].text == "expected to start now"
        assert fits.start.at_us and fits.start.started == fits.start.draws > 0
        assert waits.start.at_us > fits.start.at_us
        assert [reason.code for reason in waits.reasons][:2] == ["expected", "not-now"]
        assert never.never and not never.HasField("start")
        assert [reason.code for reason in never.reasons] == ["not-expected", "never"]
        listed = await wired.jobs.List(jobs_pb2.ListJobsRequest())
        assert [job.job for job in listed.jobs] == [running]
        assert await wired.submit() == [running + 1], "no number was used up"


async def test_a_simulation_shows_what_a_change_does(tmp_path: Path) -> None:
    calm = replace(QUIET, order=Order(preemption=False))
    async with wire(tmp_path, settings=calm) as wired, wired.agent("n1"), wired.agent("n2"):
        await wired.submit(6, resources={"cpus": 4})
        request = answers_pb2.SimulateRequest(remove=["n2-name"], add=[job_document()], seed=3)
        reply = await wired.answers.Simulate(request)
        assert (reply.as_is.jobs, reply.changed.jobs) == (6, 7)
        assert (reply.as_is.ended, reply.changed.ended) == (6, 7)
        assert reply.changed.wait_mean_s > reply.as_is.wait_mean_s > 0
        assert reply.changed.points[0].queued > reply.as_is.points[0].queued
        assert (reply.as_is.stops, reply.changed.stops) == (0, 1)
        again = await wired.answers.Simulate(answers_pb2.SimulateRequest())
        assert again.as_is.jobs == 6 and not again.HasField("changed")


async def test_a_simulation_of_another_policy(tmp_path: Path) -> None:
    calm = replace(QUIET, order=Order(preemption=False))
    async with wire(tmp_path, settings=calm) as wired, wired.agent():
        await wired.submit(3, resources={"cpus": 2})
        one_each = PolicySpec(max_per_user=UserAmount(jobs=1)).to_json()
        reply = await wired.answers.Simulate(answers_pb2.SimulateRequest(policy=one_each))
        assert (reply.as_is.ended, reply.changed.ended) == (3, 3)
        assert reply.changed.wait_mean_s > reply.as_is.wait_mean_s
        in_force = await wired.policy.Get(policy_pb2.GetPolicyRequest())
        assert in_force.changed_us == 0, "nothing was applied"


async def test_a_plan_says_what_the_job_does_to_limits_and_guarantees(tmp_path: Path) -> None:
    policy = PolicySpec.model_validate(
        {
            "queues": {
                "research": {"guaranteed": {"cpus": 2}, "queues": {"vision": {"max": {"cpus": 3, "gpus": 1}}}}
            },
            "default_queue": "research/vision",
            "max_per_user": {"jobs": 5},
        }
    )
    async with wire(tmp_path, settings=QUIET) as wired, wired.agent() as agent:
        apply = policy_pb2.ApplyPolicyRequest(key="k", document=policy.to_json(), by="eve")
        await wired.policy.Apply(apply)
        [running] = await wired.submit(resources={"cpus": 1})
        await agent.run(running)
        plan = answers_pb2.PlanRequest(jobs=[job_document(resources={"cpus": 2.5})], user="tester")
        [job] = (await wired.answers.Plan(plan)).jobs
        assert [str(one).split() for one in job.quota] == [
            str(answers_pb2.PlannedQuota(**one)).split()
            for one in (
                {"user": "tester", "what": "jobs", "in_use": 1, "with_job": 2, "at_most": 5},
                {"queue": "research", "what": "cpus", "in_use": 1, "with_job": 3.5, "guaranteed": 2},
                {"queue": "research/vision", "what": "cpus", "in_use": 1, "with_job": 3.5, "at_most": 3},
            )
        ], "no GPUs are asked for"
        assert "limit" in [reason.code for reason in job.reasons]


@pytest.mark.parametrize(
    ("call", "request_", "word"),
    [
        ("Plan", answers_pb2.PlanRequest(), "0 jobs"),
        ("Plan", answers_pb2.PlanRequest(jobs=[job_document()] * 101), "101 jobs"),
        ("Plan", answers_pb2.PlanRequest(jobs=[job_document(comand="x")]), "comand"),
        ("Plan", answers_pb2.PlanRequest(jobs=[job_document()], user="a\nb"), "user"),
        ("Simulate", answers_pb2.SimulateRequest(until_s=1e9), "until_s"),
        ("Simulate", answers_pb2.SimulateRequest(remove=[""]), "name"),
        ("Simulate", answers_pb2.SimulateRequest(remove=["n"] * 1001), "1001"),
        ("Simulate", answers_pb2.SimulateRequest(policy='{"queue":{}}', policy_source="p.yaml"), "p.yaml"),
        ("Simulate", answers_pb2.SimulateRequest(policy='{"default_queue":"a"}'), "default_queue"),
    ],
)
async def test_what_makes_no_sense_is_refused(tmp_path: Path, call: str, request_: Any, word: str) -> None:
    async with wire(tmp_path, settings=QUIET) as wired:
        with pytest.raises(InvalidRequest, match=word), translated():
            await getattr(wired.answers, call)(request_)


async def test_a_node_that_is_not_there_cannot_be_taken_away(tmp_path: Path) -> None:
    async with wire(tmp_path, settings=QUIET) as wired, wired.agent():
        with pytest.raises(NotFound, match="there is no node n9"), translated():
            await wired.answers.Simulate(answers_pb2.SimulateRequest(remove=["n9"]))


async def test_a_forecaster_that_was_killed_is_started_anew(tmp_path: Path) -> None:
    async with wire(tmp_path, settings=QUIET) as wired, wired.agent():
        plan = answers_pb2.PlanRequest(jobs=[job_document()])
        await wired.answers.Plan(plan)
        mine = psutil.Process()
        [worker] = [
            each for each in mine.children() if "paceline.scheduler.forecast_worker" in each.cmdline()
        ]
        worker.kill()
        reply = await until("it answers again", lambda: _planned(wired, plan))
        assert reply.jobs[0].HasField("start")


async def _planned(wired: Wire, plan: answers_pb2.PlanRequest) -> answers_pb2.PlanReply | None:
    with suppress(Unavailable), translated():
        reply: answers_pb2.PlanReply = await wired.answers.Plan(plan)
        return reply
    return None


async def test_a_decision_is_taken_again_from_the_store(tmp_path: Path) -> None:
    async with wire(tmp_path, settings=QUIET) as wired, wired.agent() as agent:
        [job] = await wired.submit(resources={"cpus": 2})
        await agent.run(job)
        timeline = await wired.jobs.Timeline(jobs_pb2.GetJobRequest(job=job))
        [placed] = [entry.seq for entry in timeline.entries if entry.kind == "AttemptStarted"]
        reply = await wired.answers.Decision(answers_pb2.DecisionRequest(seq=placed))
        assert reply.again and (reply.job, reply.nodes_fit, reply.nodes_in_service) == (job, 1, 1)
        assert [(node.node, node.chosen) for node in reply.nodes] == [("n1-name", 1)]
        assert reply.text == next(entry.text for entry in timeline.entries if entry.seq == placed)
        for seq, error, word in ((0, InvalidRequest, "seq"), (1, InvalidRequest, "no decision")):
            with pytest.raises(error, match=word), translated():
                await wired.answers.Decision(answers_pb2.DecisionRequest(seq=seq))
        with pytest.raises(NotFound, match="no event 99999"), translated():
            await wired.answers.Decision(answers_pb2.DecisionRequest(seq=99_999))
        with pytest.raises(LimitExceeded), translated():
            await wired.answers.Decision(answers_pb2.DecisionRequest(seq=10**9))
