"""Hypothesis strategies for job documents: valid ones as plain data, and broken text."""

from typing import Any

from hypothesis import strategies as st
from paceline.spec.failures import RETRY_CHOICES
from paceline.spec.fields import _CONTROL, _TURNING
from paceline.spec.slices import asks_for_slice

NAMES = st.from_regex(r"\A[A-Za-z0-9][A-Za-z0-9._-]{0,20}\Z")
WHOLE_GPUS = NAMES.filter(lambda name: not asks_for_slice(name))
IDENTIFIERS = st.from_regex(r"\A[A-Za-z_][A-Za-z0-9_-]{0,12}\Z")
VARIABLES = st.from_regex(r"\A[A-Z_][A-Z0-9_]{0,12}\Z").filter(lambda name: not name.startswith("PACELINE_"))
LINES = st.text(max_size=30).filter(str.isprintable)
TEXTS = st.text(max_size=60).filter(lambda s: not _CONTROL.search(s) and not _TURNING.search(s))
TRICKY = st.sampled_from(
    [
        *("1e-3", ".5", "0x1F", "0o17", "1_000", ".inf", "12:30:00", "2026-01-01", "1.10"),
        *("yes", "no", "on", "null", "~", "true", "", "<<", "-", "!", "&", "*", "#", "%x", "@", "`"),
        *("{a}", "[b]", "a: b", "a #b", "'q", '"q', " x ", "a\n  b\n\n", "\n", "\t"),
    ]
)
LOOSE = st.one_of(TEXTS, TRICKY)
LITERALS = st.one_of(
    st.booleans(),
    st.integers(-(2**62), 2**62),
    st.floats(allow_nan=False, allow_infinity=False),
    LOOSE,
)
SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**53), 2**53),
    st.floats(allow_nan=False, allow_infinity=False),
    LINES,
)
"""Values of a search space."""
PLAIN = st.recursive(
    st.one_of(st.none(), LITERALS),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(LINES, inner, max_size=3)),
    max_leaves=6,
)


def mapping(required: dict[str, Any], optional: dict[str, Any]) -> st.SearchStrategy[dict[str, Any]]:
    return st.fixed_dictionaries(required, optional=optional)


DATA_INPUTS = mapping(
    {"path": st.sampled_from(["/data/a b", "data.csv", "../up", "file:///mnt/x"])},
    {
        "type": st.sampled_from(["uri_file", "uri_folder", "mltable"]),
        "mode": st.sampled_from(["ro_mount", "download"]),
    },
)
OUTPUTS = st.one_of(
    st.none(),
    mapping({}, {"type": st.sampled_from(["uri_folder", "custom_model"]), "mode": st.just("upload")}),
)
GPUS = st.one_of(st.integers(0, 8), st.integers(1, 999).map(lambda milli: milli / 1000))
RESOURCES = mapping(
    {},
    {
        "instance_count": st.integers(2, 100),
        "min_instance_count": st.just(1),
        "max_instance_count": st.integers(100, 200),
        "cpus": st.one_of(st.integers(1, 64), st.floats(0.01, 64)),
        "memory": st.one_of(st.integers(0, 2**40), st.sampled_from(["16Gi", "512MB", "1.5Gi"])),
        "gpus": st.one_of(
            GPUS,
            mapping(
                {"count": GPUS},
                {
                    "model": st.one_of(st.just("H100"), st.lists(WHOLE_GPUS, max_size=3)),
                    "memory": st.one_of(st.integers(0, 2**40), st.sampled_from(["40GB", "80Gi"])),
                },
            ),
        ),
        "instance_type": LINES,
        "properties": st.dictionaries(LINES, PLAIN, max_size=2),
    },
)

LABELS = st.dictionaries(
    st.from_regex(r"\A[A-Za-z0-9][A-Za-z0-9._/-]{0,12}\Z"),
    st.one_of(NAMES, st.integers(0, 99), st.lists(NAMES, min_size=1, max_size=3)),
    max_size=3,
)


@st.composite
def job_documents(draw: st.DrawFn) -> dict[str, Any]:
    """A valid job document as plain data, expressions included."""
    inputs = draw(st.dictionaries(IDENTIFIERS, st.one_of(LITERALS, DATA_INPUTS), max_size=3))
    outputs = draw(st.dictionaries(IDENTIFIERS, OUTPUTS, max_size=2))
    params = draw(st.dictionaries(IDENTIFIERS, SCALARS, max_size=2))
    references = [
        *(f"${{{{inputs.{name}}}}}" for name in inputs),
        *(f"${{{{ outputs.{name} }}}}" for name in outputs),
        *(f"${{{{search_space.{name}}}}}" for name in params),
    ]
    pieces = st.one_of(st.sampled_from(references), LOOSE) if references else LOOSE
    command = "run " + " ".join(draw(st.lists(pieces, max_size=4))).replace("${{}", "")
    if "${{" in command and not references:
        command = "run"
    document = {"command": command, "inputs": inputs, "outputs": outputs, "params": params}
    document |= draw(
        mapping(
            {},
            {
                "type": st.just("command"),
                "name": NAMES,
                "display_name": LINES,
                "description": TEXTS,
                "tags": st.dictionaries(LINES, LOOSE, max_size=3),
                "code": st.just("src"),
                "environment": st.one_of(
                    st.just("azureml:torch@latest"),
                    mapping({"name": NAMES}, {"version": LOOSE, "conda_file": PLAIN}),
                ),
                "environment_variables": st.dictionaries(
                    VARIABLES, LOOSE.filter(lambda s: "${{" not in s), max_size=3
                ),
                "distribution": mapping(
                    {"type": st.sampled_from(["pytorch", "PyTorch", "deepspeed", "MPI"])},
                    {"process_count_per_instance": st.integers(1, 64)},
                ),
                "resources": RESOURCES,
                "placement": mapping(
                    {},
                    {
                        "labels": LABELS,
                        "prefer": LABELS,
                        "tolerate": st.one_of(NAMES, st.lists(NAMES, max_size=3)),
                    },
                ),
                "topology": mapping({"within": NAMES}, {"mode": st.sampled_from(["required", "preferred"])}),
                "limits": mapping({}, {"timeout": st.integers(1, 10**6), "log_size": st.just("1Gi")}),
                "services": st.dictionaries(LINES, PLAIN, max_size=2),
                "priority": st.integers(-1000, 1000),
                "retry": mapping(
                    {},
                    {
                        "max_attempts": st.integers(1, 9),
                        "on": st.lists(st.sampled_from([kind.value for kind in RETRY_CHOICES]), max_size=9),
                        "backoff": mapping(
                            {}, {"start_s": st.floats(0, 60), "max_s": st.integers(60, 86_400)}
                        ),
                    },
                ),
                "checkpoint": mapping({}, {"keep_last": st.integers(1, 9)}),
                "exclusive": st.booleans(),
                "grace_s": st.one_of(st.integers(0, 100), st.floats(0, 100)),
            },
        )
    )
    return document
