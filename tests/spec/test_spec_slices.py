"""MIG slices and the memory of GPUs: what a job may ask for, and how slices are numbered and called."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from paceline.spec.job import InvalidDocument, JobSpec, parse_canonical, parse_job
from paceline.spec.resources import ANY_GPU, GpuWish
from paceline.spec.slices import (
    INSTANCES_MAX,
    asks_for_slice,
    gpu_of,
    gpus_of,
    index_text,
    is_slice,
    is_slice_name,
    profile_of,
    slice_index,
)

ids = st.integers(0, INSTANCES_MAX - 1)


def job(gpus: Any, processes: int = 1) -> JobSpec:
    keys = {
        "command": "true",
        "resources": {"gpus": gpus},
        "distribution": {"type": "pytorch", "process_count_per_instance": processes},
    }
    return JobSpec.model_validate(keys)


def problems(gpus: str, processes: int = 1) -> list[str]:
    text = f"command: x\nresources:\n  gpus: {gpus}\n"
    text += f"distribution: {{type: pytorch, process_count_per_instance: {processes}}}\n"
    with pytest.raises(InvalidDocument) as refused:
        parse_job(text, "job.yaml")
    return [f"{one.line}: {one.key}: {one.text}" for one in refused.value.problems]


@given(st.lists(st.tuples(st.integers(0, 255), ids, ids), unique=True, max_size=20))
def test_no_two_slices_have_an_index_and_none_that_of_a_gpu(slices: list[tuple[int, int, int]]) -> None:
    indices = [slice_index(*one) for one in slices]
    assert len(set(indices)) == len(indices) and all(is_slice(index) for index in indices)
    assert [gpu_of(index) for index in indices] == [gpu for gpu, _, _ in slices]
    assert [index_text(index) for index in indices] == ["/".join(map(str, one)) for one in slices]
    assert max(indices, default=0) < 1 << 31


def test_a_whole_gpu_is_itself() -> None:
    assert not is_slice(255)
    assert (gpu_of(255), index_text(255), gpus_of([0, slice_index(0, 7, 0), 3])) == (255, "255", {0, 3})


@pytest.mark.parametrize(
    ("model", "slices"),
    [
        ("1g.5gb", True),
        ("1G.10GB", True),
        ("1c.3g.20gb", True),
        ("A100-SXM4-40GB MIG 1g", True),
        ("mig", True),
        ("1g.", True),
        ("H100", False),
        ("A100-SXM4-40GB", False),
        ("migraine", False),
        ("GRID V100D-8Q", False),
    ],
)
def test_a_model_that_names_a_profile_means_slices(model: str, slices: bool) -> None:
    assert asks_for_slice(model) is slices
    assert GpuWish((model,)).slices is slices


def test_names_of_slices() -> None:
    name = "NVIDIA A100-SXM4-40GB MIG 1c.3g.20gb"
    assert is_slice_name(name) and profile_of(name) == "1c.3g.20gb"
    assert not is_slice_name("NVIDIA A100-SXM4-40GB")
    assert not ANY_GPU.slices


def test_a_slice_is_asked_for_by_its_model() -> None:
    demand = job({"count": 2, "model": "1g.5gb"}, processes=2).demand()
    assert (demand.per_task.gpus, demand.gpu) == (2, GpuWish(("1g.5gb",)))


@pytest.mark.parametrize(
    ("asked", "size_bytes"), [("40GB", 40 * 10**9), ("40Gi", 40 << 30), (1 << 30, 1 << 30)]
)
def test_a_least_memory_of_each_gpu(asked: object, size_bytes: int) -> None:
    spec = job({"count": 2, "memory": asked})
    assert spec.demand().gpu == GpuWish((), size_bytes)
    assert parse_canonical(spec.to_json()) == spec


def test_a_document_from_before_there_was_memory_is_read() -> None:
    spec = job({"count": 1, "model": "H100"})
    assert ',"memory":0' in spec.to_json()
    old = spec.to_json().replace('"memory":0,"model"', '"model"')
    assert old != spec.to_json() and parse_canonical(old) == spec


@pytest.mark.parametrize(
    ("gpus", "processes", "says"),
    [
        ("{count: 2, model: 1g.5gb}", 1, "resources.gpus.count: expected at most one MIG slice per process"),
        ("{count: 3, model: 1g.5gb}", 2, "found 3 for 2 processes per instance"),
        ("{count: 0.5, model: MIG}", 1, "resources.gpus.count: expected whole MIG slices"),
        ("{count: 1, model: [H100, 1g.10gb]}", 1, "resources.gpus.model: expected either whole GPUs or MIG"),
        ("{count: 1, memory: much}", 1, "resources.gpus.memory: expected a size such as 16Gi"),
        ("{count: 1, memory: -1}", 1, "resources.gpus.memory: expected a size from 0"),
    ],
)
def test_what_cannot_be_had_is_refused(gpus: str, processes: int, says: str) -> None:
    [problem] = problems(gpus, processes)
    assert says in problem and problem.startswith("3: ")


def test_what_has_no_effect_or_another_is_warned_about() -> None:
    text = "command: x\nresources: {gpus: {count: 0, memory: 40GB}}"
    assert [str(one).partition(" ")[2] for one in parse_job(text, "job.yaml")[1]] == [
        "resources.gpus.memory: has no effect with a count of 0"
    ]
    text = "command: x\nresources: {gpus: {count: 2, model: 1g.5gb}}\n"
    text += "distribution: {type: pytorch, process_count_per_instance: 2}\n"
    [caution] = parse_job(text, "job.yaml")[1]
    assert "each process sees its own MIG slice alone, as device 0" in caution.text
