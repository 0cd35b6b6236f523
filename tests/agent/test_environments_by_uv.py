"""Environments are built with uv where it is on the agent's PATH: the same ones, and the same refusals."""

import subprocess
import sys
from pathlib import Path

import pytest
from paceline.agent.environments import EnvironmentCache
from paceline.agent.launch import Refusal
from paceline.proto.generated import agent_pb2
from support.wheels import make_wheel
from uv import find_uv_bin


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> EnvironmentCache:
    monkeypatch.setenv("PATH", str(Path(find_uv_bin()).parent), prepend=":")
    monkeypatch.setenv("UV_CACHE_DIR", str(tmp_path / "uv"))
    made = EnvironmentCache(tmp_path / "environments", 1 << 30, sys.executable)
    made.begin()
    return made


def need(folder: Path, *lines: str, version: str = "") -> agent_pb2.Need:
    make_wheel(folder, "our", "1")
    said = ["--no-index", f"--find-links {folder}", *lines]
    return agent_pb2.Need(name="environment", requirements=said, python_version=version)


def test_it_is_built_with_uv_and_has_ours_too(cache: EnvironmentCache, tmp_path: Path) -> None:
    asked = need(tmp_path, "our==1")
    found = cache.build(asked, cache.key(asked), (), lambda: False)
    assert found.told == "built with uv"
    assert b"$ " in found.log and b"our==1" in found.log
    told = subprocess.run(
        [found.interpreter, "-c", "import our, paceline; print(our.VERSION)"], capture_output=True, text=True
    )
    assert told.stdout == "1\n", told.stderr
    assert cache.find(cache.key(asked)) is not None


def test_what_it_cannot_build_is_refused_with_what_it_says(cache: EnvironmentCache, tmp_path: Path) -> None:
    asked = need(tmp_path, "our==2")
    with pytest.raises(Refusal, match=r"could not be built.*\n(.*\n)*.*our==2") as refused:
        cache.build(asked, cache.key(asked), (), lambda: False)
    assert not refused.value.transient
    assert cache.find(cache.key(asked)) is None


def test_a_python_that_uv_does_not_find_is_named(
    cache: EnvironmentCache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("UV_PYTHON_DOWNLOADS", "never")
    asked = need(tmp_path, "our==1", version="3.99")
    with pytest.raises(Refusal, match=r"3\.99"):
        cache.build(asked, cache.key(asked), (), lambda: False)
