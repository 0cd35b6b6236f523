"""Wheels without content, made here: for environments that are built without a network."""

import py_compile
import zipfile
from pathlib import Path


def make_wheel(folder: Path, name: str, version: str, source: str = "") -> Path:
    """NAME-VERSION with one module of that name."""
    folder.mkdir(exist_ok=True)
    info = f"{name}-{version}.dist-info"
    path = folder / f"{name}-{version}-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as wheel:
        wheel.writestr(f"{name}.py", source or f"VERSION = {version!r}\n")
        wheel.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
        wheel.writestr(
            f"{info}/WHEEL", "Wheel-Version: 1.0\nGenerator: x\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        wheel.writestr(f"{info}/RECORD", "")
    return path


def unpack_into(venv: Path, wheel: Path) -> None:
    """As an installation leaves it, with byte code: that of another version, as long and of the same second,
    would be taken for this one's."""
    [packages] = venv.glob("lib/python3*/site-packages")
    with zipfile.ZipFile(wheel) as source:
        source.extractall(packages)
        for name in source.namelist():
            if name.endswith(".py"):
                py_compile.compile(str(packages / name), doraise=True)
