"""What a task runs with: asked of its interpreter once, bounded, kept by content, told with its start."""

import asyncio
import json
import os
import platform
import sys
import venv
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import BinaryIO

import pytest
from paceline.agent import interpreters
from paceline.agent.gpu import Gpu, GpuReport, Slice
from paceline.agent.interpreters import Interpreters, Listing
from paceline.agent.ran_with import Records, record_text
from paceline.agent.supervisor import Supervisor
from paceline.agent.supervisor_config import SupervisorConfig
from paceline.content.store import ContentStore, content_folder, records_folder
from support.processes import PYTHON, alive, begun, ended, key, of_kind, output, start_task, supervised, until
from support.wheels import make_wheel, unpack_into

SLEEPS = "#!/bin/sh\nexec sleep 600\n"


def asked(interpreter: str, environment: dict[str, str] | None = None) -> Listing:
    made = Interpreters(os.environ if environment is None else environment)
    try:
        return made.ask(interpreter).result(60)
    finally:
        made.close()


def script(path: Path, text: str) -> str:
    path.write_text(text)
    path.chmod(0o755)
    return str(path)


def packages(listing: Listing) -> dict[str, tuple[str, str]]:
    return {name: (version, origin) for name, version, origin in json.loads(listing.packages)}


def new_venv(folder: Path) -> str:
    venv.create(folder, with_pip=False)
    return str(folder / "bin" / "python")


def records_of(tmp_path: Path) -> ContentStore:
    return ContentStore(records_folder(tmp_path / "storage"))


def storage(tmp_path: Path) -> str:
    """StartTask.content_folder of a storage folder that is there."""
    (tmp_path / "storage").mkdir(exist_ok=True)
    return str(content_folder(tmp_path / "storage"))


def test_an_interpreter_says_what_it_is_and_has() -> None:
    found = asked(sys.executable)
    assert found.problem == "" and found.python == platform.python_version()
    assert packages(found)["grpcio"][0] == metadata.version("grpcio")
    assert found.count == len(packages(found)) and found.is_fresh


def test_an_installation_is_seen_and_what_has_not_changed_is_asked_once(tmp_path: Path) -> None:
    python = new_venv(tmp_path / "own")
    made = Interpreters(os.environ)
    try:
        assert made.known(python) is None
        first = made.ask(python).result(60)
        assert made.known(python) is first and made.ask(python).result(0) is first
        unpack_into(tmp_path / "own", make_wheel(tmp_path / "wheels", "our", "1"))
        assert made.known(python) is None
        second = made.ask(python).result(60)
        assert packages(second)["our"] == ("1", "")
        assert second.packages_hash != first.packages_hash
    finally:
        made.close()


def test_where_a_package_came_from_is_told_without_a_password(tmp_path: Path) -> None:
    python = new_venv(tmp_path / "own")
    origins = {
        "git": {"url": "https://me:secret@host/a.git", "vcs_info": {"vcs": "git", "commit_id": "abc"}},
        "edited": {"url": "file:///src/edited", "dir_info": {"editable": True}},
        "broken": [],
    }
    for name, origin in origins.items():
        unpack_into(tmp_path / "own", make_wheel(tmp_path / "wheels", name, "1"))
        [info] = (tmp_path / "own").glob(f"lib/python3*/site-packages/{name}-1.dist-info")
        (info / "direct_url.json").write_text(json.dumps(origin))
    found = packages(asked(python))
    assert {name: found[name][1] for name in origins} == {
        "git": "git+https://host/a.git@abc",
        "edited": "editable file:///src/edited",
        "broken": "",
    }


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("#!/bin/sh\necho rubbish > /proc/self/fd/$3\n", "an answer of another form"),
        (
            "#!/bin/sh\nexec yes > /proc/self/fd/$3\n",
            f"an answer of more than {interpreters.ANSWER_BYTES_MAX} bytes",
        ),
        ("#!/bin/sh\nhead -c 100000000 /dev/zero; exit 1\n", "it ended without an answer"),
        ("#!/bin/sh\necho {} > /proc/self/fd/$3\n", "an answer of another form"),
        ("no program", "Exec format error"),
    ],
    ids=["rubbish", "endless", "loud", "another form", "no program"],
)
def test_a_hostile_interpreter_is_refused_with_a_note(tmp_path: Path, text: str, why: str) -> None:
    found = asked(script(tmp_path / "python", text))
    assert why in found.problem and found.packages == b""


def test_one_that_does_not_answer_is_ended_and_asked_again_when_it_has_changed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(interpreters, "ANSWER_S_MAX", 0.3)
    python = script(tmp_path / "python", SLEEPS)
    made = Interpreters(os.environ)
    try:
        found = made.ask(python).result(60)
        assert "no answer within 0.3 s" in found.problem
        assert made.known(python) is found, "it is not asked at each start"
        script(tmp_path / "python", f'#!/bin/sh\nexec {PYTHON} "$@"\n')
        assert made.known(python) is None
        monkeypatch.undo()
        assert made.ask(python).result(60).problem == ""
    finally:
        made.close()


def test_a_record_has_driver_and_devices_with_their_boards_serial() -> None:
    whole = Gpu(0, uuid="GPU-a", name="NVIDIA H200", serial="1654922006542")
    slices = (Slice(7, 0, "MIG-c", "NVIDIA A100 MIG 1g.5gb"),)
    cut = Gpu(1, uuid="GPU-b", name="NVIDIA A100", serial="77", mig_enabled=True, slices=slices)
    report = GpuReport("ok", "550.54.15", "12.4", (whole, cut))
    said = json.loads(record_text("/opt/python", Listing("3.11.7", "CPython"), report))
    assert (said["driver"], said["cuda"], said["interpreter"]) == ("550.54.15", "12.4", "/opt/python")
    assert said["gpus"] == [
        {"index": 0, "name": "NVIDIA H200", "uuid": "GPU-a", "serial": "1654922006542", "slice_of": ""},
        {
            "index": 20700,
            "name": "NVIDIA A100 MIG 1g.5gb",
            "uuid": "MIG-c",
            "serial": "77",
            "slice_of": "GPU-b",
        },
    ]


async def test_a_start_is_told_of_with_its_record_and_the_next_has_it_in_its_journal(tmp_path: Path) -> None:
    where = {"content_folder": storage(tmp_path)}
    async with supervised(tmp_path / "agent", warm=False) as supervisor:
        await supervisor.start(start_task(key(1), "true", tmp_path, **where))
        started = await begun(supervisor, key(1))
        with records_of(tmp_path).open(started.record) as file:
            said = json.load(file)
        assert said["python"] == platform.python_version() and said["interpreter"] == PYTHON
        with records_of(tmp_path).open(said["packages"]) as file:
            assert ["grpcio", metadata.version("grpcio"), ""] in json.load(file)
        await supervisor.start(start_task(key(2), "true", tmp_path, **where))
        await ended(supervisor, key(2))
        line = (tmp_path / "agent" / "tasks" / "2.1.0" / "journal.jsonl").read_text().splitlines()[0]
        assert json.loads(line)["record"] == started.record


async def test_the_job_of_a_hostile_interpreter_runs_and_its_start_waits_for_nothing(tmp_path: Path) -> None:
    waits = f"#!/bin/sh\nwhile [ ! -e {tmp_path}/go ]; do sleep 0.02; done\n"
    hostile = script(tmp_path / "python", waits)
    async with supervised(tmp_path / "agent", warm=False, environments={"bad": hostile}) as supervisor:
        asked = start_task(
            key(1),
            f"touch {tmp_path}/ran",
            tmp_path,
            content_folder=storage(tmp_path),
            interpreter_environment="bad",
        )
        await supervisor.start(asked)
        await until((tmp_path / "ran").exists, "it runs while its interpreter is silent")
        assert supervisor.entries(key(1), 0, 10) == [], "what is told of it waits"
        (tmp_path / "go").touch()
        started = await begun(supervisor, key(1))
        with records_of(tmp_path).open(started.record) as file:
            said = json.load(file)
        assert said["packages"] == "" and "it ended without an answer" in said["problem"]
        assert [one.exit_code for one in of_kind(await ended(supervisor, key(1)), "exited")] == [0]


async def test_a_storage_that_is_not_here_is_not_made_and_the_start_says_why(tmp_path: Path) -> None:
    async with supervised(tmp_path / "agent", warm=False) as supervisor:
        where = content_folder(tmp_path / "away")
        await supervisor.start(start_task(key(1), "true", tmp_path, content_folder=str(where)))
        started = await begun(supervisor, key(1))
        assert started.record == "" and f"{tmp_path}/away is not on this node" in started.unrecorded
    assert not (tmp_path / "away").exists()


async def test_many_who_start_at_once_have_one_record_made(tmp_path: Path) -> None:
    (tmp_path / "storage").mkdir()
    made = Records(os.environ, lambda: GpuReport(""))
    try:
        asked = [made.ask(PYTHON, tmp_path / "storage") for _ in range(50)]
        assert len(set(asked)) == 1
        told = await asyncio.gather(*asked)
        assert told[0].why == "" and made.known(PYTHON, tmp_path / "storage") == told[0].record
        assert made.known(PYTHON, tmp_path / "other") == ""
    finally:
        await made.close()


async def test_who_asks_after_a_change_is_not_told_of_what_was_just_recorded(tmp_path: Path) -> None:
    python = new_venv(tmp_path / "own")
    (tmp_path / "storage").mkdir()
    made = Records(os.environ, lambda: GpuReport(""))
    try:
        asked = made.ask(python, tmp_path / "storage")
        while not asked.done():  # noqa: ASYNC110 - an event would be told later
            await asyncio.sleep(0)
        unpack_into(tmp_path / "own", make_wheel(tmp_path / "wheels", "our", "1"))
        assert await made.ask(python, tmp_path / "storage") != asked.result()
    finally:
        await made.close()


async def test_what_changed_while_it_was_listed_is_listed_again(tmp_path: Path) -> None:
    python = new_venv(tmp_path / "own")
    unpack_into(tmp_path / "own", make_wheel(tmp_path / "wheels", "slow", "1"))
    [metadata_file] = (tmp_path / "own").glob("lib/python3*/site-packages/slow-1.dist-info/METADATA")
    text = metadata_file.read_bytes()
    metadata_file.unlink()
    os.mkfifo(metadata_file)  # whoever reads it waits for who writes, with the folders looked at before
    made = Records(os.environ, lambda: GpuReport(""))
    (tmp_path / "storage").mkdir()
    try:
        asked = made.ask(python, tmp_path / "storage")
        writing = await until(lambda: _writer(metadata_file), "it is being listed")
        metadata_file.rename(metadata_file.with_name("first"))
        metadata_file.write_bytes(text)
        unpack_into(tmp_path / "own", make_wheel(tmp_path / "wheels", "our", "1"))
        with writing:
            writing.write(text)
        with records_of(tmp_path).open((await asked).record) as file:
            said = json.load(file)
        with records_of(tmp_path).open(said["packages"]) as file:
            assert [name for name, _, _ in json.load(file) if name in ("our", "slow")] == ["our", "slow"]
    finally:
        await made.close()


def _writer(fifo: Path) -> BinaryIO | None:
    """None: nobody reads it."""
    try:
        return os.fdopen(os.open(fifo, os.O_WRONLY | os.O_NONBLOCK), "wb")
    except OSError:
        return None


async def test_an_agent_that_leaves_waits_for_no_interpreter(tmp_path: Path) -> None:
    (tmp_path / "storage").mkdir()
    python = script(tmp_path / "python", f"#!/bin/sh\necho $$ > {tmp_path}/pid\nexec sleep 600\n")
    made = Records(os.environ, lambda: GpuReport(""))
    asked = made.ask(python, tmp_path / "storage")
    await until(_written(tmp_path / "pid"), "it is asked")
    await made.close()
    assert asked.cancelled()
    assert not alive(int((tmp_path / "pid").read_text()))


def _written(path: Path) -> Callable[[], bool]:
    return lambda: path.exists() and path.read_text().endswith("\n")


async def test_a_warm_process_that_has_imported_other_packages_forks_no_more(tmp_path: Path) -> None:
    python = new_venv(tmp_path / "own")
    [packages] = (tmp_path / "own").glob("lib/python3*/site-packages")
    (packages / "paceline").symlink_to(Path(interpreters.__file__).parents[1])
    unpack_into(tmp_path / "own", make_wheel(tmp_path / "wheels", "our", "1"))
    (tmp_path / "script.py").write_text("import our; print(our.VERSION)\n")
    where = {"content_folder": storage(tmp_path)}
    config = {"interpreter": python, "preload": ("our",)}
    async with supervised(tmp_path / "agent", **config) as supervisor:
        said = []
        for job in (1, 2, 3):
            if job == 2:
                (packages / "our-1.dist-info").rename(packages / "our-2.dist-info")
                unpack_into(tmp_path / "own", make_wheel(tmp_path / "wheels", "our", "2"))
            await supervisor.start(start_task(key(job), "python script.py", tmp_path, **where))
            started = await begun(supervisor, key(job))  # with its record: the second one's is another
            await ended(supervisor, key(job))
            said.append((started.start_mode.partition(":")[0], started.record, output(supervisor, key(job))))
        assert [mode for mode, _, _ in said] == ["warm"] * 3
        assert said[0][1] != said[1][1] == said[2][1]
        assert (said[0][2], said[2][2]) == ("1\n", "2\n")


async def test_an_agent_that_was_restarted_before_it_knew_says_so(tmp_path: Path) -> None:
    hostile = script(tmp_path / "python", SLEEPS)
    config = {"warm": False, "environments": {"bad": hostile}, "rendezvous_ports": 0}
    asked = start_task(
        key(1),
        f"sh -c 'touch {tmp_path}/ran; exec sleep 600'",
        tmp_path,
        content_folder=storage(tmp_path),
        interpreter_environment="bad",
    )
    first = Supervisor(tmp_path / "agent", SupervisorConfig(**config))
    await first.recover()
    await first.start(asked)
    await until((tmp_path / "ran").exists, "it runs")
    await first.close()
    async with supervised(tmp_path / "agent", **config) as second:
        started = await begun(second, key(1))
        assert (started.record, started.unrecorded) == ("", "its agent was restarted before that was known")
