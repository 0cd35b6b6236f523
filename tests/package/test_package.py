"""The package is the checkout: pyproject.toml lists the folders there are; a wheel carries all of them."""

import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
ROOMS = ("spec", "proto", "studies", "content", "serving", "scheduler", "agent", "training", "client")


def project() -> dict:
    return tomllib.loads((ROOT / "pyproject.toml").read_text())


def package_folders() -> dict[str, str]:
    """Dotted name -> folder of everything that is a package of ours."""
    found = {"paceline": "."}
    for room in ROOMS:
        for init in sorted((ROOT / room).rglob("__init__.py")):
            folder = init.parent.relative_to(ROOT)
            found["paceline." + ".".join(folder.parts)] = str(folder)
    return found


def test_listed_packages_are_the_folders() -> None:
    setuptools = project()["tool"]["setuptools"]
    assert sorted(setuptools["packages"]) == sorted(package_folders())
    assert setuptools["package-dir"] == package_folders()


def test_typings_lead_to_every_room() -> None:
    links = {link.name: link.resolve() for link in (ROOT / "typings" / "paceline").iterdir()}
    assert links == {name: ROOT / name for name in (*ROOMS, "__init__.py")}


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from a copy, so that the checkout stays clean and tests in parallel do not meet."""
    copy = tmp_path_factory.mktemp("source") / "paceline"
    files = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, check=True, capture_output=True).stdout
    for name in filter(None, files.decode().split("\0")):
        source = ROOT / name
        if source.is_file() and not name.startswith(("typings/", "tests/")):
            (copy / name).parent.mkdir(parents=True, exist_ok=True)
            (copy / name).write_bytes(source.read_bytes())
    out = copy.parent / "dist"
    subprocess.run(
        [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(out), str(copy)],
        check=True,
        capture_output=True,
    )
    return next(out.glob("*.whl"))


def test_wheel_holds_every_module_and_nothing_else(wheel: Path) -> None:
    names = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    modules = {
        "paceline/" + str(path.relative_to(ROOT)).removeprefix("./")
        for room in ROOMS
        for path in (ROOT / room).rglob("*.py")
        if subprocess.run(
            ["git", "ls-files", "--error-unmatch", str(path)], cwd=ROOT, capture_output=True, check=False
        ).returncode
        == 0
    }
    assert modules <= names
    assert {name for name in names if name.endswith(".py")} == modules | {"paceline/__init__.py"}


def test_wheel_needs_no_torch_without_the_extra(wheel: Path) -> None:
    archive = zipfile.ZipFile(wheel)
    metadata = archive.read(next(n for n in archive.namelist() if n.endswith("/METADATA"))).decode()
    plain = [
        line for line in metadata.splitlines() if line.startswith("Requires-Dist:") and "extra ==" not in line
    ]
    assert plain
    assert not [line for line in plain if "torch" in line or "numpy" in line]


@pytest.mark.parametrize(
    "room",
    [
        "spec",
        "proto.generated",
        "client.cli.main",
        "client.sdk",
        "agent.main",
        "scheduler.main",
        "serving.server",
    ],
)
def test_nothing_outside_training_imports_torch(room: str) -> None:
    code = (
        "import sys, importlib, paceline\n"
        f"importlib.import_module('paceline.{room}')\n"
        "sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], cwd="/", check=False).returncode == 0
