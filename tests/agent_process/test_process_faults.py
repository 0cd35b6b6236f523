"""Whatever is killed or stopped: the journal ends, truthfully, and no process is left."""

import asyncio
import json
import os
import signal
import socket
import struct
import subprocess
import sys
import time
from pathlib import Path

import pytest
from paceline.agent import kernel
from paceline.agent.lease_watch import boot_id
from paceline.proto.marks import mark_of
from paceline.proto.shim_line import dial_until
from support.processes import (
    PYTHON,
    alive,
    ended,
    key,
    kill,
    of_kind,
    output,
    run,
    start_task,
    strays,
    supervised,
    until,
)

SLEEPER = "echo up; exec sleep 600"


def pids_in(text: str) -> list[int]:
    return [int(line.split()[1]) for line in text.splitlines() if line.startswith("pid ")]


async def started(supervisor, at):
    """The `started` entry, once it is there."""
    return (await until(lambda: of_kind(supervisor.entries(at, 0, 100), "started"), "started"))[0]


async def test_killing_one_rank_ends_its_task_and_names_the_first_cause(tmp_path: Path) -> None:
    async with supervised(tmp_path, warm=False) as supervisor:
        at = key(1)
        await supervisor.start(start_task(at, SLEEPER, tmp_path, processes=3))
        pids = (await started(supervisor, at)).pids
        kill(pids[1])
        exits = {each.local_rank: each for each in of_kind(await ended(supervisor, at), "exited")}
        assert [exits[rank].exit_code for rank in range(3)] == [-9, -9, -9]
        assert [exits[rank].killed_by_us for rank in range(3)] == [True, False, True]
        assert not any(alive(pid) for pid in pids)


async def test_a_rank_stays_though_its_shim_hears_both_words_at_once(tmp_path: Path) -> None:
    """It said that it stays before the agent said that the gang is broken; the shim was away meanwhile."""
    async with supervised(tmp_path, warm=False) as supervisor:
        at = key(1)
        await supervisor.start(start_task(at, SLEEPER, tmp_path))
        begun = await started(supervisor, at)
        os.kill(begun.shim_pid, signal.SIGSTOP)
        folder = next(iter(supervisor.log_files(at).values())).parent
        with dial_until(folder, time.monotonic() + 10) as line:
            line.settimeout(20)
            line.sendall(b'{"op": "stay", "rank": 0}\n')
            stopping = asyncio.create_task(supervisor.stop(at, 0.0, "attempt 1 is over", keep_s=20))
            await asyncio.sleep(0)  # it has been sent
            os.kill(begun.shim_pid, signal.SIGCONT)
            await stopping
            told = b""
            while b'"leave":true' not in told:
                more = await asyncio.to_thread(line.recv, 4096)
                assert more, "it was stopped"
                told += more
        assert not of_kind(supervisor.entries(at, 0, 100), "exited")
        await supervisor.stop(at, 0.0, "enough")
        await ended(supervisor, at)
        assert not any(alive(pid) for pid in begun.pids)


async def test_a_failing_rank_takes_its_peers_with_it_at_once(tmp_path: Path) -> None:
    (tmp_path / "a.sh").write_text('[ "$RANK" = 1 ] && exit 5; exec sleep 600')
    async with supervised(tmp_path, warm=False) as supervisor:
        begun = time.monotonic()
        entries = await run(
            supervisor,
            start_task(
                key(1), "sh a.sh", tmp_path, processes=2, launcher="pytorch", master_address="127.0.0.1"
            ),
        )
        assert time.monotonic() - begun < 60
        exits = {each.local_rank: each for each in of_kind(entries, "exited")}
        assert (exits[1].exit_code, exits[1].killed_by_us) == (5, False)
        assert (exits[0].exit_code, exits[0].killed_by_us) == (-9, True)


async def test_a_dead_shim_is_buried_by_the_agent(tmp_path: Path) -> None:
    async with supervised(tmp_path, warm=False) as supervisor:
        at = key(1)
        command = "setsid sh -c 'echo pid $$; exec sleep 600' & echo pid $$; wait"
        await supervisor.start(start_task(at, command, tmp_path))
        begun = await started(supervisor, at)
        pids = await until(lambda: len(p := pids_in(output(supervisor, at))) == 2 and p, "both are up")
        kill(begun.shim_pid)
        entries = await ended(supervisor, at)
        [exited], [over] = of_kind(entries, "exited"), of_kind(entries, "ended")
        assert (exited.exit_code, exited.killed_by_us, over.why) == (-9, False, "shim died")
        assert list(over.exit_codes) == [-9]
        assert list(over.log_bytes) == [len(output(supervisor, at))]
        assert not any(alive(pid) for pid in pids)


async def test_a_stopped_shim_is_killed_with_all_it_started(tmp_path: Path) -> None:
    async with supervised(tmp_path, warm=False, answer_s=0.3) as supervisor:
        at = key(1)
        await supervisor.start(start_task(at, SLEEPER, tmp_path))
        begun = await started(supervisor, at)
        kill(begun.shim_pid, signal.SIGSTOP)
        await supervisor.stop(at, 5.0, "cancelled")
        [over] = of_kind(await ended(supervisor, at), "ended")
        assert over.why == "cancelled"
        assert not alive(begun.pids[0])


async def test_a_stopped_rank_dies_when_its_grace_is_over(tmp_path: Path) -> None:
    async with supervised(tmp_path, warm=False) as supervisor:
        at = key(1)
        await supervisor.start(start_task(at, f"trap '' TERM; {SLEEPER}", tmp_path))
        await until(lambda: output(supervisor, at), "it is up")
        kill((await started(supervisor, at)).pids[0], signal.SIGSTOP)
        await supervisor.stop(at, 0.2, "cancelled")
        [exited] = of_kind(await ended(supervisor, at), "exited")
        assert (exited.exit_code, exited.killed_by_us) == (-9, True)


async def test_stop_gives_notice_then_sigterm_then_the_end(tmp_path: Path) -> None:
    look = "od -An -tu1 -N1 $PACELINE_TASK_FOLDER/notice"
    script = f"trap '{look}; exit 0' TERM; echo up; while :; do sleep 0.05; done"
    async with supervised(tmp_path, warm=False) as supervisor:
        at = key(1)
        await supervisor.start(start_task(at, script, tmp_path))
        await until(lambda: output(supervisor, at), "it is up")
        await supervisor.stop(at, 20.0, "preempted")
        entries = await ended(supervisor, at)
        said = output(supervisor, at).split()
        assert (said[0], said[-1]) == ("up", "1")
        assert list(of_kind(entries, "ended")[0].exit_codes) == [0]
        assert of_kind(entries, "ended")[0].why == "preempted"


async def test_a_timeout_is_kept_by_the_shim_alone(tmp_path: Path) -> None:
    async with supervised(tmp_path, warm=False) as supervisor:
        entries = await run(supervisor, start_task(key(1), SLEEPER, tmp_path, timeout_s=0.2, grace_s=1.0))
        assert of_kind(entries, "ended")[0].why == "timeout"
        assert of_kind(entries, "exited")[0].exit_code == -15


@pytest.mark.parametrize("victim", ["lean", "warm"])
async def test_a_killed_zygote_stops_no_task_and_another_takes_its_place(tmp_path: Path, victim: str) -> None:
    (tmp_path / "a.py").write_text("import time; print('up', flush=True); time.sleep(600)")
    command = SLEEPER if victim == "lean" else "python a.py"
    async with supervised(tmp_path / "state") as supervisor:
        await supervisor.start(start_task(key(1), command, tmp_path))
        await until(lambda: output(supervisor, key(1)), "it is up")
        kill(zygote_of(supervisor, victim).pid)
        await supervisor.start(start_task(key(2), command, tmp_path))
        await until(lambda: output(supervisor, key(2)), "the second is up")
        mode = (await started(supervisor, key(2))).start_mode
        assert mode.startswith("warm" if victim == "warm" else "cold"), mode
        assert not supervisor.ended(key(1))


@pytest.mark.parametrize("victim", ["lean", "warm"])
async def test_a_stopped_zygote_is_replaced_and_starts_nothing_twice(tmp_path: Path, victim: str) -> None:
    (tmp_path / "a.py").write_text("import time; print('up', flush=True); time.sleep(600)")
    command = SLEEPER if victim == "lean" else "python a.py"
    async with supervised(tmp_path / "state", answer_s=1.0) as supervisor:
        await run(
            supervisor,
            start_task(key(9), "python --version" if victim == "lean" else "python -m this", tmp_path),
        )
        kill(zygote_of(supervisor, victim).pid, signal.SIGSTOP)
        await supervisor.start(start_task(key(1), command, tmp_path))
        await until(lambda: output(supervisor, key(1)), "it is up")
        await started(supervisor, key(1))
        begun = of_kind(supervisor.entries(key(1), 0, 100), "started")
        assert len(begun) == 1
        mine = set(kernel.marked(mark_of(tmp_path / "state" / "tasks" / "1.1.0")))
        assert mine == {begun[0].pids[0], begun[0].shim_pid}


def zygote_of(supervisor, which):
    pool = supervisor._pool
    return pool.lean() if which == "lean" else pool.warm(pool._kept)


async def test_what_a_zygote_killed_in_its_rehearsal_left_goes_with_the_next(tmp_path: Path) -> None:
    left = tmp_path / "rehearsal"
    for folder in ("tasks/rehearsal", "shims"):
        (left / folder).mkdir(parents=True)
    (left / "tasks" / "rehearsal" / "journal.jsonl").touch()
    async with supervised(tmp_path, warm=False) as supervisor:
        await zygote_of(supervisor, "lean").ready()
        assert not left.exists()
        assert not (tmp_path / "zygote-1.log").read_text()


async def test_no_descendant_survives_whatever_it_does(tmp_path: Path) -> None:
    (tmp_path / "hide.py").write_text(
        """
import os, signal, sys, time
for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT): signal.signal(number, signal.SIG_IGN)
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        os.environ.clear()
        os.execve("/bin/sleep", ["sleep", "600"], {})
    os._exit(0)
for way in range(5):
    if os.fork() == 0:
        os.setsid(); os.kill(os.getpid(), signal.SIGSTOP); time.sleep(600)
if os.fork() == 0:
    while True:  # a bomb with a short fuse
        if os.fork() == 0: time.sleep(600)
        time.sleep(0.002)
time.sleep(0.3)
print("pids", len(os.listdir("/proc")))
"""
    )
    async with supervised(tmp_path, warm=False) as supervisor:
        before = set(kernel.all_pids())
        entries = await run(supervisor, start_task(key(1), f"{PYTHON} -E hide.py", tmp_path))
        assert of_kind(entries, "ended")[0].why == "exited"
        assert list(of_kind(entries, "ended")[0].exit_codes) == [0]
        sleepers = [pid for pid in set(kernel.all_pids()) - before if _runs_from(pid, tmp_path)]
        assert not sleepers


def _runs_from(pid: int, folder: Path) -> bool:
    try:
        return Path(f"/proc/{pid}/cwd").resolve() == folder.resolve()
    except OSError:
        return False


async def test_a_newer_attempt_kills_the_older_first_and_a_stale_one_is_refused(tmp_path: Path) -> None:
    async with supervised(tmp_path, warm=False) as supervisor:
        await supervisor.start(start_task(key(1, 2), SLEEPER, tmp_path))
        old = await started(supervisor, key(1, 2))
        await supervisor.start(start_task(key(1, 3), SLEEPER, tmp_path))
        assert not alive(old.pids[0])
        assert of_kind(supervisor.entries(key(1, 2), 0, 100), "ended")[0].why == "superseded"
        await supervisor.start(start_task(key(1, 1), SLEEPER, tmp_path))
        [refused] = of_kind(supervisor.entries(key(1, 1), 0, 10), "refused")
        assert (refused.reason.code, refused.transient) == ("stale-attempt", False)
        assert not supervisor.ended(key(1, 3))


async def test_start_is_idempotent(tmp_path: Path) -> None:
    async with supervised(tmp_path, warm=False) as supervisor:
        request = start_task(key(1), "echo once", tmp_path)
        await asyncio.gather(*(supervisor.start(request) for _ in range(5)))
        await ended(supervisor, key(1))
        await supervisor.start(request)
        assert output(supervisor, key(1)) == "once\n"


AGENT = """
import asyncio, sys
from pathlib import Path
sys.path.insert(0, sys.argv[3])
from paceline.agent.supervisor import Supervisor
from paceline.agent.supervisor_config import SupervisorConfig
from paceline.proto.generated import agent_pb2

async def main():
    supervisor = Supervisor(Path(sys.argv[1]), SupervisorConfig(warm=False, rendezvous_ports=1))
    await supervisor.recover()
    for name in sys.argv[2].split(","):
        await supervisor.start(agent_pb2.StartTask.FromString(Path(name).read_bytes()))
    print("started", flush=True)
    await asyncio.sleep(600)

asyncio.run(main())
"""


async def test_a_killed_agent_stops_no_task_and_the_next_one_hears_all(tmp_path: Path) -> None:
    """One task lives on; one ends while nobody looks; of one the shim dies while nobody looks."""
    state = tmp_path / "state"
    go = tmp_path / "go"
    commands = [SLEEPER, f"while [ ! -e {go} ]; do sleep 0.02; done; echo done; exit 4", SLEEPER]
    files = []
    for job, command in enumerate(commands, 1):
        (tmp_path / f"{job}").write_bytes(start_task(key(job), command, tmp_path).SerializeToString())
        files.append(str(tmp_path / f"{job}"))
    agent = subprocess.Popen(  # noqa: ASYNC220
        [sys.executable, "-c", AGENT, str(state), ",".join(files), "."], stdout=subprocess.PIPE, text=True
    )
    try:
        assert agent.stdout is not None and await asyncio.to_thread(agent.stdout.readline) == "started\n"
        shims = await until(lambda: all_started(state, 3), "all three have started")
    finally:
        agent.kill()
        agent.wait()
        agent.stdout.close()
    lasting = shims[0]
    kill(shims[2]["shim_pid"])
    go.touch()
    await until(lambda: not alive(shims[1]["shim_pid"]), "the second ends")
    async with supervised(state, warm=False) as supervisor:
        assert set(supervisor.tasks()) == {key(1), key(2), key(3)}
        assert not supervisor.ended(key(1))
        assert (await started(supervisor, key(1))).pids == lasting["pids"]
        assert alive(lasting["pids"][0])
        assert list(of_kind(await ended(supervisor, key(2)), "ended")[0].exit_codes) == [4]
        assert of_kind(await ended(supervisor, key(3)), "ended")[0].why == "shim died"
        assert not alive(shims[2]["pids"][0])
        await supervisor.start(start_task(key(1), "echo twice", tmp_path))
        assert output(supervisor, key(1)) == "up\n"
        await supervisor.stop(key(1), 5.0, "cancelled")
        assert of_kind(await ended(supervisor, key(1)), "exited")[0].exit_code == -15


def all_started(state: Path, count: int) -> list[dict]:
    found = []
    for path in sorted((state / "tasks").glob("*/journal.jsonl")):
        lines = path.read_text().splitlines()
        if lines:
            found.append(json.loads(lines[0]))
    return found if len(found) == count else []


async def test_a_folder_that_no_shim_ever_claimed_is_refused_after_a_restart(tmp_path: Path) -> None:
    folder = tmp_path / "tasks" / "7.1.0"
    folder.mkdir(parents=True)
    (folder / "task.json").write_text('{"task": {"job": "7", "attempt"')
    async with supervised(tmp_path, warm=False) as supervisor:
        [refused] = of_kind(await ended(supervisor, key(7)), "refused")
        assert refused.transient
        assert (folder / "shim.pid").read_text() == "0 0"


@pytest.mark.parametrize(
    ("fields", "code", "transient"),
    [
        ({"cwd": "/no/such/folder"}, "no-working-folder", False),
        ({"interpreter_environment": "moon"}, "no-environment", True),
        ({"output_folders": ["/proc/nowhere/out"]}, "node-trouble", True),
    ],
)
async def test_what_cannot_start_is_refused_with_its_reason(
    tmp_path: Path, fields: dict, code: str, transient: bool
) -> None:
    async with supervised(tmp_path, warm=False) as supervisor:
        request = start_task(key(1), "true", tmp_path)
        for name, value in fields.items():
            if isinstance(value, list):
                getattr(request, name).extend(value)
            else:
                setattr(request, name, value)
        [refused] = of_kind(await run(supervisor, request), "refused")
        assert (refused.reason.code, refused.transient) == (code, transient)
        assert refused.reason.text


async def test_a_taken_rendezvous_port_is_a_transient_refusal(tmp_path: Path) -> None:
    async with supervised(tmp_path) as supervisor:
        with socket.create_server(("127.0.0.1", 0)) as taken:
            request = start_task(
                key(1),
                "true",
                tmp_path,
                launcher="pytorch",
                hosts_rendezvous=True,
                master_address="127.0.0.1",
            )
            request.master_port = taken.getsockname()[1]
            [refused] = of_kind(await run(supervisor, request), "refused")
        assert (refused.reason.code, refused.transient) == ("rendezvous-port-gone", True)


async def test_a_lease_that_ran_out_ends_the_task_though_the_agent_is_stopped(tmp_path: Path) -> None:
    boot = boot_id()
    long_ago = time.clock_gettime(time.CLOCK_BOOTTIME) - 30
    (tmp_path / "lease").write_bytes(struct.pack("<ddd36s", long_ago, 20.0, 600.0, boot))
    async with supervised(tmp_path, warm=False) as supervisor:
        await supervisor.start(start_task(key(1), SLEEPER, tmp_path, exclusive=True))
        await supervisor.start(start_task(key(2), SLEEPER, tmp_path))
        assert of_kind(await ended(supervisor, key(1)), "ended")[0].why == "lease ran out"
        assert not supervisor.ended(key(2))


async def test_nothing_leaks(tmp_path: Path) -> None:
    """Descriptors, threads and processes after many tasks are what they were after the first."""
    async with supervised(tmp_path, warm=False, idle_shim_s=0.5) as supervisor:
        await run(supervisor, start_task(key(1), "true", tmp_path))
        await supervisor.forget(key(1))
        await until(lambda: not strays(tmp_path), "no process is left")
        before = usage(supervisor)
        for round_ in range(3):
            keys = [key(10 + 20 * round_ + each) for each in range(12)]
            await asyncio.gather(*(run(supervisor, start_task(at, "true", tmp_path)) for at in keys))
            await asyncio.gather(*(supervisor.forget(at) for at in keys))
        await until(lambda: not strays(tmp_path), "no process is left")
        await until(lambda: usage(supervisor) == before, f"what was in use before: {before}")
        assert supervisor.tasks() == ()
        assert not list((tmp_path / "tasks").iterdir())


def usage(supervisor) -> tuple[int, list[str]]:
    zygote = zygote_of(supervisor, "lean").pid
    return len(list(Path("/proc/self/fd").iterdir())), sorted(map(str, Path(f"/proc/{zygote}/fd").iterdir()))


@pytest.mark.skipif(not os.access("/sys/fs/cgroup", os.W_OK), reason="needs a writable cgroup v2")
async def test_a_group_finds_what_hides_from_everything_else(tmp_path: Path) -> None:
    """The shim is killed; a grandchild has another session, another parent and no environment."""
    (tmp_path / "hide.sh").write_text("setsid env -i /bin/sh -c 'echo pid $$; exec sleep 600' & wait")
    async with supervised(tmp_path / "state", warm=False, groups_without_limits=True) as supervisor:
        if supervisor._groups.root is None:
            pytest.skip(supervisor.containment())
        await supervisor.start(start_task(key(1), "sh hide.sh", tmp_path))
        [pid] = await until(lambda: pids_in(output(supervisor, key(1))), "it is up")
        kill((await started(supervisor, key(1))).shim_pid)
        assert of_kind(await ended(supervisor, key(1)), "ended")[0].why == "shim died"
        assert not alive(pid)
        entries = await run(supervisor, start_task(key(2), "sh hide.sh & sleep 0.1; exit 2", tmp_path))
        assert list(of_kind(entries, "ended")[0].exit_codes) == [2]
        assert not [each for each in supervisor._groups.root.iterdir() if each.is_dir()]


async def test_a_stop_during_the_start_is_not_lost(tmp_path: Path) -> None:
    (tmp_path / "slow_import.py").write_text("import time; time.sleep(1.5)")
    environment = {"PYTHONPATH": str(tmp_path)}
    (tmp_path / "a.py").write_text("import time; time.sleep(600)")
    async with supervised(tmp_path / "state", preload=("slow_import",)) as supervisor:
        request = start_task(key(1), "python a.py", tmp_path, environment=environment)
        starting = asyncio.ensure_future(supervisor.start(request))
        await until(lambda: key(1) in supervisor.tasks(), "it is known")
        await supervisor.stop(key(1), 5.0, "cancelled")
        [refused] = of_kind(await ended(supervisor, key(1)), "refused")
        assert "cancelled before" in refused.reason.text
        await starting


async def test_a_shim_that_drops_the_agent_is_dialled_again_and_still_stops(tmp_path: Path) -> None:
    async with supervised(tmp_path, warm=False) as supervisor:
        await supervisor.start(start_task(key(1), SLEEPER, tmp_path))
        await started(supervisor, key(1))
        task = supervisor._tasks[key(1)]
        link = task.link
        link._sock.shutdown(socket.SHUT_RDWR)
        await supervisor.stop(key(1), 5.0, "cancelled")
        assert of_kind(await ended(supervisor, key(1)), "exited")[0].exit_code == -15


IMPORTING_AGENT = """
import asyncio, sys
from pathlib import Path
from paceline.agent.supervisor import Supervisor
from paceline.agent.supervisor_config import SupervisorConfig

async def main():
    supervisor = Supervisor(Path(sys.argv[1]), SupervisorConfig(preload=("slow_import",), rendezvous_ports=1))
    await supervisor.recover()
    print(supervisor._pool.warm(supervisor._pool._kept).pid, flush=True)
    await asyncio.sleep(600)

asyncio.run(main())
"""


async def test_a_zygote_leaves_with_its_killed_agent_also_while_it_imports(tmp_path: Path) -> None:
    (tmp_path / "slow_import.py").write_text(
        f"import pathlib, time; pathlib.Path({str(tmp_path)!r}, 'importing').touch(); time.sleep(100)"
    )
    agent = subprocess.Popen(  # noqa: ASYNC220
        [sys.executable, "-c", IMPORTING_AGENT, str(tmp_path / "state")],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
    )
    assert agent.stdout is not None
    with agent.stdout:
        zygote = int(await asyncio.to_thread(agent.stdout.readline))
        try:
            await until((tmp_path / "importing").exists, "it imports")
            assert alive(zygote)
        finally:
            agent.kill()
            agent.wait()
        await until(lambda: not alive(zygote), "the zygote left", 5)
