"""Slurm from Debian on one host: munged, slurmctld and several `slurmd -N`, all in one temporary folder.

Tuned as its manual says for many short jobs; no accounting, no task or cgroup plugin: the fastest
it can be here. Everything is stopped by pid, and the system's own configuration is not touched.
"""

import os
import secrets
import shutil
import subprocess
import sys
from pathlib import Path
from types import TracebackType
from typing import Self

from .processes import Crew, free_port, run
from .work.waiting import wait_until

NAME = "Slurm"

CONFIGURATION = """\
ClusterName=bench
SlurmctldHost=localhost
SlurmctldPort={port}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
CredType=cred/munge
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool.%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.%n.log
SlurmctldDebug=error
SlurmdDebug=error
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
JobCompType=jobcomp/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SchedulerType=sched/backfill
SchedulerParameters={parameters}
SlurmdParameters=config_overrides
MaxJobCount=400000
MaxArraySize=400001
MinJobAge=300
ReturnToService=2
SlurmctldTimeout=30
SlurmdTimeout=60
{nodes}
PartitionName=main Nodes=n[1-{count}] Default=YES MaxTime=INFINITE State=UP
"""
CLOUD = """\
NodeName=c[1-{count}] CPUs={cpus} RealMemory=1000 State=CLOUD
PartitionName=cloud Nodes=c[1-{count}] MaxTime=INFINITE State=UP
ResumeProgram=/bin/true
SuspendProgram=/bin/true
ResumeTimeout=36000
ResumeRate=0
SuspendTime=36000
"""
TUNED = "batch_sched_delay=0,sched_min_interval=0,bf_interval=1"


def missing() -> str:
    """Why Slurm cannot run here; empty when it can."""
    absent = [name for name in ("slurmctld", "slurmd", "sbatch", "munged", "mungekey") if _path(name) is None]
    if absent:
        return f"Slurm: no {', '.join(absent)} (python -m benchmarks.peers.slurm setup)"
    return "" if os.geteuid() == 0 else "Slurm: slurmd wants root"


def version() -> str:
    return run([_need("slurmctld"), "-V"]).strip()


def setup() -> None:
    """Debian's packages; the services that they would start are not used."""
    environment = {"DEBIAN_FRONTEND": "noninteractive"}
    packages = ["slurmctld", "slurmd", "slurm-client", "munge"]
    command = ["apt-get", "install", "-y", "-q", "--no-install-recommends", *packages]
    run(command, timeout_s=600, environment=environment)


class Slurm:
    """A cluster of `nodes` nodes of `cpus` cpus each; `cloud` nodes only allocate and start nothing."""

    def __init__(
        self,
        folder: Path,
        *,
        nodes: int = 2,
        cpus: int = 64,
        parameters: str = TUNED,
        cloud: int = 0,
        cloud_cpus: int = 64,
    ) -> None:
        self.folder = folder
        self.nodes = nodes
        self._crew = Crew(folder)
        port = self.port = free_port(nodes + 1)
        node_lines = (
            f"NodeName=n[1-{nodes}] NodeHostname=localhost NodeAddr=127.0.0.1"
            f" Port=[{port + 1}-{port + nodes}] CPUs={cpus} RealMemory=1000 State=UNKNOWN"
        )
        cloud_lines = CLOUD.format(count=cloud, cpus=cloud_cpus) if cloud else ""
        self._configuration = folder / "slurm.conf"
        self._configuration.write_text(
            CONFIGURATION.format(
                folder=folder, port=port, nodes=node_lines, parameters=parameters, count=nodes
            )
            + cloud_lines
        )
        (folder / "state").mkdir()
        self.environment = {"SLURM_CONF": str(self._configuration)}

    def __enter__(self) -> Self:
        try:
            self._start()
        except BaseException:
            self._crew.__exit__(*sys.exc_info())
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._crew.__exit__(kind, error, trace)

    def _start(self) -> None:
        key = self.folder / "munge.key"
        key.write_bytes(secrets.token_bytes(128))
        key.chmod(0o600)
        socket = self.folder / "munge.socket"
        files = [f"--{name}-file={self.folder}/munge.{name}" for name in ("key", "pid", "log", "seed")]
        self._crew.start("munged", [_need("munged"), "--foreground", "--force", f"--socket={socket}", *files])
        wait_until(socket.exists, "munged's socket")
        self.start_controller()
        for node in range(1, self.nodes + 1):
            command = in_own_pids(_need("slurmd"), "-D", "-N", f"n{node}", "-f", str(self._configuration))
            self._crew.start(f"slurmd.n{node}", command, environment=self.environment)
        wait_until(self._all_idle, "Slurm's nodes idle", timeout_s=60, every_s=0.1)

    def start_controller(self) -> None:
        command = [_need("slurmctld"), "-D", "-f", str(self._configuration)]
        self.controller: subprocess.Popen[bytes] = self._crew.start(
            "slurmctld", command, environment=self.environment
        )

    def _all_idle(self) -> bool:
        try:
            states = self.run("sinfo", "-h", "-N", "-o", "%N %t").split("\n")
        except RuntimeError:
            return False
        return sum(line.startswith("n") and line.endswith(" idle") for line in states) == self.nodes

    def run(self, *command: str, timeout_s: float = 120.0) -> str:
        """One of Slurm's own commands, against this cluster."""
        return run(command, environment=self.environment, timeout_s=timeout_s)

    def queued(self) -> int:
        """Jobs that are not over."""
        return len(self.run("squeue", "-h", "-r", "-o", "%A").split())


def in_own_pids(*command: str) -> list[str]:
    """Run in a pid namespace: slurmstepd leaves its parent, and the namespace's shell reaps it."""
    shell = ["bash", "-c", '"$@" & wait "$!"', "bash"]
    return ["unshare", "--pid", "--fork", "--mount-proc", "--kill-child", *shell, *command]


def _path(name: str) -> str | None:
    return shutil.which(name, path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin")


def _need(name: str) -> str:
    found = _path(name)
    if found is None:
        raise FileNotFoundError(f"{name}: not installed (python -m benchmarks.peers.slurm setup)")
    return found


if __name__ == "__main__":
    setup() if sys.argv[1:] == ["setup"] else print(missing() or version())
