"""A checkpoint made a model folder by a job, which is forked from it and has the code of the job that saved.

Nothing of the checkpoint is read anywhere else. The job's output `model` can be registered when it has
succeeded.
"""

import json
import shlex
from dataclasses import dataclass
from typing import Any, Final

from ..spec.errors import InvalidRequest, NotFound
from ..spec.ids import JobId
from ..spec.job import job_from_data
from . import calls, rpc, views
from .packing import Calling

SAFETENSORS, TORCH_EXPORT = "safetensors", "torch-export"
FORMS: Final = (SAFETENSORS, TORCH_EXPORT)
OUTPUT: Final = "model"
EXAMPLE_CHARS_MAX: Final = 64 << 10
_KEPT: Final = (
    "code",
    "code_tree",
    "code_git",
    "code_in_place",
    "environment",
    "environment_variables",
    "compute",
    "queue",
)
"""Of the document of the job that saved: where its code can run."""


@dataclass(frozen=True, slots=True)
class Conversion:
    """What a checkpoint is to become."""

    form: str
    """One of FORMS."""
    entry: str = ""
    """`FILE.py:FUNCTION` in the job's code, which makes the module; safetensors without are weights alone."""
    example: str = ""
    """JSON of what the module takes: nested lists of numbers, or these by the names of its parameters."""
    of: str = "model"
    """The name under which `run.save` was given it."""


def converted(job: int, step: int, asked: Conversion) -> Calling[JobId]:
    """Submit the job that converts; step 0: the newest good checkpoint. Raises NotFound, InvalidRequest."""
    _check(asked)
    parent: views.Job = yield calls.job(job)
    if not step:
        found = yield calls.checkpoints(job)
        good = [one.step for one in found if one.state == "good" and one.job is None]
        if not good:
            raise NotFound(f"job {job} has no good checkpoint", job=job)
        step = max(good)
    spec, _ = job_from_data(_document(parent, asked), "the conversion")
    sent = rpc.Sent(spec.to_json(), "the conversion")
    made = yield calls.fork(job, step, sent, key=rpc.new_key(), user=rpc.user_name())
    return JobId(made[0])


def _check(asked: Conversion) -> None:
    if asked.form not in FORMS:
        raise InvalidRequest(f"there is no form {asked.form!r}; expected {' or '.join(FORMS)}")
    lacking = [name for name in ("entry", "example") if not getattr(asked, name)]
    if lacking and (asked.form == TORCH_EXPORT or len(lacking) == 1):
        raise InvalidRequest(
            f"{asked.form} needs an {' and an '.join(lacking)}",
            hint="the entry is FILE.py:FUNCTION of the job's code and makes the module; the example is what"
            " that takes, as JSON" + ("; safetensors do without both" if asked.form == SAFETENSORS else ""),
        )
    if len(asked.example) > EXAMPLE_CHARS_MAX:
        raise InvalidRequest(f"an example of {len(asked.example)} characters; at most {EXAMPLE_CHARS_MAX}")
    if asked.example:
        try:
            json.loads(asked.example)
        except (ValueError, RecursionError) as error:
            raise InvalidRequest(f"the example is no JSON: {error}") from None


def _document(parent: views.Job, asked: Conversion) -> dict[str, Any]:
    said = json.loads(parent.document)
    words = ["python", "-m", "paceline.training.model_conversion", "--as", asked.form, "--of", asked.of]
    for option, value in (("--entry", asked.entry), ("--example", asked.example)):
        words += [option, value] if value else []
    return {
        **{key: said[key] for key in _KEPT if key in said},
        "name": f"convert-{parent.name}"[:255],
        "command": f"{shlex.join(words)} ${{{{outputs.{OUTPUT}}}}}",
        "outputs": {OUTPUT: {"type": "custom_model"}},
        "resources": {"cpus": 1},
    }
