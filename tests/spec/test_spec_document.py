"""YAML text -> data and places: YAML 1.2's core rules, every bound, and nothing but its own error."""

import time

import pytest
import yaml
from hypothesis import example, given, settings
from hypothesis import strategies as st
from paceline.spec.document import DEPTH_MAX, DOCUMENT_BYTES_MAX, NODES_MAX, parse
from paceline.spec.problems import InvalidDocument
from paceline.spec.writing import to_yaml
from support.spec_strategies import LINES, PLAIN


def refused(text: str | bytes) -> str:
    with pytest.raises(InvalidDocument) as caught:
        parse(text, "job.yaml")
    return str(caught.value)


def test_data_and_places() -> None:
    document = parse("a: 1\nb:\n  - x\n  - {c: 'yes'}\nü: no\n", "job.yaml")
    assert document.data == {"a": 1, "b": ["x", {"c": "yes"}], "ü": "no"}
    mark = document.values["b", 1, "c"]
    assert (mark.line, mark.column) == (4, 9)
    assert document.keys["b",].line == 2
    assert document.text[mark.start : mark.end] == "'yes'"


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("yes", "yes"),
        ("NO", "NO"),
        ("on", "on"),
        ("true", True),
        ("False", False),
        ("~", None),
        ("", None),
        ("1e-3", 0.001),
        ("5.", 5.0),
        (".5", 0.5),
        ("0o17", 15),
        ("0x1F", 31),
        ("017", 17),
        ("1_000", "1_000"),
        ("12:30:00", "12:30:00"),
        ("2026-01-01", "2026-01-01"),
        ("'1'", "1"),
        ("!!str 1", "1"),
        ("-.inf", float("-inf")),
        ("!!float 1", 1.0),
        ("1.10", 1.1),
        ("--1", "--1"),
        ("0x", "0x"),
    ],
)
def test_scalars(text: str, value: object) -> None:
    found = parse(f"k: {text}", "x").data["k"]
    assert (found, type(found)) == (value, type(value))


def test_merge_keys_and_aliases() -> None:
    text = "base: &b {x: 1, y: 2}\nother: {<<: *b, y: 3}\nlist: {<<: [*b, {z: 4}]}\nquoted: {'<<': 1}\n"
    assert parse(text, "x").data == {
        "base": {"x": 1, "y": 2},
        "other": {"x": 1, "y": 3},
        "list": {"x": 1, "y": 2, "z": 4},
        "quoted": {"<<": 1},
    }


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "a: 1\nb: 2\n  c: 3",
            "job.yaml:3:4: not valid YAML: mapping values are not allowed in this context",
        ),
        (
            "a:\n\tb: 1",
            "job.yaml:2:1: not valid YAML: found character that cannot start any token;"
            " indent with spaces, not tabs",
        ),
        ("a: 1\nb: 2\na: 3", "job.yaml:3:1: a: duplicate key, first given in line 1"),
        ("r:\n  x: 1\n  x: 2", "job.yaml:3:3: r.x: duplicate key, first given in line 2"),
        ("1: a", "job.yaml:1:1: a key must be text, found 1; quote it"),
        ("a: {null: 1}", "job.yaml:1:5: a key must be text, found nothing; quote it"),
        ("? [a]\n: 1", "job.yaml:1:3: a key must be text, not a list or mapping"),
        ("x: &a [1]\n*a : 1", "job.yaml:2:1: a key must be text, found a list or mapping; quote it"),
        ("a: &x [*x]", "job.yaml:1:8: alias '*x' refers to itself"),
        ("a: *x", "job.yaml:1:4: alias '*x' was not defined before"),
        (
            "a: !!python/none x",
            "job.yaml:1:4: tag 'tag:yaml.org,2002:python/none' is not allowed; only plain data is read",
        ),
        ("a: !mine 1", "job.yaml:1:4: tag '!mine' is not allowed; only plain data is read"),
        ("a: 1\n---\nb: 2", "job.yaml:2:1: a second document starts here; one file holds one job"),
        ("a: \x1b[31mred", "job.yaml:1:4: character U+001B may not stand in a document"),
        ("a: 1\nb: \x00", "job.yaml:2:4: character U+0000 may not stand in a document"),
        (b"a: 1\nb: \xff", "job.yaml:2:4: byte 0xff is not UTF-8"),
        ("a: \ud800", "job.yaml:1:4: character U+D800 may not stand in a document"),
        ('a: "\\ud800"', "job.yaml:1:7: not valid YAML: found invalid Unicode character escape code"),
        ('"a\\nb": 1', "job.yaml:1:1: key 'a\\nb' holds control or direction-changing characters"),
        ("a\u202eb: 1", "job.yaml:1:1: key 'a\\u202eb' holds control or direction-changing characters"),
        ("k" * 300 + ": 1", "job.yaml:1:1: a key of more than 256 characters"),
        ("a: " + "9" * 40, "job.yaml:1:4: a number of more than 32 digits; quote it if it is text"),
        ("a: {<<: 1}", "job.yaml:1:9: '<<' needs a mapping or a list of mappings"),
        ("a: !!int x", "job.yaml:1:4: 'x' is not of the type that its tag names"),
        ("a: 'x", "job.yaml:1:6: not valid YAML: found unexpected end of stream"),
    ],
)
def test_refusals_name_the_place(text: str | bytes, message: str) -> None:
    assert refused(text) == message


def test_a_name_cannot_carry_escapes_into_a_message() -> None:
    with pytest.raises(InvalidDocument) as caught:
        parse("a: [", "job\x1b[31m\u202e.yaml")
    assert str(caught.value).startswith("job\\x1b[31m\\u202e.yaml:2:1: not valid YAML")


def test_size_is_checked_before_anything_is_parsed() -> None:
    started = time.process_time()
    assert "104857600 bytes; a document may have 1048576 bytes" in refused(b"a" * 104_857_600)
    assert time.process_time() - started < 0.5
    assert "may have 1048576" in refused("ü" * (DOCUMENT_BYTES_MAX // 2 + 1))
    assert parse("a: " + "x" * (DOCUMENT_BYTES_MAX - 3), "x").data


def bomb(width: int, levels: int) -> str:
    lines = ["l0: &l0 [" + ",".join(["x"] * width) + "]"]
    lines += [f"l{n}: &l{n} [" + ",".join([f"*l{n - 1}"] * width) + "]" for n in range(1, levels)]
    return "\n".join(lines)


@pytest.mark.parametrize(
    "text",
    [
        bomb(9, 9),
        "a: &a {b: 1}\nc: {<<: [" + ",".join(["*a"] * 30_000) + "]}",
        "[" * 500_000,
        "{a: " * 200_000,
        "- " * 400_000,
        "? " * 300_000,
        "- a\n" * 200_000,
        "\n".join(f"k{n}: 1" for n in range(100_000)),
        "a: &x b\nc: [" + ",".join(["*x"] * 100_000) + "]",
        "a: " + "[" * DEPTH_MAX + "]" * DEPTH_MAX,
        "&a a: &b b\n" * 50_000,
        "!a" * 500_000,
        "'" * 1_000_001,
        "%YAML 1.1\n" * 90_000,
    ],
    ids=lambda text: text[:12].replace("\n", " "),
)
def test_bombs_are_refused_quickly(text: str) -> None:
    started = time.process_time()
    refused(text)
    assert time.process_time() - started < 2


def test_nesting_through_aliases_counts() -> None:
    lines = ["a0: &a0 [x]"] + [f"a{n}: &a{n} [*a{n - 1}]" for n in range(1, DEPTH_MAX + 1)]
    assert f"nested more than {DEPTH_MAX} deep, aliases expanded" in refused("\n".join(lines))


def test_the_bound_on_nodes_is_where_it_says() -> None:
    within = "[" + ",".join(["x"] * (NODES_MAX // 2 - 2)) + "]"
    assert len(parse(within, "x").data) == NODES_MAX // 2 - 2
    assert f"more than {NODES_MAX} keys and values" in refused("[" + ",".join(["x"] * NODES_MAX) + "]")


def test_the_parser_in_python_reads_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    text = "a: 1\nb: [x, {c: 'yes', <<: {d: 0x1F}}]\nü: |\n  é\n  z\n"
    by_c = parse(text, "x")
    monkeypatch.setattr("paceline.spec.document._LOADER", yaml.SafeLoader)
    by_python = parse(text, "x")
    assert (by_python.data, by_python.values, by_python.keys) == (by_c.data, by_c.values, by_c.keys)
    assert refused('a: "\\ud800"') == "job.yaml:1:4: half of a surrogate pair, which is not text"
    assert "nested more than" in refused("[" * 5000)


YAMLISH = st.text(alphabet="ab:-[]{}&*!|>'\"%@#?,<~ \n\t01.\\x\r\u202e\ud800é", max_size=80)


@settings(max_examples=600)
@given(st.one_of(YAMLISH, st.text(max_size=60), st.binary(max_size=60)))
@example("%YAML 9.9\n---\na")
@example("%TAG ! tag:x:\n--- !y z")
@example(b"\xff\xfea\x00")
@example("\ufeffa: 1")
@example("a: !<!> 1")
@example("!!map []")
@example("!!int ''")
def test_nothing_but_its_own_error(text: str | bytes) -> None:
    try:
        document = parse(text, "x")
    except InvalidDocument as error:
        assert error.problems
        assert str(error).replace("\n", "").isprintable()
    else:
        assert () in document.values


@settings(max_examples=300)
@given(st.dictionaries(LINES, PLAIN, max_size=4))
def test_what_is_written_is_read_back(data: dict[str, object]) -> None:
    assert repr(parse(to_yaml(data), "x").data) == repr(data)
