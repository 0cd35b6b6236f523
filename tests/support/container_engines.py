"""A real podman, and a real docker where dockerd is installed, each with a storage of the test's own and an
image that is made here: no registry is asked, and no image or container of the machine's is touched.

The image has little more than links to /usr, which jobs mount as an input: so it runs the machine's own
programs.
"""

import contextlib
import hashlib
import io
import json
import os
import resource
import shutil
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

IMAGE = "localhost/paceline-test:1"
_LINKS = {"bin": "usr/bin", "sbin": "usr/sbin", "lib": "usr/lib", "lib64": "usr/lib64"}
_FOLDERS = ("dev", "etc", "proc", "run", "sys", "tmp", "usr")
_OCI = "application/vnd.oci.image"
INSIDE = "made for a test"
"""What its /etc/image says."""
USR = {"usr": {"path": "/usr"}}
"""Inputs that every job in it needs."""


class ContainerEngine:
    """Its commands see its own storage alone, as do those of whoever is given `environment`."""

    name: str

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.environment: dict[str, str] = {}

    def __call__(self, *args: str, stdin: bytes = b"") -> str:
        done = subprocess.run(
            [self.name, *args],
            input=stdin,
            capture_output=True,
            env={**os.environ, **self.environment},
            timeout=120,
        )
        assert done.returncode == 0, done.stderr.decode()
        return done.stdout.decode()

    def trust(self, registry: str) -> None:
        """Also without TLS."""

    def containers(self) -> list[str]:
        """Names of all that there are, running or not."""
        return self("ps", "--all", "--format={{.Names}}").split()

    def close(self) -> None:
        if left := self.containers():
            self("rm", "--force", *left)


class Podman(ContainerEngine):
    name = "podman"

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        (folder / "storage.conf").write_text(
            f'[storage]\ndriver = "vfs"\ngraphroot = "{folder}/root"\nrunroot = "{folder}/run"\n'
        )
        files = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
        processes = int(Path("/proc/sys/kernel/pid_max").read_text())
        runtime = 'runtime = "runc"\n' if shutil.which("runc") else ""  # see packages.apt
        (folder / "containers.conf").write_text(
            f'[engine]\ntmp_dir = "{folder}/tmp"\nlock_type = "file"\ncgroup_manager = "cgroupfs"\n'
            f'events_logger = "none"\n{runtime}'
            f'[containers]\ndefault_ulimits = ["nofile={files}:{files}", "nproc={processes}:{processes}"]\n'
        )
        self.environment = {
            "CONTAINERS_STORAGE_CONF": f"{folder}/storage.conf",
            "CONTAINERS_CONF": f"{folder}/containers.conf",
            "CONTAINERS_REGISTRIES_CONF": f"{folder}/registries.conf",
        }
        self.trust("")

    def trust(self, registry: str) -> None:
        told = f'[[registry]]\nlocation = "{registry}"\ninsecure = true\n' if registry else ""
        (self._folder / "registries.conf").write_text(told)


class Docker(ContainerEngine):
    """With a daemon of its own; podman, which would be asked first, does not answer."""

    name = "docker"

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        (folder / "bin").mkdir()
        (folder / "bin" / "podman").write_text("#!/bin/sh\nexit 1\n")
        (folder / "bin" / "podman").chmod(0o755)
        socket = f"unix://{folder}/socket"
        self.environment = {"DOCKER_HOST": socket, "PATH": f"{folder}/bin:{os.environ['PATH']}"}
        options = ["--iptables=false", "--ip6tables=false", "--bridge=none", "--storage-driver=vfs"]
        places = {"data-root": "root", "exec-root": "exec", "pidfile": "pid"}
        options += [f"--{option}={folder}/{name}" for option, name in places.items()]
        with (folder / "log").open("wb") as log:
            self._daemon = subprocess.Popen(
                ["dockerd", f"--host={socket}", *options], stdout=log, stderr=log, start_new_session=True
            )

    def wait(self) -> str:
        """Until it answers; why it does not."""
        give_up_at = time.monotonic() + 60
        while self._daemon.poll() is None and time.monotonic() < give_up_at:
            with contextlib.suppress(AssertionError):
                self("version")
                return ""
            time.sleep(0.1)
        return (self._folder / "log").read_text()[-500:]

    def close(self) -> None:
        if self._daemon.poll() is None:
            super().close()
        self._daemon.terminate()
        self._daemon.wait(60)
        subprocess.run(["umount", f"{self._folder}/exec/netns/default"], capture_output=True, check=False)


def root_of_image(files: Mapping[str, str], links: Mapping[str, str] = _LINKS) -> bytes:
    """A tar of it, with these beside the links."""
    made = io.BytesIO()
    with tarfile.open(fileobj=made, mode="w") as tar:
        for name in _FOLDERS:
            info = tarfile.TarInfo(name)
            info.type, info.mode = tarfile.DIRTYPE, 0o755
            tar.addfile(info)
        for name, target in links.items():
            info = tarfile.TarInfo(name)
            info.type, info.linkname = tarfile.SYMTYPE, target
            tar.addfile(info)
        for name, text in files.items():
            info = tarfile.TarInfo(name)
            info.size, info.mode = len(text), 0o644
            tar.addfile(info, io.BytesIO(text.encode()))
    return made.getvalue()


def own_podman() -> Iterator[ContainerEngine]:
    """With the image; skips where podman cannot run a container."""
    yield from _own(Podman)


def own_docker() -> Iterator[ContainerEngine]:
    """Likewise."""
    yield from _own(Docker)


def _own(kind: type[ContainerEngine]) -> Iterator[ContainerEngine]:
    program = "dockerd" if kind is Docker else kind.name
    if shutil.which(program) is None or os.geteuid() != 0:
        pytest.skip(f"{program} is not here, or this is not root")
    folder = Path(tempfile.mkdtemp(prefix="pt-", dir="/tmp"))  # podman takes no long path
    engine = kind(folder)
    try:
        if isinstance(engine, Docker) and (why := engine.wait()):
            pytest.skip(f"dockerd does not run here: {why}")
        try:
            engine("import", "-", IMAGE, stdin=root_of_image({"etc/image": INSIDE}))
            engine("run", "--rm", "--network=host", "--pid=host", "--volume=/usr:/usr:ro", IMAGE, "/bin/true")
        except AssertionError as error:
            pytest.skip(f"{kind.name} cannot run a container here: {error}")
        yield engine
    finally:
        engine.close()
        shutil.rmtree(folder)


def image_layout(folder: Path) -> None:
    """The image as an OCI layout, with the tag 1: what a registry serves."""
    blobs = folder / "blobs" / "sha256"
    blobs.mkdir(parents=True)

    def blob(data: bytes) -> dict[str, object]:
        digest = hashlib.sha256(data).hexdigest()
        (blobs / digest).write_bytes(data)
        return {"digest": f"sha256:{digest}", "size": len(data)}

    layer = root_of_image({"etc/image": INSIDE})
    rootfs = {"type": "layers", "diff_ids": [f"sha256:{hashlib.sha256(layer).hexdigest()}"]}
    config = {"architecture": "amd64", "os": "linux", "config": {}, "rootfs": rootfs}
    manifest = {
        "schemaVersion": 2,
        "mediaType": f"{_OCI}.manifest.v1+json",
        "config": {
            "mediaType": f"{_OCI}.config.v1+json",
            **blob(json.dumps(config).encode()),
        },
        "layers": [{"mediaType": f"{_OCI}.layer.v1.tar", **blob(layer)}],
    }
    tag = {"org.opencontainers.image.ref.name": "1"}
    listed = {"mediaType": manifest["mediaType"], "annotations": tag, **blob(json.dumps(manifest).encode())}
    (folder / "index.json").write_text(json.dumps({"schemaVersion": 2, "manifests": [listed]}))


def with_python(inputs: Mapping[str, object] = USR) -> dict[str, object]:
    """Parts of a job that runs this very Python inside, with all that it has installed but Paceline."""
    sites = [path for path in sys.path if path.endswith("-packages") and Path(path).is_dir()]
    prefixes = [sys.base_prefix, *sites]
    return {
        "inputs": {**inputs, **{f"python{at}": {"path": path} for at, path in enumerate(prefixes)}},
        "environment_variables": {"PYTHONPATH": ":".join(sites)},
    }


PYTHON = str(Path(sys.executable).resolve())
