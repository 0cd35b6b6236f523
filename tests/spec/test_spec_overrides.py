"""`--set KEY=VALUE`: typed as YAML, known keys only, and problems that name the override."""

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from paceline.spec.job import InvalidDocument, apply_overrides, parse_job
from support.spec_strategies import LITERALS

DATA: dict[str, Any] = {
    "command": "x",
    "inputs": {"lr": 0.1, "data": {"path": "a"}, "long": {"value": 1}},
    "resources": {"gpus": 1},
}


@pytest.mark.parametrize(
    ("override", "path", "value"),
    [
        ("inputs.lr=1e-3", ("inputs", "lr"), 0.001),
        ("inputs.lr='1'", ("inputs", "lr"), "1"),
        ("inputs.lr=a=b", ("inputs", "lr"), "a=b"),
        ("inputs.lr=", ("inputs", "lr"), None),
        ("inputs.data=/mnt", ("inputs", "data", "path"), "/mnt"),
        ("inputs.data.path=/mnt", ("inputs", "data", "path"), "/mnt"),
        ("inputs.data.mode=direct", ("inputs", "data", "mode"), "direct"),
        ("inputs.long=2", ("inputs", "long", "value"), 2),
        ("resources.instance_count=4", ("resources", "instance_count"), 4),
        ("resources.gpus.count=2", ("resources", "gpus", "count"), 2),
        ("resources.gpus=0.5", ("resources", "gpus"), 0.5),
        ("limits.timeout=60", ("limits", "timeout"), 60),
        ("tags.a.b=c", ("tags", "a.b"), "c"),
        ("environment_variables.DEBUG=true", ("environment_variables", "DEBUG"), True),
        ("resources.properties.deep.x=1", ("resources", "properties", "deep", "x"), 1),
        ("environment.name=torch", ("environment", "name"), "torch"),
        ("name=other", ("name",), "other"),
    ],
)
def test_sets(override: str, path: tuple[str, ...], value: object) -> None:
    at: Any = apply_overrides(DATA, [override])
    for part in path:
        at = at[part]
    assert (at, type(at)) == (value, type(value))


def test_a_key_set_in_a_short_form_keeps_what_it_said() -> None:
    data = {"resources": {"gpus": 4}, "environment": "torch"}
    assert apply_overrides(data, ["resources.gpus.model=H100", "environment.version=2"]) == {
        "resources": {"gpus": {"count": 4, "model": "H100"}},
        "environment": {"name": "torch", "version": 2},
    }


def test_what_stood_there_before_leaves_no_trace() -> None:
    text = "command: x\nenvironment: {name: e, version: 1.10}\ntags: {v: 1.10, w: 2}\n"
    spec, _ = parse_job(text, "job.yaml", ["environment=torch", "tags.v='1.20'", "tags.w=text"])
    assert (spec.environment, spec.tags) == ("torch", {"v": "1.20", "w": "text"})
    with pytest.raises(InvalidDocument) as caught:
        parse_job(text, "job.yaml", ["tags=5", "environment.version=3.10", "environment.nmae=x"])
    assert "environment.nmae: unknown key" in str(caught.value)
    with pytest.raises(InvalidDocument) as caught:
        parse_job(text, "job.yaml", ["tags=5"])
    assert str(caught.value) == "--set tags=5: tags: expected a mapping; found 5"


def test_the_data_given_is_left_alone() -> None:
    before = repr(DATA)
    apply_overrides(DATA, ["inputs.lr=2", "resources.gpus.count=2"])
    assert repr(DATA) == before


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("inputs.lrr=1", "--set inputs.lrr=1: inputs.lrr: the job has no such input; did you mean 'lr'?"),
        ("outputs.m.mode=upload", "--set outputs.m.mode=upload: outputs.m: the job has no such output"),
        (
            "resources.instance_cuont=1",
            "--set resources.instance_cuont=1: resources.instance_cuont: unknown key;"
            " did you mean 'instance_count'?",
        ),
        ("comand=1", "--set comand=1: comand: unknown key; did you mean 'command'?"),
        ("name.x=1", "--set name.x=1: name.x: unknown key"),
        ("lr", "--set lr: expected KEY=VALUE, such as inputs.lr=0.1"),
        ("=1", "--set =1: expected KEY=VALUE, such as inputs.lr=0.1"),
        (
            "inputs.lr=" + "9" * 40,
            f"--set inputs.lr={'9' * 40}: inputs.lr: a number of more than 32 digits; quote it if it is text",
        ),
        ("a\x1b[0m=1", "--set a\\x1b[0m=1: 'a\\x1b[0m': unknown key"),
    ],
)
def test_refusals(override: str, message: str) -> None:
    with pytest.raises(InvalidDocument) as caught:
        apply_overrides(DATA, ["name=ok", override])
    assert str(caught.value) == message


def test_problems_name_the_override_or_the_line() -> None:
    text = "command: x ${{inputs.a}}\ninputs: {a: 1}\npriority: high\n"
    with pytest.raises(InvalidDocument) as caught:
        parse_job(text, "job.yaml", ["inputs.a=.nan", "resources.gpus=two", "command=y ${{inputs.b}}"])
    assert str(caught.value).splitlines() == [
        "--set command=y ${{inputs.b}}: command: '${{inputs.b}}': inputs has no 'b'",
        "--set inputs.a=.nan: inputs.a: expected a text, a finite number, true, false"
        " or a mapping with 'path'; found nan",
        "--set resources.gpus=two: resources.gpus.count: expected a whole number, or less than 1"
        " for a share of one GPU, such as 0.5; found 'two'",
        "job.yaml:3:11: priority: expected a whole number; found 'high'",
    ]


def test_text_keeps_how_it_was_written() -> None:
    spec, _ = parse_job("command: x\ntags: {v: 1.10}\n", "job.yaml", ["tags.w=2.20", "tags.v=1.30"])
    assert spec.tags == {"v": "1.30", "w": "2.20"}


@given(LITERALS)
def test_a_text_in_quotes_is_itself(value: object) -> None:
    text = str(value)
    assert apply_overrides(DATA, [f"inputs.lr='{text}'"])["inputs"]["lr"] == text


KEYS = ["command", "inputs", "inputs.lr", "inputs.data", "inputs.data.path", "tags", "tags.v", "environment"]
KEYS += ["environment.version", "outputs.o.version", "outputs.o", "resources.gpus", "resources.gpus.model"]
SETS = st.builds(
    "{}={}".format, st.sampled_from(KEYS), st.sampled_from(["1.10", "x", "", "'1'", "true", "[]"])
)


@settings(max_examples=300)
@given(st.lists(SETS, max_size=5))
def test_overrides_in_any_order_end_in_a_job_or_its_own_error(overrides: list[str]) -> None:
    text = "command: x\ninputs: {lr: 1, data: {path: p}}\noutputs: {o: {version: 1.0}}\ntags: {v: 1.0}\n"
    text += "environment: {name: e, version: 1.0}\nresources: {gpus: 2}\n"
    try:
        parse_job(text, "job.yaml", overrides)
    except InvalidDocument as error:
        assert error.problems


@given(st.lists(st.text("inputs.lr=data{}tagscompute", max_size=20), max_size=3))
def test_no_override_raises_anything_but_its_own_error(overrides: list[str]) -> None:
    try:
        apply_overrides(DATA, overrides)
    except InvalidDocument as error:
        assert error.problems
