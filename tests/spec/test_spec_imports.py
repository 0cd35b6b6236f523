"""What start-up pays: the vocabulary's base is free of pydantic and YAML, the documents of torch and grpc."""

import subprocess
import sys

import pytest


def imported(module: str) -> set[str]:
    code = f"import sys, {module}; print(' '.join(m.partition('.')[0] for m in sys.modules))"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    return set(run.stdout.split())


@pytest.mark.parametrize("name", ["", ".ids", ".errors", ".lifecycle", ".resources"])
def test_the_base_is_lean(name: str) -> None:
    assert not {"pydantic", "yaml", "grpc", "torch"} & imported(f"paceline.spec{name}")


def test_documents_need_neither_grpc_nor_torch() -> None:
    assert not {"grpc", "torch", "numpy", "sqlalchemy"} & imported("paceline.spec.job")
