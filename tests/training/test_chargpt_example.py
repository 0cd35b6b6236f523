"""What examples/chargpt chooses by the machine. That it trains is seen in tests/launchers."""

import runpy
from pathlib import Path

import paceline
import pytest
import torch

CHARGPT = Path(paceline.__file__).parent / "examples" / "chargpt"


@pytest.mark.parametrize(("gpus", "device"), [(False, "cpu"), (True, "cuda:1")])
def test_each_rank_takes_the_gpu_of_its_local_rank(
    monkeypatch: pytest.MonkeyPatch, gpus: bool, device: str
) -> None:
    current: list[torch.device] = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpus)
    monkeypatch.setattr(torch.cuda, "set_device", current.append)
    monkeypatch.setenv("LOCAL_RANK", "1")
    monkeypatch.syspath_prepend(str(CHARGPT))
    chosen = runpy.run_path(str(CHARGPT / "train_fsdp.py"))["choose_device"]()
    assert str(chosen) == device
    assert current == ([chosen] if gpus else [])
