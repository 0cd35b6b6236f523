"""Keeps a task's processes in and, at its end, leaves none of them.

A cgroup v2 where the node allows one (limits and cgroup.kill), else the shim's subreaping and process tree;
the mark in /proc/*/environ finds what outlived a shim. Standard library only.
"""

import contextlib
import errno
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

CONTROLLERS = ("memory", "cpu", "pids")
PIDS_MAX = 32_768
_CPU_PERIOD_US = 100_000


class CgroupTree:
    """The agent's own corner of the cgroup v2 hierarchy: a group per task.

    `limits` is True when memory, cpu and pids can be limited there; without them the groups are still good
    for finding and killing. `problem` says why there are no limits, or no groups at all (`root` is None).
    """

    def __init__(self, root: Path | None, problem: str) -> None:
        self.root = root
        self.problem = problem
        self.limits = root is not None and not problem

    def describe(self) -> str:
        """For Inventory.containment."""
        return "cgroup v2" if self.limits else f"process groups and subreaper: {self.problem}"

    def make(self, name: str, cpu_milli: int, memory_bytes: int) -> Path | None:
        """A group for one task, with its limits. None: no groups here. OSError when the kernel refuses."""
        if self.root is None:
            return None
        group = self.root / name
        group.mkdir(exist_ok=True)
        if self.limits:
            _write(group / "pids.max", str(PIDS_MAX))
            if memory_bytes:
                _write(group / "memory.max", str(memory_bytes))
                _write(group / "memory.oom.group", "1")
            if cpu_milli:
                _write(group / "cpu.max", f"{cpu_milli * _CPU_PERIOD_US // 1000} {_CPU_PERIOD_US}")
        return group

    def close(self) -> None:
        """Drop the corner if no task is in it."""
        if self.root is not None:
            with contextlib.suppress(OSError):  # a task is still in it: the next agent takes it over
                self.root.rmdir()


def find_cgroup_tree(state: Path, *, without_limits: bool) -> CgroupTree:
    """Try to make the corner for the agent of this state folder. `without_limits`: take it also where nothing
    can be limited, to find and kill by it what hides even from its mark; entering a group costs a task up to
    milliseconds."""
    import hashlib  # the zygote, which imports this module too, is smaller without it

    mount = _mount_point()
    if mount is None:
        return CgroupTree(None, "no cgroup2 file system is mounted")
    own = mount / _own_group().lstrip("/")
    name = "paceline-" + hashlib.sha256(str(state.resolve()).encode()).hexdigest()[:12]
    root = own / name
    offered = set(_read(own / "cgroup.controllers").split())
    missing = [controller for controller in CONTROLLERS if controller not in offered]
    problem = f"cgroup2 at {mount} does not offer {', '.join(missing)}: nothing is limited" if missing else ""
    if missing and not without_limits:
        return CgroupTree(None, problem)
    try:
        root.mkdir(exist_ok=True)
        if not missing:
            _enable(own, root, own != mount)
    except OSError as error:
        return CgroupTree(None, f"cannot limit anything in {own}: {error.strerror}")
    return CgroupTree(root, problem)


def _enable(own: Path, root: Path, must_be_empty: bool) -> None:
    """Turn the controllers on down to the tasks' groups. Only a group without processes of its own may pass
    controllers on (the hierarchy's root excepted), so those of the agent move into a leaf."""
    wanted = " ".join(f"+{controller}" for controller in CONTROLLERS)
    if must_be_empty:
        leaf = own / "agent"
        leaf.mkdir(exist_ok=True)
        for pid in _read(own / "cgroup.procs").split():
            _write(leaf / "cgroup.procs", pid)
    _write(own / "cgroup.subtree_control", wanted)
    _write(root / "cgroup.subtree_control", wanted)


def _mount_point() -> Path | None:
    for line in _read(Path("/proc/self/mounts")).splitlines():
        _, where, kind, *_ = line.split()
        if kind == "cgroup2":
            return Path(where)
    return None


def _own_group() -> str:
    for line in _read(Path("/proc/self/cgroup")).splitlines():
        if line.startswith("0::"):
            return line[3:]
    return "/"


def enter_group(group: str) -> None:
    """Move this process, and all it will fork, into the task's group."""
    _write(Path(group, "cgroup.procs"), "0")


def group_pids(group: str) -> list[int]:
    """Processes in the group; none when it is gone."""
    try:
        return [int(pid) for pid in _read(Path(group, "cgroup.procs")).split()]
    except FileNotFoundError:
        return []


def group_killed_for_memory(group: str) -> bool:
    """The kernel has killed something in the group for lack of memory."""
    try:
        events = _read(Path(group, "memory.events"))
    except OSError:  # gone, or no memory controller
        return False
    return any(line.startswith("oom_kill ") and line.split()[1] != "0" for line in events.splitlines())


def drop_group(group: str) -> None:
    """Remove an empty group; one that is gone already is fine."""
    try:
        os.rmdir(group)  # noqa: PTH106
    except OSError as error:
        if error.errno not in (errno.ENOENT, errno.EBUSY):
            raise


def kill_group(group: str) -> None:
    """SIGKILL to every process in it at once; also those being forked meanwhile."""
    try:
        _write(Path(group, "cgroup.kill"), "1")
    except FileNotFoundError:  # gone, or a kernel before 5.14
        signal_all(group_pids(group), signal.SIGKILL)


def signal_all(pids: list[int], number: int) -> None:
    """Send the signal to each that is still there and may be signalled."""
    for pid in pids:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.kill(pid, number)


def kill_all(find: Callable[[], list[int]]) -> None:
    """SIGKILL everything that `find` names. Processes that fork faster than they are found are first stopped,
    round after round, until no new one turns up."""
    stopped: set[int] = set()
    for _ in range(100):
        new = [pid for pid in find() if pid not in stopped]
        if not new:
            break
        signal_all(new, signal.SIGSTOP)
        stopped.update(new)
    signal_all(sorted(stopped), signal.SIGKILL)


def kill_until_gone(find: Callable[[], list[int]], deadline_s: float) -> list[int]:
    """Kill what `find` names until it names none; returns what was still there at the deadline."""
    until = time.monotonic() + deadline_s
    while left := find():
        if time.monotonic() > until:
            return left
        kill_all(find)
        time.sleep(0.002)  # the kernel takes that to end them; there is no event to wait on for strangers
    return []


def _read(path: Path) -> str:
    return path.read_text(encoding="ascii")


def _write(path: Path, text: str) -> None:
    path.write_text(text, encoding="ascii")
