"""A large state is in several files of about the same size; each is written whole, whatever its length."""

from pathlib import Path
from typing import Any

import pytest
import torch
from paceline.training import layout, persister
from paceline.training.manifest import FileEntry, hash_bytes
from support.fake_shim import FakeShim, FakeTask
from support.rank_scripts import saved
from torch import nn
from torch.distributed import checkpoint

MakeRun = Any
LAYERS = 20
LAYER_BYTES = 300 * 300 * 4


@pytest.fixture(autouse=True)
def _parts_are_small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(layout, "_PART_BYTES_MIN", LAYER_BYTES)


def deep(value: float) -> nn.Sequential:
    model = nn.Sequential(*(nn.Linear(300, 300, bias=False) for _ in range(LAYERS)))
    for number, parameter in enumerate(model.parameters()):
        nn.init.constant_(parameter, value + number)
    return model


def holds(model: nn.Module, value: float) -> bool:
    return all(bool(torch.all(one == value + number)) for number, one in enumerate(model.parameters()))


def parts_of(folder: Path) -> list[Path]:
    return [path for path in sorted(folder.glob("__0_*")) if path.stat().st_size > LAYER_BYTES]


@pytest.fixture
def task(tmp_path: Path) -> FakeTask:
    return FakeTask(tmp_path)


def save_steps(make_run: MakeRun, task: FakeTask, *steps: int, same_node: bool) -> FakeTask:
    """The next attempt."""
    with FakeShim(task) as shim:
        run = make_run(task)
        for step in steps:
            saved(run, step, model=deep(step))
        return task.next_attempt(shim.of("checkpoint"), same_node=same_node)


@pytest.mark.parametrize("tier", ["memory", "storage"])
def test_the_parts_come_back(make_run: MakeRun, task: FakeTask, tier: str) -> None:
    after = save_steps(make_run, task, 1, same_node=tier == "memory")
    with FakeShim(after):
        model = deep(0.0)
        assert make_run(after).restore(model=model).tier.startswith(tier)
    assert holds(model, 1.0)


def test_they_are_few_and_alike_and_torch_reads_them(make_run: MakeRun, task: FakeTask) -> None:
    with FakeShim(task):
        path = saved(make_run(task), 1, model=deep(1.0)).path
    sizes = [part.stat().st_size for part in parts_of(path)]
    assert 2 < len(sizes) <= layout._PARTS_MAX
    assert max(sizes) <= 2 * min(sizes)
    stock = {"model": deep(0.0).state_dict()}
    checkpoint.load(stock, checkpoint_id=path)
    assert torch.all(stock["model"]["3.weight"] == 4.0)


@pytest.mark.parametrize("number", [0, 1, -1])
def test_damage_of_any_part_is_seen(make_run: MakeRun, task: FakeTask, number: int) -> None:
    after = save_steps(make_run, task, 1, 2, same_node=False)
    part = parts_of(task.job_folder / "checkpoints" / "step-00000002.a1")[number]
    data = bytearray(part.read_bytes())
    data[-9] ^= 1
    part.write_bytes(data)
    with FakeShim(after) as shim:
        model = deep(0.0)
        assert make_run(after).restore(model=model).step == 1
        assert shim.of("restored")[0]["rejected"] == [f"step 2 (attempt 1): {part.name}: hash differs"]
    assert holds(model, 1.0)


@pytest.mark.parametrize("size_bytes", [1, 4095, 4096, 4097, 3 * 4096, 1_000_001])
def test_a_file_of_any_length_is_written_whole(tmp_path: Path, size_bytes: int) -> None:
    image, target = tmp_path / "image", tmp_path / "target"
    image.write_bytes(bytes(number % 251 for number in range(size_bytes)))
    entry = persister._copy_file(image, target)
    assert target.read_bytes() == image.read_bytes()
    assert entry == FileEntry(size_bytes, hash_bytes(image.read_bytes()))


def test_what_the_disk_does_not_take_directly_goes_through_the_page_cache(tmp_path: Path) -> None:
    """Not at a whole block: refused by file systems that write directly, taken by those that only say so."""
    data = memoryview(bytes(range(256)) * 64)
    with (tmp_path / "target").open("wb", buffering=0) as file:
        file.write(b"x")
        persister._write_directly(file, data)
        persister._write_all(file, data[file.tell() - 1 :])
    assert (tmp_path / "target").read_bytes() == b"x" + data
