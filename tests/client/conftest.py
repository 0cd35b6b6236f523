"""One cluster for the client's tests of a module; a test that breaks things makes its own."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from paceline.client.cli import main as cli
from support.cluster import Cluster


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """Two agents of 4 cpus, without warm processes: the client does not care how a rank starts."""
    with Cluster(tmp_path_factory.mktemp("cluster"), agents=2, agent_args=["--cold"]) as made:
        yield made


@pytest.fixture
def pace(cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> Callable[..., int]:
    """`pace ARGS` on the module's cluster, in this process; its exit code."""
    for name in ("PACELINE_SCHEDULER", "PACELINE_TOKEN", "PACELINE_TOKEN_FILE", "PACELINE_CA"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PACELINE_STATE", str(cluster.state))
    return lambda *args: cli.run([str(arg) for arg in args])


@pytest.fixture
def job_file(tmp_path: Path) -> Callable[[str], Path]:
    """Writes a job file into the test's folder."""

    def write(text: str) -> Path:
        path = tmp_path / "job.yaml"
        path.write_text(text)
        return path

    return write
