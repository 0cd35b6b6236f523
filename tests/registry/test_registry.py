"""The registry's rules: versions, aliases, deletion, outputs; and that all of it is there after a crash."""

import contextlib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from paceline.scheduler.core.stimuli import Cancel
from paceline.scheduler.loop_step import Asked
from paceline.scheduler.registry import registry as registry_module
from paceline.scheduler.registry.assets import Endpoint, Outputs
from paceline.scheduler.registry.ops import Collected, MoveAlias
from paceline.scheduler.store.base import EdgeRow
from paceline.spec.asset_names import Reference
from paceline.spec.errors import Conflict, InvalidRequest, LimitExceeded, NotFound, StoreFailure
from support.registry_desk import Desk, delete, move, register

ENDPOINT = '{"name": "e", "user": "ann", "made_us": 1, "key": ""}'


@pytest.fixture
def desk() -> Desk:
    return Desk()


def latest(desk: Desk) -> str:
    return desk.registry.find("model", Reference("digits", alias="latest")).version


def test_versions_count_up_and_a_given_number_moves_the_count(desk: Desk) -> None:
    given = ["", "", "7", "", "v2-beta", "", "010", ""]
    made = [desk.add(version=version).version for version in given]
    assert made == ["1", "2", "7", "8", "v2-beta", "9", "010", "11"]
    assert latest(desk) == "11"


@pytest.mark.parametrize("version", ["", "3", "golden"])
def test_a_version_is_never_given_again(desk: Desk, version: str) -> None:
    made = desk.add(version=version).version
    desk.one(delete(made))
    desk.again()
    with pytest.raises(Conflict, match=r"was deleted; versions are never given again"):
        desk.add(version=made)
    assert desk.add().version != made
    with pytest.raises(NotFound, match="was deleted by ben"):
        desk.registry.find("model", Reference("digits", made))


def test_latest_is_the_newest_that_is_there(desk: Desk) -> None:
    for version in ("", "9", "5"):
        desk.add(version=version)
    assert latest(desk) == "5"
    desk.one(delete("5"))
    assert latest(desk) == "9"
    desk.again()
    assert latest(desk) == "9"


def test_the_same_call_again_gives_the_same_version(desk: Desk) -> None:
    asked = register(key="once", alias="production")
    first = desk.one(asked)
    desk.again()
    assert desk.one(asked) == first and desk.add().version == "2"


def test_models_and_data_have_names_of_their_own(desk: Desk) -> None:
    assert desk.add().ref == "model:digits:1" and desk.add(kind="data").ref == "data:digits:1"


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        (Reference("digts", "1"), "no model named 'digts'; did you mean 'digits'"),
        (Reference("digits", "11"), "no version '11'; did you mean digits:1?"),
        (Reference("digits", alias="prodution"), "no alias 'prodution'; did you mean digits@production"),
    ],
)
def test_what_is_not_there_is_refused_with_the_nearest(desk: Desk, asked: Reference, said: str) -> None:
    desk.add(alias="production")
    with pytest.raises(NotFound, match=said):
        desk.registry.find("model", asked)


def test_of_two_who_move_an_alias_at_once_one_does(desk: Desk) -> None:
    for alias in ("production", "", ""):
        desk.add(alias=alias)
    mine, theirs = move("production", "2", before="1"), move("production", "3", before="1", by="ben")
    answers = desk.ask(mine, theirs)
    assert isinstance(answers[1], Conflict) and "leads to 2, not to 1: ann has moved it" in str(answers[1])
    named = desk.registry.named("model", "digits")
    assert named.aliases == {"production": "2"}
    assert [(one.before, one.after) for one in named.history] == [("", "1"), ("1", "2")]


def test_a_move_whose_reply_was_lost_is_one_move(desk: Desk) -> None:
    desk.add(alias="production")
    desk.add()
    asked = move("production", "2", before="1")
    desk.one(asked)
    desk.again()
    named = desk.one(asked)
    assert named.aliases == {"production": "2"} and len(named.history) == 2


def test_an_alias_can_follow_another_and_go(desk: Desk) -> None:
    desk.add(alias="candidate")
    to = Reference("digits", alias="candidate")
    desk.one(MoveAlias("k", "model", "digits", "production", to, "ann", ""))
    assert desk.registry.named("model", "digits").aliases == {"candidate": "1", "production": "1"}
    desk.one(move("production", None, before="1"))
    assert desk.registry.named("model", "digits").aliases == {"candidate": "1"}


def test_latest_is_nobodys_to_move(desk: Desk) -> None:
    desk.add()
    with pytest.raises(InvalidRequest, match="by itself"):
        desk.one(move("latest", "1"))
    with pytest.raises(InvalidRequest, match="by itself"):
        desk.add(alias="latest")
    assert desk.registry.count == 1


def test_an_alias_leads_only_to_what_is_there(desk: Desk) -> None:
    desk.add()
    desk.add()
    desk.one(delete("2"))
    for version in ("2", "3"):
        with pytest.raises(NotFound):
            desk.one(move("production", version))


def test_what_is_used_is_not_deleted(desk: Desk) -> None:
    desk.add(alias="production")
    desk.registry.put_endpoint(Endpoint("e", ENDPOINT, ("model:digits:1",)))
    with pytest.raises(Conflict, match=r"used by alias 'production', endpoint 'e'"):
        desk.one(delete("1"))
    desk.one(move("production", None))
    desk.again()
    with pytest.raises(Conflict, match=r"used by endpoint 'e'"):
        desk.one(delete("1"))
    desk.registry.drop_endpoint("e")
    buried = desk.one(delete("1"))
    assert not buried.there and desk.one(delete("1")) == buried


def test_the_history_of_a_name_has_a_bound(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry_module, "HISTORY_MAX", 3)
    desk.add()
    desk.add()
    for at in range(6):
        desk.one(move("a", str(1 + at % 2)))
    assert [one.after for one in desk.registry.named("model", "digits").history] == ["2", "1", "2"]


def test_bounds_leave_nothing_half_done(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry_module, "ALIASES_MAX", 1)
    desk.add(alias="a")
    with pytest.raises(LimitExceeded):
        desk.add(alias="b")
    assert desk.registry.count == 1
    monkeypatch.setattr(registry_module, "ASSETS_MAX", 1)
    with pytest.raises(LimitExceeded):
        desk.add()
    desk.one(move("a", None))
    desk.one(delete("1"))
    assert desk.add().version == "2"


def test_a_submit_tells_what_the_job_is_made_of(desk: Desk) -> None:
    number = desk.submit(uses=(("data:mnist:1", "inputs.data"), ("checkpoint:7:40", "fork")))
    edges = desk.store.edges(target=f"job:{number}")
    assert [(edge.source, edge.relation) for edge in edges] == [
        ("checkpoint:7:40", "fork"),
        ("data:mnist:1", "inputs.data"),
    ]
    assert desk.store.edges(source="job:7") == [EdgeRow("job:7", "checkpoint:7:40", "saved")]


def test_a_registration_is_an_edge_in_the_same_batch(desk: Desk) -> None:
    desk.add(edges=(("job:1", "outputs.model"),))
    assert desk.store.edges(source="job:1") == [EdgeRow("job:1", "model:digits:1", "outputs.model")]


def test_outputs_of_a_job_that_was_cancelled_are_not_due(desk: Desk) -> None:
    number = desk.submit(registers=True)
    assert desk.registry.outputs == {number: Outputs(number)}
    desk.again()
    assert desk.registry.outputs == {number: Outputs(number)}
    desk.one(Cancel(number, None))
    assert not desk.registry.outputs
    desk.again()
    assert not desk.registry.outputs


def test_all_outputs_are_registered_or_none(desk: Desk) -> None:
    number = desk.submit(registers=True)
    desk.add(version="5")
    both = (register("weights", key="a"), register(version="5", key="b"))
    desk.one(Collected(number, both))
    assert ("model", "weights") not in desk.registry.names
    assert "model:digits:5 was registered by ann" in desk.registry.outputs[number].refused
    desk.again()
    assert desk.registry.outputs[number].refused


def test_outputs_that_were_registered_are_not_registered_again(desk: Desk) -> None:
    number = desk.submit(registers=True)
    asked = Collected(number, (register(key="a"), register("weights", key="b")))
    desk.one(asked)
    desk.again()
    desk.one(asked)
    assert desk.registry.count == 2 and not desk.registry.outputs


def test_two_outputs_are_not_one_version(desk: Desk) -> None:
    number = desk.submit(registers=True)
    desk.one(Collected(number, (register(version="1", key="a"), register(version="1", key="b"))))
    assert desk.registry.count == 0 and "same version" in desk.registry.outputs[number].refused


_WORDS = st.sampled_from(["1", "2", "5", "v1"])
_ASKED: st.SearchStrategy[Asked] = st.one_of(
    st.builds(
        lambda version, alias: register(version=version, alias=alias),
        st.just("") | _WORDS,
        st.sampled_from(["", "a"]),
    ),
    st.builds(move, st.sampled_from(["a", "b"]), _WORDS | st.none(), before=st.none() | _WORDS),
    st.builds(delete, _WORDS),
)


@settings(max_examples=60)
@given(st.lists(st.lists(_ASKED, max_size=4), max_size=12), st.integers(1, 12))
def test_after_a_crash_at_any_commit_all_is_as_it_was(steps: list[list[Asked]], dies: int) -> None:
    desk = Desk()
    given_before: set[str] = set()
    for at, step in enumerate(steps, 1):
        if at == dies:
            _die_at(desk, step)
            continue
        desk.ask(*step)
        after = desk.told()
        desk.again()
        assert desk.told() == after
        there = set(desk.registry.versions.get(("model", "digits"), {}))
        assert given_before <= there
        given_before = there


def _die_at(desk: Desk, step: list[Asked]) -> None:
    before = desk.told()
    desk.store.fail_before = {desk.store.commits + 1}
    with contextlib.suppress(StoreFailure):  # a step that changes nothing commits nothing
        desk.ask(*step)
    desk.store.fail_before = set()
    desk.again()
    assert desk.told() == before
