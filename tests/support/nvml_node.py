"""A node whose GPUs are a script: builds the stub libnvidia-ml.so.1 and runs the real binding against it."""

import json
import os
import subprocess
import sys
import threading
import time
from dataclasses import asdict
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from paceline.agent import inventory
from paceline.agent.gpu_health import HealthBook
from paceline.agent.inventory import GpuWatch
from paceline.agent.nvml import Nvml, NvmlUnavailable

SOURCE = Path(__file__).parent / "nvml_stub" / "nvml_stub.c"

H100 = (
    "name=NVIDIA_H100_80GB_HBM3 memory=85899345920 used=1073741824 util=37 temp=54 power=310000 "
    "mig=0 ecc=0 remap=0 events=10"
)


def h100(index: int, **changes: object) -> str:
    """A `gpu` line of the script; `key=None` leaves that key out."""
    words = dict(word.split("=") for word in H100.split())
    words |= {"uuid": f"GPU-{index:04d}", "bus": f"00000000:{0x10 + index:02X}:00.0"}
    words |= {name: str(value) for name, value in changes.items()}
    return f"gpu {index} " + " ".join(f"{name}={value}" for name, value in words.items() if value != "None")


def mig_slice(gpu: int, at: int, profile: str, *, gi: int, ci: int = 0, **changes: object) -> str:
    """A `slice` line of the script, the `at`-th of its GPU: of `1g.10gb` the driver keeps some of 10 GiB."""
    gib = int(profile.rpartition(".")[2].removesuffix("gb"))
    words: dict[str, object] = {"name": f"NVIDIA_H100_80GB_HBM3_MIG_{profile}", "gi": gi, "ci": ci}
    words |= {"memory": (gib << 30) - (256 << 20), **changes}
    keys = " ".join(f"{name}={value}" for name, value in words.items() if value is not None)
    return f"slice {gpu} {at} MIG-{gpu}-{gi}-{ci} {keys}"


def build_stub(folder: Path, *flags: str) -> Path:
    """Compile the stub into `folder`; give that folder to LD_LIBRARY_PATH."""
    folder.mkdir(parents=True, exist_ok=True)
    command = [
        "cc",
        "-std=c11",
        "-D_GNU_SOURCE",
        "-Wall",
        "-Wextra",
        "-Werror",
        "-O1",
        "-shared",
        "-fPIC",
        *flags,
    ]
    subprocess.run([*command, "-o", str(folder / "libnvidia-ml.so.1"), str(SOURCE), "-lpthread"], check=True)
    return folder


class Driver:
    """The node's driver: what it says from now on."""

    def __init__(self, script: Path, count: int) -> None:
        self._script = script
        self._facts: dict[int, dict[str, object]] = {index: {} for index in range(count)}
        self._events: list[str] = []
        self._faults: list[str] = []
        self._slices: list[str] = []
        self._write()

    def tell(self, index: int, xid: int) -> None:
        self._events.append(f"event {index} 8 {xid}")
        self._write()

    def show(self, index: int, **facts: object) -> None:
        self._facts[index] = facts
        self._write()

    def lose(self, *indices: int) -> None:
        """These have fallen off the bus; none: all are there."""
        self._faults = [f"fault {index} * 15" for index in indices]
        self._write()

    def divide(self, index: int, *slices: str) -> None:
        """The GPU is in MIG mode, and these are all slices that there are."""
        self._facts[index] = {"mig": 1}
        self._slices = list(slices)
        self._write()

    def forget_events(self) -> None:
        """As a process that opens NVML anew sees it: what was told before is not told again."""
        self._events = []
        self._write()

    def _write(self) -> None:
        gpus = [h100(index, **facts) for index, facts in self._facts.items()]
        aside = self._script.with_suffix(".new")
        aside.write_text(
            "\n".join(["driver 570.86.15", *gpus, *self._slices, *self._events, *self._faults]) + "\n"
        )
        aside.replace(self._script)


class NvmlNode:
    """A child process that has the stub as its NVML. One question a line, one JSON answer."""

    def __init__(self, library: Path | None, folder: Path, lines: str = "") -> None:
        self.script = folder / "nvml-script"
        self.write(lines)
        self._environment = {**os.environ, **nvml_environment(library, self.script)}

    def write(self, lines: str) -> None:
        """The node as it is from now on."""
        aside = self.script.with_suffix(".new")
        aside.write_text("driver 570.86.15\n" + lines)
        aside.replace(self.script)

    def ask(self, question: str) -> Any:
        assert self._child.stdin and self._child.stdout
        self._child.stdin.write(question + "\n")
        self._child.stdin.flush()
        line = self._child.stdout.readline()
        assert line, f"the probe died on {question!r}"
        return json.loads(line)

    def __enter__(self) -> Self:
        self._child = subprocess.Popen(
            [sys.executable, __file__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=self._environment,
        )
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._child.stdin and self._child.stdout
        self._child.stdin.close()
        try:
            self._child.wait(10)
        except subprocess.TimeoutExpired:
            self._child.kill()
            self._child.wait(10)
            raise
        finally:
            self._child.stdout.close()


def nvml_environment(library: Path | None, script: Path) -> dict[str, str]:
    """What a process needs in its environment to see the scripted node."""
    path = f"{library}:{os.environ.get('LD_LIBRARY_PATH', '')}".rstrip(":") if library else ""
    return {"NVML_STUB": str(script), **({"LD_LIBRARY_PATH": path} if library else {})}


class _Probe:
    """The child: a method is a question."""

    def __init__(self) -> None:
        self._changed = threading.Event()
        self._nvml: Nvml | None = None
        self._watch: GpuWatch | None = None

    def open(self, _: str) -> Any:
        try:
            self._nvml = Nvml()
        except NvmlUnavailable as error:
            return str(error)
        return self._nvml.has_events

    def read(self, _: str) -> Any:
        assert self._nvml
        return asdict(self._nvml.read())

    def wait(self, seconds: str) -> Any:
        assert self._nvml
        return [(alarm.index, alarm.xid) for alarm in self._nvml.wait_event(float(seconds))]

    def watch(self, wanted: str) -> Any:
        book = HealthBook(Path(os.environ["NVML_STUB"]).with_name("gpus.json"))
        self._watch = GpuWatch(self._changed.set, book, wanted or "all")
        self._watch.start()
        return self._watch.wait_first(5)

    def changed(self, _: str) -> Any:
        """Since this was last asked."""
        heard = self._changed.wait(5)
        self._changed.clear()
        return heard

    def until(self, text: str) -> Any:
        """The watch's report, once it holds that text, or after 5 s as it is."""
        assert self._watch
        until_s = time.monotonic() + 5
        while text not in json.dumps(asdict(self._watch.report())) and time.monotonic() < until_s:
            time.sleep(0.01)
        return asdict(self._watch.report())

    def capacity(self, _: str) -> Any:
        assert self._watch
        return inventory.capacity(self._watch.report(), 1, 1 << 20).gpus

    def uuids(self, _: str) -> Any:
        assert self._watch
        return self._watch.uuids()

    def close(self) -> None:
        if self._watch:
            self._watch.stop()
        elif self._nvml:
            self._nvml.close()


def _main() -> None:
    for name, value in (("REFRESH_S", 0.1), ("NVML_RETRY_S", 0.1), ("NVML_SILENT_S", 0.5)):
        setattr(inventory, name, value)
    probe = _Probe()
    for line in sys.stdin:
        verb, _, rest = line.strip().partition(" ")
        print(json.dumps(getattr(probe, verb)(rest)), flush=True)
    probe.close()


if __name__ == "__main__":
    _main()
