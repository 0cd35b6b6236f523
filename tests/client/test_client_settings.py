"""Where the scheduler is: option over environment over state folder, and what is said when it is nowhere."""

import json
import os
from pathlib import Path

import pytest
from paceline.client import settings
from paceline.client.process import identify
from paceline.spec.errors import InvalidRequest, Unavailable


def served(state: Path, **changes: object) -> Path:
    own = identify(os.getpid())
    assert own is not None
    said = {
        "address": "127.0.0.1:4711",
        "pid": own.pid,
        "start_time": own.start_time,
        "ca_file": "",
        **changes,
    }
    (state / "scheduler.json").write_text(json.dumps(said))
    return state


def test_an_option_wins_over_the_environment_and_that_over_the_folder(tmp_path: Path) -> None:
    environ = {
        "PACELINE_SCHEDULER": "there:2",
        "PACELINE_STATE": str(served(tmp_path)),
        "PACELINE_CA": "/ca.pem",
    }
    assert settings.load(scheduler="here:1", environ=environ).with_found_scheduler().address == "here:1"
    assert settings.load(environ=environ).with_found_scheduler().address == "there:2"
    del environ["PACELINE_SCHEDULER"]
    found = settings.load(environ=environ).with_found_scheduler()
    assert (found.address, found.ca_file) == ("127.0.0.1:4711", Path("/ca.pem"))
    assert settings.load(state="/elsewhere", environ=environ).state == Path("/elsewhere")


def test_the_folders_certificate_is_used(tmp_path: Path) -> None:
    served(tmp_path, ca_file="/made/cert.pem")
    assert settings.load(state=tmp_path, environ={}).with_found_scheduler().ca_file == Path("/made/cert.pem")


def test_the_default_folder_and_the_ephemeral_one(tmp_path: Path) -> None:
    environ = {"XDG_STATE_HOME": str(tmp_path)}
    default = tmp_path / "paceline"
    assert settings.state_folder(None, environ) == default
    default.mkdir()
    (default / "ephemeral").write_text(f"{tmp_path}/gone\n")
    assert settings.state_folder(None, environ) == default
    (tmp_path / "gone").mkdir()
    (tmp_path / "gone" / "up.json").write_text("{}")
    assert settings.state_folder(None, environ) == tmp_path / "gone"
    assert settings.state_folder("/given", environ) == Path("/given")


@pytest.mark.parametrize("text", ["", "{", "[]", "null", '{"address": 1}', "\x00\xff", "1" * 100])
def test_a_damaged_scheduler_json_is_told(text: str, tmp_path: Path) -> None:
    (tmp_path / "scheduler.json").write_text(text)
    with pytest.raises(Unavailable, match=r"scheduler\.json"):
        settings.load(state=tmp_path, environ={}).with_found_scheduler()


def test_a_huge_scheduler_json_is_not_read(tmp_path: Path) -> None:
    with (tmp_path / "scheduler.json").open("wb") as file:
        file.truncate(1 << 40)
    with pytest.raises(InvalidRequest, match="larger than"):
        settings.load(state=tmp_path, environ={}).with_found_scheduler()


def test_a_scheduler_that_died_is_told_from_one_that_lives(tmp_path: Path) -> None:
    settings.check_alive(settings.load(state=served(tmp_path), environ={}))
    served(tmp_path, start_time=1)
    with pytest.raises(Unavailable, match="is not running"):
        settings.check_alive(settings.load(state=tmp_path, environ={}))
    served(tmp_path, start_time=1, address="node7.example:7223")  # on another machine: its pids are not ours
    settings.check_alive(settings.load(state=tmp_path, environ={}))


def test_a_token_that_others_can_read_is_refused(tmp_path: Path) -> None:
    token = tmp_path / "client.token"
    token.write_text("x" * 43)
    token.chmod(0o644)
    with pytest.raises(InvalidRequest, match="can be read by others"):
        settings.load(state=tmp_path, environ={}).read_token()
    token.chmod(0o600)
    assert settings.load(state=tmp_path, environ={}).read_token() == "x" * 43
    assert settings.load(state=tmp_path, environ={"PACELINE_TOKEN": "given"}).read_token() == "given"
