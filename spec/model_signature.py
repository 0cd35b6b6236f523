"""`paceline-model.json`: what a model folder holds, what it takes and what it gives.

Names, data types and shapes are those of the Open Inference Protocol v2, so that the file is the model's
metadata on the wire, too. Pure: who reads or writes the file does so elsewhere.
"""

import json
from typing import Annotated, Any, Final, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator

from .document import plain_document
from .fields import PATH_CHARS_MAX, refusal
from .problems import InvalidDocument, Problem, escaped, shown
from .validation import problems_of

SIGNATURE_FILE: Final = "paceline-model.json"
SIGNATURE_BYTES_MAX: Final = 1 << 20
TENSORS_MAX: Final = 256
DIMENSIONS_MAX: Final = 32
NAME_CHARS_MAX: Final = 255

Datatype = Literal[
    "BOOL", "UINT8", "UINT16", "UINT32", "UINT64", "INT8", "INT16", "INT32", "INT64",
    "FP16", "FP32", "FP64", "BYTES"
]  # fmt: skip
Framework = Literal["torch.export", "torchscript", "safetensors", "state_dict", "score", "mlflow", "ray"]

FILES: Final[dict[Framework, str]] = {
    "torch.export": "model.pt2",
    "torchscript": "model.torchscript",
    "safetensors": "model.safetensors",
    "state_dict": "model.pt",
    "score": "score.py",
    "mlflow": "MLmodel",
    "ray": "",
}
"""Where each framework's model lies, unless `file` says otherwise."""
_WANTS_ENTRY: Final = ("safetensors", "state_dict", "ray")


def _inside(path: str) -> str:
    """A path below the model folder, as posix writes it: nothing that could lead out of it."""
    parts = path.split("/")
    if path and (
        len(path) > PATH_CHARS_MAX
        or "\\" in path
        or not path.isprintable()
        or any(part in ("", ".", "..") for part in parts)
    ):
        raise refusal(f"expected a relative path inside the model folder; found {shown(path)}")
    return path


def _entry(entry: str) -> str:
    file, _, name = entry.partition(":")
    if entry and (not file.endswith(".py") or not name.isidentifier()):
        raise refusal(f"expected FILE.py:NAME; found {shown(entry)}")
    _inside(file)
    return entry


def _name(name: str) -> str:
    if not name or len(name) > NAME_CHARS_MAX or not name.isprintable():
        raise refusal(f"expected a name of 1 to {NAME_CHARS_MAX} printable characters; found {shown(name)}")
    return name


def _dimension(size: int) -> int:
    if size < -1:
        raise refusal(f"expected a size, or -1 for any; found {size}")
    return size


Inside = Annotated[str, AfterValidator(_inside)]


class Tensor(BaseModel):
    """One input or output."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    name: Annotated[str, AfterValidator(_name)]
    datatype: Datatype
    shape: Annotated[
        tuple[Annotated[int, AfterValidator(_dimension)], ...], Field(strict=False, max_length=DIMENSIONS_MAX)
    ]
    """-1: any size."""


Tensors = Annotated[tuple[Tensor, ...], Field(strict=False, max_length=TENSORS_MAX)]


class ModelSignature(BaseModel):
    """What a model folder holds."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    framework: Framework
    inputs: Tensors = ()
    outputs: Tensors = ()
    file: Inside = ""
    """The model itself; empty: the framework's usual name."""
    entry: Annotated[str, AfterValidator(_entry)] = ""
    """`FILE.py:NAME` in the folder. For weights alone: what makes the module. For ray: the application."""
    example: Inside = ""
    """A file with an inference request, as JSON."""

    @property
    def path(self) -> str:
        """Of the model, inside the folder."""
        return self.file or FILES[self.framework]

    @model_validator(mode="after")
    def _fits(self) -> "ModelSignature":
        if self.framework in _WANTS_ENTRY and not self.entry:
            raise refusal(f"expected FILE.py:NAME, which {self.framework} needs; found none", "entry")
        for key, tensors in (("inputs", self.inputs), ("outputs", self.outputs)):
            names = [one.name for one in tensors]
            for at, name in enumerate(names):
                if name in names[:at]:
                    raise refusal(f"expected each name once; found {shown(name)} again", key, at, "name")
        return self

    def to_json(self) -> str:
        """As the file has it."""
        return json.dumps(self.model_dump(mode="json", exclude_defaults=True), indent=2) + "\n"


def parse_signature(text: str | bytes, source: str = SIGNATURE_FILE) -> ModelSignature:
    """The signature of a file's text. Raises InvalidDocument, with all that is wrong."""
    if len(text) > SIGNATURE_BYTES_MAX:
        raise InvalidDocument([_problem(source, f"{len(text)} bytes; it may have {SIGNATURE_BYTES_MAX}")])
    try:
        data: Any = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InvalidDocument([_problem(source, f"expected JSON; {error}")]) from error
    try:
        return ModelSignature.model_validate(data)
    except ValidationError as error:
        document = plain_document(data, source)
        raise InvalidDocument(problems_of(document, error, ModelSignature)) from error


def _problem(source: str, text: str) -> Problem:
    return Problem(escaped(source), 0, 0, "", text)
