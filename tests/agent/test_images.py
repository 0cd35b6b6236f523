"""Which engine a node finds, and images that it pulls: by a real podman, and by programs that stand in for
engines which are not here or do not answer."""

import asyncio
import os
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from paceline.agent.containers import container_name
from paceline.agent.images import Images
from paceline.agent.launch import Refusal
from paceline.agent.tree_cache import Stopped
from paceline.proto.generated import agent_pb2
from support.container_engines import IMAGE, ContainerEngine, own_podman
from support.processes import key, start_task, until

UNREACHABLE = "localhost:1/team/ours:1"


@pytest.fixture(scope="module")
def podman() -> Iterator[ContainerEngine]:
    yield from own_podman()


@pytest.fixture
def real(podman: ContainerEngine, monkeypatch: pytest.MonkeyPatch) -> ContainerEngine:
    for name, value in podman.environment.items():
        monkeypatch.setenv(name, value)
    return podman


@pytest.fixture
def programs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The only folder on PATH, but for what a shell needs."""
    folder = tmp_path / "programs"
    folder.mkdir()
    monkeypatch.setenv("PATH", f"{folder}:{tmp_path}/tools")
    (tmp_path / "tools").mkdir()
    for name in ("sh", "touch", "sleep", "mkdir", "mv", "rm"):
        (tmp_path / "tools" / name).symlink_to(f"/bin/{name}")
    return folder


def program(folder: Path, name: str, script: str) -> None:
    (folder / name).write_text(f"#!/bin/sh\n{script}\n")
    (folder / name).chmod(0o755)


@asynccontextmanager
async def looked(state: Path, **options: object) -> AsyncIterator[Images]:
    images = Images(state, 1 << 30, **options)
    images.begin(set())
    await images.wait_known(30)
    yield images
    await images.close()


def need(image: str) -> agent_pb2.Need:
    return agent_pb2.Need(name="image", image=image, paths=["/data"])


def never() -> str:
    return ""


async def test_a_node_without_any_says_so(programs: Path, tmp_path: Path) -> None:
    async with looked(tmp_path) as images:
        assert images.status == "none: no podman, docker, apptainer or singularity on the agent's PATH"
        with pytest.raises(Refusal, match="this node has no container engine: no podman") as refused:
            await images.provide(need("ours"), never)
        assert refused.value.transient


async def test_one_that_does_not_answer_is_named_and_the_next_is_asked(
    programs: Path, tmp_path: Path
) -> None:
    program(programs, "docker", 'echo "Cannot connect to the Docker daemon"; exit 1')
    told = []
    async with looked(tmp_path, on_change=lambda: told.append(1)) as images:
        assert images.status == "none: docker does not answer: Cannot connect to the Docker daemon"
    assert told == [1]
    program(programs, "singularity", "echo singularity-ce version 4.1.0")
    async with looked(tmp_path) as images:
        assert images.status == "singularity 4.1.0"


async def test_a_daemon_that_comes_up_later_is_found(programs: Path, tmp_path: Path) -> None:
    program(programs, "docker", "exit 1")
    told: list[str] = []
    images = Images(tmp_path, 1 << 30, on_change=lambda: told.append(images.status), ask_again_s=0.01)
    images.begin(set())
    await until(lambda: told, "it is told that there is none")
    program(programs, "docker", "echo 26.1")
    await until(lambda: len(told) == 2, "it is told of docker")
    assert told == ["none: docker does not answer: exit code 1", "docker 26.1"]
    await images.close()


async def test_the_real_one_is_found_and_keeps_what_is_here(real: ContainerEngine, tmp_path: Path) -> None:
    async with looked(tmp_path) as images:
        assert images.status.startswith("podman ")
        box, told, said = await images.provide(need(IMAGE), never)
        assert (box.image, box.paths, told, said) == (IMAGE, ("/data",), "kept", b"")
        short, _, _ = await images.provide(need("paceline-test:1"), never)
        assert short.image == IMAGE


async def test_a_registry_out_of_reach_has_some_time_and_is_then_given_up(
    real: ContainerEngine, tmp_path: Path
) -> None:
    async with looked(tmp_path) as images:
        with pytest.raises(Refusal) as refused:
            await images.provide(need(UNREACHABLE), never)
        assert f"image {UNREACHABLE}: podman " in refused.value.message
        assert "could not pull it: no network: " in refused.value.message
        assert "connection refused" in refused.value.message
        assert refused.value.transient
    async with looked(tmp_path, patience_s=0.0) as images:
        with pytest.raises(Refusal, match=r"no network for 0\.0 min") as refused:
            await images.provide(need(UNREACHABLE), never)
        assert not refused.value.transient


SLOW_DOCKER = """
case "$1" in
version) echo 26.1 ;;
image) test -f "$FOLDER/there" ;;
pull)
  echo x >> "$FOLDER/pulls"
  while test ! -f "$FOLDER/go"; do sleep 0.02; done
  echo pulled
  touch "$FOLDER/there" ;;
ps)
  echo paceline-other-1.1.0.0
  test -f "$FOLDER/left" && while read name; do echo "$name"; done < "$FOLDER/left" ;;
rm) echo "$@" >> "$FOLDER/removed"; echo "Error: No such container: x"; exit 1 ;;
esac
"""


@pytest.fixture
def docker(programs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder by which it is told: `go` lets its pulls end; `pulls` has a line for each."""
    program(programs, "docker", SLOW_DOCKER)
    folder = tmp_path / "docker"
    folder.mkdir()
    monkeypatch.setenv("FOLDER", str(folder))
    return folder


def pulls(docker: Path) -> int:
    file = docker / "pulls"
    return len(file.read_text().splitlines()) if file.exists() else 0


async def test_many_who_want_an_image_get_it_from_one_pull(docker: Path, tmp_path: Path) -> None:
    async with looked(tmp_path) as images:
        waiting = [asyncio.ensure_future(images.provide(need("ours"), never)) for _ in range(3)]
        await until(lambda: pulls(docker), "a pull")
        (docker / "go").touch()
        found = await asyncio.gather(*waiting)
    assert pulls(docker) == 1
    assert sorted(told for _, told, _ in found) == ["kept", "kept", "pulled with docker 26.1"]
    assert [said for _, told, said in found if told != "kept"] == [b"pulled\n"]


async def test_who_stops_while_it_pulls_ends_the_pull_and_the_next_pulls_anew(
    docker: Path, tmp_path: Path
) -> None:
    stopped = []
    async with looked(tmp_path) as images:
        first = asyncio.ensure_future(images.provide(need("ours"), lambda: "cancelled" if stopped else ""))
        await until(lambda: pulls(docker) == 1, "a pull")
        second = asyncio.ensure_future(images.provide(need("ours"), never))
        stopped.append(1)
        with pytest.raises(Stopped):
            await first
        await until(lambda: pulls(docker) == 2, "another pull")
        (docker / "go").touch()
        assert (await second)[1] == "pulled with docker 26.1"


async def test_what_is_gone_already_is_removed_without_a_word(
    docker: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with looked(tmp_path) as images:
        await images.remove(start_task(key(1), "x", tmp_path))
    assert not caplog.records


async def test_what_an_agent_before_has_left_is_removed_and_nothing_else(
    docker: Path, tmp_path: Path
) -> None:
    left, living = (container_name(tmp_path / "tasks", key(job), 0) for job in (1, 2))
    (docker / "left").write_text(f"{left}\n{living}\n")
    images = Images(tmp_path, 1 << 30)
    images.begin({key(2)})
    removed = await until(
        lambda: (docker / "removed").exists() and (docker / "removed").read_text(), "a removal"
    )
    assert removed == f"rm --force {left}\n"
    await images.close()


async def test_files_of_images_have_a_bound(tmp_path: Path) -> None:
    folder = tmp_path / "images"
    folder.mkdir()
    for age, name in enumerate(("old", "new")):
        (folder / f"{name}.sif").write_bytes(b"x" * 100)
        os.utime(folder / f"{name}.sif", (1000 + age, 1000 + age))
    Images(tmp_path, 150)._make_room()
    assert [path.name for path in folder.iterdir()] == ["new.sif"]
