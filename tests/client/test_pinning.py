"""Requirements made of the packages that a job ran with."""

import pytest
from paceline.client.pinning import loose_lines, pinned_to
from paceline.client.ran_with import Package, RanWith
from paceline.spec.job import JobSpec, job_from_data
from paceline.spec.parts import Environment

HAD = (
    Package("filelock", "3.20"),
    Package("mine", "1", "git+https://host/mine.git@0c5d1f2"),
    Package("pip", "25.3"),
    Package("torch", "2.9.1+cpu"),
)


def job(*lines: str) -> JobSpec:
    return job_from_data({"command": "true", "environment": {"requirements": list(lines)}})[0]


def pinned(spec: JobSpec, packages: tuple[Package, ...] = HAD, left_out: int = 0) -> Environment:
    ran = RanWith((0,), "n", "r", python="3.11.7", packages=packages, packages_left_out=left_out)
    environment = pinned_to(spec, ran).environment
    assert isinstance(environment, Environment)
    return environment


def test_all_that_was_there_is_named_and_the_options_stay() -> None:
    made = pinned(job("torch>=2", "--index-url https://host/simple", "mine @ git+https://host/mine.git"))
    assert made.requirements == (
        "--index-url https://host/simple",
        "filelock==3.20",
        "mine @ git+https://host/mine.git@0c5d1f2",
        "torch==2.9.1+cpu",
    )
    assert made.python_version == "3.11"
    assert "pip==25.3" in pinned(job("torch", "Pip")).requirements, "who asks for it gets it"


def test_lines_that_say_as_much_stay_as_they_are() -> None:
    whole = ("torch==2.9.1+cpu", "--pre", "filelock==3.20")
    assert pinned(job(*whole), (HAD[0], HAD[3])).requirements == whole
    hashed = ("torch==2.9.1 --hash=sha256:aa", "filelock==3.20 --hash=sha256:bb")
    assert pinned(job(*hashed)).requirements == hashed


def test_what_is_not_known_whole_pins_nothing() -> None:
    assert pinned(job("torch"), ()) == job("torch").environment
    assert pinned(job("torch"), left_out=1) == job("torch").environment
    relative = (Package("mine", "1", "git+file:../mine@ab"),)
    assert pinned(job("mine"), relative) == job("mine").environment, "no node has that path"
    named = job_from_data({"command": "true", "environment": "torch-2.9"})[0]
    assert pinned_to(named, RanWith((0,), "n", "r", packages=HAD)) is named


@pytest.mark.parametrize(
    ("line", "loose"),
    [
        ("torch", True),
        ("torch>=2", True),
        ("torch==2.*", True),
        ("torch[opt]", True),
        ("torch==2.9.1", False),
        ("torch[opt]==2.9.1; python_version > '3.9'", False),
        ("mine @ git+https://host/mine.git@0c5d", False),
        ("--pre", False),
    ],
)
def test_which_lines_name_no_version(line: str, loose: bool) -> None:
    assert loose_lines(job(line)) == ((line,) if loose else ())
