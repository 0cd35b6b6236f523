"""Requirements that stand in files: read where the job is submitted, so that its document has the lines."""

from functools import partial
from pathlib import Path

from ..spec.errors import InvalidRequest
from ..spec.parts import Environment, EnvironmentValue
from ..spec.requirement_files import Wanted, read_conda, read_requirements
from ..spec.submission import absolute

_BYTES_MAX = 1 << 20


def read_environment(environment: EnvironmentValue, folder: str) -> EnvironmentValue:
    """The same with the lines in the files' stead; relative paths are below `folder`. Raises InvalidDocument,
    InvalidRequest."""
    if not isinstance(environment, Environment) or not environment.is_unread:
        return environment
    if environment.conda_file is None:
        path = absolute(folder, str(environment.requirements))
        lines = read_requirements(path, partial(_read, "environment.requirements"))
        return environment.model_copy(update={"requirements": lines})
    conda = environment.conda_file
    where = absolute(folder, conda) if isinstance(conda, str) else conda
    wanted: Wanted = read_conda(where, partial(_read, "environment.conda_file"))
    changes = {
        "conda_file": None,
        "requirements": wanted.lines,
        "python_version": environment.python_version or wanted.python_version,
    }
    return environment.model_copy(update=changes)


def _read(key: str, path: str) -> str:
    try:
        with Path(path).open("rb") as file:
            data = file.read(_BYTES_MAX + 1)
        if len(data) > _BYTES_MAX:
            raise InvalidRequest(f"{key}: {path} has more than {_BYTES_MAX} bytes")
        return data.decode()
    except (OSError, ValueError) as error:
        why = getattr(error, "strerror", None) or error
        raise InvalidRequest(f"{key}: cannot read {path}: {why}") from None
