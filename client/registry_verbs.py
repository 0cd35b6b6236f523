"""The clients' verbs on data, models and the lineage: blocking and asyncio."""

import os
from abc import abstractmethod
from collections.abc import AsyncIterator, Iterator
from typing import Any, TypeVar

from ..spec.ids import JobId
from . import calls, registry_calls, rpc
from .asset_files import downloaded, ready
from .conversion import Conversion, converted
from .mlflow_folder import as_mlflow
from .packing import Calling
from .ran_with import Difference, RanWith, differences, ran_with
from .registry_calls import About
from .registry_views import Asset, AssetName, AssetSource, Lineage
from .reproducing import Reproduction, reproduced
from .views import Job

T = TypeVar("T")


class RegistryVerbs:
    """Of the blocking client."""

    def register(self, kind: str, name: str, source: AssetSource, **about: Any) -> Asset:
        """Register a version of `data` or of a `model` (`kind`), with all of its bytes. `about`: the
        fields of registry_calls.About. Raises Conflict when that version was ever given;
        NotFound, InvalidRequest."""
        found = self._drive(ready(source))
        return self._call(_register(kind, name, found, about))

    def asset(self, kind: str, reference: str) -> tuple[Asset, AssetName]:
        """A version by NAME:VERSION, NAME@ALIAS or NAME (its latest), and its name's aliases. Raises
        NotFound."""
        return self._call(registry_calls.asset(kind, reference))

    def assets(self, kind: str, name: str = "", *, deleted: bool = False) -> Iterator[Asset]:
        """The latest of each name, or all versions of one, the newest first; `deleted`: those, too."""
        after = ""
        while True:
            some, after = self._call(
                registry_calls.page(kind, name, limit=calls.PAGE, after=after, deleted=deleted)
            )
            yield from some
            if not after:
                return

    def download(self, kind: str, reference: str, to: str | os.PathLike[str]) -> Asset:
        """Write a version's files into the folder `to`, which must not exist; each is verified. Raises
        NotFound, Conflict, StoreFailure."""
        found = self.asset(kind, reference)[0]
        self._drive(downloaded(found, to))
        return found

    def download_mlflow(self, reference: str, to: str | os.PathLike[str]) -> Asset:
        """As `download` of a model, as a folder that MLflow reads."""
        found = self.asset("model", reference)[0]
        self._drive(as_mlflow(found, to))
        return found

    def set_alias(self, kind: str, name: str, alias: str, to: str, *, before: str | None = None) -> AssetName:
        """Have an alias lead to a version (or to that of an @ALIAS; empty: nowhere any more), if it leads to
        `before` now. Raises Conflict where it does not."""
        return self._call(_set_alias(kind, name, alias, to, before))

    def delete_asset(self, kind: str, name: str, version: str) -> Asset:
        """Its version is never given again. Raises Conflict while an alias or a deployment uses it."""
        return self._call(registry_calls.delete(kind, name, version, user=rpc.user_name()))

    def lineage(self, reference: str, *, depth: int = 0) -> Lineage:
        """What something was made of, and what was made of it; 0: 20 edges away at most. Raises NotFound."""
        return self._call(registry_calls.lineage(reference, depth))

    def reproduce(self, job: int, *, dry_run: bool = False) -> Reproduction:
        """Run a job again from its recorded code, data, parameters and environment; and what could not be the
        same. Raises NotFound, Conflict where something that it needs is gone."""
        return self._drive(reproduced(job, dry_run=dry_run))

    def ran_with(self, job: int | Job, *, attempt: int = 0) -> tuple[RanWith, ...]:
        """What an attempt (0: the last) really ran with, for each of its nodes; empty: that is not recorded.
        Raises NotFound."""
        return self._drive(ran_with(job, attempt))

    def differences(self, job: int, against: int) -> Difference:
        """How what `job` ran with differs from what `against` did. Raises NotFound."""
        return self._drive(differences(job, against))

    def convert(self, job: int, step: int, asked: Conversion) -> JobId:
        """Submit a job that makes a model folder, its output `model`, of a checkpoint of `job` (step 0: its
        newest good one). Raises NotFound, InvalidRequest."""
        return self._drive(converted(job, step, asked))

    @abstractmethod
    def _call(self, call: rpc.Call[T]) -> T: ...

    @abstractmethod
    def _drive(self, calling: Calling[T]) -> T: ...


class AsyncRegistryVerbs:
    """Of the asyncio client."""

    async def register(self, kind: str, name: str, source: AssetSource, **about: Any) -> Asset:
        """Register a version; see Client.register."""
        found = await self._drive(ready(source))
        return await self._call(_register(kind, name, found, about))

    async def asset(self, kind: str, reference: str) -> tuple[Asset, AssetName]:
        """A version, and its name's aliases."""
        return await self._call(registry_calls.asset(kind, reference))

    async def assets(self, kind: str, name: str = "", *, deleted: bool = False) -> AsyncIterator[Asset]:
        """The latest of each name, or all versions of one."""
        after = ""
        while True:
            some, after = await self._call(
                registry_calls.page(kind, name, limit=calls.PAGE, after=after, deleted=deleted)
            )
            for one in some:
                yield one
            if not after:
                return

    async def download(self, kind: str, reference: str, to: str | os.PathLike[str]) -> Asset:
        """Write a version's files into a folder; see Client.download."""
        found = (await self.asset(kind, reference))[0]
        await self._drive(downloaded(found, to))
        return found

    async def download_mlflow(self, reference: str, to: str | os.PathLike[str]) -> Asset:
        """As `download` of a model, as a folder that MLflow reads."""
        found = (await self.asset("model", reference))[0]
        await self._drive(as_mlflow(found, to))
        return found

    async def set_alias(
        self, kind: str, name: str, alias: str, to: str, *, before: str | None = None
    ) -> AssetName:
        """Have an alias lead elsewhere; see Client.set_alias."""
        return await self._call(_set_alias(kind, name, alias, to, before))

    async def delete_asset(self, kind: str, name: str, version: str) -> Asset:
        """Its version is never given again."""
        return await self._call(registry_calls.delete(kind, name, version, user=rpc.user_name()))

    async def lineage(self, reference: str, *, depth: int = 0) -> Lineage:
        """What something was made of, and what was made of it."""
        return await self._call(registry_calls.lineage(reference, depth))

    async def reproduce(self, job: int, *, dry_run: bool = False) -> Reproduction:
        """Run a job again; see Client.reproduce."""
        return await self._drive(reproduced(job, dry_run=dry_run))

    async def ran_with(self, job: int | Job, *, attempt: int = 0) -> tuple[RanWith, ...]:
        """What an attempt really ran with; see Client.ran_with."""
        return await self._drive(ran_with(job, attempt))

    async def differences(self, job: int, against: int) -> Difference:
        """How what two jobs ran with differs; see Client.differences."""
        return await self._drive(differences(job, against))

    async def convert(self, job: int, step: int, asked: Conversion) -> JobId:
        """Submit a job that makes a model folder of a checkpoint; see Client.convert."""
        return await self._drive(converted(job, step, asked))

    @abstractmethod
    async def _call(self, call: rpc.Call[T]) -> T: ...

    @abstractmethod
    async def _drive(self, calling: Calling[T]) -> T: ...


def _register(kind: str, name: str, source: registry_calls.Ready, about: dict[str, Any]) -> rpc.Call[Asset]:
    return registry_calls.register(
        kind, name, source, About(**about), key=rpc.new_key(), user=rpc.user_name()
    )


def _set_alias(kind: str, name: str, alias: str, to: str, before: str | None) -> rpc.Call[AssetName]:
    return registry_calls.set_alias(kind, name, alias, to, before, key=rpc.new_key(), user=rpc.user_name())
