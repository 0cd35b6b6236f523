"""Names, versions and references in all encodings: what is not plainly one is none."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from paceline.spec.asset_names import Reference, is_word, parse_asset, parse_reference

HOSTILE = [
    "..",
    "../x",
    "a/../../etc/passwd",
    "%2e%2e",
    "%2e%2e%2fetc%2fpasswd",
    "..%252f..%252fetc",
    "file:///etc/passwd",
    "file://localhost/etc/passwd",
    "/etc/passwd",
    "//host/share",
    "C:\\Windows",
    "..\\..\\x",
    "a\\b",
    "name\0",
    "a\n",
    "name#fragment",
    "name#/../../etc",
    "name?version=1",
    "http:///#/../../../etc",
    "a;b",
    "a b",
    "~root",
    "$HOME",
    "${{inputs.x}}",
    "-rf",
    ".hidden",
    "_x",
    "",
    "a" * 256,
    "\uff4eame",
    "na\u0301me",
    "r\u0430yload",
    "a\u202eb",
    "a\u2024\u2024b",
    "a\uff0fb",
    "\uff11\uff12",
    "\ud800",
]
"""MLflow's CVE-2023-1177 (`..` and absolute paths in sources), CVE-2024-1560 (`%2e`, decoded twice),
CVE-2024-1593 (`;` and `#` in URIs), and look-alikes."""


@pytest.mark.parametrize("text", HOSTILE, ids=ascii)
def test_hostile_text_is_no_name_no_version_and_no_alias(text: str) -> None:
    assert not is_word(text)
    for reference in (text, f"{text}:1", f"name:{text}", f"name@{text}", f"azureml:{text}:1"):
        assert parse_reference(reference) is None
        assert parse_asset(reference) is None


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("mnist:3", Reference("mnist", "3")),
        ("azureml:mnist:3", Reference("mnist", "3")),
        ("mnist@latest", Reference("mnist", alias="latest")),
        ("azureml:digits@production", Reference("digits", alias="production")),
        ("a..b:1.0.0-rc_1", Reference("a..b", "1.0.0-rc_1")),
    ],
)
def test_references(text: str, found: Reference) -> None:
    assert parse_reference(text) == found and parse_reference(str(found)) == found


@pytest.mark.parametrize(
    "text",
    [
        "mnist",
        "azureml:mnist",
        "azureml://datastores/d/paths/x",
        "s3://bucket/x",
        "./mnist:3",
        "a:b:c",
        "a@b@c",
        "file:etc",
    ],
)
def test_what_is_no_reference(text: str) -> None:
    assert parse_reference(text) is None


@given(st.text(max_size=30))
def test_a_word_can_only_be_plain(text: str) -> None:
    if is_word(text):
        assert text.isascii() and not set(text) & set("/\\:@%#?\0 \n") and not text.startswith(".")
