"""`pace up` and `pace down`: a scheduler and agents on this machine, as background processes of their own.

up.json says what was started, by pid and start time; nothing else is ever signalled. It is written after
each start, so that an interrupted `up` can be taken down. Starting again is harmless: what is up stays,
what died is started anew. The scheduler goes down first: agents that lose it keep their tasks, while a
scheduler that loses its agents would write the loss into the jobs' stories.
"""

import fcntl
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Final

from ..spec.errors import Conflict, InvalidRequest, PacelineError, Unavailable
from ..spec.lifecycle import NodeContact
from . import process as processes
from . import settings as client_settings
from .process import Identity

PORT: Final = 7223
AGENTS_MAX: Final = 64
SERVE_S: Final = 60.0
CONNECT_S: Final = 60.0
STOP_S: Final = 20.0
KILL_S: Final = 20.0
POLL_S: Final = 0.02
LOG_BYTES_MAX: Final = 16 << 20
LOG_LINES_SHOWN: Final = 15
_CLIENT_ONLY: Final = (
    "PACELINE_SCHEDULER",
    "PACELINE_STATE",
    "PACELINE_TOKEN",
    "PACELINE_TOKEN_FILE",
    "PACELINE_CA",
)

Tell = Callable[[str], None]
"""Told one line about each thing as it happens."""


class StartFailed(PacelineError):
    """A process that `up` started ended, or did not get ready in time."""

    code = "start-failed"


@dataclass(frozen=True, slots=True)
class Plan:
    """What `up` is asked for. None: what was up before, else one agent; else an equal share of the cpus."""

    agents: int | None = None
    cpus_per_agent: float | None = None
    ephemeral: bool = False
    port: int | None = None
    """Of the scheduler; None: as before, else 7223 or a free one; 0: any free one."""


@dataclass(frozen=True, slots=True)
class Started:
    """A process that `up` started."""

    name: str
    process: Identity
    log: str
    state: str
    cpus: float = 0.0
    scheduler: str = ""
    """The address an agent dials."""


@dataclass(frozen=True, slots=True)
class Up:
    """What is up on a state folder: the contents of up.json."""

    state: Path
    ephemeral: bool = False
    address: str = ""
    scheduler: Started | None = None
    """None: it runs, but was not started by `up`."""
    agents: tuple[Started, ...] = field(default=())


def up(state: Path, plan: Plan, tell: Tell) -> Up:
    """Start what is not up yet and wait until it serves. Raises StartFailed with the end of the log."""
    _check_plan(plan)
    _make_folder(state, ephemeral=plan.ephemeral)
    with _locked(state):
        before = read_up(state)
        current = before or Up(state=state, ephemeral=plan.ephemeral)
        current = _scheduler_up(current, plan, tell)
        return _agents_up(current, plan, tell)


def down(state: Path, tell: Tell, *, kill_jobs: bool, grace_s: float = 5.0) -> bool:
    """Stop what `up` started here; False when there was nothing. An ephemeral folder goes, with its jobs."""
    if not (state / "up.json").exists():
        return False
    with _locked(state):
        current = read_up(state)
        if current is None:
            return False
        kill = kill_jobs or current.ephemeral
        if kill:
            _cancel_all(current, grace_s, tell)
        if current.scheduler is not None:
            _stop(current.scheduler, tell)
        for agent in current.agents:
            _stop(agent, tell)
        if kill:
            kill_tasks(state, tell)
        else:
            _tell_left(state, tell)
        (state / "up.json").unlink()
        if current.ephemeral:
            _remove(state, tell)
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
    _write(pointer, f"{made}\n")
    return made


def read_up(state: Path) -> Up | None:
    """What up.json says; None when there is none. Raises Conflict on one that is not ours."""
    path = state / "up.json"
    try:
        said = json.loads(client_settings.read_small(path))
        return Up(
            state=state,
            ephemeral=bool(said["ephemeral"]),
            address=str(said["address"]),
            scheduler=_started(said["scheduler"]) if said["scheduler"] else None,
            agents=tuple(_started(agent) for agent in said["agents"]),
        )
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError) as error:
        raise Conflict(
            f"{path} is not what `pace up` writes: {error}", hint="stop its processes by hand, then remove it"
        ) from None


def check_alive(settings: client_settings.Settings) -> None:
    """Raise Unavailable when the state folder's scheduler is gone; a given address is not judged."""
    if settings.address:
        return
    served = client_settings.read_served(settings.state)
    host = served.address.rpartition(":")[0]
    if host in ("127.0.0.1", "localhost", "[::1]") and not served.process.is_alive():
        raise Unavailable(
            f"the scheduler of {settings.state} is not running (it was pid {served.process.pid})",
            hint="`pace up` starts it again; its jobs and their history are kept",
        )


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
    served = _wait(lambda: _served_by(current.state, started.process), started, SERVE_S, "serve")
    tell(
        f"scheduler serves at {served.address} (pid {started.process.pid}, {time.monotonic() - begun:.1f} s)"
    )
    current = replace(current, address=served.address)
    _write_up(current)
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
    started = _spawn("scheduler", "paceline.scheduler.main", args, current.state, current.state)
    current = replace(current, scheduler=started)
    _write_up(current)
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
            _stop(agent, tell)  # it dials an address where the scheduler no longer is
        agent = _start_agent(current, index, max(wanted, len(current.agents)), plan, agent)
        by_name[name] = agent
        fresh.append(agent)
        current = replace(current, agents=tuple(by_name[key] for key in sorted(by_name, key=_index_of)))
        _write_up(current)
    _write_up(current)
    if fresh:
        _wait_connected(current, fresh, begun, tell)
    return current


def _start_agent(current: Up, index: int, count: int, plan: Plan, before: Started | None) -> Started:
    cpus = plan.cpus_per_agent or (before.cpus if before else 0) or max(1, usable_cpus() // count)
    folder = current.state / "agents" / str(index)
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    args = ["--scheduler", current.address, "--state", str(folder), "--name", f"local-{index}"]
    args += ["--slots", f"{cpus:g}", "--gpus", gpu_share(index, count, _gpu_count())]
    args += ["--token-file", str(current.state / "agent.token")]
    served = _served(current.state)
    if served is not None and served.ca_file is not None:
        args += ["--ca", str(served.ca_file)]
    started = _spawn(f"local-{index}", "paceline.agent.main", args, folder, current.state)
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
                _check_running(agent, deadline, "connect")
            if waiting:
                time.sleep(POLL_S)


def usable_cpus() -> int:
    """Cpus that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def gpu_share(index: int, count: int, gpus: int) -> str:
    """Which GPUs agent `index` of `count` offers, for --gpus: equal shares without overlap."""
    if count == 1:
        return "all"
    mine = range(index * gpus // count, (index + 1) * gpus // count)
    return ",".join(map(str, mine)) or "none"


def _gpu_count() -> int:
    try:
        return sum(1 for _ in Path("/proc/driver/nvidia/gpus").iterdir())
    except OSError:
        return 0


def _spawn(name: str, module: str, args: list[str], folder: Path, state: Path) -> Started:
    log = state / "up" / f"{name}.log"
    log.parent.mkdir(mode=0o700, exist_ok=True)
    with suppress(FileNotFoundError):
        if log.stat().st_size > LOG_BYTES_MAX:
            log.replace(log.with_suffix(".log.1"))
    environment = {key: value for key, value in os.environ.items() if key not in _CLIENT_ONLY}
    with log.open("ab") as file:
        # -P: the state folder, where it runs, is no place to import from.
        child = subprocess.Popen(
            [sys.executable, "-P", "-m", module, *args],
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=file,
            cwd=folder,
            env=environment,
            start_new_session=True,
        )
    process = processes.identify(child.pid)
    if process is None:
        child.wait()
        raise StartFailed(f"{name} ended at once\n{log_end(log)}", hint=f"its log: {log}")
    _children.append(child)
    return Started(name=name, process=process, log=str(log), state=str(folder))


_children: list[subprocess.Popen[bytes]] = []
"""Kept so that a long-lived caller of `up` does not leave zombies: see `_reap`."""


def _reap() -> None:
    _children[:] = [child for child in _children if child.poll() is None]


def _wait(ready: Callable[[], Any], started: Started, limit_s: float, verb: str) -> Any:
    deadline = time.monotonic() + limit_s
    while (value := ready()) is None:
        _check_running(started, deadline, verb)
        time.sleep(POLL_S)
    return value


def _check_running(started: Started, deadline: float, verb: str) -> None:
    if not started.process.is_alive():
        _reap()
        raise StartFailed(
            f"{started.name} ended before it could {verb}; the end of its log:\n{log_end(Path(started.log))}",
            hint=f"the whole log: {started.log}",
        )
    if time.monotonic() > deadline:
        raise StartFailed(
            f"{started.name} runs (pid {started.process.pid}) but does not {verb}; the end of its log:\n"
            f"{log_end(Path(started.log))}",
            hint="`pace down` stops it",
        )


def log_end(log: Path, lines: int = LOG_LINES_SHOWN) -> str:
    """The last lines of a log file."""
    try:
        with log.open("rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - 16_384))
            text = file.read().decode("utf-8", "replace")
    except FileNotFoundError:
        return "(no log)"
    return "\n".join(text.splitlines()[-lines:]) or "(empty)"


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


def _stop(started: Started, tell: Tell) -> None:
    if not started.process.is_alive():
        tell(f"{started.name} had already ended (pid {started.process.pid})")
    elif processes.stop(started.process, STOP_S):
        tell(f"{started.name} stopped (pid {started.process.pid})")
    else:
        tell(f"{started.name} did not stop within {STOP_S:g} s and was killed (pid {started.process.pid})")
    _reap()


def task_shims(state: Path) -> Iterator[tuple[str, Identity]]:
    """Task key and shim of each task that runs on this folder's agents."""
    for path in (state / "agents").glob("*/tasks/*/shim.pid"):
        try:
            pid, start_time = client_settings.read_small(path).split()
            shim = Identity(int(pid), int(start_time))
        except (OSError, ValueError):
            continue  # being written or being dropped: then the agent, not we, has it in hand
        if shim.is_alive():
            yield path.parent.name, shim


def kill_tasks(state: Path, tell: Tell) -> None:
    """SIGKILL every process of every task: first what is below the shims, which reap it, then the shims."""
    agents = str(state / "agents") + "/"
    shims = dict.fromkeys(shim for _, shim in task_shims(state))

    def below() -> Iterator[Identity]:
        for shim in shims:
            if shim.is_alive():
                yield from processes.descendants(shim)
        yield from (
            found
            for found in processes.with_environment(
                "PACELINE_TASK_FOLDER", lambda value: value.startswith(agents)
            )
            if found not in shims
        )

    killed = processes.kill_all(below, KILL_S)
    killed += processes.kill_all(lambda: (shim for shim in shims if shim.is_alive()), KILL_S)
    if killed:
        tell(f"killed {len(killed)} process{'es' if len(killed) != 1 else ''} of jobs")


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


def _write_up(current: Up) -> None:
    body = {
        "ephemeral": current.ephemeral,
        "address": current.address,
        "scheduler": asdict(current.scheduler) if current.scheduler else None,
        "agents": [asdict(agent) for agent in current.agents],
    }
    _write(current.state / "up.json", json.dumps(body, indent=2) + "\n")


def _write(path: Path, text: str) -> None:
    fresh = path.with_name(f".{path.name}.{os.getpid()}")
    fresh.write_text(text)
    fresh.replace(path)


def _started(said: dict[str, Any]) -> Started:
    identity = said["process"]
    return Started(
        name=str(said["name"]),
        process=Identity(int(identity["pid"]), int(identity["start_time"])),
        log=str(said["log"]),
        state=str(said["state"]),
        cpus=float(said["cpus"]),
        scheduler=str(said["scheduler"]),
    )


def _index_of(name: str) -> int:
    return int(name.rpartition("-")[2])
