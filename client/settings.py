"""Where the scheduler is and how to speak to it: one frozen object, parsed once from options and environment.

An option wins over the environment, the environment over what the state folder says. Nothing else in
the client reads the environment. An address that the user gave is used as it is; one that was found in
the state folder belongs to a process on this machine, so its death can be said at once.
"""

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from ..proto.auth import read_token
from ..spec.errors import InvalidRequest, Unavailable
from .process import Identity, processes_are_visible

FILE_BYTES_MAX = 64 << 10


@dataclass(frozen=True, slots=True)
class Settings:
    """What a client must know before it can call."""

    state: Path
    """The state folder; need not exist."""
    address: str = ""
    """HOST:PORT as given; empty: look into the state folder."""
    token: str = ""
    token_file: Path | None = None
    ca_file: Path | None = None
    insecure: bool = False
    """Let the token travel in the clear beyond this machine."""
    cache: Path = Path("~/.cache/paceline")
    """What is known of packed folders; may be removed at any time."""
    code_files_max: int = 50_000
    code_bytes_max: int = 2 << 30
    code_file_bytes_max: int = 512 << 20
    """Of a folder that is packed as code, and of each file in it."""

    def with_found_scheduler(self) -> "Settings":
        """These settings with the address that the state folder names. Raises Unavailable."""
        if self.address:
            return self
        served = read_served(self.state)
        return replace(self, address=served.address, ca_file=self.ca_file or served.ca_file)

    def read_token(self) -> str:
        """The token to send. Raises InvalidRequest when there is none, or others could read it."""
        if self.token:
            return self.token
        return read_token(self.token_file or self.state / "client.token")


@dataclass(frozen=True, slots=True)
class Served:
    """What a serving scheduler wrote into its state folder's scheduler.json."""

    address: str
    process: Identity
    ca_file: Path | None


def load(
    *,
    scheduler: str | None = None,
    state: str | Path | None = None,
    token: str | None = None,
    ca_file: str | Path | None = None,
    insecure: bool = False,
    environ: Mapping[str, str] = os.environ,
) -> Settings:
    """Settings from arguments and the environment."""
    address = scheduler or environ.get("PACELINE_SCHEDULER", "")
    token_file = environ.get("PACELINE_TOKEN_FILE")
    ca = ca_file or environ.get("PACELINE_CA")
    return Settings(
        state=state_folder(state, environ),
        address=address,
        token=token or environ.get("PACELINE_TOKEN", ""),
        token_file=Path(token_file) if token_file else None,
        ca_file=Path(ca) if ca else None,
        insecure=insecure,
        cache=Path(environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "paceline",
        code_files_max=_amount(environ, "PACELINE_CODE_FILES", 50_000),
        code_bytes_max=_amount(environ, "PACELINE_CODE_BYTES", 2 << 30),
        code_file_bytes_max=_amount(environ, "PACELINE_CODE_FILE_BYTES", 512 << 20),
    )


def _amount(environ: Mapping[str, str], name: str, default: int) -> int:
    """A count, or bytes with a unit: 4Gi. Raises InvalidRequest."""
    text = environ.get(name, "")
    if not text:
        return default
    from pydantic_core import PydanticCustomError

    from ..spec.fields import size_bytes

    try:
        return size_bytes(text)
    except PydanticCustomError as error:
        raise InvalidRequest(f"${name}: {error.message()}") from None


def state_folder(given: str | Path | None, environ: Mapping[str, str] = os.environ) -> Path:
    """The folder as given, else $PACELINE_STATE, else the running ephemeral cluster's, else the default."""
    chosen = given or environ.get("PACELINE_STATE")
    if chosen:
        return Path(chosen).expanduser().absolute()
    default = default_state(environ)
    try:
        pointed = Path(read_small(default / "ephemeral").strip())
    except OSError:
        return default
    return pointed if (pointed / "up.json").is_file() else default


def default_state(environ: Mapping[str, str] = os.environ) -> Path:
    """$XDG_STATE_HOME/paceline, or ~/.local/state/paceline."""
    base = environ.get("XDG_STATE_HOME")
    return (Path(base) if base else Path.home() / ".local" / "state") / "paceline"


def read_served(state: Path) -> Served:
    """What scheduler.json says. Raises Unavailable where no scheduler runs on this state folder."""
    path = state / "scheduler.json"
    try:
        said = json.loads(read_small(path))
        served = Served(
            address=str(said["address"]),
            process=Identity(int(said["pid"]), int(said["start_time"])),
            ca_file=Path(said["ca_file"]) if said.get("ca_file") else None,
        )
    except FileNotFoundError:
        raise Unavailable(
            f"no scheduler is known here: {path} does not exist",
            hint="start one with `pace up`, or name one with --scheduler HOST:PORT or $PACELINE_SCHEDULER",
        ) from None
    except (ValueError, KeyError, TypeError) as error:
        raise Unavailable(
            f"{path} is not what a scheduler writes: {error}", hint="restart it: `pace up`"
        ) from None
    return served


def check_alive(settings: Settings) -> None:
    """Raise Unavailable when the state folder's scheduler is gone; a given address is not judged."""
    if settings.address or not processes_are_visible():
        return
    served = read_served(settings.state)
    host = served.address.rpartition(":")[0]
    if host in ("127.0.0.1", "localhost", "[::1]") and not served.process.is_alive():
        raise Unavailable(
            f"the scheduler of {settings.state} is not running (it was pid {served.process.pid})",
            hint="`pace up` starts it again; its jobs and their history are kept",
        )


def read_small(path: Path) -> str:
    """A small text file of ours; one that is too large is refused before it is read."""
    with path.open("rb") as file:
        data = file.read(FILE_BYTES_MAX + 1)
    if len(data) > FILE_BYTES_MAX:
        raise InvalidRequest(f"{path} is larger than {FILE_BYTES_MAX} bytes: it is not a file of ours")
    return data.decode("utf-8", "replace")
