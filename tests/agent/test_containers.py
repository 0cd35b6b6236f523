"""Command lines of the three engines, and what a shim is told of ranks in containers. Nothing is run."""

import os
import subprocess
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from paceline.agent.contained import OURS, Box, make_contained, names_of
from paceline.agent.containers import (
    Apptainer,
    Container,
    Docker,
    Engine,
    Mount,
    Podman,
    container_name,
    fault_in_image,
    fault_in_path,
    key_of_name,
    name_prefix,
)
from paceline.agent.launch import Refusal
from paceline.proto.marks import mark_of
from support.processes import key, start_task

IMAGES = Path("/images")
PODMAN = Podman("/usr/bin/podman", "4.3.1", IMAGES)
DOCKER = Docker("/usr/bin/docker", "26.1", IMAGES)
APPTAINER = Apptainer("/usr/bin/apptainer", "1.3.4", IMAGES)
ENGINES = pytest.mark.parametrize("engine", [PODMAN, DOCKER, APPTAINER], ids=str)

ONE = Container(
    name="paceline-x-1.1.0.0",
    image="docker.io/pytorch/pytorch:2.9",
    cwd="/work",
    mounts=[Mount("/work", "/work"), Mount("/pkg", "/opt/paceline/paceline", writable=False)],
    gpus=["GPU-a", "GPU-b"],
    variables={"PACELINE_MARK": "m"},
    shell_words=["-c", "script", "/work/env"],
)


def test_podman_runs_it_on_the_hosts_network_ipc_and_pids() -> None:
    keep = [] if os.getuid() == 0 else ["--userns=keep-id"]
    assert PODMAN.run(ONE) == [
        *("/usr/bin/podman", "run", "--rm", "--name=paceline-x-1.1.0.0"),
        *("--network=host", "--ipc=host", "--pid=host", f"--user={os.getuid()}:{os.getgid()}"),
        *("--log-driver=passthrough", *keep, "--env=NVIDIA_VISIBLE_DEVICES=void"),
        *("--device=nvidia.com/gpu=GPU-a", "--device=nvidia.com/gpu=GPU-b"),
        *("--pull=never", "--sig-proxy=false", "--workdir=/work", "--entrypoint=/bin/sh"),
        "--mount=type=bind,source=/work,target=/work",
        "--mount=type=bind,source=/pkg,target=/opt/paceline/paceline,readonly",
        "--env=PACELINE_MARK=m",
        *("docker.io/pytorch/pytorch:2.9", "-c", "script", "/work/env"),
    ]


def test_docker_differs_in_its_log_and_its_gpus() -> None:
    words = DOCKER.run(ONE)
    assert words[:2] == ["/usr/bin/docker", "run"]
    assert {"--log-driver=none", '--gpus="device=GPU-a,GPU-b"', "--pid=host", "--ipc=host"} <= set(words)
    assert not any("nvidia.com" in word or "passthrough" in word for word in words)
    assert "--env=NVIDIA_VISIBLE_DEVICES=void" in DOCKER.run(replace(ONE, gpus=[]))


def test_apptainer_runs_a_file() -> None:
    words = APPTAINER.run(ONE)
    file = words[words.index("/bin/sh") - 1]
    assert file.startswith("/images/") and file.endswith(".sif")
    assert words[:6] == ["/usr/bin/apptainer", "exec", "--cleanenv", "--no-home", "--pwd=/work", "--nv"]
    assert words[-4:] == ["/bin/sh", "-c", "script", "/work/env"]
    assert {"--bind=/work:/work", "--bind=/pkg:/opt/paceline/paceline:ro", "--env=PACELINE_MARK=m"} <= set(
        words
    )
    assert "--nv" not in APPTAINER.run(replace(ONE, gpus=[]))


def test_an_image_that_apptainer_pulls_appears_whole_or_not_at_all(tmp_path: Path) -> None:
    program = tmp_path / "apptainer"
    engine = Apptainer(str(program), "1", tmp_path / "images")
    for ending, there in (("exit 1", False), ("exit 0", True)):
        program.write_text(f'#!/bin/sh\necho "$1 $2 $4" > "$3"\n{ending}\n')
        program.chmod(0o755)
        pulled = subprocess.run(engine.pull("team/ours:1"), check=False)
        assert (pulled.returncode == 0) is there
        assert (subprocess.run(engine.has("team/ours:1"), check=False).returncode == 0) is there
    [file] = (tmp_path / "images").glob("*.sif")
    assert file.read_text() == "pull --force docker://team/ours:1\n"
    assert str(file) in engine.run(replace(ONE, image="team/ours:1"))


@pytest.mark.parametrize("engine", [PODMAN, DOCKER], ids=str)
def test_limits_are_those_that_the_node_sets(engine: Engine) -> None:
    limited = engine.run(replace(ONE, cpu_milli=1500, memory_bytes=1 << 30))
    assert {"--cpus=1.5", "--memory=1073741824", "--memory-swap=1073741824"} <= set(limited)
    assert not any(word.startswith(("--cpus", "--memory")) for word in engine.run(ONE))


def test_containers_are_listed_and_removed_by_their_names() -> None:
    assert PODMAN.remove(["a", "b"]) == ["/usr/bin/podman", "rm", "--force", "--ignore", "--time=0", "a", "b"]
    assert DOCKER.remove(["a"]) == ["/usr/bin/docker", "rm", "--force", "a"]
    for engine in (PODMAN, DOCKER):
        assert engine.ours("paceline-x-")[1:] == [
            "ps",
            "--all",
            "--filter=name=^paceline-x-",
            "--format={{.Names}}",
        ]
    assert (APPTAINER.remove(["a"]), APPTAINER.ours("x")) == ([], [])


@pytest.mark.parametrize(
    ("image", "names"),
    [
        ("ubuntu", ["localhost/ubuntu", "docker.io/library/ubuntu"]),
        ("ubuntu:24.04", ["localhost/ubuntu:24.04", "docker.io/library/ubuntu:24.04"]),
        ("pytorch/pytorch:2.9", ["localhost/pytorch/pytorch:2.9", "docker.io/pytorch/pytorch:2.9"]),
        ("mcr.microsoft.com/azureml/base:1", ["mcr.microsoft.com/azureml/base:1"]),
        ("localhost/mine", ["localhost/mine"]),
        ("registry:5000/mine", ["registry:5000/mine"]),
    ],
)
def test_podman_takes_short_names_as_docker_does(image: str, names: list[str]) -> None:
    assert PODMAN.names_of(image) == names
    assert DOCKER.names_of(image) == [image]


def test_who_is_asked_and_what_it_says() -> None:
    assert str(Podman.answered("/x/podman", "4.3.1\n", IMAGES)) == "podman 4.3.1"
    assert str(Docker.answered("/x/docker", "26.1.5\n", IMAGES)) == "docker 26.1.5"
    assert (
        str(Apptainer.answered("/x/singularity", "singularity-ce version 4.1.0\n", IMAGES))
        == "singularity 4.1.0"
    )
    assert Docker.ask("/x/docker") == ["/x/docker", "version", "--format={{.Server.Version}}"]


@pytest.mark.parametrize("image", ["--privileged", "", "a b", "x;y", "ä", "a" * 256])
def test_what_is_no_image_is_no_option_either(image: str) -> None:
    assert "is not the name of an image" in fault_in_image(image)


def test_paths_that_no_engine_takes() -> None:
    assert fault_in_path("/") and fault_in_path("/a,b") and fault_in_path("/a:b")
    assert fault_in_path("/a b/c") == ""


def test_a_name_says_whose_container_it_is(tmp_path: Path) -> None:
    name = container_name(tmp_path, key(7, 3, 1), 12)
    prefix = name_prefix(tmp_path)
    assert name.startswith(prefix) and mark_of(tmp_path / "7.3.1").endswith(prefix[9:-1])
    assert key_of_name(name, prefix) == key(7, 3, 1)
    assert key_of_name("paceline-other-7.3.1.0", prefix) is None
    assert key_of_name(f"{prefix}what", prefix) is None


# What a shim is told.


def box(*paths: str) -> Box:
    return Box(PODMAN, "localhost/ours:1", paths)


def contained(
    request: object, folder: Path, uuids: dict[int, str] | None = None, *paths: str
) -> tuple[dict, dict]:
    made = make_contained(
        request,
        folder / "tasks" / "7.1.0",
        box(*paths),
        uuids or {},
        base={"HOME": "/root"},
        added={"PACELINE_STUDY": "{}"},
    )
    return made.launch.document, dict(made.files)


def values_in(text: str, *names: str) -> list[str]:
    """As the shell that reads it has them."""
    script = text + "".join(f'printf "%s\\0" "${{{name}-unset}}"\n' for name in names)
    done = subprocess.run(["/bin/sh", "-c", script], capture_output=True, check=True, env={})
    return done.stdout.decode().split("\0")[:-1]


def mounted(argv: Sequence[str]) -> dict[str, bool]:
    """Target -> writable."""
    found = [word.partition("target=")[2] for word in argv if word.startswith("--mount=")]
    return {word.removesuffix(",readonly"): not word.endswith(",readonly") for word in found}


def test_a_ranks_variables_are_in_a_file_and_the_engines_are_its_own(tmp_path: Path) -> None:
    odd = 'it\'s "$HOME"\nand `more`'
    request = start_task(key(7), "A=1 python x.py", tmp_path, environment={"ODD": odd, "PYTHONPATH": "/mine"})
    document, files = contained(request, tmp_path)
    assert document["client"]["HOME"] == "/root" and "ODD" not in document["client"]
    assert document["start_mode"] == "cold: in a container of podman"
    [rank] = document["ranks"]
    assert not any("more" in word for word in rank["argv"])
    names = ("ODD", "A", "PACELINE_STUDY", "PYTHONPATH", "PACELINE_JOB")
    assert values_in(files["rank-0.env"], *names) == [odd, "1", "{}", f"{OURS}:/mine", "7"]
    exported = {line.partition("=")[0] for line in files["rank-0.env"].splitlines()}
    assert exported.isdisjoint({"export PATH", "export VIRTUAL_ENV"}), "those are the image's"
    folder = tmp_path / "tasks" / "7.1.0"
    mark = mark_of(folder)
    assert f"--env=PACELINE_MARK={mark}" in rank["argv"] and document["client"]["PACELINE_MARK"] == mark
    assert f"--env=PACELINE_CONTAINER={rank['container']}" in rank["argv"]
    assert names_of(request, folder.parent) == [rank["container"]]


def test_paths_are_the_same_inside(tmp_path: Path) -> None:
    code, data, ours = (tmp_path / name for name in ("code", "data", "job"))
    for made in (code, data, ours / "checkpoints"):
        made.mkdir(parents=True)
    request = start_task(key(7), "x", code)
    request.job_folder = str(ours)
    for path in (ours / "checkpoints", data):
        request.checkpoints.add(path=str(path))
    document, _ = contained(request, tmp_path, {}, str(code / "below"), "/not/here", str(data))
    found = mounted(document["ranks"][0]["argv"])
    assert found == {
        str(code): True,
        str(ours): True,
        str(tmp_path / "tasks" / "7.1.0"): True,
        str(data): False,
        f"{OURS}/paceline": False,
    }
    with pytest.raises(Refusal, match="root cannot be mounted"):
        contained(start_task(key(7), "x", code), tmp_path, {}, "/")


@pytest.mark.parametrize(
    ("command", "prints"),
    [
        ("echo plain 'two words'", "plain two words"),
        ("echo $A | tr a b", "vblue"),
        ("exit 3", ""),
        ("[[ x == x ]] && echo in bash", "in bash"),
    ],
)
def test_the_script_inside_runs_any_command(tmp_path: Path, command: str, prints: str) -> None:
    request = start_task(key(7), command, tmp_path, environment={"A": "value"})
    document, files = contained(request, tmp_path)
    argv = document["ranks"][0]["argv"]
    words = argv[argv.index("localhost/ours:1") + 1 :]
    words[2:4] = str(tmp_path / "env"), str(tmp_path / "began")
    Path(words[2]).write_text(files["rank-0.env"])
    done = subprocess.run(["/bin/sh", *words], capture_output=True, text=True, check=False)
    assert (done.stdout.strip(), done.returncode) == (prints, 3 if command == "exit 3" else 0)
    assert (tmp_path / "began").exists()


def test_gpus_are_the_tasks_and_named_by_their_uuids(tmp_path: Path) -> None:
    uuids = {0: "GPU-0", 5: "GPU-5", 10700: "MIG-a", 10800: "MIG-b"}
    request = start_task(
        key(7), "x", tmp_path, processes=2, gpu_indices=[5], environment={"CUDA_VISIBLE_DEVICES": "0"}
    )
    document, files = contained(request, tmp_path, uuids)
    for rank in document["ranks"]:
        assert [word for word in rank["argv"] if "--device" in word] == ["--device=nvidia.com/gpu=GPU-5"]
        assert values_in(files[f"rank-{rank['rank']}.env"], "CUDA_VISIBLE_DEVICES") == ["GPU-5"]
    slices = start_task(key(7), "x", tmp_path, processes=2, gpu_indices=[10800, 10700])
    document, files = contained(slices, tmp_path, uuids)
    devices = [[word for word in rank["argv"] if "--device" in word] for rank in document["ranks"]]
    assert devices == [["--device=nvidia.com/gpu=MIG-b"], ["--device=nvidia.com/gpu=MIG-a"]]
    without = start_task(key(7), "x", tmp_path, environment={"CUDA_VISIBLE_DEVICES": "0"})
    document, _ = contained(without, tmp_path, uuids)
    assert not any("--device" in word for word in document["ranks"][0]["argv"]), "none was given"
    with pytest.raises(Refusal, match="does not name GPU 3") as refused:
        contained(start_task(key(7), "x", tmp_path, gpu_indices=[3]), tmp_path, uuids)
    assert refused.value.transient


def test_rank_0_serves_the_rendezvous_and_ray_is_refused(tmp_path: Path) -> None:
    gang = {
        "launcher": "pytorch",
        "hosts_rendezvous": True,
        "master_port": 4000,
        "master_address": "127.0.0.1",
    }
    document, files = contained(start_task(key(7), "x", tmp_path, **gang), tmp_path)
    assert document["store"] is None
    told = values_in(files["rank-0.env"], "TORCHELASTIC_USE_AGENT_STORE", "MASTER_PORT", "RANK")
    assert told == ["False", "4000", "0"]
    with pytest.raises(Refusal, match="'ray' starts its own cluster") as refused:
        contained(start_task(key(7), "x", tmp_path, launcher="ray"), tmp_path)
    assert not refused.value.transient
