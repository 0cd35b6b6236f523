"""What `pace` costs and says before it does anything: imports, help, usage errors, exit codes."""

import subprocess
import sys
from pathlib import Path

import click
import pytest
from click.testing import CliRunner
from paceline.client.cli import main as cli

HEAVY = (
    "grpc",
    "google.protobuf",
    "torch",
    "numpy",
    "rich",
    "pydantic",
    "yaml",
    "sqlalchemy",
    "psutil",
    "asyncio",
)


def imported_by(*args: str) -> set[str]:
    """Modules that `pace ARGS` imports, as Python itself reports them."""
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "paceline.client.cli.main", *args],
        capture_output=True,
        text=True,
        timeout=60,
    )
    lines = [line for line in done.stderr.splitlines() if line.startswith("import time:")]
    assert len(lines) > 50, done.stderr
    return {line.rpartition("|")[2].strip() for line in lines}


@pytest.mark.parametrize("args", [["--help"], ["--version"], ["nonsense"]])
def test_help_version_and_usage_errors_import_nothing_heavy(args: list[str]) -> None:
    imported = imported_by(*args)
    assert "click" in imported
    assert not [name for name in imported if name in HEAVY or name.partition(".")[0] in HEAVY]
    assert not [name for name in imported if name.startswith("paceline.proto")]


def test_help_of_a_verb_imports_no_grpc() -> None:
    imported = imported_by("submit", "--help")
    assert not [name for name in imported if name.partition(".")[0] in ("grpc", "torch", "pydantic", "rich")]


def test_a_submit_imports_what_submits_and_no_other_verbs(tmp_path: Path) -> None:
    job = tmp_path / "job.yaml"
    job.write_text("command: 'true'\n")
    imported = imported_by("submit", "--state", str(tmp_path / "none"), str(job))
    assert {"paceline.client.submitter", "grpc", "pydantic"} <= imported
    others = {"sdk", "calls", "views", "registry_views", "sweep_views", "asset_files"}
    assert not imported & {f"paceline.client.{name}" for name in others}
    assert not [name for name in imported if name.partition(".")[0] == "pathspec"]


def test_every_verb_exists_and_its_line_in_the_help_is_its_own() -> None:
    context = click.Context(cli.pace)
    for name, (_, line) in cli.COMMANDS.items():
        command = cli.pace.get_command(context, name)
        assert command is not None and command.name == name
        assert command.short_help == line


def test_help_documents_exit_codes_and_where_the_scheduler_is_looked_for() -> None:
    text = CliRunner().invoke(cli.pace, ["--help"]).output
    for code in (0, 1, 2, 3, 4, 5, 6, 130):
        assert f"\n    {code}  " in text
    for word in ("PACELINE_SCHEDULER", "PACELINE_STATE", "PACELINE_TOKEN", "PACELINE_CA", "pace up"):
        assert word in text
    assert max(map(len, text.splitlines())) <= 100


@pytest.mark.parametrize("name", [name for name in cli.COMMANDS if name not in ("scheduler", "agent")])
def test_the_help_of_a_verb_fits_80_columns(name: str) -> None:
    text = CliRunner().invoke(cli.pace, [name, "--help"], terminal_width=80).output
    assert max(map(len, text.splitlines())) <= 80


@pytest.mark.parametrize("name", ["scheduler", "agent"])
def test_scheduler_and_agent_have_their_own_help(name: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "paceline.client.cli.main", name, "--help"],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0 and "--state" in done.stdout


def test_a_mistyped_verb_names_the_nearest(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["sumbit", "job.yaml"]) == cli.EXIT_USAGE
    assert "Did you mean `pace submit`?" in capsys.readouterr().err


@pytest.mark.parametrize(
    "args",
    [
        ["show"],
        ["show", "twelve"],
        ["show", "0"],
        ["cancel", "-5"],
        ["jobs", "--limit", "0"],
        ["logs", "1", "--rank", "-1"],
        ["submit"],
        ["jobs", "--output", "yaml"],
        ["up", "--agents", "-1"],
    ],
)
def test_wrong_usage_is_exit_code_2_with_a_message(
    args: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.run(args) == cli.EXIT_USAGE
    shown = capsys.readouterr()
    assert shown.err.strip() and "Traceback" not in shown.err + shown.out


def test_no_scheduler_is_exit_code_4_and_says_what_to_do(
    tmp_path_factory: pytest.TempPathFactory,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.delenv("PACELINE_SCHEDULER", raising=False)
    monkeypatch.setenv("PACELINE_STATE", str(tmp_path_factory.mktemp("none")))
    for args in (["jobs"], ["show", "1"], ["nodes"], ["logs", "1", "-f"], ["cancel", "1"], ["why", "1"]):
        assert cli.run(args) == cli.EXIT_UNREACHABLE, args
        assert "pace up" in capsys.readouterr().err
