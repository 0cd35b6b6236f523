"""Each benchmark at its smallest size, as a person runs it: it works, and its JSON has the stated form.

Its figures are not looked at: a time limit in a test fails on somebody else's noise.
"""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
DRAWN = ("goodput", "packing")
"""One that draws a picture of its own (docs/goodput.png), and one with the bars of all others."""
PNG = b"\x89PNG\r\n\x1a\n"
ROW = {"case", "metric", "unit", "ours", "peer", "theirs", "ratio", "floor", "fraction"}


@pytest.mark.slow
@pytest.mark.serial
@pytest.mark.parametrize(
    "name",
    [
        "launch",
        "restart",
        "checkpoint",
        "jobs",
        "recovery",
        "logs",
        "beat",
        "code",
        "goodput",
        "packing",
        "replay",
        "decide",
        "reclaim",
        "scale",
        "serving",
        "storage",
        "sweep",
    ],
)
def test_runs_at_its_smallest_size(name: str, tmp_path: Path) -> None:
    out = tmp_path / "out.json"
    picture = tmp_path / "out.png"
    command = [sys.executable, "-m", f"benchmarks.{name}", "--quick", "--json", str(out)]
    command += ["--plot", str(picture)] if name in DRAWN else []
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=280, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    told = json.loads(out.read_text())
    assert told["name"] == name
    assert told["machine"]["summary"]
    assert told["versions"]["paceline"]
    assert told["rows"]
    for row in told["rows"]:
        assert row.keys() >= ROW
        assert row["ours"] > 0
    if name in DRAWN:
        check_picture(picture)


def check_picture(path: Path) -> None:
    """A whole PNG of some size, with something on it."""
    from matplotlib import image

    assert path.read_bytes().startswith(PNG)
    height, width, _ = (drawn := image.imread(path)).shape
    assert height >= 100 and width >= 400
    assert drawn.std() > 0.01
