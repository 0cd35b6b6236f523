"""Tokens: who may call what. A token is a secret in a file of mode 0600, one per role; of a job that works
for a sweep each attempt has its own, which says whose it is, with a MAC under a secret of the scheduler's.

It travels as `authorization: Bearer TOKEN` with each call; comparison takes the same time whatever differs.
"""

import hmac
import os
import re
import secrets
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Final

from ..spec.errors import InvalidRequest, Unauthenticated
from ..spec.ids import Attempt, JobId

HEADER: Final = "authorization"
_SCHEME: Final = "Bearer "
_TOKEN_CHARACTERS_MAX: Final = 200


class Role(StrEnum):
    """What the holder of a token may call."""

    CLIENT = "client"
    AGENT = "agent"
    WORKER = "worker"
    ROUTER = "router"


@dataclass(frozen=True, slots=True)
class Worker:
    """An attempt of a job that runs trials of a study."""

    study: int
    job: JobId
    attempt: Attempt


@dataclass(frozen=True, slots=True)
class Router:
    """An attempt of a job that directs the requests of an endpoint."""

    job: JobId
    attempt: Attempt


class WrongRole(Unauthenticated):
    """A good token, but of a role that may not do this."""


_ROLES: Final[dict[str, Role]] = {
    "paceline.v1.Answers": Role.CLIENT,
    "paceline.v1.Content": Role.CLIENT,
    "paceline.v1.Endpoints": Role.CLIENT,
    "paceline.v1.Jobs": Role.CLIENT,
    "paceline.v1.Logs": Role.CLIENT,
    "paceline.v1.Nodes": Role.CLIENT,
    "paceline.v1.Policy": Role.CLIENT,
    "paceline.v1.Registry": Role.CLIENT,
    "paceline.v1.Studies": Role.CLIENT,
    "paceline.v1.Sweeps": Role.CLIENT,
    "paceline.v1.AgentSession": Role.AGENT,
    "paceline.v1.LogShipping": Role.AGENT,
    "grpc.reflection.v1alpha.ServerReflection": Role.CLIENT,
    "grpc.reflection.v1.ServerReflection": Role.CLIENT,
}
_OPEN: Final = frozenset({"grpc.health.v1.Health"})
_OF_WORKERS: Final = frozenset(f"/paceline.v1.Studies/{method}" for method in ("Find", "Read", "Write"))
"""What workers may call, each of its own study; the service looks at that."""
_OF_ROUTERS: Final = "/paceline.v1.Endpoints/Route"
"""What routers may call, and nobody else; the service looks whose it is."""
_ROUTER: Final = re.compile(r"router\.(\d{1,18})\.(\d{1,9})\.([0-9a-f]{64})", re.ASCII)
_WORKER: Final = re.compile(r"worker\.(\d{1,18})\.(\d{1,18})\.(\d{1,9})\.([0-9a-f]{64})", re.ASCII)


@dataclass(frozen=True, slots=True)
class Tokens:
    """The tokens that a scheduler accepts."""

    client: str
    agent: str
    worker_secret: str
    """Of the MACs in workers' tokens; it never leaves the scheduler."""

    def worker_token(self, worker: Worker) -> str:
        """What proves to this scheduler that a call is this worker's."""
        return self._signed(f"worker.{worker.study}.{worker.job}.{worker.attempt}")

    def router_token(self, router: Router) -> str:
        """The same of a router's."""
        return self._signed(f"router.{router.job}.{router.attempt}")

    def replica_secret(self, job: JobId, attempt: Attempt) -> str:
        """What an endpoint's router shows to a replica, and nobody else can."""
        return self._signed(f"replica.{job}.{attempt}").rpartition(".")[2]

    def worker_of(self, metadata: Iterable[tuple[str, str | bytes]]) -> Worker | None:
        """Whose call it is; None: no worker's."""
        return self._worker(_only_token(metadata))

    def router_of(self, metadata: Iterable[tuple[str, str | bytes]]) -> Router | None:
        """Whose call it is; None: no router's."""
        return self._router(_only_token(metadata))

    def _signed(self, said: str) -> str:
        return f"{said}.{hmac.new(self.worker_secret.encode(), said.encode(), 'sha256').hexdigest()}"

    def _router(self, token: str) -> Router | None:
        found = _ROUTER.fullmatch(token)
        if found is None:
            return None
        router = Router(JobId(int(found[1])), Attempt(int(found[2])))
        return router if hmac.compare_digest(token, self.router_token(router)) else None

    def _worker(self, token: str) -> Worker | None:
        found = _WORKER.fullmatch(token)
        if found is None:
            return None
        worker = Worker(int(found[1]), JobId(int(found[2])), Attempt(int(found[3])))
        return worker if hmac.compare_digest(token, self.worker_token(worker)) else None

    def check(self, method: str, metadata: Iterable[tuple[str, str | bytes]]) -> Role | None:
        """The caller's role for `/package.Service/Method`; None: open to all.

        Raises Unauthenticated or WrongRole.
        """
        service = method.split("/")[1] if method.count("/") == 2 else ""
        if service in _OPEN:
            return None
        role = self._role_of(metadata)
        if role is Role.WORKER and method in _OF_WORKERS:
            return role
        needed = _ROLES.get(service, Role.CLIENT if role in (Role.WORKER, Role.ROUTER) else None)
        if method == _OF_ROUTERS:
            needed = Role.ROUTER
        if needed is not None and role is not needed:
            raise WrongRole(
                f"{service} needs the {needed} token, and this call came with the {role} token",
                hint=f"use {needed}.token from the scheduler's state folder",
                role=role,
                needed=needed,
            )
        return role

    def _role_of(self, metadata: Iterable[tuple[str, str | bytes]]) -> Role:
        values = [value for name, value in metadata if name == HEADER]
        if len(values) != 1:
            raise Unauthenticated(
                "the call carries no token" if not values else "the call carries more than one token",
                hint="name the token file (client.token or agent.token in the scheduler's state folder)",
            )
        text = values[0].decode("latin-1") if isinstance(values[0], bytes) else values[0]
        given = text.removeprefix(_SCHEME).encode("latin-1", "replace")
        is_client = hmac.compare_digest(given, self.client.encode())
        is_agent = hmac.compare_digest(given, self.agent.encode())
        if text.startswith(_SCHEME) and self._worker(text.removeprefix(_SCHEME)) is not None:
            return Role.WORKER
        if text.startswith(_SCHEME) and self._router(text.removeprefix(_SCHEME)) is not None:
            return Role.ROUTER
        if not text.startswith(_SCHEME) or not (is_client or is_agent):
            raise Unauthenticated(
                "the token is not one of this scheduler's",
                hint="was the scheduler's state folder made anew? Read its client.token or agent.token again",
            )
        return Role.CLIENT if is_client else Role.AGENT


def _only_token(metadata: Iterable[tuple[str, str | bytes]]) -> str:
    """What a call carries; empty: nothing, or more than one."""
    values = [value for name, value in metadata if name == HEADER]
    text = values[0] if len(values) == 1 and isinstance(values[0], str) else ""
    return text.removeprefix(_SCHEME) if text.startswith(_SCHEME) else ""


def bearer(token: str) -> tuple[str, str]:
    """The metadata entry that carries a token."""
    return HEADER, _SCHEME + token


def make_token() -> str:
    """A new secret of 256 bits."""
    return secrets.token_urlsafe(32)


def ensure_token(path: Path) -> str:
    """Read the token at `path`, or make one: mode 0600, whole or not at all, also when two do it at once."""
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        fresh = path.with_name(f".{path.name}.{os.getpid()}.{secrets.token_hex(4)}")
        descriptor = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            with os.fdopen(descriptor, "w") as file:
                file.write(make_token() + "\n")
                file.flush()
                os.fsync(file.fileno())
            with suppress(FileExistsError):  # another process was first: its token counts
                os.link(fresh, path)
        finally:
            fresh.unlink()
    return read_token(path)


def read_token(path: Path) -> str:
    """The token in a file. Raises InvalidRequest when it is missing, empty, or readable by others."""
    try:
        mode = path.stat().st_mode
        token = path.read_text(encoding="ascii").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidRequest(
            f"cannot read the token file {path}: {error}",
            hint="copy it from the scheduler's state folder, or name another with --token-file",
            path=str(path),
        ) from error
    if mode & 0o077:
        raise InvalidRequest(
            f"the token file {path} can be read by others (mode {mode & 0o777:04o})",
            hint=f"chmod 600 {path}",
            path=str(path),
        )
    if not 20 <= len(token) <= _TOKEN_CHARACTERS_MAX or not token.isprintable():
        raise InvalidRequest(
            f"the token file {path} does not hold a token ({len(token)} characters)",
            hint="remove it and start the scheduler again: it makes a new one",
            path=str(path),
        )
    return token
