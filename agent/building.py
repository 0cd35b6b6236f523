"""Builds one virtual environment, in a process of its own: `python -m paceline.agent.building FOLDER LOCK`.

It outlives an agent that ends meanwhile. LOCK is the descriptor of the folder's lock; whatever it starts has
it, too, so that nobody else builds here until all of them have ended. The output is the build's log.

    asked.json   what to build (Asked)
    venv/        the environment
    built.json   what it is; there when it is whole, and only then. Its time is that of the last use
"""

import json
import os
import shlex
import subprocess
import sys
import time
from pathlib import Path
from typing import Any


def main(folder: Path, lock: int) -> int:
    asked = json.loads((folder / "asked.json").read_bytes())
    begun = time.monotonic()
    lines = folder / "requirements.txt"
    lines.write_text("".join(f"{line}\n" for line in asked["requirements"]))
    venv, uv = folder / "venv", asked["uv"]
    python = str(venv / "bin" / "python")
    base = asked["python"]
    if uv:
        made = [uv, "venv", "--python", base, str(venv)]
        pip = [uv, "pip", "install", "--python", python]
    elif _has_pip(base):  # it is quicker than one of the environment's own
        made = [base, "-m", "venv", "--without-pip", str(venv)]
        pip = [base, "-m", "pip", "--python", python, "install"]
    else:
        made, pip = [base, "-m", "venv", str(venv)], [python, "-m", "pip", "install"]
    for step in [made, [*pip, "-r", str(lines)]] if asked["requirements"] else [made]:
        sys.stdout.write(f"$ {shlex.join(step)}\n")
        sys.stdout.flush()
        code = subprocess.run(
            step, stdin=subprocess.DEVNULL, pass_fds=[lock], cwd=folder, check=False
        ).returncode
        if code != 0:
            return code if code > 0 else 128 - code
    _link_ours(python, asked["ours"])
    said = {"seconds": time.monotonic() - begun, "bytes": _size(venv), "by": "uv" if uv else "pip"}
    _write(folder / "built.json", said)
    return 0


def _has_pip(python: str) -> bool:
    found = subprocess.run(
        [python, "-c", "import pip; print(pip.__version__)"], capture_output=True, text=True, check=False
    ).stdout.split(".")
    return found[0].isdigit() and int(found[0]) >= 23  # takes --python


def _link_ours(python: str, ours: str) -> None:
    """What starts ranks comes from the agent, unless the requirements have brought it."""
    code = "import sysconfig; print(sysconfig.get_path('purelib'))"
    found = subprocess.run([python, "-I", "-c", code], stdout=subprocess.PIPE, text=True, check=True)
    link = Path(found.stdout.strip(), "paceline")
    if not link.exists():
        link.symlink_to(ours)


def _size(folder: Path) -> int:
    found = (os.lstat(os.path.join(where, name)) for where, _, names in os.walk(folder) for name in names)  # noqa: PTH118
    return sum(each.st_blocks * 512 for each in found)


def _write(path: Path, said: dict[str, Any]) -> None:
    aside = path.with_suffix(".new")
    with aside.open("w") as file:
        json.dump(said, file)
        file.flush()
        os.fsync(file.fileno())
    aside.rename(path)


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), int(sys.argv[2])))
