"""What the tests of this folder share: they need an NVIDIA GPU, its driver and a torch that was built for it.

Where one is missing they are skipped, and say which. Neither is torch imported nor CUDA begun to find that
out. `make test-gpu` runs them, one after the other: they share the machine's first GPU.
"""

import importlib.util
import re
from collections.abc import Callable, Iterator
from functools import lru_cache
from pathlib import Path

import pynvml
import pytest
from support.cluster import Cluster

HERE = Path(__file__).parent


@lru_cache(maxsize=1)
def missing() -> str:
    """Why they cannot run here; empty: they can."""
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError as error:
        return f"no NVIDIA driver: {error}"
    try:
        if not pynvml.nvmlDeviceGetCount():
            return "the NVIDIA driver finds no GPU"
    finally:
        pynvml.nvmlShutdown()
    torch = importlib.util.find_spec("torch")
    if torch is None or not torch.origin:
        return "torch is not installed"
    said = (Path(torch.origin).parent / "version.py").read_text()
    built_for = re.search(r"^cuda\b.*= '([^']+)'", said, re.MULTILINE)
    return "" if built_for else "this torch was built without CUDA"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if HERE in item.path.parents:
            if why := missing():
                item.add_marker(pytest.mark.skip(reason=why))
            item.add_marker(pytest.mark.serial)


@pytest.fixture(scope="session")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """One node with the machine's GPUs, for all tests that leave no trace there."""
    with Cluster(tmp_path_factory.mktemp("cluster"), cpus=8) as made:
        yield made


@pytest.fixture
def script(tmp_path: Path) -> Callable[[str], Path]:
    def write(text: str) -> Path:
        path = tmp_path / "script.py"
        path.write_text(text)
        return path

    return write
