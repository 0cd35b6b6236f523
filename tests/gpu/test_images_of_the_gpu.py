"""Images of a state on the GPU: pinned, so that the device copies straight into them; and what is in them."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

PINNED = """
import sys, torch, paceline
run = paceline.init(checkpoints=sys.argv[1])
weights = torch.arange(10_000_000, device="cuda", dtype=torch.float32)
turned = torch.arange(6_000_000, device="cuda").reshape(2000, 3000).t()
for step in (1, 2, 3):
    run.save(step, weights=weights, turned=turned)
    weights += 1  # in stream order behind the copy
stager = run._checkpoints()._saver._stager
places = [place for slot in stager._buffers.values() for buffer in slot for place in buffer.places]
print({place.is_pinned() for place in places if place.numel() > 1_000_000})
outcome = run.flush()
assert outcome is not None and outcome.published, outcome
again = run.restore(weights=torch.zeros_like(weights), turned=torch.zeros_like(turned)).values
assert again["weights"].is_cuda
assert torch.equal(again["weights"], torch.arange(10_000_000, device="cuda") + 2.0)
assert torch.equal(again["turned"], turned)
print("same")
"""
REFUSED = """
import torch
from paceline.training.layout import _pin
whole = torch.ones(1 << 22, dtype=torch.uint8)
on_device = torch.zeros(1 << 22, dtype=torch.uint8, device="cuda")
unpin = _pin(whole)
assert whole.is_pinned()
refused = _pin(whole)
whole.copy_(on_device + 2)  # a kernel is not blamed for what was refused
assert int(whole.sum()) == 2 << 22
refused()
assert whole.is_pinned(), "what was not pinned is not undone"
unpin()
assert not whole.is_pinned()
print("fine")
"""


def run(path: Path, *arguments: str) -> list[str]:
    ended = subprocess.run(
        [sys.executable, str(path), *arguments], capture_output=True, text=True, cwd=path.parent, timeout=80
    )
    print(ended.stderr, file=sys.stderr)
    assert ended.returncode == 0
    return ended.stdout.splitlines()


def test_images_are_pinned_and_hold_what_was_there_at_the_save(
    script: Callable[[str], Path], tmp_path: Path
) -> None:
    assert run(script(PINNED), str(tmp_path / "checkpoints")) == ["{True}", "same"]


def test_where_pinning_is_refused_all_goes_on(script: Callable[[str], Path]) -> None:
    assert run(script(REFUSED)) == ["fine"]
