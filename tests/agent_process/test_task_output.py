"""A rank's output: every byte at its offset, bounded on disk, whatever the bytes are."""

import asyncio
import json
import math
from pathlib import Path

from paceline.agent.shim_link import dial
from support.processes import PYTHON, ended, key, of_kind, output, run, start_task, supervised, until


async def test_binary_output_and_no_newline_arrive_as_they_are(tmp_path: Path) -> None:
    everything = bytes(range(256)) * 3
    (tmp_path / "a.py").write_text(
        "import os; os.write(1, bytes(range(256)) * 2); os.write(2, bytes(range(256)))"
    )
    async with supervised(tmp_path / "state", warm=False) as supervisor:
        entries = await run(supervisor, start_task(key(1), f"{PYTHON} a.py", tmp_path))
        assert supervisor.log_files(key(1))[0].read_bytes() == everything
        assert list(of_kind(entries, "ended")[0].log_bytes) == [len(everything)]
        assert len(of_kind(entries, "exited")[0].last_line) <= 500


async def test_the_last_line_is_the_last_one_with_text(tmp_path: Path) -> None:
    async with supervised(tmp_path, warm=False) as supervisor:
        entries = await run(
            supervisor, start_task(key(1), r"printf 'a\nthe cause\n\n  \n'; exit 1", tmp_path)
        )
        assert of_kind(entries, "exited")[0].last_line == "the cause"
        entries = await run(
            supervisor, start_task(key(2), f"{PYTHON} -c \"print('x' * 99999); exit(1)\"", tmp_path)
        )
        assert of_kind(entries, "exited")[0].last_line == "x" * 500


async def test_a_log_keeps_its_offsets_and_its_bound(tmp_path: Path) -> None:
    """10 MB/s for some seconds; what is on disk stays near the bound, and its end is intact."""
    (tmp_path / "a.py").write_text(
        "import sys, time\n"
        "for n in range(300):\n"
        "    sys.stdout.write(''.join(f'{n:05d}.{i:010d}\\n' for i in range(6000))); time.sleep(0.008)\n"
    )
    async with supervised(tmp_path / "state", warm=False) as supervisor:
        at = key(1)
        await supervisor.start(start_task(at, f"{PYTHON} a.py", tmp_path, log_bytes_max=2_000_000))
        log = supervisor.log_files(at)[0]
        highest = 0
        while not supervisor.ended(at):
            if log.exists():
                highest = max(highest, log.stat().st_blocks * 512)
            await asyncio.sleep(0.02)
        total = 300 * 6000 * 17
        assert log.stat().st_size == total
        assert highest < 2_000_000 + 20_000_000
        with log.open("rb") as file:
            file.seek(total - 17)
            assert file.read() == b"00299.0000005999\n"
            file.seek(0)
            assert file.read(17) == bytes(17)


async def test_what_a_rank_says_is_journaled_before_its_end(tmp_path: Path) -> None:
    (tmp_path / "a.py").write_text(
        """
import json, os, socket
link = socket.socket(socket.AF_UNIX)
link.connect(os.environ["PACELINE_TASK_FOLDER"] + "/shim.sock")
answers = link.makefile("rb")
def say(**message): link.sendall(json.dumps(message).encode() + b"\\n")
say(op="stay", rank=9); assert json.loads(answers.readline()) == {"ok": True}
say(op="checkpoint", step=7, path="p", manifest_hash="h", size_bytes=5, metrics={"loss": float("nan")})
print(json.loads(answers.readline()))
say(op="nonsense"); assert not json.loads(answers.readline())["ok"]
say(op="metrics", rank="x", step=1, values={}); assert not json.loads(answers.readline())["ok"]
link.sendall(b"[" * 5000 + b"\\n"); assert not json.loads(answers.readline())["ok"]
for step in range(1000): say(op="metrics", rank=0, step=step, values={"loss": 1.5, "odd": float("inf")})
os._exit(3)
"""
    )
    async with supervised(tmp_path / "state", warm=False) as supervisor:
        entries = await run(supervisor, start_task(key(1), f"{PYTHON} a.py", tmp_path))
        assert list(of_kind(entries, "ended")[0].exit_codes) == [3], output(supervisor, key(1))
        kinds = [entry.WhichOneof("kind") for entry in entries]
        assert kinds[:2] == ["started", "checkpoint"]
        assert kinds[-2:] == ["exited", "ended"]
        metrics = of_kind(entries, "metrics")
        assert metrics[-1].step == 999
        assert metrics[-1].values["odd"] == float("inf")
        assert len(metrics) < 100
        [saved] = of_kind(entries, "checkpoint")
        assert (saved.step, saved.size_bytes) == (7, 5)
        assert "'seq': 2" in output(supervisor, key(1))


async def test_acknowledged_metrics_give_their_space_back(tmp_path: Path) -> None:
    async with supervised(tmp_path, warm=False) as supervisor:
        at = key(1)
        await supervisor.start(start_task(at, "sleep 600", tmp_path))
        folder = tmp_path / "tasks" / str(at)
        await until(lambda: supervisor.entries(at, 0, 1), "started")
        link = await asyncio.to_thread(dial, folder)
        with link:
            values = {f"a metric with a long name {n}": 1.0 for n in range(900)}
            for step in range(30):
                message = {"op": "checkpoint", "step": step, "metrics": values}
                await asyncio.get_running_loop().sock_sendall(link, json.dumps(message).encode() + b"\n")
        entries = await until(lambda: len(e := supervisor.entries(at, 0, 100)) == 31 and e, "all are there")
        journal = folder / "journal.jsonl"
        size = journal.stat().st_size
        supervisor.acknowledge(at, 28)
        assert int((folder / "acked").read_text()) == 28
        await until(lambda: journal.stat().st_blocks * 512 < size // 2, "the space is given back")
        assert [entry.seq for entry in supervisor.entries(at, 28, 100)] == [29, 30, 31]
        assert supervisor.entries(at, 30, 100)[0] == entries[30]
        await supervisor.stop(at, 0.0, "cancelled")
        assert (await ended(supervisor, at))[-1].seq == 33


PRINTS = """
import sys, time
print("epoch 1 val_loss=0.5 val_acc=0.6")
print("val_loss=oops")
print("epoch 2 val_loss=0.25 val_acc=0.7", end="\\r", file=sys.stderr)
print("done: val_loss=nan val_acc=0.9", end="")
"""
PATTERNS = {
    "loss": r"(epoch (?P<step>\d+) )?val_loss=(?P<value>\S+)",
    "acc": r"val_acc=(?P<value>[0-9.]+)",
}


async def test_what_rank_0_prints_becomes_metrics(tmp_path: Path) -> None:
    """Steps as they are printed, else counted; also what no newline ends."""
    (tmp_path / "a.py").write_text(PRINTS)
    async with supervised(tmp_path / "state", warm=False) as supervisor:
        request = start_task(key(1), f"{PYTHON} a.py", tmp_path, metric_patterns=PATTERNS)
        entries = await run(supervisor, request)
        told = [(one.step, dict(one.values)) for one in of_kind(entries, "metrics")]
        assert [one for one in told if "acc" in one[1]][:2] == [
            (1, {"loss": 0.5, "acc": 0.6}),
            (2, {"loss": 0.25, "acc": 0.7}),
        ]
        assert told[-1][1]["acc"] == 0.9
        assert any(step == 3 and math.isnan(values.get("loss", 0.0)) for step, values in told)
        assert [entry.WhichOneof("kind") for entry in entries][-2:] == ["exited", "ended"]


async def test_what_is_printed_is_told_while_the_rank_runs(tmp_path: Path) -> None:
    """By a program in any language; of rank 0 only."""
    async with supervised(tmp_path / "state", warm=False) as supervisor:
        at = key(1)
        command = "echo loss=1.5; sleep 600"
        pattern = {"loss": r"loss=(?P<value>\S+)"}
        fields = {"processes": 2, "metric_patterns": pattern}
        await supervisor.start(start_task(at, command, tmp_path, **fields))
        await until(lambda: of_kind(supervisor.entries(at, 0, 100), "metrics"), "it is told")
        await supervisor.stop(at, 0.0, "enough")
        told = of_kind(await ended(supervisor, at), "metrics")
        assert [(one.rank, one.step, dict(one.values)) for one in told] == [(0, 1, {"loss": 1.5})]


async def test_a_pattern_that_never_ends_is_given_up(tmp_path: Path) -> None:
    """The shim goes on, and the other pattern is still used."""
    patterns = {"bad": r"(?P<value>(a+)+)$", "loss": r"loss=(?P<value>\S+)"}
    (tmp_path / "a.py").write_text("print('a' * 200 + 'b')\nprint('loss=2.5')\n")
    async with supervised(tmp_path / "state", warm=False) as supervisor:
        at = key(1)
        entries = await run(supervisor, start_task(at, f"{PYTHON} a.py", tmp_path, metric_patterns=patterns))
        assert [dict(one.values) for one in of_kind(entries, "metrics")] == [{"loss": 2.5}]
        assert "the pattern of 'bad' takes too long on a line" in output(supervisor, at)


async def test_metrics_that_come_fast_keep_the_last_of_each_name(tmp_path: Path) -> None:
    """One call for each metric, as some libraries have it."""
    (tmp_path / "a.py").write_text(
        """
import json, os, socket
link = socket.socket(socket.AF_UNIX)
link.connect(os.environ["PACELINE_TASK_FOLDER"] + "/shim.sock")
def say(step, **values):
    said = {"op": "metrics", "rank": 0, "step": step, "values": values}
    link.sendall(json.dumps(said).encode() + b"\\n")
for step in range(1, 201):
    say(step, loss=float(step))
    say(step, acc=float(-step))
say(0, total=1.0)
"""
    )
    async with supervised(tmp_path / "state", warm=False) as supervisor:
        entries = await run(supervisor, start_task(key(1), f"{PYTHON} a.py", tmp_path))
        last: dict[str, tuple[int, float]] = {}
        for one in of_kind(entries, "metrics"):
            last |= {name: (one.step, value) for name, value in one.values.items()}
        assert last == {"loss": (200, 200.0), "acc": (200, -200.0), "total": (0, 1.0)}
