"""Sweeps for tests: the shortest texts, and what is wrong with a text."""

from collections.abc import Callable
from typing import Any

import pytest
from paceline.spec.problems import InvalidDocument
from paceline.spec.sweep import SweepSpec
from paceline.spec.sweep_reading import Spec, TrialFile, document_from_data, parse_document

HEAD = "type: sweep\ntrial: {command: x}\n"
SPACE = "search_space: {a: {type: choice, values: [1, 2]}, u: {type: uniform, min_value: 0, max_value: 1}}\n"
GOAL = "objective: {primary_metric: loss, goal: minimize}\n"
LIMITS = "limits: {max_total_trials: 9}\n"


def refused(text: str, reader: Callable[[str], TrialFile] | None = None, *overrides: str) -> str:
    with pytest.raises(InvalidDocument) as caught:
        parse_document(text, "s.yaml", overrides, reader)
    return str(caught.value)


def sweep(**keys: Any) -> SweepSpec:
    base = {
        "type": "sweep",
        "trial": {"command": "train --lr ${{search_space.lr}}"},
        "search_space": {"lr": {"type": "uniform", "min_value": 0.1, "max_value": 0.2}},
        "objective": {"primary_metric": "loss", "goal": "minimize"},
        "limits": {"max_total_trials": 9},
    }
    return as_sweep(document_from_data({**base, **keys}, "sweep")[0])


def as_sweep(spec: Spec) -> SweepSpec:
    assert isinstance(spec, SweepSpec)
    return spec
