"""The policy document: every problem with its place, canonical text, and YAML for people."""

import pytest
from paceline.spec.cluster_policy import PolicySpec
from paceline.spec.moments import moment_text, moment_us, parse_moment
from paceline.spec.policy_reading import parse_canonical_policy, parse_policy, policy_yaml
from paceline.spec.problems import InvalidDocument

GOOD = """\
queues:
  research:
    weight: 2
    guaranteed:
      gpus: 16
    max:
      gpus: 32
      cpus: 512
    queues:
      vision:
        max_per_user:
          gpus: 0.5
          jobs: 20
        users:
        - ann
        - bob
default_queue: research/vision
pools:
  h100:
    nodes:
    - h100-*
    labels:
      rack: '3'
    queues:
    - research
    default: true
    maintenance:
    - from: 2026-12-01T06:00Z
      to: 2026-12-01T10:00Z
      why: new drives
    reservations:
      exam:
        from: 2026-12-02T06:00Z
        to: 2026-12-02T10:00Z
        nodes: 2
        users:
        - ann
order:
  class_limits_gpu_hours:
  - 2
  - 8
  preemption: false
"""


def test_it_is_read_and_written_as_the_same() -> None:
    spec = parse_policy(GOOD, "p.yaml")
    assert spec.queues["research"].queues["vision"].max_per_user.gpus == 0.5
    assert spec.order.min_run_minutes == 10 and spec.usage.half_life_hours == 168
    assert policy_yaml(spec) == GOOD
    assert parse_canonical_policy(spec.to_json(), "p") == spec
    assert parse_policy("", "p.yaml") == PolicySpec() and policy_yaml(PolicySpec()) == ""


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("- a", "p.yaml:1:1: expected a mapping of keys; found a list of 1"),
        ("queue: {}", "p.yaml:1:1: queue: unknown key; did you mean 'queues'?"),
        (
            "queues: {a: {queues: {b: {wieght: 2}}}}",
            "p.yaml:1:27: queues.a.queues.b.wieght: unknown key; did you mean 'weight'?",
        ),
        ("queues: {a: {weight: 0}}", "p.yaml:1:22: queues.a.weight: expected more than 0; found 0"),
        ("queues: {a/b: {}}", "expected a name of letters"),
        (
            "queues: {a: {guaranteed: {gpus: 8}, max: {gpus: 4}}}",
            "queues.a.guaranteed.gpus: expected at most max.gpus (4); found 8",
        ),
        (
            "queues: {a: {guaranteed: {gpus: 8}, queues: {b: {guaranteed: {gpus: 6}}, "
            "c: {guaranteed: {gpus: 6}}}}}",
            "queues.a.guaranteed.gpus: the queues below it are guaranteed 12 together, which is more than 8",
        ),
        (
            "queues: {a: {max: {cpus: 8}, queues: {b: {guaranteed: {cpus: 9}}}}}",
            "queues.a.max.cpus: the queues below it are guaranteed 9 together, which is more than 8",
        ),
        (
            "queues: {research: {}}\ndefault_queue: reserch",
            "p.yaml:2:16: default_queue: expected a queue of this policy; found 'reserch'; "
            "did you mean 'research'?",
        ),
        ("pools: {a: {}}", "pools.a: expected nodes or labels: which nodes are in it"),
        (
            "pools: {a: {nodes: x, default: true}, b: {nodes: y, default: true}}",
            "pools.b.default: the pool a is the default already",
        ),
        (
            "pools: {a: {nodes: x, queues: [q]}}",
            "pools.a.queues[0]: expected a queue of this policy; found 'q'",
        ),
        (
            "pools:\n  a:\n    nodes: x\n    maintenance:\n    - {from: 2026-12-01, to: 2026-12-02T06:00Z}",
            "p.yaml:5:14: pools.a.maintenance[0].from: expected a time with its zone, such as "
            "2026-12-01T06:00Z or 2026-12-01T07:00+01:00; found '2026-12-01'",
        ),
        (
            "pools: {a: {nodes: x, maintenance: [{from: 2026-12-01T06:00Z}]}}",
            "p.yaml:1:37: pools.a.maintenance[0]: required key 'to' is missing",
        ),
        (
            "pools: {a: {nodes: x, maintenance: [{from: 2026-12-01T06:00Z, to: 2026-12-01T07:00+01:00}]}}",
            "pools.a.maintenance[0].to: expected a time after 2026-12-01T06:00Z; found 2026-12-01T06:00Z",
        ),
        (
            "pools: {a: {nodes: x, maintenance: [{from: 2026-12-01T06:00Z, wyh: disks}]}}",
            "p.yaml:1:63: pools.a.maintenance[0].wyh: unknown key; did you mean 'why'?",
        ),
        (
            "pools: {a: {nodes: x, max_timeout_hours: 2, defaults: {timeout_hours: 3}}}",
            "p.yaml:1:71: pools.a.defaults.timeout_hours: expected at most max_timeout_hours (2); found 3",
        ),
        (
            "pools:\n  a:\n    nodes: x\n    reservations:\n"
            "      b: {from: 2026-12-01T06:00Z, to: 2026-12-01T05:00Z, nodes: 0, users: ann}",
            "p.yaml:5:66: pools.a.reservations.b.nodes: expected at least 1; found 0",
        ),
        (
            "pools:\n  a:\n    nodes: x\n    reservations:\n"
            "      b: {from: 2026-12-01T06:00Z, to: 2026-12-01T05:00Z, nodes: 1}",
            "p.yaml:5:10: pools.a.reservations.b: expected users or queues: whom the nodes are kept for\n"
            "p.yaml:5:40: pools.a.reservations.b.to: expected a time after 2026-12-01T06:00Z; found "
            "2026-12-01T05:00Z",
        ),
        (
            "pools: {a: {nodes: x, reservations: {b: {from: 2026-12-01T06:00Z, to: 2026-12-02T05:00Z, "
            "nodes: 1, queues: q}}}}",
            "pools.a.reservations.b.queues[0]: expected a queue of this policy; found 'q'",
        ),
        ("order: {class_limits_gpu_hours: [4, 1]}", "order.class_limits_gpu_hours: expected growing numbers"),
        ("order: {preemption: maybe}", "expected on or off; found 'maybe'"),
    ],
)
def test_what_is_wrong_is_told_with_its_place(text: str, said: str) -> None:
    with pytest.raises(InvalidDocument) as refused:
        parse_policy(text, "p.yaml")
    assert said in refused.value.message


@pytest.mark.parametrize(
    ("written", "kept"),
    [
        ("2026-12-01T06:00Z", "2026-12-01T06:00Z"),
        ("2026-12-01 07:00+01:00", "2026-12-01T06:00Z"),
        ("2026-12-01T00:00:05-06:00", "2026-12-01T06:00:05Z"),
    ],
)
def test_moments_are_kept_in_utc(written: str, kept: str) -> None:
    assert parse_moment(written) == kept and parse_moment(kept) == kept
    assert moment_text(moment_us(kept)) == kept.replace("T", " ").replace("Z", " UTC")


@pytest.mark.parametrize(
    "text", ["", "soon", "2026-12-01T06:00", "0001-01-01T00:00+23:00", "2026-13-01T06:00Z"]
)
def test_what_is_no_moment_is_refused(text: str) -> None:
    with pytest.raises(ValueError):
        parse_moment(text)


def test_a_tree_has_bounds() -> None:
    deep = "{}"
    for _ in range(9):
        deep = f"{{queues: {{q: {deep}}}}}"
    with pytest.raises(InvalidDocument, match="nested more than 8 deep"):
        parse_policy(deep, "p.yaml")
    inner = ", ".join(f"q{number}: {{}}" for number in range(999))
    wide = f"queues: {{a: {{queues: {{{inner}}}}}, b: {{queues: {{{inner}}}}}, c: {{queues: {{d: {{}}}}}}}}"
    with pytest.raises(InvalidDocument, match="expected at most 2000 queues in all; found 2002"):
        parse_policy(wide, "p.yaml")
