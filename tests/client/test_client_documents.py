"""From a file, a mapping or a spec to what is sent: bounded reading, absolute paths, placed errors."""

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest
from paceline.client.cli import main as cli
from paceline.client.documents import prepare, prepare_bytes
from paceline.spec.document import parse
from paceline.spec.errors import InvalidRequest
from paceline.spec.job import DOCUMENT_BYTES_MAX, InvalidDocument, job_from_data
from paceline.spec.sweep import SweepSpec

JobFile = Callable[[str], Path]


def test_paths_become_absolute_below_the_files_folder(
    job_file: JobFile, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = job_file("command: 'true'\ncode: ../src\ninputs: {data: {type: uri_folder, path: ./d}}")
    monkeypatch.chdir(path.parent)
    spec = prepare("job.yaml").spec
    assert spec.code == str(path.parent.parent / "src")
    assert spec.input_values()["data"] == str(path.parent / "d")
    assert json.loads(prepare("job.yaml").sent.document)["code"] == spec.code


def test_without_code_it_is_the_folder_of_the_file_or_the_working_directory(
    job_file: JobFile, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = job_file("command: 'true'")
    assert prepare(path).spec.code == str(path.parent)
    monkeypatch.chdir(path.parent)
    assert prepare({"command": "true"}).spec.code == str(path.parent)
    assert prepare(job_from_data({"command": "true"})[0]).spec.code == str(path.parent)


def test_a_link_in_the_path_is_kept(job_file: JobFile, tmp_path: Path) -> None:
    job_file("command: 'true'")
    (tmp_path / "link").symlink_to(tmp_path, target_is_directory=True)
    assert prepare(tmp_path / "link" / "job.yaml").spec.code == str(tmp_path / "link")


def test_a_mapping_given_stays_as_it_is() -> None:
    given = {"command": "echo ${{inputs.x}}", "inputs": {"x": 1}}
    assert prepare(given, overrides=["inputs.x=2"], name="named").spec.label == "named"
    assert given == {"command": "echo ${{inputs.x}}", "inputs": {"x": 1}}


def test_a_name_that_is_none_is_refused() -> None:
    with pytest.raises(InvalidDocument, match="--name"):
        prepare({"command": "true"}, name="../up\x1b[2J")


def test_a_large_file_is_refused_by_its_size_before_it_is_read(tmp_path: Path) -> None:
    path = tmp_path / "huge.yaml"
    with path.open("wb") as file:
        file.truncate(100 << 30)  # sparse; reading it would take minutes
    with pytest.raises(InvalidRequest, match=str(DOCUMENT_BYTES_MAX)):
        prepare(path)
    with pytest.raises(InvalidDocument):
        prepare_bytes(b"#" * (DOCUMENT_BYTES_MAX + 1), "<stdin>", tmp_path)


@pytest.mark.parametrize("kind", ["fifo", "folder", "missing", "device", "nul"])
def test_what_is_no_file_is_told_at_once(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "x.yaml"
    if kind == "fifo":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    elif kind == "device":
        path = Path("/dev/zero")
    elif kind == "nul":
        path = Path("a\0b")
    with pytest.raises(InvalidRequest) as refused:
        prepare(path)
    assert refused.value.hint


@pytest.mark.parametrize(
    "name", ["a b.yaml", "new\nline.yaml", "\x1b]0;owned\x07.yaml", "\u202elmay.yaml", b"\xff.yaml"]
)
def test_odd_file_names_are_read_and_shown_harmlessly(
    name: str | bytes, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / os.fsdecode(name)
    path.write_text("command: 'true'")
    assert cli.run(["validate", str(path)]) == 0
    path.write_text("comand: 'true'")
    assert cli.run(["validate", str(path)]) == cli.EXIT_USAGE
    shown = capfd.readouterr()
    assert all(line.isprintable() for line in (shown.out + shown.err).splitlines())


def test_validate_lists_every_problem_with_its_place(
    job_file: JobFile, capfd: pytest.CaptureFixture[str]
) -> None:
    path = job_file("comand: x\nresources:\n  instance_cout: 2\n  cpus: many\n")
    assert cli.run(["validate", str(path)]) == cli.EXIT_USAGE
    err = capfd.readouterr().err
    assert f"{path}:1:1: comand: unknown key; did you mean 'command'?" in err
    assert f"{path}:3:3: resources.instance_cout: unknown key; did you mean 'instance_count'?" in err
    assert f"{path}:4:9: resources.cpus: expected a number" in err
    assert cli.run(["validate", str(path), "-o", "json"]) == cli.EXIT_USAGE
    (result,) = json.loads(capfd.readouterr().out)["files"]
    assert not result["valid"] and {(p["line"], p["column"]) for p in result["problems"]} >= {
        (1, 1),
        (3, 3),
        (4, 9),
    }


def test_validate_warns_of_what_has_no_effect(job_file: JobFile, capfd: pytest.CaptureFixture[str]) -> None:
    path = job_file("command: 'true'\ncompute: azureml:gpu-cluster\nname: fine\n")
    assert cli.run(["validate", str(path)]) == 0
    shown = capfd.readouterr()
    assert f"{path}:2:1: warning: compute:" in shown.err and "ok, job 'fine'" in shown.out


SWEEP = """\
type: sweep
trial: jobs/train.yaml
search_space: {lr: {type: uniform, min_value: 0.1, max_value: 0.2}}
objective: {primary_metric: loss, goal: minimize}
limits: {max_total_trials: 9}
"""


def test_a_sweep_takes_its_trial_from_a_file_beside_it(
    job_file: JobFile, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = job_file(SWEEP)
    trial = path.parent / "jobs" / "train.yaml"
    trial.parent.mkdir()
    trial.write_text("command: train ${{inputs.lr}}\ninputs: {lr: 1, data: {path: ../d}}\n")
    monkeypatch.chdir(path.parent)
    prepared = prepare("job.yaml", name="named", overrides=["limits.max_total_trials=3"])
    assert isinstance(prepared.spec, SweepSpec) and prepared.spec.label == "named"
    assert prepared.spec.trial_job(0, {"lr": 0.15}).resolved_command({}) == "train 0.15"
    assert prepared.spec.trial.code == str(trial.parent)
    assert prepared.spec.input_values()["data"] == str(path.parent / "d")
    assert json.loads(prepared.sent.document)["limits"]["max_total_trials"] == 3
    trial.write_text("comand: train\n")
    with pytest.raises(InvalidDocument, match=r"jobs/train.yaml:1:1: trial.comand: unknown key"):
        prepare("job.yaml")
    trial.unlink()
    with pytest.raises(InvalidDocument, match=r"^job.yaml:2:8: trial: cannot read the file .*No such file"):
        prepare("job.yaml")


def test_a_sweep_as_a_mapping_or_a_spec(job_file: JobFile, monkeypatch: pytest.MonkeyPatch) -> None:
    path = job_file("command: train ${{search_space.lr}}\n")
    monkeypatch.chdir(path.parent)
    data = parse(SWEEP.replace("jobs/train.yaml", "job.yaml"), "x").data
    spec = prepare(data).spec
    assert isinstance(spec, SweepSpec) and spec.trial.code == str(path.parent)
    inline = prepare({**data, "trial": {"command": "train ${{search_space.lr}}"}}).spec
    assert inline == spec and prepare(spec).spec == spec
    with pytest.raises(InvalidRequest, match="not to a SweepSpec"):
        prepare(spec, overrides=["limits.timeout=3"])


def test_validate_knows_sweeps(job_file: JobFile, capfd: pytest.CaptureFixture[str]) -> None:
    path = job_file(
        SWEEP.replace("jobs/train.yaml", "{command: 'x ${{search_space.lr}}'}") + "name: digits\n"
    )
    assert cli.run(["validate", str(path)]) == 0
    assert "ok, sweep 'digits'" in capfd.readouterr().out
    assert cli.run(["validate", str(path), "-o", "json", "--set", "search_space.lr.min_value=0.15"]) == 0
    (result,) = json.loads(capfd.readouterr().out)["files"]
    assert (result["kind"], result["name"], result["warnings"]) == ("sweep", "digits", [])
    assert cli.run(["validate", str(path), "--set", "search_space.lr.min_value=9"]) == cli.EXIT_USAGE
    assert "search_space.lr.max_value: expected at least min_value (9)" in capfd.readouterr().err


@pytest.mark.parametrize(
    ("args", "key"), [((), "command"), (("job",), "command"), (("sweep",), "trial"), (("policy",), "pools")]
)
def test_schema_is_one_json_document(
    args: tuple[str, ...], key: str, capfd: pytest.CaptureFixture[str]
) -> None:
    assert cli.run(["schema", *args]) == 0
    assert key in json.loads(capfd.readouterr().out)["properties"]
    assert cli.run(["schema", "polcy"]) == cli.EXIT_USAGE
