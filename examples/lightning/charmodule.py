"""The character GPT of ../chargpt as a LightningModule, and its batches: nothing is downloaded."""

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import torch
from lightning.pytorch import LightningModule
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "chargpt"))
from chargpt import batch_of, load_text, make_model


class Batches:
    """This rank's share of each step's samples. It can say where it stands: so Lightning goes on in the midst
    of an epoch.
    """

    def __init__(self, steps: int) -> None:
        self.steps, self.done, self.text = steps, 0, load_text()

    def __len__(self) -> int:
        return self.steps

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        rank, world_size = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
        while self.done < self.steps:
            self.done += 1
            yield batch_of(self.text, self.done, 32, rank, world_size)

    def state_dict(self) -> dict[str, int]:
        return {"done": self.done}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.done = state["done"]


class CharModule(LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.model = make_model()

    def training_step(self, batch: tuple[Tensor, Tensor], _index: int) -> Tensor:
        loss: Tensor = self.model(*batch)
        self.log("loss", loss)
        print(f"rank {self.global_rank}: step {self.global_step + 1}, loss {loss.item():.4f}", flush=True)
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.parameters(), lr=3e-3)
