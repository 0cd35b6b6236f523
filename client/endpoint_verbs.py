"""The clients' verbs on endpoints: blocking and asyncio, on the transports of sdk.py and aio.py."""

import os
from abc import abstractmethod
from collections.abc import AsyncIterator, Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, TypeVar

from ..spec.deployment import DeploymentSpec
from ..spec.deployment_reading import deployment_from_data, parse_deployment
from ..spec.errors import InvalidRequest
from ..spec.problems import nearest
from . import calls, endpoint_calls, rpc
from .documents import read_job_file
from .endpoint_views import Endpoint
from .environment_files import read_environment
from .packing import Calling, pack, uploaded
from .settings import Settings

T = TypeVar("T")

DeploymentSource = str | os.PathLike[str] | Mapping[str, Any] | DeploymentSpec
"""A file's path, a mapping as in a file, or a DeploymentSpec."""
NO_COPIES: Final[Mapping[str, int]] = {}


class EndpointVerbs:
    """Of the blocking client."""

    settings: Settings

    def deploy(self, deployment: DeploymentSource, *, overrides: Sequence[str] = ()) -> Endpoint:
        """Have a model answer under an endpoint's name: a new endpoint, a further deployment of it, or the
        next revision of one. Returns at once; `watch_endpoint` shows how it goes. Raises InvalidDocument,
        NotFound, Conflict."""
        return self._drive(_deployed(deployment, overrides, self.settings))

    def endpoint(self, name: str) -> Endpoint:
        """All about one endpoint. Raises NotFound."""
        return self._call(endpoint_calls.endpoint(name))

    def endpoints(self) -> tuple[Endpoint, ...]:
        """All, by name."""
        found, cursor = self._call(endpoint_calls.page(""))
        while cursor:
            more, cursor = self._call(endpoint_calls.page(cursor))
            found += more
        return found

    def set_traffic(
        self, name: str, traffic: Mapping[str, int], *, mirror: Mapping[str, int] = NO_COPIES
    ) -> Endpoint:
        """Percent of the requests that each deployment gets, 100 together; and that are copied to one. Raises
        NotFound, Conflict for one that was never ready, InvalidRequest."""
        return self._call(endpoint_calls.set_traffic(name, traffic, mirror))

    def rollback(self, name: str) -> Endpoint:
        """Back to what the endpoint was before somebody changed it last. Raises NotFound, Conflict."""
        return self._call(endpoint_calls.rollback(name))

    def undeploy(self, name: str, deployment: str = "") -> Endpoint:
        """End a deployment that has no traffic, or (empty) the endpoint. Raises NotFound, Conflict."""
        return self._call(endpoint_calls.delete(name, deployment))

    def watch_endpoint(self, name: str) -> Iterator[Endpoint]:
        """The endpoint as it stands, and again when that has changed, until it is gone."""
        return self._stream(endpoint_calls.EndpointCursor(name))

    @abstractmethod
    def _call(self, call: rpc.Call[T]) -> T: ...

    @abstractmethod
    def _drive(self, calling: Calling[T]) -> T: ...

    @abstractmethod
    def _stream(self, cursor: calls.Cursor) -> Iterator[Any]: ...


class AsyncEndpointVerbs:
    """Of the asyncio client."""

    settings: Settings

    async def deploy(self, deployment: DeploymentSource, *, overrides: Sequence[str] = ()) -> Endpoint:
        """Have a model answer under an endpoint's name; see Client.deploy."""
        return await self._drive(_deployed(deployment, overrides, self.settings))

    async def endpoint(self, name: str) -> Endpoint:
        """All about one endpoint."""
        return await self._call(endpoint_calls.endpoint(name))

    async def endpoints(self) -> tuple[Endpoint, ...]:
        """All, by name."""
        found, cursor = await self._call(endpoint_calls.page(""))
        while cursor:
            more, cursor = await self._call(endpoint_calls.page(cursor))
            found += more
        return found

    async def set_traffic(
        self, name: str, traffic: Mapping[str, int], *, mirror: Mapping[str, int] = NO_COPIES
    ) -> Endpoint:
        """Shares of the requests, and of copies; see Client.set_traffic."""
        return await self._call(endpoint_calls.set_traffic(name, traffic, mirror))

    async def rollback(self, name: str) -> Endpoint:
        """Back to what it was before; see Client.rollback."""
        return await self._call(endpoint_calls.rollback(name))

    async def undeploy(self, name: str, deployment: str = "") -> Endpoint:
        """End a deployment, or the endpoint."""
        return await self._call(endpoint_calls.delete(name, deployment))

    def watch_endpoint(self, name: str) -> AsyncIterator[Endpoint]:
        """The endpoint as it stands, and again when that has changed, until it is gone."""
        return self._stream(endpoint_calls.EndpointCursor(name))

    @abstractmethod
    async def _call(self, call: rpc.Call[T]) -> T: ...

    @abstractmethod
    async def _drive(self, calling: Calling[T]) -> T: ...

    @abstractmethod
    def _stream(self, cursor: calls.Cursor) -> AsyncIterator[Any]: ...


def read_deployment(source: DeploymentSource, overrides: Sequence[str] = ()) -> tuple[DeploymentSpec, str]:
    """Checked, its paths absolute; and its name in messages. Raises InvalidDocument, InvalidRequest."""
    if isinstance(source, DeploymentSpec):
        return _rooted(source, str(Path.cwd())), "deployment"
    if isinstance(source, Mapping):
        return _rooted(deployment_from_data(dict(source)), str(Path.cwd())), "deployment"
    path = Path(source)
    spec = parse_deployment(read_job_file(path), str(path), overrides)
    return _rooted(spec, os.path.normpath(path.absolute().parent)), str(path)


def _rooted(spec: DeploymentSpec, folder: str) -> DeploymentSpec:
    environment = read_environment(spec.environment, folder)
    return spec.rooted(folder).model_copy(update={"environment": environment})


def _deployed(source: DeploymentSource, overrides: Sequence[str], settings: Settings) -> Calling[Endpoint]:
    spec, named = read_deployment(source, overrides)
    if spec.packs:
        code = pack(spec.packs, settings)
        _check_script(spec, {entry.path for entry in code.manifest.files})
        yield from uploaded(code)
        spec = spec.with_code(code.tree, code.git)
    found: Endpoint = yield endpoint_calls.deploy(rpc.Sent(spec.to_json(), named))
    return found


def _check_script(spec: DeploymentSpec, packed: Collection[str]) -> None:
    """Raises InvalidRequest where it is not in what was packed."""
    code = spec.code_configuration
    assert code is not None
    if code.scoring_script in packed:
        return
    if Path(code.code, code.scoring_script).exists():
        raise InvalidRequest(
            f"code_configuration.scoring_script: {code.scoring_script} is in {code.code}, but not packed",
            hint="a .gitignore, .amlignore or .paceignore leaves it out; or it is no file",
        )
    near = nearest(code.scoring_script, packed)
    meant = f"; did you mean {near!r}?" if near else ""
    raise InvalidRequest(
        f"code_configuration.scoring_script: there is no {code.scoring_script} in {code.code}{meant}",
        hint="scoring_script is below `code`, and `code` relative to the file",
    )
