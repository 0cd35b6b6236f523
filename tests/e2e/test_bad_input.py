"""What people get wrong, through the real command on a real cluster: an answer, no traceback, no hang."""

import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from paceline.spec.lifecycle import JobState
from support.cluster import Cluster

TRACES = ("Traceback (most recent call last)", "pydantic", "grpc._channel")


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    with Cluster(tmp_path_factory.mktemp("bad-input"), agents=1, cpus=4) as made:
        yield made


def refused(cluster: Cluster, content: bytes, *options: str) -> str:
    """Submit a file with that content: exit code 2, nothing made, no traceback; what it said."""
    file = cluster.folder / "job.yaml"
    file.write_bytes(content)
    before = len(cluster.client.jobs())
    done = cluster.pace("submit", str(file), *options)
    assert done.returncode == 2, (done.returncode, done.stdout, done.stderr)
    assert not any(trace in done.stderr for trace in TRACES), done.stderr
    assert len(cluster.client.jobs()) == before
    return done.stderr


BOMB = "a0: &a0 [x]\n" + "".join(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]\n" for n in range(1, 12))


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"comand: echo hi\n", "job.yaml:1:1: comand: unknown key; did you mean 'command'?"),
        (b"command: [echo, hi]\n", "job.yaml:1:10: command"),
        (b"command: echo\nresources: {instance_count: 1.0e+99}\n", "resources.instance_count"),
        (b"command: echo\nresources: {instance_count: -1}\n", "resources.instance_count"),
        (b"command: echo\nname: ../../etc/passwd\n", "name"),
        (b'command: echo\ndisplay_name: "two\\nlines"\n', "display_name"),
        (b'command: echo\ndisplay_name: "\\e[31mred"\n', "display_name"),
        ('command: echo\ndisplay_name: "a\u202eb"\n'.encode(), "display_name"),
        (b"command: echo ${{inputs.lr}}\n", "lr"),
        (BOMB.encode(), "job.yaml"),
        (b"command: \xff\xfe\n", "UTF-8"),
        (b"\x00\x01", "job.yaml"),
        (b"", "found nothing"),
        (b"type: sweep\ncommand: echo\n", "did you mean 'trial.command'?"),
        (b"{" * 5000, "job.yaml"),
    ],
)
def test_a_wrong_file_is_refused_with_the_place(cluster: Cluster, content: bytes, says: str) -> None:
    assert says in refused(cluster, content)


def test_a_hundred_megabytes_are_refused_by_size(cluster: Cluster) -> None:
    file = cluster.folder / "huge.yaml"
    with file.open("wb") as out:
        out.truncate(100 << 20)
    done = cluster.pace("submit", str(file))
    assert done.returncode == 2
    assert "huge.yaml" in done.stderr
    assert "104857600 bytes" in done.stderr


def test_a_missing_file_and_a_folder(cluster: Cluster) -> None:
    for name in (cluster.folder / "nowhere.yaml", cluster.folder):
        done = cluster.pace("submit", str(name))
        assert done.returncode == 2
        assert str(name) in done.stderr
        assert not any(trace in done.stderr for trace in TRACES)


def test_more_gpus_than_any_node_has_says_never(cluster: Cluster) -> None:
    job = cluster.submit_text("command: echo\nresources: {gpus: 16}\n")
    why = cluster.client.why(job)
    assert why.never
    assert "16" in why.reasons[0].text
    shown = cluster.pace("why", str(job))
    assert "never" in shown.stdout.lower()
    assert cluster.client.cancel(job).state is JobState.CANCELLED


@pytest.mark.parametrize(
    ("command", "exit_code", "says"),
    [
        ("no-such-program --flag", 127, b"no-such-program"),
        ("./not-here.sh", 127, b"not-here"),
        ("python -c 'raise SystemExit(9)'", 9, b""),
        ("exit 3", 3, b""),
        ("python -c 'import os; os.abort()'", 128 + signal.SIGABRT, b""),
        ("'unclosed", 2, b""),
    ],
)
def test_commands_that_fail_at_once(cluster: Cluster, command: str, exit_code: int, says: bytes) -> None:
    quoted = command.replace('"', '\\"')
    job = cluster.submit_text(f'command: "{quoted}"\nretry: {{max_attempts: 1}}\n')
    ended = cluster.wait_state(job, JobState.FAILED)
    assert ended.exit_code == exit_code, ended.reason
    assert says in cluster.output(job)
    assert ended.reason is not None
    assert ended.reason.text


def test_binary_output_without_a_newline_comes_through_whole(cluster: Cluster) -> None:
    code = "import os; os.write(1, bytes(range(256)) * 40)"
    job = cluster.submit_text(f"command: python -c '{code}'\n")
    cluster.wait_state(job, JobState.SUCCEEDED)
    assert cluster.output(job) == bytes(range(256)) * 40


def test_a_flood_of_output_is_bounded_and_says_what_is_gone(cluster: Cluster) -> None:
    lines, width = 300_000, 100
    code = f"for n in range({lines}): print(str(n).zfill({width - 1}))"
    text = f"command: >-\n  python -c '{code}'\nlimits: {{log_size: 4Mi}}\n"
    job = cluster.submit_text(text)
    cluster.wait_state(job, JobState.SUCCEEDED)
    chunks = list(cluster.client.logs(job, rank=0, follow=True))
    assert sum(chunk.dropped_bytes + len(chunk.data) for chunk in chunks) == lines * width
    assert sum(len(chunk.data) for chunk in chunks) <= 8 << 20
    assert chunks[-1].data.endswith(str(lines - 1).zfill(width - 1).encode() + b"\n")


def test_a_burst_of_forks_ends_with_the_job(cluster: Cluster, tmp_path: Path) -> None:
    """Fifty children in sessions of their own; none is left when the job is over."""
    pids = tmp_path / "pids"
    script = tmp_path / "burst.py"
    script.write_text(
        "import os, subprocess, sys\n"
        "children = [subprocess.Popen(['sleep', '600'], start_new_session=True) for _ in range(50)]\n"
        f"open({str(pids)!r}, 'w').write('\\n'.join(str(child.pid) for child in children))\n"
    )
    job = cluster.submit_text(f"command: python {script}\n")
    cluster.wait_state(job, JobState.SUCCEEDED)
    left = [pid for pid in pids.read_text().split() if Path(f"/proc/{pid}").exists()]
    assert left == []


def test_wrong_overrides_and_unknown_jobs(cluster: Cluster) -> None:
    file = cluster.folder / "inputs.yaml"
    file.write_text("command: echo ${{inputs.lr}}\ninputs: {lr: 0.1}\n")
    done = cluster.pace("submit", str(file), "--set", "inputs.lrr=1")
    assert done.returncode == 2
    assert "lr" in done.stderr
    for verb in ("show", "why", "timeline", "cancel", "logs"):
        done = cluster.pace(verb, "999999")
        assert done.returncode == 3, (verb, done.stderr)
        assert "999999" in done.stderr
        assert cluster.pace(verb, "not-a-number").returncode == 2
