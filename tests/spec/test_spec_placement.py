"""Where a job may run: labels, tolerations and topology, as the file says them and as placement has them."""

from typing import Any

import pytest
from paceline.spec.job import InvalidDocument, JobSpec, job_from_data, parse_canonical, parse_job
from paceline.spec.resources import Constraints


def job(text: str) -> JobSpec:
    return parse_job(f"command: x\n{text}", "job.yaml")[0]


def test_labels_come_as_they_were_written() -> None:
    spec = job(
        "placement: {labels: {zone: [b, a, b], gen: 1.10, fast: true}, prefer: {disk: nvme},"
        " tolerate: [spot, dedicated=vision]}\ntopology: {within: rack}\nresources: {instance_count: 2}"
    )
    assert spec.demand().constraints == Constraints(
        labels=(("fast", ("true",)), ("gen", ("1.10",)), ("zone", ("b", "a"))),
        prefer=(("disk", ("nvme",)),),
        tolerate=(("dedicated", "vision"), ("spot", "")),
        within="rack",
    )
    assert spec.demand().within == "rack"
    assert parse_canonical(spec.to_json()) == spec


@pytest.mark.parametrize(
    "text", ["", "placement: {}", "placement:\n", "placement: {labels: {}, tolerate: []}"]
)
def test_a_job_that_asks_for_nothing_has_no_constraints(text: str) -> None:
    """So that its lane, its memo and its row are those of all such jobs."""
    assert job(text).demand().constraints is None


def test_a_preference_is_no_requirement() -> None:
    demand = job("topology: {within: rack, mode: Preferred}").demand()
    assert demand.constraints == Constraints(within="rack", within_preferred=True)
    assert demand.within == ""


def test_topology_of_one_instance_has_no_effect_and_is_said_to_have_none() -> None:
    spec, cautions = parse_job("command: x\ntopology: {within: rack}", "job.yaml")
    assert spec.demand().within == ""
    assert "job.yaml:2:1: topology: no effect: a single instance" in str(cautions[-1])
    assert not parse_job(
        "command: x\ntopology: {within: rack}\nresources: {max_instance_count: 2}", "job.yaml"
    )[1]


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("placement: {label: {zone: a}}", "2:13: placement.label: unknown key; did you mean 'labels'?"),
        (
            "placement: {labels: {zone: []}}",
            "2:28: placement.labels.zone: expected a value or a list of them; found an empty list",
        ),
        (
            "placement: {labels: {'a b': x}}",
            "2:22: placement.labels.'a b': expected the key of a label: letters, digits and ._/- (at most"
            " 63), a letter or digit first; found 'a b'",
        ),
        (
            "placement: {tolerate: [ok, 'spot=']}",
            "2:28: placement.tolerate[1]: expected a taint as KEY or KEY=VALUE, such as spot; found 'spot='",
        ),
        (
            "topology: {within: rack, mode: require}",
            "2:32: topology.mode: expected required, preferred; found 'require'; did you mean 'required'?",
        ),
        ("topology: {mode: required}", "2:11: topology: required key 'within' is missing"),
        ("tolerate: [spot]", "2:1: tolerate: unknown key; did you mean 'placement.tolerate'?"),
        ("within: rack", "2:1: within: unknown key; did you mean 'topology.within'?"),
    ],
)
def test_what_is_wrong_is_named_with_its_place(text: str, problem: str) -> None:
    with pytest.raises(InvalidDocument) as caught:
        job(text)
    assert str(caught.value) == f"job.yaml:{problem}"


@pytest.mark.parametrize(
    "labels", [{f"k{at}": "v" for at in range(65)}, {"zone": [f"z{at}" for at in range(65)]}]
)
def test_there_are_bounds(labels: dict[str, Any]) -> None:
    with pytest.raises(InvalidDocument, match="at most 64 entries"):
        job_from_data({"command": "x", "placement": {"labels": labels}})
