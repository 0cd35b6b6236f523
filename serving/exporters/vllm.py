"""The vLLM command for a Hugging Face folder: what is not said, vLLM takes from the folder's own files.
https://docs.vllm.ai/en/latest/cli/serve.html
"""

import json
import shlex
from pathlib import Path
from typing import Any, Final

from ...spec.errors import InvalidRequest
from .base import Exported, Wish

FILE: Final = "serve.sh"
_CONFIG: Final = "config.json"
_CONFIG_BYTES_MAX: Final = 1 << 20


def is_hugging_face(folder: Path) -> bool:
    """Whether transformers wrote it."""
    return "model_type" in _config(folder)


def export(wish: Wish) -> Exported:
    """Write the command as a shell script. Raises InvalidRequest for what vLLM could not load."""
    folder = wish.folder.path
    config = _config(folder)
    if not config.get("architectures"):
        raise InvalidRequest(f"{folder} is no Hugging Face model: its {_CONFIG} names no architectures")
    if not any(folder.glob("tokenizer*")):
        raise InvalidRequest(f"{folder} has no tokenizer, without which vLLM takes no text")
    if "auto_map" in config:
        raise InvalidRequest(f"{folder} wants code of its own (auto_map in {_CONFIG}), which is not trusted")
    if not any(folder.glob("*.safetensors")):
        raise InvalidRequest(f"{folder} has no weights as safetensors; pickled ones are not taken")
    command = ["vllm", "serve", str(folder), "--served-model-name", wish.name, "--load-format", "safetensors"]
    wish.into.mkdir(parents=True, exist_ok=True)
    path = wish.into / FILE
    path.write_text(f'#!/bin/sh\nexec {shlex.join(command)} --host 127.0.0.1 "$@"\n')
    path.chmod(0o755)
    return Exported((path,), (f"{path} --port 8000",))


def _config(folder: Path) -> dict[str, Any]:
    file = folder / _CONFIG
    try:
        if not file.is_file() or file.stat().st_size > _CONFIG_BYTES_MAX:
            return {}
        found = json.loads(file.read_bytes())
    except (OSError, ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}
