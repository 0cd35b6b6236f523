"""Studies over the real wire: what is refused at the door, what is told, and what comes again."""

import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from paceline.proto.failures import translated
from paceline.proto.generated import common_pb2, studies_pb2
from paceline.spec.errors import Conflict, InvalidRequest, LimitExceeded, NotFound, PacelineError
from support.wire import Wire, wire

FLOAT = json.dumps({"name": "FloatDistribution", "attributes": {"low": 0.0, "high": 1.0}})
CREATE = {"key": "k", "name": "s", "directions": ["minimize"], "user": "ann"}


@pytest.fixture
async def wired(tmp_path: Path) -> AsyncIterator[Wire]:
    async with wire(tmp_path) as wired:
        yield wired


async def create(wired: Wire, **changes: Any) -> studies_pb2.StudyView:
    with translated():
        view: studies_pb2.StudyView = await wired.studies.Create(
            studies_pb2.CreateStudyRequest(**{**CREATE, **changes})
        )
    return view


async def write(wired: Wire, study: int, *ops: studies_pb2.StudyOp) -> list[studies_pb2.OpReply]:
    with translated():
        reply = await wired.studies.Write(studies_pb2.WriteStudyRequest(study=study, ops=ops))
    return list(reply.replies)


async def read(wired: Wire, study: int, since: int = 0) -> studies_pb2.ReadStudyReply:
    with translated():
        reply: studies_pb2.ReadStudyReply = await wired.studies.Read(
            studies_pb2.ReadStudyRequest(study=study, since=since)
        )
    return reply


def new(key: str = "t", state: str = "RUNNING", **more: Any) -> studies_pb2.StudyOp:
    trial = studies_pb2.NewTrial(state=studies_pb2.TrialState.Value(state), **more)
    return studies_pb2.StudyOp(create_trial=studies_pb2.CreateTrial(key=key, trial=trial))


def state(trial: int, name: str, claim: str = "c", values: list[float] | None = None) -> studies_pb2.StudyOp:
    objectives = None if values is None else studies_pb2.Objectives(values=values)
    return studies_pb2.StudyOp(
        state=studies_pb2.SetTrialState(
            trial=trial, state=studies_pb2.TrialState.Value(name), values=objectives, claim=claim
        )
    )


def param(name: str = "x", distribution: str = FLOAT) -> studies_pb2.StudyOp:
    given = studies_pb2.Param(name=name, value=0.5, distribution=distribution)
    return studies_pb2.StudyOp(param=studies_pb2.SetTrialParam(trial=0, param=given))


def attr(key: str = "a", value: str = "1") -> studies_pb2.StudyOp:
    given = studies_pb2.Attr(key=key, value=value)
    return studies_pb2.StudyOp(trial_attr=studies_pb2.SetTrialAttr(trial=0, attr=given))


def attrs(count: int, value: str) -> list[studies_pb2.Attr]:
    return [studies_pb2.Attr(key=f"k{at}", value=value) for at in range(count)]


def report(step: int, value: float = 0.5) -> studies_pb2.StudyOp:
    return studies_pb2.StudyOp(intermediate=studies_pb2.SetIntermediate(trial=0, step=step, value=value))


async def test_what_is_written_is_read(wired: Wire) -> None:
    view = await create(wired, directions=["minimize", "maximize"])
    assert (view.study, view.name, list(view.directions), view.user) == (
        1,
        "s",
        ["minimize", "maximize"],
        "ann",
    )
    [made] = await write(wired, 1, new(params=[param().param.param], started_us=7))
    assert (made.trial, made.started_us) == (0, 7)
    assert await write(wired, 1, new(params=[param().param.param], started_us=7)) == [made]
    done = await write(wired, 1, report(3), attr(), state(0, "COMPLETE", values=[1.0, 2.0]))
    assert [one.changed for one in done] == [False, False, True]
    assert await write(wired, 1, report(3), attr(), state(0, "COMPLETE", values=[1.0, 2.0])) == done
    told = await read(wired, 1)
    [trial] = told.trials
    assert (trial.record.state, list(trial.record.values)) == (studies_pb2.COMPLETE, [1.0, 2.0])
    assert (list(trial.steps), list(trial.intermediate)) == ([3], [0.5])
    assert told.distributions[trial.record.params[0].distribution] == FLOAT
    assert told.study.name == "s" and not told.more and not told.anew
    again = await read(wired, 1, told.version)
    assert (list(again.trials), again.HasField("study"), again.version) == ([], False, told.version)


async def test_a_write_tells_what_has_changed_since(wired: Wire) -> None:
    await create(wired)
    await write(wired, 1, new("a"), new("b"))
    told = await read(wired, 1)
    await write(wired, 1, report(1))
    request = studies_pb2.WriteStudyRequest(study=1, ops=[state(1, "FAIL")], since=told.version)
    reply = await wired.studies.Write(request)
    assert reply.replies[0].changed
    assert [(one.trial, one.HasField("record")) for one in reply.changes.trials] == [(0, False), (1, True)]
    assert (await read(wired, 1, reply.changes.version)).ByteSize() < 10
    assert not (await wired.studies.Write(studies_pb2.WriteStudyRequest(study=1, ops=[attr()]))).HasField(
        "changes"
    )


async def test_a_running_trial_tells_only_its_new_values(wired: Wire) -> None:
    await create(wired)
    await write(wired, 1, new())
    await write(wired, 1, attr("large", json.dumps("x" * 10_000)), report(1))
    told = await read(wired, 1)
    await write(wired, 1, report(2), report(1, 0.25))
    later = await read(wired, 1, told.version)
    [trial] = later.trials
    assert not trial.HasField("record")
    assert dict(zip(trial.steps, trial.intermediate, strict=True)) == {1: 0.25, 2: 0.5}
    assert later.ByteSize() < 100


async def test_who_has_seen_a_later_state_begins_anew(wired: Wire) -> None:
    await create(wired)
    await write(wired, 1, new())
    told = await read(wired, 1, 1_000)
    assert told.anew and len(told.trials) == 1 and told.HasField("study")


async def test_pages(wired: Wire) -> None:
    await create(wired)
    await write(wired, 1, *(new(f"k{at}") for at in range(1_000)))
    await write(wired, 1, *(new(f"l{at}") for at in range(100)))
    seen: list[int] = []
    since, more = 0, True
    while more:
        told = await read(wired, 1, since)
        seen += [trial.trial for trial in told.trials]
        since, more = told.version, told.more
        assert len(told.trials) <= 200
    assert seen == list(range(1_100))
    for at in range(5):
        await create(wired, key=f"k{at}", name=f"n{at}")
    names, cursor = [], ""
    while True:
        page = common_pb2.Page(limit=4, cursor=cursor)
        listed = await wired.studies.List(studies_pb2.ListStudiesRequest(page=page))
        names += [one.name for one in listed.studies]
        cursor = listed.next_cursor
        if not cursor:
            break
    assert names == ["s", "n0", "n1", "n2", "n3", "n4"]


async def test_studies_are_found_and_deleted(wired: Wire) -> None:
    made = await create(wired)
    assert await wired.studies.Find(studies_pb2.FindStudyRequest(name="s")) == made
    assert await wired.studies.Find(studies_pb2.FindStudyRequest(study=1)) == made
    assert await create(wired) == made
    with pytest.raises(Conflict, match="named 's' already"):
        await create(wired, key="other")
    await wired.studies.Delete(studies_pb2.DeleteStudyRequest(study=1))
    for call in (
        lambda: wired.studies.Find(studies_pb2.FindStudyRequest(name="s")),
        lambda: wired.studies.Find(studies_pb2.FindStudyRequest(study=1)),
        lambda: wired.studies.Delete(studies_pb2.DeleteStudyRequest(study=1)),
        lambda: wired.studies.Read(studies_pb2.ReadStudyRequest(study=1)),
        lambda: wired.studies.Write(studies_pb2.WriteStudyRequest(study=1, ops=[attr()])),
    ):
        with pytest.raises(NotFound), translated():
            await call()
    assert (await create(wired)).study == 2


@pytest.mark.parametrize(
    "changes",
    [
        {"key": ""},
        {"key": "k" * 65},
        {"name": "x" * 513},
        {"name": "a\x00b"},
        {"name": "a\nb"},
        {"directions": []},
        {"directions": ["up"]},
        {"directions": ["minimize"] * 101},
        {"user": "x" * 201},
    ],
    ids=lambda changes: f"{next(iter(changes))}-{len(str(changes))}",
)
async def test_a_study_is_checked_at_the_door(wired: Wire, changes: dict[str, Any]) -> None:
    with pytest.raises(InvalidRequest):
        await create(wired, **changes)
    assert len((await wired.studies.List(studies_pb2.ListStudiesRequest())).studies) == 0


@pytest.mark.parametrize("name", ["", " ", "Grüße 漢字 🚴‍♀️", "x" * 512, "a/b'\"`%_"])
async def test_any_line_of_text_is_a_name(wired: Wire, name: str) -> None:
    await create(wired, name=name)
    assert (await wired.studies.Find(studies_pb2.FindStudyRequest(name=name))).name == name


@pytest.mark.parametrize(
    ("op", "refusal"),
    [
        (studies_pb2.StudyOp(), InvalidRequest),
        (new(key=""), InvalidRequest),
        (new(steps=[1]), InvalidRequest),
        (new(state="TRIAL_STATE_UNSPECIFIED"), InvalidRequest),
        (new(state="COMPLETE"), InvalidRequest),
        (new(user_attrs=attrs(1_001, "1")), LimitExceeded),
        (new(user_attrs=attrs(600, "1" * 2_000)), LimitExceeded),
        (state(0, "COMPLETE", claim="", values=[1.0]), InvalidRequest),
        (state(0, "COMPLETE", values=[1.0, 2.0]), InvalidRequest),
        (state(1, "FAIL"), NotFound),
        (state(-1, "FAIL"), NotFound),
        (param(name=""), InvalidRequest),
        (param(name="x" * 513), InvalidRequest),
        (param(distribution="[]"), InvalidRequest),
        (param(distribution='{"name": "A"}'), InvalidRequest),
        (
            param(distribution=json.dumps({"name": "A", "attributes": {"choices": "x" * 70_000}})),
            LimitExceeded,
        ),
        (attr(key=""), InvalidRequest),
        (attr(key="a\x00"), InvalidRequest),
        (attr(value=""), InvalidRequest),
        (attr(value="{"), InvalidRequest),
        (attr(value="[" * 100_000), InvalidRequest),
        (attr(value=json.dumps("x" * (1 << 20))), LimitExceeded),
    ],
    ids=lambda case: case.WhichOneof("op") or "nothing" if isinstance(case, studies_pb2.StudyOp) else "",
)
async def test_ops_are_checked_at_the_door(
    wired: Wire, op: studies_pb2.StudyOp, refusal: type[PacelineError]
) -> None:
    await create(wired)
    await write(wired, 1, new())
    before = await read(wired, 1)
    with pytest.raises(refusal):
        await write(wired, 1, attr("good"), op)
    assert await read(wired, 1) == before, "all or none"


async def test_calls_are_bounded(wired: Wire) -> None:
    await create(wired)
    with pytest.raises(InvalidRequest, match="0 ops"):
        await write(wired, 1)
    with pytest.raises(InvalidRequest, match="1001 ops"):
        await write(wired, 1, *(new(f"k{at}") for at in range(1_001)))
    for page in (common_pb2.Page(limit=1_001), common_pb2.Page(cursor="x"), common_pb2.Page(cursor="9" * 30)):
        with pytest.raises(InvalidRequest), translated():
            await wired.studies.List(studies_pb2.ListStudiesRequest(page=page))


async def test_all_is_there_after_a_restart(tmp_path: Path) -> None:
    async with wire(tmp_path) as wired:
        await create(wired)
        await write(wired, 1, new())
        await write(wired, 1, param(), report(1, float("nan")), attr(value="NaN"))
        told = await read(wired, 1)
    async with wire(tmp_path) as wired:
        again = await read(wired, 1)
        assert str(again) == str(told)
        assert await write(wired, 1, new()) == [
            studies_pb2.OpReply(trial=0, started_us=told.trials[0].record.started_us)
        ]
