"""Keeps a task's processes in and, at its end, leaves none of them.

A cgroup v2 where the node allows one (limits and cgroup.kill), else the shim's subreaping and process tree;
the mark in /proc/*/environ finds what outlived a shim. Standard library only.
"""

import contextlib
import errno
import os
import signal
import time
from collections.abc import Callable, Iterable
from pathlib import Path

CONTROLLERS = ("memory", "cpu", "pids")
NODE_OUT_OF_MEMORY = "out of memory: the node, or the limit around its agent, had none left"
LEAF = "paceline-agent"
"""Where the agent and its shims are, beside the tasks' groups; the unit file names it as DelegateSubgroup."""
PIDS_MAX = 32_768
_CPU_PERIOD_US = 100_000
_CPU_QUOTA_US_MIN = 1000
"""The kernel takes no less."""
_ROUNDS_MAX = 100


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
        try:
            if self.limits:
                _limit(group, cpu_milli, memory_bytes)
        except OSError:
            drop_group(str(group))
            raise
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
    own = own.parent if own.name == LEAF else own
    root = own / ("paceline-" + hashlib.sha256(str(state.resolve()).encode()).hexdigest()[:12])
    try:
        problem = _why_no_limits(mount, own)
        if problem and not without_limits:
            return CgroupTree(None, problem)
        root.mkdir(exist_ok=True)
        if not problem:
            _enable(own, root)
    except OSError as error:
        with contextlib.suppress(OSError):
            root.rmdir()
        return CgroupTree(None, f"cannot limit anything in {own}: {error.strerror}")
    return CgroupTree(root, problem)


def _why_no_limits(mount: Path, own: Path) -> str:
    """Empty: the controllers are offered, and may be passed on. OSError: our group is not below the mount."""
    offered = _read(own / "cgroup.controllers").split()
    missing = [controller for controller in CONTROLLERS if controller not in offered]
    if missing:
        return f"cgroup2 at {mount} does not offer {', '.join(missing)}: nothing is limited"
    if own.suffix == ".service" and own == mount / _own_group().lstrip("/"):
        return (  # the service's own group could hold no process any more, also not the next agent
            f"systemd could not start the agent again while tasks run in {own}: nothing is limited; "
            f"DelegateSubgroup={LEAF} in its unit (systemd >= 254) makes it possible"
        )
    return ""


def _enable(own: Path, root: Path) -> None:
    """Turn the controllers on down to the tasks' groups. Only a group without processes of its own may pass
    controllers on, so those move into a leaf; the root of the whole hierarchy, which alone has no type, is
    excepted."""
    wanted = " ".join(f"+{controller}" for controller in CONTROLLERS)
    if (own / "cgroup.type").exists():
        _empty(own)
    _write(own / "cgroup.subtree_control", wanted)
    _write(root / "cgroup.subtree_control", wanted)


def _empty(own: Path) -> None:
    """Round after round: what is forked meanwhile may still be born here."""
    leaf = own / LEAF
    leaf.mkdir(exist_ok=True)
    for _ in range(_ROUNDS_MAX):
        pids = _read(own / "cgroup.procs").split()
        if not pids:
            return
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):  # it has ended
                _write(leaf / "cgroup.procs", pid)


def _limit(group: Path, cpu_milli: int, memory_bytes: int) -> None:
    """What the task asked for is what it gets; 0: it asked for nothing, and is not limited."""
    _write(group / "pids.max", str(_pids_max()))
    _write(group / "memory.oom.group", "1")  # ranks and their helpers live and die together
    if memory_bytes:
        _write(group / "memory.max", str(memory_bytes))
        with contextlib.suppress(FileNotFoundError):  # a kernel that does not account for swap
            _write(group / "memory.swap.max", "0")
    if cpu_milli:
        quota_us = max(cpu_milli * _CPU_PERIOD_US // 1000, _CPU_QUOTA_US_MIN)
        _write(group / "cpu.max", f"{quota_us} {_CPU_PERIOD_US}")


def _pids_max() -> int:
    """Half of what the machine can have at all is left to others, who may have to end the task."""
    machine = (_read(Path(f"/proc/sys/kernel/{name}")) for name in ("pid_max", "threads-max"))
    return min(PIDS_MAX, *(int(text) // 2 for text in machine))


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
    """Processes in the group and in those that the task made below it; none when it is gone."""
    return [pid for folder in _with_groups_below(group) for pid in _pids_in(folder)]


def _with_groups_below(group: str) -> list[str]:
    """The deepest first, the group itself last."""
    return [folder for folder, _, _ in os.walk(group, topdown=False)]


def _pids_in(group: str) -> list[int]:
    try:
        return [int(pid) for pid in _read(Path(group, "cgroup.procs")).split()]
    except OSError as error:  # gone, also while it was read; or threads only, whose process is listed above
        if error.errno not in (errno.ENOENT, errno.ENODEV, errno.EOPNOTSUPP):
            raise
        return []


def drop_group(group: str) -> None:
    """Remove an empty group, with those that the task made below it; one that is gone already is fine."""
    if not _remove(group):
        for folder in _with_groups_below(group):
            _remove(folder)


def drop_left(paths: Iterable[str]) -> None:
    """Files of a task that has ended. What is another's by now stays."""
    for path in paths:
        with contextlib.suppress(FileNotFoundError, PermissionError):
            os.unlink(path)  # noqa: PTH108


def _remove(group: str) -> bool:
    """False: something is in it."""
    try:
        os.rmdir(group)  # noqa: PTH106
    except OSError as error:
        if error.errno not in (errno.ENOENT, errno.EBUSY):
            raise
        return error.errno == errno.ENOENT
    return True


def memory_verdict(group: str) -> str:
    """Why the kernel killed the group, when memory is the reason; empty: it is not, or nobody counted."""
    try:
        events = dict(line.split() for line in _read(Path(group, "memory.events")).splitlines())
        limit = _read(Path(group, "memory.max")).strip()
    except OSError:  # gone, or no memory controller
        return ""
    if events["oom_kill"] == "0":
        return ""
    if limit != "max" and events["oom"] != "0":
        return f"out of memory: the task reached its limit of {int(limit) / (1 << 20):.0f} MiB"
    return NODE_OUT_OF_MEMORY


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
    return path.read_text(encoding="utf-8", errors="surrogateescape")


def _write(path: Path, text: str) -> None:
    path.write_text(text, encoding="ascii")
