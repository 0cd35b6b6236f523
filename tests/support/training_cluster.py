"""Two nodes for chaos in training: each has two GPUs, which are a script, and all checkpoints lie on a small
disk, which can be filled. It needs root to be mounted; elsewhere there is none.

What is not real of a GPU is the device: its test runs its code on the CPU.
"""

import os
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from .cluster import Cluster, Process
from .disks import Disk, small_disk
from .nvml_node import Driver, build_stub, nvml_environment

NODES = GPUS = 2
_TEST = f"{sys.executable} -P -m paceline.training.gpu_test --device cpu"
_GATED_TEST = f"sh -c 'while [ -e $NVML_STUB.shut ]; do sleep 0.1; done; exec {_TEST}'"
_FIRST_TEST_AFTER_S = 0.1


class TrainingCluster(Cluster):
    def __init__(self, folder: Path, disk: Disk | None) -> None:
        """`disk`: at the folder `storage_of` of this one."""
        self.disk = disk
        self._stub = build_stub(folder / "stub")
        self._scripts = [folder / f"nvml-{index}" for index in range(NODES)]
        self.drivers = [Driver(script, GPUS) for script in self._scripts]
        super().__init__(
            folder,
            agents=NODES,
            cpus=1,
            scheduler_args=("--heartbeat", "0.5", "--storage", str(storage_of(folder))),
            agent_args=("--gpu-test", _GATED_TEST, "--gpu-test-after", str(_FIRST_TEST_AFTER_S)),
        )

    def agent_environment(self, index: int) -> dict[str, str]:
        return {**self.environment, **nvml_environment(self._stub, self._scripts[index])}

    def start_agent(self, index: int = 0, *args: str, **how: object) -> Process:
        """It knows nothing of its GPUs' past: the wait for their tests would double each time."""
        self.drivers[index].forget_events()
        (self.agent_state(index) / "gpus.json").unlink(missing_ok=True)
        return super().start_agent(index, *args, **how)  # type: ignore[arg-type]

    @contextmanager
    def gpu_tests_held(self, index: int) -> Iterator[None]:
        """What is out of service on that node stays so, meanwhile."""
        gate = Path(f"{self._scripts[index]}.shut")
        gate.touch()
        try:
            yield
        finally:
            gate.unlink()


def storage_of(folder: Path) -> Path:
    return folder / "storage"


@contextmanager
def training_cluster(folder: Path) -> Iterator[TrainingCluster]:
    storage_of(folder).mkdir()
    with ExitStack() as stack:
        try:
            disk = stack.enter_context(small_disk(storage_of(folder), "64m")) if os.getuid() == 0 else None
        except pytest.skip.Exception:  # root, and yet not allowed to mount
            disk = None
        yield stack.enter_context(TrainingCluster(folder, disk))
