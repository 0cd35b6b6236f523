"""Lightning's Trainer with Paceline's checkpoints: what it writes is hashed, published and fenced.

    callback = PacelineCallback(every_n_steps=100)
    trainer = Trainer(..., callbacks=[callback])
    trainer.fit(model, ckpt_path=callback.restore())

A checkpoint is Lightning's own single file, with its loops, optimizers and callbacks, written into memory and
published from there. Strategies that write folders (sharded ones) are refused.
"""

import signal
import tempfile
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.trainer.connectors.signal_connector import _HandlersCompose
from torch import distributed

from . import scratch
from .attached import Files
from .run import init
from .scratch import Scratch

_NAME = "lightning.ckpt"


class PacelineCallback(Callback):
    """All ranks have one. `every_n_steps` counts optimizer steps."""

    def __init__(self, every_n_steps: int = 100) -> None:
        self._run = init()
        self._every_n_steps = every_n_steps
        self._restored: tempfile.TemporaryDirectory[str] | None = None
        self._scratch: Scratch | None = None
        self._seen = 0

    def restore(self) -> str | None:
        """The newest good checkpoint, as a file for `ckpt_path`; None when there is none. Joins the ranks, as
        Lightning would a moment later.
        """
        if self._run.world_size > 1 and not distributed.is_initialized():
            distributed.init_process_group()
        self._restored = tempfile.TemporaryDirectory(prefix="paceline-restored-")
        folder = Path(self._restored.name) / "checkpoint"
        restored = self._run.restore(trainer=Files(folder))
        return str(folder / _NAME) if restored is not None else None

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self._scratch = self._scratch or Scratch()

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._seen = trainer.global_step
        _let_go_of_sigterm()
        self._run.should_stop()  # takes it for a notice; what it says it says again

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        stop = self._run.should_stop()
        step = trainer.global_step
        if step != self._seen and (stop or step % self._every_n_steps == 0):
            self._save(trainer, step)
        if step != self._seen and step % trainer.log_every_n_steps == 0:
            logged = trainer.logged_metrics.items()
            self._run.report(step, **{name: float(value) for name, value in logged if _is_number(value)})
        self._seen = step
        trainer.should_stop = trainer.should_stop or stop

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._run.flush()

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if self._scratch is not None:
            scratch.drop(self._scratch.memory)
            self._scratch = None

    def _save(self, trainer: Trainer, step: int) -> None:
        assert self._scratch is not None
        path = self._scratch.memory / _NAME
        trainer.save_checkpoint(path)  # rank 0 writes
        self._run.save(step, trainer=Files(path.parent, [_NAME] if self._run.rank == 0 else []))
        path.unlink(missing_ok=True)


def _let_go_of_sigterm() -> None:
    """Lightning's handler has the loop left at once, without a save; a script's own stays."""
    handler = signal.getsignal(signal.SIGTERM)
    if isinstance(handler, _HandlersCompose) and len(handler.signal_handlers) == 1:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) or (isinstance(value, torch.Tensor) and value.numel() == 1)
