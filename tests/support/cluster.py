"""A real cluster for a test: scheduler and agents as processes on loopback, state in the test's folder.

    with Cluster(tmp_path, agents=2) as cluster:
        job = cluster.submit_text("command: echo hello")
        assert cluster.wait_state(job, "SUCCEEDED").exit_code == 0
        cluster.kill_scheduler(); cluster.start_scheduler()

Processes are signalled by pid and start time alone. At the end everything is stopped, and a process that
still bears the cluster's mark (in its environment or command line) fails the test, after being killed.
"""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

from paceline.client import documents, leftovers, process, views
from paceline.client.process import Identity
from paceline.client.registry_views import Asset
from paceline.client.sdk import Client
from paceline.proto.marks import agent_mark
from paceline.spec.errors import NotFound
from paceline.spec.ids import JobId
from paceline.spec.lifecycle import TERMINAL, NodeContact

from .ports import lasting_port

T = TypeVar("T")

MARK = "PACELINE_TEST_CLUSTER"
WAIT_S = 120.0
POLL_S = 0.02
STOP_S = 20.0
LEFT_S = 10.0


def wait_until(what: str, condition: Callable[[], T | None], timeout_s: float = WAIT_S) -> T:
    """The first value of `condition()` that is not None or False. Fails, saying `what`, after the time."""
    deadline = time.monotonic() + timeout_s
    while True:
        value = condition()
        if value is not None and value is not False:
            return value
        if time.monotonic() > deadline:
            raise AssertionError(f"after {timeout_s:g} s still not: {what}")
        time.sleep(POLL_S)


class Process:
    """A process of the cluster: started by us, known by pid and start time."""

    def __init__(self, name: str, args: Sequence[str], log: Path, environment: dict[str, str]) -> None:
        self.name = name
        self.log = log
        with log.open("ab") as file:
            self._child = subprocess.Popen(
                [sys.executable, "-P", "-m", *args],
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=file,
                cwd=log.parent,
                env=environment,
                start_new_session=True,
            )
        identity = process.identify(self._child.pid)
        assert identity is not None, f"{name} ended at once:\n{self.log_text()}"
        self.identity: Identity = identity

    @property
    def pid(self) -> int:
        return self.identity.pid

    def is_alive(self) -> bool:
        return self._child.poll() is None

    def exit_code(self) -> int | None:
        """None while it runs."""
        return self._child.poll()

    def send(self, signum: int) -> None:
        """A signal (SIGSTOP, SIGCONT ...), to this very process."""
        process.send(self.identity, signum)

    def kill(self) -> None:
        """SIGKILL, and wait for the end."""
        self.send(signal.SIGKILL)
        self._child.wait(STOP_S)

    def stop(self) -> int:
        """SIGTERM, and wait for the end; its exit code."""
        self.send(signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            return self._child.wait(STOP_S)
        self.kill()
        raise AssertionError(f"{self.name} did not stop on SIGTERM within {STOP_S:g} s:\n{self.log_text()}")

    def log_text(self) -> str:
        return self.log.read_text(errors="replace")[-20_000:]


class Cluster:
    """A scheduler and agents. Methods that start something wait until it serves or is connected."""

    def __init__(
        self,
        folder: Path,
        *,
        agents: int = 1,
        cpus: float = 4,
        scheduler_args: Sequence[str] = (),
        agent_args: Sequence[str] = (),
        environment: dict[str, str] | None = None,
    ) -> None:
        """`folder` (tmp_path) gets the state; `*_args` are further options of the two processes."""
        self.folder = folder
        self.state = folder / "state"
        self.state.mkdir(mode=0o700)
        self.scheduler: Process | None = None
        self.agents: dict[int, Process] = {}
        self._cpus = cpus
        self._scheduler_args = tuple(scheduler_args)
        self._agent_args = tuple(agent_args)
        clean = {key: value for key, value in os.environ.items() if not key.startswith("PACELINE_")}
        self.environment = {**clean, MARK: str(self.state), **(environment or {})}
        self._port = lasting_port()
        self._first_agents = agents
        self._client: Client | None = None

    def __enter__(self) -> "Cluster":
        try:
            self.start_scheduler()
            for index in range(self._first_agents):
                self.start_agent(index, wait=False)
            for index in range(self._first_agents):
                self.wait_connected(index)
        except BaseException:
            self._end()
            raise
        return self

    def __exit__(self, *exc: object) -> None:
        left = self._end()
        if left and exc[0] is None:
            raise AssertionError("left behind by the cluster:\n" + "\n".join(left))

    @property
    def address(self) -> str:
        """HOST:PORT of the scheduler; stays over its restarts."""
        return f"127.0.0.1:{self._port}"

    @property
    def client(self) -> Client:
        """A client of this cluster, patient enough for a scheduler that restarts."""
        if self._client is None:
            self._client = self.new_client()
        return self._client

    def new_client(self, *, patience_s: float = 30.0) -> Client:
        return Client(self.address, state=self.state, patience_s=patience_s, ca_file=self.ca_file)

    @property
    def ca_file(self) -> Path | None:
        """The certificate that a scheduler with --tls made; None without."""
        certificate = self.state / "tls" / "cert.pem"
        return certificate if certificate.exists() else None

    def pace(
        self, *args: str, timeout_s: float = 60, **environment: str
    ) -> "subprocess.CompletedProcess[str]":
        """Run the real `pace` command on this cluster."""
        return subprocess.run(
            [sys.executable, "-m", "paceline.client.cli.main", *args],
            capture_output=True,
            text=True,
            errors="surrogateescape",
            timeout=timeout_s,
            env={**self.environment, "PACELINE_STATE": str(self.state), **environment},
        )

    def start_scheduler(self, *args: str) -> Process:
        """Start it (again), on the same port, and wait until it serves."""
        assert self.scheduler is None or not self.scheduler.is_alive(), "the scheduler runs"
        listen = ["--state", str(self.state), "--listen", self.address]
        program = ["paceline.scheduler.main", *listen, *self._scheduler_args, *args]
        started = self._spawn("scheduler", program, self.environment)
        self.scheduler = started
        wait_until("the scheduler serves", lambda: self._serves(started))
        return started

    def kill_scheduler(self) -> None:
        """SIGKILL the scheduler."""
        assert self.scheduler is not None
        self.scheduler.kill()

    def stop_scheduler(self) -> None:
        """SIGTERM the scheduler; its exit code must be 0."""
        assert self.scheduler is not None
        code = self.scheduler.stop()
        assert code == 0, f"the scheduler exited {code}:\n{self.scheduler.log_text()}"

    def start_agent(
        self, index: int = 0, *args: str, wait: bool = True, address: str = "", by: Sequence[str] = ()
    ) -> Process:
        """Start agent `index` (again) on its own state folder. `address`: a proxy before the scheduler;
        `by`: a module that runs it elsewhere (support/without_folder.py, in_network.py), and its words."""
        assert index not in self.agents or not self.agents[index].is_alive(), f"agent {index} runs"
        state = self.agent_state(index)
        state.mkdir(mode=0o700, parents=True, exist_ok=True)
        options = ["--scheduler", address or self.address, "--state", str(state), "--name", f"local-{index}"]
        options += ["--slots", f"{self._cpus:g}", "--token-file", str(self.state / "agent.token")]
        if self.ca_file is not None:
            options += ["--ca", str(self.ca_file)]
        program = ["paceline.agent.main", *options, *self._agent_args, *args]
        started = self._spawn(f"agent-{index}", [*by, *program], self.agent_environment(index))
        self.agents[index] = started
        if wait:
            self.wait_connected(index)
        return started

    def kill_agent(self, index: int = 0) -> None:
        """SIGKILL an agent; its tasks go on."""
        self.agents[index].kill()

    def stop_agent(self, index: int = 0) -> None:
        """SIGTERM an agent; its exit code must be 0; its tasks go on."""
        code = self.agents[index].stop()
        assert code == 0, f"agent {index} exited {code}:\n{self.agents[index].log_text()}"

    def agent_state(self, index: int = 0) -> Path:
        return self.state / "agents" / str(index)

    def agent_environment(self, index: int) -> dict[str, str]:
        """Of agent `index`; for clusters whose nodes are not all alike."""
        return self.environment

    def wait_connected(self, index: int = 0, timeout_s: float = WAIT_S) -> views.Node:
        """Wait until the agent has said hello with its present process; its node."""
        started = self.agents[index]

        def connected() -> views.Node | None:
            assert started.is_alive(), f"agent {index} ended:\n{started.log_text()}"
            nodes = {node.name: node for node in self.client.nodes().nodes}
            node = nodes.get(f"local-{index}")
            return node if node and node.contact is NodeContact.CONNECTED else None

        return wait_until(f"agent {index} is connected", connected, timeout_s)

    def submit_text(self, text: str, *, overrides: Sequence[str] = ()) -> JobId:
        """Submit a job file's text as if it stood in the test's folder."""
        job = documents.prepare_bytes(text, "job.yaml", self.folder, overrides=overrides)
        return self.client.submit_prepared([job])[0]

    def wait_state(self, job: int, *states: str, timeout_s: float = WAIT_S) -> views.Job:
        """Wait until the job is in one of `states` (none: over). Fails at once when it ended otherwise."""

        def there() -> views.Job | None:
            found = self.client.job(job)
            if found.state in states or (not states and found.is_over):
                return found
            assert found.state not in TERMINAL, self.story(
                job, f"is {found.state}, not {' or '.join(states)}"
            )
            return None

        try:
            return wait_until(f"job {job} is {' or '.join(states) or 'over'}", there, timeout_s)
        except AssertionError as error:
            raise AssertionError(self.story(job, str(error))) from None

    def output(self, job: int, *, rank: int = -1, attempt: int = 0) -> bytes:
        """The job's output, rank after rank: what is stored by now, or of a job that is over, all of it."""
        over = self.client.job(job).state in TERMINAL
        chunks = sorted(
            self.client.logs(job, rank=rank, attempt=attempt, follow=over),
            key=lambda chunk: (chunk.rank, chunk.offset),
        )
        return b"".join(chunk.data for chunk in chunks)

    def wait_registered(self, kind: str, reference: str) -> Asset:
        """Until `NAME` or `NAME:VERSION` is there: what a job wrote is registered after its end."""

        def there() -> Asset | None:
            try:
                return self.client.asset(kind, reference)[0]
            except NotFound:
                return None

        return wait_until(f"{kind} {reference} is registered", there)

    def task_pids(self, job: int) -> list[int]:
        """Pids of the job's ranks now, in the order of their ranks, as far as the scheduler has been told."""
        tasks = sorted(self.client.job(job).tasks, key=lambda task: task.first_rank)
        return [pid for task in tasks for pid in task.pids]

    def gang_pids(self, job: int, ranks: int) -> list[int]:
        """As `task_pids`, once it has been told of all: ranks may train before their start is on the disk."""

        def told() -> list[int] | None:
            pids = self.task_pids(job)
            return pids if len(pids) == ranks else None

        return wait_until(f"{ranks} ranks of job {job} are known", told)

    def node_processes(self, index: int) -> list[Identity]:
        """All of that node's, the agent first: what it does not see die it cannot tell."""
        agent = self.agents[index].identity
        below = {found.pid: found for found in process.descendants(agent)}
        tasks = str(self.agent_state(index) / "tasks")
        marked = process.with_environment("PACELINE_TASK_FOLDER", lambda value: value.startswith(tasks))
        return [agent, *below.values(), *(found for found in marked if found.pid not in below)]

    def marked(self) -> list[Identity]:
        """Running processes that bear the cluster's mark: its own and its jobs'."""
        mine = str(self.state)
        found = dict.fromkeys(process.with_environment(MARK, lambda value: value == mine))
        # A forked rank has its zygote's environment, in which only this is its own; a zygote's is blank.
        marks = tuple(agent_mark(self.agent_state(index) / "tasks") for index in self.agents)
        found |= dict.fromkeys(process.with_environment("PACELINE_MARK", lambda value: value.endswith(marks)))
        return list(found)

    def story(self, job: int, what: str) -> str:
        """`what`, and all that a reader of a failed test may want to know of the job."""
        lines = [what]
        with contextlib.suppress(Exception):  # the story is a help to the reader, not the test
            found = self.client.timeline(job)
            lines += [f"  {entry.at_us} a{entry.attempt} {entry.text}" for entry in found.entries]
            lines += [f"  reason: {found.job.reason}", self.output(job).decode(errors="replace")[-600:]]
        for part in (self.scheduler, *self.agents.values()):
            if part is not None:
                lines.append(f"--- {part.name}\n{part.log_text()[-3000:]}")
        return "\n".join(lines)

    def _spawn(self, name: str, args: Sequence[str], environment: dict[str, str]) -> Process:
        return Process(name, args, self.folder / f"{name}.log", environment)

    def _serves(self, started: Process) -> bool:
        assert started.is_alive(), f"the scheduler ended:\n{started.log_text()}"
        try:
            said = json.loads((self.state / "scheduler.json").read_text())
        except FileNotFoundError:
            return False
        return bool(said["pid"] == started.pid)

    def _end(self) -> list[str]:
        """Stop all; what had to be killed although it should have gone."""
        if self._client is not None:
            self._client.close()
        parts = [part for part in (*self.agents.values(), self.scheduler) if part is not None]
        for part in parts:
            part.send(signal.SIGCONT)
        left: list[str] = []
        for part in parts:
            if part.is_alive():
                try:
                    part.stop()
                except AssertionError as error:
                    left.append(str(error))
        # Jobs that a test left running are its own business: what is below a living shim did not hide.
        leftovers.kill_tasks(self.state, lambda line: None)
        with contextlib.suppress(AssertionError):
            wait_until("nothing is left", lambda: not self.marked(), LEFT_S)
        left += [_described(found) for found in self.marked()]
        process.kill_all(lambda: iter(self.marked()), STOP_S)
        return left


def _described(found: Identity) -> str:
    with contextlib.suppress(OSError):
        command = (
            Path(f"/proc/{found.pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
        )
        parent = process.parent_of(found)
        return f"pid {found.pid} (parent {parent}): {command[:300]}"
    return f"pid {found.pid}"
