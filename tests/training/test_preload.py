"""A restarted rank imports nothing: what a run uses is what the warm process has loaded."""

import importlib
from pathlib import Path

from paceline.training.preload import MODULES
from support import rank_scripts
from support.ranks import RankPool


def test_a_run_imports_nothing_that_was_not_preloaded(ranks: RankPool, tmp_path: Path) -> None:
    """The ranks here are forked from a process that has imported `MODULES`, as the zygote's are."""
    for imported in ranks.run(rank_scripts.modules_imported_by_a_run, tmp_path / "c", folder=tmp_path):
        assert imported == []


def test_every_name_can_be_imported() -> None:
    for name in MODULES:
        assert importlib.import_module(name) is not None
