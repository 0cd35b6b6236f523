"""Warm starts of tasks with GPUs, where imports load the CUDA driver: a stand-in that knows its cuInit."""

import subprocess
from pathlib import Path

import pytest
from support.processes import ended, key, of_kind, start_task, supervised

DRIVER = """
static int started;
int cuInit(unsigned flags) { (void)flags; started = 1; return 0; }
int cuDeviceGetCount(int *count) { *count = 1; return started ? 0 : 3; }
"""


@pytest.fixture
def driver(tmp_path: Path) -> Path:
    (tmp_path / "cuda.c").write_text(DRIVER)
    built = tmp_path / "libcuda.so.1"
    subprocess.run(["cc", "-shared", "-fPIC", "-o", built, tmp_path / "cuda.c"], check=True)
    return built


@pytest.mark.parametrize(
    ("imported", "start_mode"),
    [("", "warm"), ("driver.cuInit(0)", "cold: the preloaded modules have started CUDA")],
)
async def test_what_has_only_loaded_the_driver_forks_ranks_that_use_it(
    tmp_path: Path, driver: Path, imported: str, start_mode: str
) -> None:
    loaded = f"import ctypes\ndriver = ctypes.CDLL({str(driver)!r})\n"
    (tmp_path / "driven.py").write_text(f"{loaded}{imported}\n")
    code = tmp_path / "code"
    code.mkdir()
    (code / "a.py").write_text("import driven; raise SystemExit(driven.driver.cuInit(0))")
    async with supervised(tmp_path / "state", preload=("driven",)) as supervisor:
        request = start_task(
            key(1), "python a.py", code, environment={"PYTHONPATH": str(tmp_path)}, gpu_indices=[0]
        )
        await supervisor.start(request)
        entries = await ended(supervisor, key(1))
    assert list(of_kind(entries, "ended")[0].exit_codes) == [0]
    assert of_kind(entries, "started")[0].start_mode.startswith(start_mode)
