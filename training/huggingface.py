"""Hugging Face's Trainer with Paceline's checkpoints: what it writes is hashed, published and fenced.

    callback = PacelineCallback()
    trainer = Trainer(..., callbacks=[callback])
    trainer.train(resume_from_checkpoint=callback.restore())

When to save is the Trainer's (`save_steps`), and so are its files; they are copied into memory and published
from there, so `output_dir` may be a folder of the node's own, and what lies in it is never restored from.
"""

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from .attached import Files
from .run import init


class PacelineCallback(TrainerCallback):
    """Make it after the `TrainingArguments`: they join the ranks. All ranks have one."""

    def __init__(self) -> None:
        self._run = init()
        self._restored: tempfile.TemporaryDirectory[str] | None = None

    def restore(self) -> str | None:
        """The newest good checkpoint, as a folder for `resume_from_checkpoint`; None when there is none."""
        self._restored = tempfile.TemporaryDirectory(prefix="paceline-restored-")
        folder = Path(self._restored.name) / "checkpoint"
        return str(folder) if self._run.restore(trainer=Files(folder)) is not None else None

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        if self._run.should_stop():
            control.should_save = control.should_training_stop = True

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: Mapping[str, Any] | None = None,
        **_: Any,
    ) -> None:
        values = {name: value for name, value in (logs or {}).items() if isinstance(value, int | float)}
        self._run.total_steps = max(0, state.max_steps)
        self._run.report(state.global_step, **values)

    def on_save(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        folder = Path(args.output_dir) / f"checkpoint-{state.global_step}"
        self._run.save(state.global_step, trainer=Files(folder, _own(folder, args)))

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        self._run.flush()


def _own(folder: Path, args: TrainingArguments) -> list[str]:
    """Each process has its generators; rank 0 the rest, beside which the others' may lie already."""
    generators = f"rng_state_{args.process_index}.pth"
    if args.process_index != 0:
        return [generators]
    names = [path.name for path in folder.iterdir()]
    return [name for name in names if not name.startswith("rng_state_") or name == generators]
