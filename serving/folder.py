"""A model folder: its signature is read, and an engine is chosen by what lies there."""

from dataclasses import dataclass
from pathlib import Path

from ..spec.errors import InvalidRequest, NotFound
from ..spec.model_signature import SIGNATURE_FILE, ModelSignature, parse_signature

_BY_FRAMEWORK = {"score": "score", "mlflow": "mlflow", "ray": "ray"}


@dataclass(frozen=True, slots=True)
class Folder:
    """A model's folder, and its signature where it has one."""

    path: Path
    signature: ModelSignature | None
    script: str = ""
    """Of a scoring script below the working folder; empty: what serves the model lies in its folder."""


def read_folder(path: Path, script: str = "") -> Folder:
    """Raises NotFound, InvalidDocument."""
    if not path.is_dir():
        raise NotFound(f"{path} is not a folder")
    file = path / SIGNATURE_FILE
    signature = parse_signature(file.read_bytes(), str(file)) if file.is_file() else None
    return Folder(path.resolve(), signature, script)


def choose_engine(folder: Folder) -> tuple[str, str]:
    """The engine for a folder, and why it is that one. Raises InvalidRequest."""
    if folder.script:
        return "score", f"its scoring script is {folder.script}"
    if folder.signature is not None:
        framework = folder.signature.framework
        return _BY_FRAMEWORK.get(framework, "torch"), f"{SIGNATURE_FILE} says {framework}"
    if (folder.path / "MLmodel").is_file():
        return "mlflow", "the folder has a file MLmodel"
    if (folder.path / "score.py").is_file():
        return "score", "the folder has a file score.py"
    found = ", ".join(sorted(entry.name for entry in folder.path.iterdir())[:10]) or "nothing"
    raise InvalidRequest(
        f"no engine fits {folder.path}: it has no {SIGNATURE_FILE}, MLmodel or score.py; found {found}",
        hint="paceline.save_model writes a folder that can be served",
    )
