"""up.json: what `pace up` started on a state folder, by pid and start time; nothing else is signalled."""

import json
import os
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from ..spec.errors import Conflict, PacelineError
from .process import Identity
from .settings import read_small


@dataclass(frozen=True, slots=True)
class Started:
    """A process that `up` started."""

    name: str
    process: Identity
    log: str
    state: str
    cpus: float = 0.0
    scheduler: str = ""
    """The address an agent dials."""


@dataclass(frozen=True, slots=True)
class Up:
    """What is up on a state folder: the contents of up.json."""

    state: Path
    ephemeral: bool = False
    is_down: bool = False
    """Taken down: the rest says how to bring it up as it was."""
    address: str = ""
    scheduler: Started | None = None
    """None: it runs, but was not started by `up`."""
    agents: tuple[Started, ...] = field(default=())


def read_up(state: Path) -> Up | None:
    """What up.json says; None when there is none. Raises Conflict on one that is not ours."""
    path = state / "up.json"
    try:
        said = json.loads(read_small(path))
        return Up(
            state=state,
            ephemeral=bool(said["ephemeral"]),
            is_down=bool(said["is_down"]),
            address=str(said["address"]),
            scheduler=_started(said["scheduler"]) if said["scheduler"] else None,
            agents=tuple(_started(agent) for agent in said["agents"]),
        )
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError) as error:
        raise Conflict(
            f"{path} is not what `pace up` writes: {error}", hint="stop its processes by hand, then remove it"
        ) from None


def write_up(current: Up) -> None:
    body = {
        "ephemeral": current.ephemeral,
        "is_down": current.is_down,
        "address": current.address,
        "scheduler": asdict(current.scheduler) if current.scheduler else None,
        "agents": [asdict(agent) for agent in current.agents],
    }
    write_whole(current.state / "up.json", json.dumps(body, indent=2) + "\n")


def write_whole(path: Path, text: str) -> None:
    """Write a file so that a reader sees the old text or the new, never a part. Raises PacelineError."""
    fresh = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        fresh.write_text(text)
        fresh.replace(path)
    except OSError as error:
        with suppress(OSError):
            fresh.unlink()
        raise PacelineError(
            f"{path} cannot be written: {error.strerror}",
            hint="free space there, or give another folder with --state; then repeat the command",
        ) from error


def _started(said: dict[str, Any]) -> Started:
    identity = said["process"]
    return Started(
        name=str(said["name"]),
        process=Identity(int(identity["pid"]), int(identity["start_time"])),
        log=str(said["log"]),
        state=str(said["state"]),
        cpus=float(said["cpus"]),
        scheduler=str(said["scheduler"]),
    )
