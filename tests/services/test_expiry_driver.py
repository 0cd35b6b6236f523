"""What the scheduler takes for referred to: by jobs, sweeps, endpoints, versions and who submits just now."""

import json
import os
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from paceline.client.aio import AsyncClient
from paceline.client.registry_views import OfPath
from paceline.content.manifest import Entry, manifest_of
from paceline.content.store import ContentStore, content_folder
from paceline.proto.failures import translated
from paceline.scheduler import expiry_driver
from paceline.scheduler.expiry_driver import ExpiryDriver
from paceline.spec.errors import Conflict
from support.wire import Wire, wire

DAY_S = 86400.0


@dataclass
class Desk:
    wire: Wire
    client: AsyncClient
    store: ContentStore
    driver: ExpiryDriver

    def put(self, text: str) -> str:
        """A tree of one file."""
        data = text.encode()
        entry = Entry("main.py", len(data), 0o644, self.store.put_bytes(data))
        return self.store.commit(manifest_of([entry]).to_bytes())

    async def later(self, days: float) -> set[str]:
        """Which trees are there, when a round has been made after so long a time."""
        for path in self.store.root.rglob("*"):
            if path.is_file():
                os.utime(path, (0, path.stat().st_mtime - days * DAY_S))
        await self.driver.round()
        return {path.stem for path in self.store.trees.glob("*/*.json")}


@pytest.fixture
async def desk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Desk]:
    monkeypatch.setattr(expiry_driver, "PAUSE_S", 0.0)
    monkeypatch.setattr(expiry_driver, "DOCUMENTS_AT_ONCE", 2)
    async with (
        wire(tmp_path) as made,
        AsyncClient(made.made.address, token=made.made.tokens.client) as client,
    ):
        store = ContentStore(content_folder(made.config.storage_folder))
        driver = ExpiryDriver(made.made.loop, made.made.store, store)
        yield Desk(made, client, store, driver)


async def test_what_became_of_a_job_stays_and_an_upload_that_did_not_goes(desk: Desk) -> None:
    trees = [desk.put(f"print({number})") for number in range(5)]
    diff = desk.store.put_bytes(b"a diff")
    for tree in trees[:3]:
        await desk.wire.submit(code_tree=tree)
    await desk.wire.submit(code_tree=trees[3], code_git={"commit": "c", "diff": diff})
    assert await desk.later(1) == set(trees)
    assert await desk.later(9) == set(trees[:4])
    [job] = await desk.wire.submit(code_tree=trees[0])
    assert job == 5
    assert await desk.later(30) == set(trees[:4])
    assert desk.store.missing([diff]) == []


async def test_a_sweep_and_an_endpoint_count_before_they_have_jobs(desk: Desk) -> None:
    swept, deployed, neither = (desk.put(text) for text in ("sweep", "deploy", "neither"))
    sweep = {
        "type": "sweep",
        "trial": {"command": "true ${{search_space.x}}", "code": "/tmp", "code_tree": swept},
        "search_space": {"x": {"type": "choice", "values": [1, 2]}},
        "sampling_algorithm": "random",
        "objective": {"primary_metric": "loss", "goal": "minimize"},
        "limits": {"max_total_trials": 1},
    }
    await desk.client.submit_sweep(sweep)
    await desk.client.deploy(
        {
            "endpoint_name": "front",
            "model": "/models/m",
            "code_configuration": {"code": "/tmp", "scoring_script": "main.py", "code_tree": deployed},
        }
    )
    assert await desk.driver._of_others() >= {swept, deployed}
    assert await desk.later(1) == {swept, deployed, neither}
    assert await desk.later(9) == {swept, deployed}


async def test_a_version_stays_until_it_is_deleted_and_then_for_a_while(desk: Desk, tmp_path: Path) -> None:
    (tmp_path / "x.csv").write_text("1\n")
    (tmp_path / "y.csv").write_text("2\n")
    gone = (await desk.client.register("data", "d", OfPath(str(tmp_path / "x.csv")))).tree
    read = (await desk.client.register("data", "d", OfPath(str(tmp_path / "y.csv")))).tree
    assert await desk.later(30) == {gone, read}
    await desk.wire.submit(inputs={"x": {"path": "d:2"}})
    await desk.client.delete_asset("data", "d", "1")
    await desk.client.delete_asset("data", "d", "2")
    assert await desk.later(2) == {gone, read}
    assert await desk.later(8) == {read}, "what a job has read stays with the job"


async def test_code_that_is_gone_is_refused_when_it_is_submitted(desk: Desk) -> None:
    tree = desk.put("print()")
    await desk.later(0)
    assert await desk.later(9) == set()
    with pytest.raises(Conflict, match=rf"tree {tree[:12]}\) is not in the content store"), translated():
        await desk.wire.submit(code_tree=tree)
    assert desk.put("print()") == tree
    await desk.wire.submit(code_tree=tree)


async def test_who_submits_what_it_was_told_of_long_ago_has_it(desk: Desk) -> None:
    """The submit itself counts, even where no round has seen the job yet."""
    tree = desk.put("print()")
    await desk.later(0)
    for path in desk.store.root.rglob("*"):
        if path.is_file():
            os.utime(path, (0, path.stat().st_mtime - 20 * DAY_S))
    await desk.wire.submit(code_tree=tree)
    assert desk.store.tree_path(tree).stat().st_mtime > desk.store.root.stat().st_mtime - DAY_S
    assert await desk.later(0) == {tree}


def test_hashes_are_found_wherever_they_stand() -> None:
    tree = "0123456789abcdef" * 4
    record = json.dumps({"document": json.dumps({"code_tree": tree}), "n": "0" * 63})
    assert expiry_driver._hashes([record, ""]) == {tree}
