"""Limits and killing by cgroup v2, applied for real.

They run wherever the machine lends its controllers; on a Debian machine that does not, `make vm-cgroup` runs
them in a virtual machine that does.
"""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from paceline.agent import containment
from paceline.agent.supervisor import Supervisor
from paceline.agent.supervisor_config import SupervisorConfig
from paceline.proto.generated import common_pb2
from support.processes import alive, ended, key, kill, of_kind, output, run, start_task, supervised, until

MIB = 1 << 20

HOG = f"""
import os, time
if not os.fork():
    time.sleep(600)
print("taking more and more", flush=True)
held = []
while True:
    held.append(b"x" * {8 * MIB})
"""

MODEST = f"""
held = b"x" * {40 * MIB}
print(len(held))
"""

SPINNER = """
import os, time
child = os.fork()
begun = time.monotonic()
while time.monotonic() - begun < 4:
    pass
if child:
    os.wait()
    stat = dict(line.split() for line in open(os.environ["GROUP"] + "/cpu.stat"))
    print(sum(os.times()[:4]), stat["nr_throttled"])
"""

BOMB = """
import os, time
while True:
    try:
        os.fork()
    except BlockingIOError:
        time.sleep(0.01)
"""

HIDER = """
mkdir "$GROUP/inner" "$GROUP/inner/most"
setsid env -i /bin/sh -c 'echo 0 > "$1/inner/most/cgroup.procs"; echo pid $$; exec sleep 600' hider "$GROUP" &
wait
"""

FINDER = """
import json, sys
from pathlib import Path
from paceline.agent import containment
tree = containment.find_cgroup_tree(Path(sys.argv[1]), without_limits=False)
stands_in = Path("/proc/self/cgroup").read_text().split("::")[1].strip()
print(json.dumps([tree.describe(), str(tree.root), stands_in]))
"""


@pytest.fixture
def own(tmp_path: Path) -> Iterator[Path]:
    """The group below which tasks get theirs; its controllers are turned on."""
    tree = containment.find_cgroup_tree(tmp_path / "probe", without_limits=False)
    if tree.root is None or not tree.limits:
        pytest.skip(tree.describe())
    yield tree.root.parent
    tree.close()
    assert not tree.root.exists()


def resources(cpu_milli: int = 0, memory_mib: int = 0) -> common_pb2.Resources:
    return common_pb2.Resources(cpu_milli=cpu_milli, memory_bytes=memory_mib * MIB)


def groups_of(supervisor) -> list[Path]:
    return [each for each in supervisor._groups.root.iterdir() if each.is_dir()]


async def test_a_node_says_that_it_limits_and_leaves_no_group_behind(own: Path, tmp_path: Path) -> None:
    async with supervised(tmp_path / "state", warm=False) as supervisor:
        assert supervisor.containment() == "cgroup v2"
        root = supervisor._groups.root
        entries = await run(supervisor, start_task(key(1), "cat /proc/self/cgroup", tmp_path))
        assert list(of_kind(entries, "ended")[0].exit_codes) == [0]
        assert output(supervisor, key(1)).strip().endswith(f"/{root.name}/1.1.0")
        assert groups_of(supervisor) == []
    assert not root.exists()


@pytest.mark.parametrize("warm", [True, False], ids=["forked", "program"])
async def test_a_task_that_takes_too_much_memory_is_killed_and_told_why(
    own: Path, tmp_path: Path, warm: bool
) -> None:
    (tmp_path / "hog.py").write_text(HOG)
    async with supervised(tmp_path / "state", warm=warm) as supervisor:
        request = start_task(key(1), f"{sys.executable} hog.py", tmp_path, resources=resources(memory_mib=96))
        entries = await run(supervisor, request, 60)
        [exited], [end] = of_kind(entries, "exited"), of_kind(entries, "ended")
        assert (exited.exit_code, exited.killed_by_us) == (-9, False)
        assert exited.cause == "out of memory: the task reached its limit of 96 MiB"
        assert exited.last_line == "taking more and more"
        assert (end.why, list(end.exit_codes)) == ("exited", [-9])
        assert groups_of(supervisor) == []


async def test_one_rank_without_memory_takes_the_whole_task_along(own: Path, tmp_path: Path) -> None:
    (tmp_path / "hog.py").write_text(f"import os, time\nif os.environ['RANK'] == '1': time.sleep(600)\n{HOG}")
    async with supervised(tmp_path / "state") as supervisor:
        request = start_task(
            key(1),
            "python hog.py",
            tmp_path,
            processes=2,
            launcher="pytorch",
            master_address="127.0.0.1",
            resources=resources(memory_mib=96),
        )
        entries = await run(supervisor, request, 60)
        assert list(of_kind(entries, "ended")[0].exit_codes) == [-9, -9]
        first = of_kind(entries, "exited")[0]
        assert not first.killed_by_us and first.cause.startswith("out of memory: ")


async def test_what_fits_runs_and_another_sigkill_is_not_called_memory(own: Path, tmp_path: Path) -> None:
    (tmp_path / "modest.py").write_text(MODEST)
    async with supervised(tmp_path / "state") as supervisor:
        request = start_task(key(1), "python modest.py", tmp_path, resources=resources(memory_mib=96))
        assert list(of_kind(await run(supervisor, request), "ended")[0].exit_codes) == [0]
        request = start_task(
            key(2), "python -c 'import os; os.kill(os.getpid(), 9)'", tmp_path, resources=resources(500, 96)
        )
        [exited] = of_kind(await run(supervisor, request), "exited")
        assert (exited.exit_code, exited.killed_by_us, exited.cause) == (-9, False, "")


async def test_a_task_gets_the_cpus_it_asked_for_and_no_more(own: Path, tmp_path: Path) -> None:
    """Two processes that spin for 4 s would take 8 cpu seconds; with half a cpu they take 2."""
    (tmp_path / "spin.py").write_text(SPINNER)
    async with supervised(tmp_path / "state") as supervisor:
        group = {"GROUP": f"{supervisor._groups.root}/1.1.0"}
        request = start_task(key(1), "python spin.py", tmp_path, resources=resources(500), environment=group)
        assert list(of_kind(await run(supervisor, request, 60), "ended")[0].exit_codes) == [0]
        used_s, throttled = map(float, output(supervisor, key(1)).split())
        assert 1 < used_s < 2.6
        assert throttled >= 10


def test_the_least_of_a_cpu_is_what_the_kernel_takes(own: Path, tmp_path: Path) -> None:
    tree = containment.find_cgroup_tree(tmp_path, without_limits=False)
    group = tree.make("least", 1, 0)
    assert group is not None
    assert (group / "cpu.max").read_text() == "1000 100000\n"
    pid_max = int(Path("/proc/sys/kernel/pid_max").read_text())
    assert int((group / "pids.max").read_text()) <= min(containment.PIDS_MAX, pid_max // 2)
    with pytest.raises(OSError, match="Invalid argument"):
        tree.make("refused", 0, -1)
    containment.drop_group(str(group))
    assert [each.name for each in group.parent.iterdir() if each.is_dir()] == []
    tree.close()


async def test_a_fork_bomb_stays_within_its_group(
    own: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(containment, "PIDS_MAX", 50)
    (tmp_path / "bomb.py").write_text(BOMB)
    async with supervised(tmp_path / "state") as supervisor:
        await supervisor.start(start_task(key(1), "python bomb.py", tmp_path))
        [group] = groups_of(supervisor)
        await until(lambda: "max 0" not in (group / "pids.events").read_text(), "the bound was met")
        pids = containment.group_pids(str(group))
        assert 0 < len(pids) <= 50
        assert subprocess.run(["true"]).returncode == 0  # noqa: ASYNC221 - others can still fork
        await supervisor.stop(key(1), 0.0, "cancelled")
        assert of_kind(await ended(supervisor, key(1)), "ended")[0].why == "cancelled"
        assert not any(alive(pid) for pid in pids)
        assert groups_of(supervisor) == []


@pytest.mark.parametrize("shim_dies", [False, True], ids=["at the end", "shim killed"])
async def test_nobody_hides_in_a_group_within_the_group(own: Path, tmp_path: Path, shim_dies: bool) -> None:
    """Another session, no environment to be found by, another group: it dies with the task all the same."""
    (tmp_path / "hide.sh").write_text(HIDER)
    async with supervised(tmp_path / "state", warm=False) as supervisor:
        group = {"GROUP": f"{supervisor._groups.root}/1.1.0"}
        await supervisor.start(start_task(key(1), "sh hide.sh", tmp_path, environment=group))
        [line] = await until(lambda: [x for x in output(supervisor, key(1)).splitlines() if "pid" in x], "up")
        hidden = int(line.split()[1])
        assert hidden in containment.group_pids(str(groups_of(supervisor)[0]))
        if shim_dies:
            kill(of_kind(supervisor.entries(key(1), 0, 9), "started")[0].shim_pid)
        else:
            kill(of_kind(supervisor.entries(key(1), 0, 9), "started")[0].pids[0])
        why = "shim died" if shim_dies else "exited"
        assert of_kind(await ended(supervisor, key(1)), "ended")[0].why == why
        assert not alive(hidden)
        assert groups_of(supervisor) == []


async def test_the_next_agent_finds_the_groups_of_its_tasks(own: Path, tmp_path: Path) -> None:
    first = Supervisor(tmp_path / "state", SupervisorConfig(warm=False, rendezvous_ports=2))
    await first.recover()
    try:
        await first.start(start_task(key(1), "sleep 600", tmp_path, resources=resources(memory_mib=64)))
        [group] = groups_of(first)
    finally:
        await first.close()
    async with supervised(tmp_path / "state", warm=False) as following:
        assert groups_of(following) == [group]
        assert (group / "memory.max").read_text() == f"{64 * MIB}\n"
        await following.stop(key(1), 0.0, "cancelled")
        assert of_kind(await ended(following, key(1)), "ended")[0].why == "cancelled"
        assert groups_of(following) == []


# --- where the agent's own group stands


def find_from(group: Path, state: Path) -> tuple[str, str, str]:
    """What an agent that starts in that group says: its containment, its corner, the group it is then in."""
    group.mkdir(exist_ok=True)
    code = 'echo 0 > "$0/cgroup.procs" && exec "$@"'
    asked = ["sh", "-c", code, str(group), sys.executable, "-c", FINDER, str(state)]
    said = subprocess.run(asked, capture_output=True, text=True, check=True, timeout=60)
    containment_text, root, stands_in = json.loads(said.stdout)
    return containment_text, root, stands_in


@pytest.fixture
def unit(own: Path) -> Iterator[Path]:
    """A group such as the one that a service manager hands over; its name's end is the test's to choose."""
    group = own / f"unit-{os.getpid()}"
    yield group
    for each in (group, group.with_suffix(".service")):
        containment.drop_group(str(each))
        assert not each.exists()


def test_an_agent_steps_aside_so_that_its_group_can_pass_controllers_on(unit: Path, tmp_path: Path) -> None:
    first = find_from(unit, tmp_path)
    assert first[0] == "cgroup v2"
    assert Path(first[1]).parent == unit
    assert first[2].endswith(f"{unit.name}/{containment.LEAF}")
    assert find_from(unit / containment.LEAF, tmp_path) == first, (
        "the next agent, started where this one stood"
    )


def test_below_a_service_it_needs_a_group_beside_the_tasks(unit: Path, tmp_path: Path) -> None:
    """systemd puts the next agent into the service's own group, which the kernel refuses once that has passed
    controllers on: with living tasks it could not start."""
    service = unit.with_suffix(".service")
    said, root, stands_in = find_from(service, tmp_path)
    assert "DelegateSubgroup=paceline-agent" in said and root == "None"
    assert stands_in.endswith(service.name)
    said, root, _ = find_from(service / containment.LEAF, tmp_path)
    assert (said, Path(root).parent) == ("cgroup v2", service)
    with pytest.raises(OSError, match="busy"):
        (service / "cgroup.procs").write_text("0")


@pytest.mark.skipif(os.getuid() != 0, reason="making a cgroup namespace needs root")
def test_in_a_container_the_root_it_sees_is_not_the_root(unit: Path, tmp_path: Path) -> None:
    unit.mkdir()
    inside = 'umount -l /sys/fs/cgroup && mount -t cgroup2 none /sys/fs/cgroup && exec "$@"'
    enter = 'echo 0 > "$0/cgroup.procs" && exec unshare --cgroup --mount -- sh -c "$@"'
    asked = ["sh", "-c", enter, str(unit), inside, "sh", sys.executable, "-c", FINDER, str(tmp_path)]
    said = subprocess.run(asked, capture_output=True, text=True, check=True, timeout=60)
    containment_text, root, stands_in = json.loads(said.stdout)
    assert (containment_text, stands_in) == ("cgroup v2", f"/{containment.LEAF}")
    assert Path(root).parent == Path("/sys/fs/cgroup")
