"""A sweep's sampler: `python -P -m paceline.scheduler.sweeps.sampler_process`, a child of the scheduler.

It alone imports Optuna. It answers questions on stdin, one after the other, and ends with its stdin. What it
suggests follows from the document, the trial's number and what was told before the question, and from nothing
else: each trial has a sampler of its own, seeded by the sweep's seed and its number. So a process that was
made anew from the store goes on as the one before would have, and one may be begun with sweep after sweep.
"""

import os
import sys
import warnings
from typing import BinaryIO, Final

from .talk import LENGTH_BYTES, Begin, Failed, Question, decode_question, framed

_NICE: Final = 5


def main() -> None:
    os.nice(_NICE)
    # What libraries print must not get between the answers.
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "wb")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    warnings.simplefilter("ignore")
    study = None
    while (asked := _read(sys.stdin.buffer)) is not None:
        try:
            if isinstance(asked, Begin):
                study = None  # of the sweep before
                answer, study = _begin(asked)
            else:
                assert study is not None
                answer = study.answer(asked)
        except Exception as error:  # noqa: BLE001 - it goes to whoever asked, and this process ends
            answer = Failed(f"{type(error).__name__}: {error}")
        answers.write(framed(answer))
        answers.flush()
        if isinstance(answer, Failed):
            return


def _begin(asked: Begin):  # type: ignore[no-untyped-def]
    try:
        from .mirror import Mirror
    except ModuleNotFoundError as error:
        hint = "pip install 'paceline[sweeps]' where the scheduler runs"
        return Failed(f"sweeps need {error.name}, which is not installed", hint), None
    return Mirror.begin(asked)


def _read(stdin: BinaryIO) -> Question | None:
    head = stdin.read(LENGTH_BYTES)
    body = stdin.read(int.from_bytes(head, "big"))
    if len(head) < LENGTH_BYTES or not body:
        return None
    question: Question = decode_question(body)
    return question


if __name__ == "__main__":
    main()
