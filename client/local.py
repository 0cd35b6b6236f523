"""`pace up` and `pace down`: a scheduler and agents on this machine, as background processes of their own.

up.json says what was started, by pid and start time; nothing else is ever signalled. It is written after
each start, so that an interrupted `up` can be taken down. Starting again is harmless: what is up stays,
what died is started anew. The scheduler goes down first: agents that lose it keep their tasks, while a
scheduler that loses its agents would write the loss into the jobs' stories.
"""

import fcntl
import shutil
import signal
import socket
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from ..spec.errors import Conflict, InvalidRequest, PacelineError, Unavailable
from ..spec.lifecycle import NodeContact
from . import machine
from . import process as processes
from . import settings as client_settings
from .background import POLL_S, StartFailed, check_running, reap, spawn, wait
from .leftovers import kill_tasks, task_shims
from .process import Identity
from .upfile import Started, Up, read_up, write_up, write_whole

PORT: Final = 7223
AGENTS_MAX: Final = 64
SERVE_S: Final = 60.0
CONNECT_S: Final = 60.0
STOP_S: Final = 20.0
Tell = Callable[[str], None]
"""Told one line about each thing as it happens."""


@dataclass(frozen=True, slots=True)
class Plan:
    """What `up` is asked for. None: what was up before, else one agent; else an equal share of the cpus."""

    agents: int | None = None
    cpus_per_agent: float | None = None
    ephemeral: bool = False
    port: int | None = None
    """Of the scheduler; None: as before, else 7223 or a free one; 0: any free one."""


def up(state: Path, plan: Plan, tell: Tell) -> Up:
    """Start what is not up yet and wait until it serves. Raises StartFailed with the end of the log."""
    _check_plan(plan)
    _make_folder(state, ephemeral=plan.ephemeral)
    with _locked(state):
        before = read_up(state) or Up(state=state, ephemeral=plan.ephemeral)
        current = replace(before, is_down=False)
        current = _scheduler_up(current, plan, tell)
        return _agents_up(current, plan, tell)


def down(state: Path, tell: Tell, *, kill_jobs: bool, grace_s: float = 5.0) -> bool:
    """Stop what `up` started here; False when there was nothing. An ephemeral folder goes, with its jobs."""
    if not (state / "up.json").exists():
        return False
    with _locked(state):
        current = read_up(state)
        if current is None or current.is_down:
            return False
        kill = kill_jobs or current.ephemeral
        if kill:
            _cancel_all(current, grace_s, tell)
        if current.scheduler is not None:
            _stop([current.scheduler], tell)
        _stop(current.agents, tell)
        if kill:
            kill_tasks(state, tell)
        else:
            _tell_left(state, tell)
        if current.ephemeral:
            _remove(state, tell)
        else:
            write_up(replace(current, is_down=True))
    return True


def new_ephemeral(default: Path) -> Path:
    """A state folder for `up --ephemeral`: the one that is up, else a new temporary one, pointed at."""
    pointer = default / "ephemeral"
    with suppress(OSError):
        pointed = Path(client_settings.read_small(pointer).strip())
        if (pointed / "up.json").is_file():
            return pointed
    default.mkdir(mode=0o700, parents=True, exist_ok=True)
    made = Path(tempfile.mkdtemp(prefix="paceline-"))
    write_whole(pointer, f"{made}\n")
    return made


def _scheduler_up(current: Up, plan: Plan, tell: Tell) -> Up:
    served = _served(current.state)
    if served is not None:
        tell(f"scheduler is up at {served.address} (pid {served.process.pid})")
        ours = (
            current.scheduler if current.scheduler and current.scheduler.process == served.process else None
        )
        return replace(current, address=served.address, scheduler=ours)
    if current.scheduler is not None and current.scheduler.process.is_alive():
        # It was started, but does not serve (yet): wait for it rather than start a second one.
        return _serving(current, tell)
    port = _port(current, plan, tell)
    try:
        return _serving(_start_scheduler(current, port), tell)
    except StartFailed:
        if plan.port is not None or port == 0 or _is_free(port):
            raise
        tell(f"port {port} was taken meanwhile: using a free one")
        return _serving(_start_scheduler(current, 0), tell)


def _serving(current: Up, tell: Tell) -> Up:
    started = current.scheduler
    assert started is not None
    begun = time.monotonic()
    served = wait(lambda: _served_by(current.state, started.process), started, SERVE_S, "serve")
    tell(
        f"scheduler serves at {served.address} (pid {started.process.pid}, {time.monotonic() - begun:.1f} s)"
    )
    current = replace(current, address=served.address)
    write_up(current)
    return current


def _port(current: Up, plan: Plan, tell: Tell) -> int:
    before = int(current.address.rpartition(":")[2]) if current.address else PORT
    port = before if plan.port is None else plan.port
    if port == 0 or _is_free(port):
        return port
    if plan.port is not None:
        raise Conflict(f"port {port} is taken", hint="choose another with --port, or 0 for any")
    tell(f"port {port} is taken by another program: using a free one")
    return 0


def _start_scheduler(current: Up, port: int) -> Up:
    args = ["--state", str(current.state), "--listen", f"127.0.0.1:{port}"]
    started = spawn("scheduler", "paceline.scheduler.main", args, current.state, current.state)
    current = replace(current, scheduler=started)
    write_up(current)
    return current


def _agents_up(current: Up, plan: Plan, tell: Tell) -> Up:
    wanted = plan.agents if plan.agents is not None else max(1, len(current.agents))
    by_name = {agent.name: agent for agent in current.agents}
    begun = time.monotonic()
    fresh: list[Started] = []
    for index in range(max(wanted, len(current.agents))):
        name = f"local-{index}"
        agent = by_name.get(name)
        if agent is not None and agent.process.is_alive() and agent.scheduler == current.address:
            _tell_running(agent, plan, tell)
            continue
        if agent is not None and agent.process.is_alive():
            _stop([agent], tell)  # it dials an address where the scheduler no longer is
        agent = _start_agent(current, index, max(wanted, len(current.agents)), plan, agent)
        by_name[name] = agent
        fresh.append(agent)
        current = replace(current, agents=tuple(by_name[key] for key in sorted(by_name, key=_index_of)))
        write_up(current)
    write_up(current)
    if fresh:
        _wait_connected(current, fresh, begun, tell)
    return current


def _start_agent(current: Up, index: int, count: int, plan: Plan, before: Started | None) -> Started:
    cpus = plan.cpus_per_agent or (before.cpus if before else 0) or machine.cpu_share(count)
    folder = current.state / "agents" / str(index)
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    args = ["--scheduler", current.address, "--state", str(folder), "--name", f"local-{index}"]
    args += ["--slots", f"{cpus:g}", "--gpus", machine.gpu_share(index, count, machine.gpu_count())]
    if count > 1:
        args += ["--memory", str(machine.memory_share_bytes(count))]
    args += ["--token-file", str(current.state / "agent.token")]
    served = _served(current.state)
    if served is not None and served.ca_file is not None:
        args += ["--ca", str(served.ca_file)]
    started = spawn(f"local-{index}", "paceline.agent.main", args, folder, current.state)
    return replace(started, cpus=float(cpus), scheduler=current.address)


def _wait_connected(current: Up, fresh: list[Started], begun: float, tell: Tell) -> None:
    from .sdk import Client

    waiting = {agent.name: agent for agent in fresh}
    config = client_settings.Settings(state=current.state)
    deadline = time.monotonic() + CONNECT_S
    with Client(config=config, patience_s=10) as client:
        while waiting:
            for node in client.nodes().nodes:
                if node.contact is NodeContact.CONNECTED and node.name in waiting:
                    agent = waiting.pop(node.name)
                    tell(
                        f"agent {node.name} is connected: {node.capacity.cpu_milli / 1000:g} cpus"
                        f"{f', {node.capacity.gpus} GPUs' if node.capacity.gpus else ''}"
                        f" (pid {agent.process.pid}, {time.monotonic() - begun:.1f} s)"
                    )
            for agent in waiting.values():
                check_running(agent, deadline, "connect")
            if waiting:
                time.sleep(POLL_S)


def _served(state: Path) -> client_settings.Served | None:
    """The scheduler that serves this folder now."""
    try:
        served = client_settings.read_served(state)
    except Unavailable:
        return None
    return served if served.process.is_alive() else None


def _served_by(state: Path, process: Identity) -> client_settings.Served | None:
    served = _served(state)
    return served if served is not None and served.process == process else None


def _is_free(port: int) -> bool:
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
            probe.listen(1)
        except OSError:
            return False
    return True


def _tell_running(agent: Started, plan: Plan, tell: Tell) -> None:
    tell(f"agent {agent.name} is up (pid {agent.process.pid}, {agent.cpus:g} cpus)")
    if plan.cpus_per_agent is not None and plan.cpus_per_agent != agent.cpus:
        tell(
            f"  for {plan.cpus_per_agent:g} cpus: `pace down`, then `pace up --slots {plan.cpus_per_agent:g}`"
        )


def _cancel_all(current: Up, grace_s: float, tell: Tell) -> None:
    """Through the scheduler, so that the jobs' stories say what happened; what is deaf is killed later."""
    if _served(current.state) is None:
        return
    from .sdk import Client

    active = ("QUEUED", "STARTING", "RUNNING")
    deadline = time.monotonic() + grace_s + 10
    asked: set[int] = set()
    try:
        with Client(config=client_settings.Settings(state=current.state), patience_s=5) as client:
            for endpoint in client.endpoints():  # else their jobs would be replaced
                client.undeploy(endpoint.endpoint)
            while jobs := client.jobs(states=active, limit=1000):
                for job in jobs:
                    if job.job not in asked:
                        client.cancel(job.job, grace_s=grace_s)
                        asked.add(job.job)
                if time.monotonic() > deadline:
                    break
                time.sleep(POLL_S)
    except PacelineError as error:
        tell(f"the jobs could not be cancelled through the scheduler ({error.message}): killing them")
        return
    if asked:
        tell(f"cancelled {len(asked)} job{'s' if len(asked) != 1 else ''}")


def _stop(parts: Sequence[Started], tell: Tell) -> None:
    """SIGTERM to all at once, then wait for each; SIGKILL for one that does not stop in time."""
    asked = [part for part in parts if processes.send(part.process, signal.SIGTERM)]
    deadline = time.monotonic() + STOP_S
    for part in parts:
        if part not in asked:
            tell(f"{part.name} had already ended (pid {part.process.pid})")
        elif processes.wait_gone(part.process, deadline - time.monotonic()):
            tell(f"{part.name} stopped (pid {part.process.pid})")
        else:
            processes.send(part.process, signal.SIGKILL)
            processes.wait_gone(part.process, STOP_S)
            tell(f"{part.name} did not stop within {STOP_S:g} s and was killed (pid {part.process.pid})")
    reap()


def _tell_left(state: Path, tell: Tell) -> None:
    jobs = sorted({int(key.split(".")[0]) for key, _ in task_shims(state)})
    if jobs:
        shown = ", ".join(map(str, jobs[:10])) + (", ..." if len(jobs) > 10 else "")
        tell(
            f"left running: job{'s' if len(jobs) != 1 else ''} {shown}; `pace up` takes over where it stopped"
        )


def _remove(state: Path, tell: Tell) -> None:
    shutil.rmtree(state)
    pointer = client_settings.default_state() / "ephemeral"
    with suppress(OSError):
        if Path(client_settings.read_small(pointer).strip()) == state:
            pointer.unlink()
    tell(f"removed {state}")


def _check_plan(plan: Plan) -> None:
    if plan.agents is not None and not 0 <= plan.agents <= AGENTS_MAX:
        raise InvalidRequest(f"{plan.agents} agents on one machine: 0 to {AGENTS_MAX} are possible")


def _make_folder(state: Path, *, ephemeral: bool) -> None:
    state.mkdir(mode=0o700, parents=True, exist_ok=True)
    if ephemeral and any(state.iterdir()) and not (state / "up.json").exists():
        raise Conflict(
            f"{state} is not empty, and `pace down` would remove it",
            hint="leave --ephemeral out, or name a new folder",
        )


@contextmanager
def _locked(state: Path) -> Iterator[None]:
    """One `up` or `down` at a time on a folder."""
    with (state / "up.lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise Conflict(
                f"another `pace up` or `pace down` works on {state}", hint="wait for it to end"
            ) from None
        yield


def _index_of(name: str) -> int:
    return int(name.rpartition("-")[2])
