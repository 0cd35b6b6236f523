"""Expressions: what is one, what is wrong with it and where, and that values go in as they are."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from paceline.spec.expressions import (
    BadExpression,
    Reference,
    check_expressions,
    parse_expressions,
    references,
    resolve,
    without,
)
from support.spec_strategies import IDENTIFIERS


def test_parts() -> None:
    assert parse_expressions("a ${{inputs.x}}${{ outputs.y-z }} $HOME ${A} {{b}}") == (
        "a ",
        Reference("inputs", "x", "${{inputs.x}}", 2),
        Reference("outputs", "y-z", "${{ outputs.y-z }}", 15),
        " $HOME ${A} {{b}}",
    )


def test_values_of_a_search_space() -> None:
    text = "${{search_space.a}} ${{ search_space.b }}${{inputs.a}}${{ broken"
    assert list(references(text, "search_space")) == ["a", "b"]
    assert without(text, "search_space", {"b"}) == "${{search_space.a}} ${{inputs.a}}${{ broken"
    assert without(text, "search_space", ()) == text
    assert resolve("x ${{search_space.a}}", {}, {}, {"a": "${{inputs.b}}"}) == "x ${{inputs.b}}"
    (bad,) = check_expressions("${{search_space.lrr}}", (), (), ["lr"])
    assert (bad.text, bad.nearest) == ("'${{search_space.lrr}}': search_space has no 'lrr'", "lr")


@pytest.mark.parametrize(
    ("text", "message", "nearest"),
    [
        ("${{inputs.epoch}}", "'${{inputs.epoch}}': inputs has no 'epoch'", "epochs"),
        ("${{outputs.m}}", "'${{outputs.m}}': outputs has no 'm'", ""),
        ("${{input.epochs}}", "'${{input.epochs}}': there is no 'input'", "inputs"),
        (
            "${{inputs}}",
            "'${{inputs}}' is not an expression; expected '${{inputs.NAME}}' or '${{outputs.NAME}}'",
            "",
        ),
        ("${{}}", "'${{}}' is not an expression; expected '${{inputs.NAME}}' or '${{outputs.NAME}}'", ""),
        ("${{inputs.epochs", "'${{' without its '}}'", ""),
        (
            "${{inputs.a.b}}",
            "'${{inputs.a.b}}' is not an expression; expected '${{inputs.NAME}}' or '${{outputs.NAME}}'",
            "",
        ),
        (
            "${{search_space.lr}}",
            "'${{search_space.lr}}' has a value only in a trial of a sweep, or where `params` gives one",
            "",
        ),
        (
            "${{inputs.\x1b[31m}}",
            "'${{inputs.\\x1b[31m}}' is not an expression; expected '${{inputs.NAME}}' or"
            " '${{outputs.NAME}}'",
            "",
        ),
    ],
)
def test_what_is_wrong(text: str, message: str, nearest: str) -> None:
    (bad,) = check_expressions(f"run {text}", ["epochs"], ["model"])
    assert (bad.text, bad.nearest, bad.start) == (message, nearest, 4)


def test_values_go_in_as_they_are_and_once() -> None:
    inputs = {"a": "${{inputs.b}}; 'x' $Y", "b": "2"}
    assert resolve("${{inputs.a}} ${{inputs.b}}${{outputs.o}}", inputs, {"o": "/o p"}) == (
        "${{inputs.b}}; 'x' $Y 2/o p"
    )


def test_resolving_what_was_never_checked_is_a_bug() -> None:
    for text in ("${{inputs.a}}", "${{x", "${{search_space.a}}"):
        with pytest.raises(KeyError):
            resolve(text, {}, {})


PIECES = st.one_of(st.text("${} abinputs.", max_size=12), st.just("${{inputs."), st.just("}}"))


@given(st.lists(PIECES, max_size=8).map("".join))
def test_parts_are_the_whole_text(text: str) -> None:
    parts = parse_expressions(text)
    at = 0
    for part in parts:
        if isinstance(part, BadExpression) and part is parts[-1] and "}}" not in part.raw:
            assert text.startswith(part.raw, at)
            return
        raw = part if isinstance(part, str) else part.raw
        assert text.startswith(raw, at)
        at += len(raw)
    assert at == len(text)


@given(st.dictionaries(IDENTIFIERS, st.text(max_size=10)), st.lists(st.text("a $", max_size=3), min_size=1))
def test_resolving_puts_each_value_in_its_place(inputs: dict[str, str], gaps: list[str]) -> None:
    references = [f"${{{{ inputs.{name}}}}}" for name in inputs]
    text = "|".join([*gaps, *references])
    assert list(check_expressions(text, inputs, ())) == []
    assert resolve(text, inputs, {}) == "|".join([*gaps, *inputs.values()])
