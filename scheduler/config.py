"""The scheduler's configuration: one frozen object, parsed once at start."""

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from ..proto.channels import split_address
from ..proto.tls import TlsFiles, check_listener
from ..spec.errors import InvalidRequest
from .core.settings import Settings
from .store import split_location

DEFAULT_LISTEN: Final = "127.0.0.1:7223"


@dataclass(frozen=True, slots=True)
class SchedulerConfig:
    """Checked when made: a config that exists can be run."""

    state: Path
    """The state folder; made when it is not there."""
    listen: str = DEFAULT_LISTEN
    """HOST:PORT; port 0: any, see scheduler.json."""
    store: str = ""
    """Path or URL; empty: paceline.db in the state folder."""
    storage: Path | None = None
    """Job folders, the same path on every node; None: storage/ in the state folder."""
    tls_files: TlsFiles | None = None
    """Certificate and key of the listener."""
    tls_generated: bool = False
    """Make and keep a certificate in the state folder's tls/."""
    insecure: bool = False
    """Listen beyond loopback without TLS."""
    settings: Settings = field(default_factory=Settings)
    log_bytes_max: int = 1 << 30
    """Of one rank's stored output."""
    verbose: bool = False

    def __post_init__(self) -> None:
        host, _ = split_address(self.listen)
        split_location(self.store)
        check_listener(host, encrypted=self.encrypted, insecure=self.insecure)
        if not self.state.is_absolute() or not self.storage_folder.is_absolute():
            raise InvalidRequest(f"the folders {self.state} and {self.storage_folder} must be absolute paths")

    @property
    def encrypted(self) -> bool:
        return self.tls_files is not None or self.tls_generated

    @property
    def store_location(self) -> str:
        return self.store or str(self.state / "paceline.db")

    @property
    def storage_folder(self) -> Path:
        return self.storage or self.state / "storage"


def default_state(environ: Mapping[str, str] = os.environ) -> Path:
    """$PACELINE_STATE, or paceline/ in $XDG_STATE_HOME, or in ~/.local/state."""
    if chosen := environ.get("PACELINE_STATE"):
        return Path(chosen).expanduser().absolute()
    base = environ.get("XDG_STATE_HOME")
    return (Path(base) if base else Path.home() / ".local" / "state") / "paceline"
