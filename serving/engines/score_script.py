"""Azure's contract for a scoring script: `init()` once, then `run(raw_data)` for each request to POST /score.

`run` gets the body as text and returns what JSON can hold. AZUREML_MODEL_DIR names the model folder. The
script lies there; or, where the folder says so, below the working folder, from which it can import then, and
which is AML_APP_ROOT. With a signature, tensors are taken by the protocol, too: `run` then gets
`{"data": [...]}` for one input, and an object of the inputs' names for several, as scripts for Azure expect.
https://learn.microsoft.com/azure/machine-learning/how-to-deploy-online-endpoints
"""

import os
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

import msgspec
import numpy as np

from ...spec.errors import InvalidRequest
from ...spec.model_signature import FILES, ModelSignature
from .base import NUMPY, Answer, Array, Arrays, Folder, Loaded
from .entries import import_file

SCORE: Final = "/score"
_MODEL_DIR: Final = "AZUREML_MODEL_DIR"
_APP_ROOT: Final = "AML_APP_ROOT"


def load(folder: Folder) -> Loaded:
    """Import the script and call `init()`. Raises InvalidRequest for a script without `run`."""
    os.environ[_MODEL_DIR] = str(folder.path)
    signature = folder.signature
    if folder.script:
        root, file = Path.cwd(), folder.script
        os.environ[_APP_ROOT] = str(root)
        sys.path.insert(0, str(root))
        if signature is not None and signature.framework != "score":
            signature = None  # of what the script may use, not of its run()
    else:
        root, file = folder.path, signature.path if signature else FILES["score"]
    module = import_file(root, file)
    run = getattr(module, "run", None)
    if not callable(run):
        raise InvalidRequest(f"{root / file} has no function run()")
    if callable(init := getattr(module, "init", None)):
        init()
    return Loaded(
        platform="azureml_score",
        signature=signature,
        infer=_by_tensors(run, signature) if signature and signature.inputs else None,
        posts={SCORE: lambda body, _kind: _score(run, body)},
        gets={"/": "Healthy"},
    )


def _score(run: Callable[[str], Any], body: bytes) -> Answer:
    try:
        text = body.decode()
    except UnicodeDecodeError as error:
        raise InvalidRequest(f"expected text in UTF-8; {error}") from error
    return Answer(msgspec.json.encode(run(text), enc_hook=_plain))


def _plain(value: object) -> object:
    """What numpy has is told as numbers and lists."""
    if isinstance(value, np.ndarray | np.generic):
        return value.tolist()
    raise TypeError(f"run() gave a {type(value).__name__}; expected what JSON can hold")


def _by_tensors(run: Callable[[str], Any], signature: ModelSignature) -> Callable[[Arrays], Arrays]:
    """The protocol's inference through `run`."""

    def infer(inputs: Arrays) -> Arrays:
        given = {name: array.tolist() for name, array in inputs.items()}
        if len(given) == 1:
            given = {"data": next(iter(given.values()))}
        return _outputs(run(msgspec.json.encode(given).decode()), signature)

    return infer


def _outputs(made: Any, signature: ModelSignature) -> Arrays:
    """By name from a mapping, or else in order: the one there is, or a list of several."""
    if isinstance(made, str):  # a script that has made its JSON itself
        made = msgspec.json.decode(made)
    wanted = signature.outputs
    if not isinstance(made, Mapping):
        made = dict(zip([one.name for one in wanted], [made] if len(wanted) == 1 else made, strict=True))
    missing = [one.name for one in wanted if one.name not in made]
    if missing:
        raise RuntimeError(f"run() gave {sorted(made)}; the signature has {missing[0]!r}, too")
    return {one.name: _array(made[one.name], one.datatype) for one in wanted}


def _array(value: Any, datatype: str) -> Array:
    return np.asarray(value, dtype=NUMPY[datatype])
