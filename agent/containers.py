"""Container engines: how each is found, and the command lines that it is given. Pure but for a look at PATH.

An engine is a node's, one for all its tasks. Whatever it runs shares the host's network, IPC and process ids:
ranks meet by ports, share /dev/shm, and are seen, signalled and killed from outside like any other process. A
container's name says whose it is, and so does a variable that all its processes inherit.
"""

import hashlib
import os
import re
import shutil
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Final, NamedTuple, Self

from ..proto.marks import agent_mark
from ..spec.ids import TaskKey

_REFERENCE: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._/:@-]{0,254}")


class Mount(NamedTuple):
    """A path of the node, at `target` inside."""

    source: str
    target: str
    writable: bool = True


@dataclass(frozen=True, slots=True)
class Container:
    """What one rank runs in."""

    name: str
    image: str
    cwd: str
    mounts: Sequence[Mount]
    gpus: Sequence[str]
    """Uuids; no other is to be seen inside."""
    variables: Mapping[str, str]
    """That anybody may read; all others come by a file."""
    shell_words: Sequence[str]
    """Given to the image's /bin/sh."""
    cpu_milli: int = 0
    """At most; 0: no limit."""
    memory_bytes: int = 0
    """Likewise."""


class Engine(ABC):
    """One that answers. Every method gives a command line; empty: there is nothing to do."""

    programs: ClassVar[Sequence[str]]
    """By which it is found on PATH, the best first."""

    def __init__(self, path: str, version: str, images: Path) -> None:
        """`images`: where an engine that keeps none of its own has them."""
        self.path = path
        self.version = version
        self.images = images

    @property
    def name(self) -> str:
        return os.path.basename(self.path)  # noqa: PTH119

    def __str__(self) -> str:
        return f"{self.name} {self.version}".strip()

    @staticmethod
    @abstractmethod
    def ask(path: str) -> list[str]:
        """Exits with 0 where the engine answers; what it says is for `answered`."""

    @classmethod
    @abstractmethod
    def answered(cls, path: str, said: str, images: Path) -> Self: ...

    def names_of(self, image: str) -> list[str]:
        """By which the image may be here, the likeliest first; by the last it is pulled."""
        return [image]

    @abstractmethod
    def has(self, image: str) -> list[str]:
        """Exits with 0 where the image is here."""

    @abstractmethod
    def pull(self, image: str) -> list[str]: ...

    @abstractmethod
    def run(self, container: Container) -> list[str]:
        """In the foreground; exits as what runs inside, with 128 + N where a signal ended that."""

    def remove(self, names: Sequence[str]) -> list[str]:
        """Containers of these names, running or not; those that are not there are no fault."""
        return []

    def ours(self, prefix: str) -> list[str]:
        """Prints the names of all containers that begin so."""
        return []


class _Oci(Engine):
    """What podman and docker have in common."""

    def pull(self, image: str) -> list[str]:
        return [self.path, "pull", image]

    def run(self, container: Container) -> list[str]:
        hosts = [f"--{what}=host" for what in ("network", "ipc", "pid")]
        user = f"--user={os.getuid()}:{os.getgid()}"
        words = [self.path, "run", "--rm", f"--name={container.name}", *hosts, user, *self._own(container)]
        words += ["--pull=never", "--sig-proxy=false", f"--workdir={container.cwd}", "--entrypoint=/bin/sh"]
        words += [f"--mount={_mount(each)}" for each in container.mounts]
        words += [f"--env={name}={value}" for name, value in container.variables.items()]
        if container.cpu_milli:
            words.append(f"--cpus={container.cpu_milli / 1000:g}")
        if memory_bytes := container.memory_bytes:
            words += [f"--memory={memory_bytes}", f"--memory-swap={memory_bytes}"]
        return [*words, container.image, *container.shell_words]

    def ours(self, prefix: str) -> list[str]:
        return [self.path, "ps", "--all", f"--filter=name=^{prefix}", "--format={{.Names}}"]

    @abstractmethod
    def _own(self, container: Container) -> list[str]:
        """Options of `run` that the other has not."""


class Podman(_Oci):
    """Has no daemon: a container is below whoever starts it, though in a group of its own."""

    programs = ("podman",)

    @staticmethod
    def ask(path: str) -> list[str]:
        return [path, "version", "--format={{.Client.Version}}"]

    @classmethod
    def answered(cls, path: str, said: str, images: Path) -> Self:
        return cls(path, said.strip(), images)

    def names_of(self, image: str) -> list[str]:
        """A short name is docker.io's, as docker has it, unless there is one that was built here."""
        first, _, rest = image.partition("/")
        if rest and (first == "localhost" or "." in first or ":" in first):
            return [image]
        return [f"localhost/{image}", f"docker.io/{image}" if rest else f"docker.io/library/{image}"]

    def has(self, image: str) -> list[str]:
        return [self.path, "image", "exists", image]

    def remove(self, names: Sequence[str]) -> list[str]:
        return [self.path, "rm", "--force", "--ignore", "--time=0", *names]

    def _own(self, container: Container) -> list[str]:
        words = ["--log-driver=passthrough"]
        if os.getuid():
            words.append("--userns=keep-id")
        words.append("--env=NVIDIA_VISIBLE_DEVICES=void")  # an older hook would give all that the image names
        return words + [f"--device=nvidia.com/gpu={uuid}" for uuid in container.gpus]


class Docker(_Oci):
    """A container is below its daemon, and in that one's group."""

    programs = ("docker",)

    @staticmethod
    def ask(path: str) -> list[str]:
        return [path, "version", "--format={{.Server.Version}}"]

    @classmethod
    def answered(cls, path: str, said: str, images: Path) -> Self:
        return cls(path, said.strip(), images)

    def has(self, image: str) -> list[str]:
        return [self.path, "image", "inspect", "--format={{.Id}}", image]

    def remove(self, names: Sequence[str]) -> list[str]:
        return [self.path, "rm", "--force", *names]

    def _own(self, container: Container) -> list[str]:
        if container.gpus:
            return ["--log-driver=none", f'--gpus="device={",".join(container.gpus)}"']
        return [
            "--log-driver=none",
            "--env=NVIDIA_VISIBLE_DEVICES=void",
        ]  # where nvidia's is the runtime of all


class Apptainer(Engine):
    """Has no daemon; a container ends with its processes. Images are files, which the agent keeps."""

    programs = ("apptainer", "singularity")

    @staticmethod
    def ask(path: str) -> list[str]:
        return [path, "--version"]

    @classmethod
    def answered(cls, path: str, said: str, images: Path) -> Self:
        """`apptainer version 1.3.4`, `singularity-ce version 4.1.0-jammy`."""
        return cls(path, said.strip().rpartition(" ")[2], images)

    def has(self, image: str) -> list[str]:
        """Its time becomes that of the last use."""
        return ["/bin/sh", "-c", 'test -f "$1" && touch "$1"', "sh", self._file(image)]

    def pull(self, image: str) -> list[str]:
        script = 'mkdir -p "${2%/*}" && "$1" pull --force "$2.part" "docker://$3" && mv "$2.part" "$2"'
        return ["/bin/sh", "-c", script, "sh", self.path, self._file(image), image]

    def run(self, container: Container) -> list[str]:
        words = [self.path, "exec", "--cleanenv", "--no-home", f"--pwd={container.cwd}"]
        words += ["--nv"] if container.gpus else []
        for source, target, writable in container.mounts:
            words.append(f"--bind={source}:{target}" + ("" if writable else ":ro"))
        words += [f"--env={name}={value}" for name, value in container.variables.items()]
        return [*words, self._file(container.image), "/bin/sh", *container.shell_words]

    def _file(self, image: str) -> str:
        return str(self.images / f"{hashlib.sha256(image.encode()).hexdigest()[:32]}.sif")


ENGINES: Final[Sequence[type[Engine]]] = (Podman, Docker, Apptainer)


def installed(images: Path) -> list[tuple[str, type[Engine]]]:
    """Programs that are on PATH, the best first; whether they answer is another matter."""
    found = ((shutil.which(program), kind) for kind in ENGINES for program in kind.programs)
    return [(path, kind) for path, kind in found if path is not None]


def fault_in_image(image: str) -> str:
    """Why no engine is given that; empty: it is a reference, and no option or anything else."""
    if _REFERENCE.fullmatch(image):
        return ""
    return f"{image[:80]!r} is not the name of an image; expected [REGISTRY/]NAME[:TAG or @DIGEST]"


def fault_in_path(path: str) -> str:
    """Why it cannot be mounted; empty: it can be. Engines read their options with separators."""
    if path == "/":
        return "the node's root cannot be mounted over the container's own"
    odd = next((one for one in ',:"\\\n\r' if one in path), "")
    return f"the path {path[:200]!r} has {odd!r} in it, which no container engine takes" if odd else ""


def container_name(tasks: Path, key: TaskKey, rank: int) -> str:
    """Of a rank's container; `tasks`: the agent's folder of tasks, whose agent's it is."""
    return f"{name_prefix(tasks)}{key}.{rank}"


def name_prefix(tasks: Path) -> str:
    """How the names of all containers of that agent begin."""
    return f"paceline-{agent_mark(tasks)[1:]}-"


def key_of_name(name: str, prefix: str) -> TaskKey | None:
    """Whose container it is; None: no task's of that agent."""
    try:
        return (
            TaskKey.parse(name.removeprefix(prefix).rpartition(".")[0]) if name.startswith(prefix) else None
        )
    except ValueError:
        return None


def _mount(mount: Mount) -> str:
    return f"type=bind,source={mount.source},target={mount.target}" + ("" if mount.writable else ",readonly")
