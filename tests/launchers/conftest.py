"""DeepSpeed's operators, built once for all sessions of one checkout."""

from pathlib import Path

import pytest
from support.operators import build_operators


@pytest.fixture(scope="session")
def built_ops(request: pytest.FixtureRequest) -> Path:
    return build_operators(Path(request.config.cache.mkdir("deepspeed-operators")))
