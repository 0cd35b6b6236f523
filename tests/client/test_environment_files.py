"""Files of requirements are read where a job is submitted, and what is wrong in them is named."""

from pathlib import Path

import pytest
from paceline.client.documents import prepare
from paceline.spec.errors import InvalidRequest
from paceline.spec.parts import Environment
from paceline.spec.problems import InvalidDocument


def read(folder: Path, environment: str) -> Environment:
    (folder / "job.yaml").write_text(f"command: x\nenvironment: {environment}\n")
    found = prepare(folder / "job.yaml").spec.environment
    assert isinstance(found, Environment)
    assert not found.is_unread
    return found


def test_the_lines_of_a_file_and_of_what_it_includes_stand_in_the_document(tmp_path: Path) -> None:
    (tmp_path / "requirements.txt").write_text(
        "numpy  # why\n\n-r below/more.txt\ntorch \\\n  ==2.9\nnumpy\n"
    )
    (tmp_path / "below").mkdir()
    (tmp_path / "below" / "more.txt").write_text("--index-url https://host/simple\n# nothing\nour\n")
    found = read(tmp_path, "{requirements: requirements.txt, python_version: 3.10}")
    assert found.requirements == ("numpy", "--index-url https://host/simple", "our", "torch ==2.9")
    assert found.python_version == "3.10"


def test_equal_lines_are_one_environment_however_they_are_written(tmp_path: Path) -> None:
    (tmp_path / "r.txt").write_text("numpy # one\ntorch\n")
    read(tmp_path, "{requirements: r.txt}")
    of_file = prepare(tmp_path / "job.yaml").spec.environment_key
    read(tmp_path, "{requirements: [numpy, torch]}")
    assert prepare(tmp_path / "job.yaml").spec.environment_key == of_file
    assert of_file.startswith("requirements-")


def test_a_conda_file_gives_its_python_and_its_pip_section(tmp_path: Path) -> None:
    text = (
        "channels: [conda-forge]\ndependencies:\n- python=3.11.4\n- pip\n- pip:\n  - torch\n  - numpy # x\n"
    )
    (tmp_path / "conda.yml").write_text(text)
    found = read(tmp_path, "{conda_file: conda.yml}")
    assert (found.requirements, found.python_version, found.conda_file) == (("torch", "numpy"), "3.11", None)


def test_what_conda_would_install_is_refused_by_name_and_line(tmp_path: Path) -> None:
    (tmp_path / "conda.yml").write_text("dependencies:\n- python=3.11\n- cudatoolkit=11\n")
    with pytest.raises(InvalidDocument, match=r"conda.yml:3:\d+: .*'cudatoolkit=11': conda installs nothing"):
        read(tmp_path, "{conda_file: conda.yml}")


@pytest.mark.parametrize("line", ["-e .", "-c other.txt", "./our", "our @ file:our.whl"])
def test_lines_that_need_files_beside_them_are_refused_with_their_place(tmp_path: Path, line: str) -> None:
    (tmp_path / "r.txt").write_text(f"numpy\n{line}\n")
    with pytest.raises(InvalidDocument, match=r"r.txt:2:1: "):
        read(tmp_path, "{requirements: r.txt}")


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(InvalidRequest, match=r"cannot read .*/r\.txt: No such file"):
        read(tmp_path, "{requirements: r.txt}")
