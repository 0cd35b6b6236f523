"""Hugging Face Accelerate as its users write it: it finds torchrun's variables; nothing here is Paceline's.

The model is the character GPT of ../chargpt, made from its configuration: nothing is downloaded.
"""

import argparse
import sys
from pathlib import Path

import torch
from accelerate import Accelerator
from torch.utils.data import DataLoader, TensorDataset

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "chargpt"))
from chargpt import CONTEXT, load_text, make_model

parser = argparse.ArgumentParser()
parser.add_argument("--samples", type=int, default=1600)
parser.add_argument("--batch", type=int, default=16, help="of each process")


def main() -> None:
    args = parser.parse_args()
    accelerator = Accelerator(cpu=not torch.cuda.is_available())  # else it takes no CPU for one of several
    rows = load_text()[: args.samples * (CONTEXT + 1)].view(args.samples, CONTEXT + 1)
    loader = DataLoader(TensorDataset(rows[:, :-1], rows[:, 1:]), batch_size=args.batch, shuffle=True)
    model = make_model()
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    model, optimizer, loader = accelerator.prepare(model, optimizer, loader)
    for characters, targets in loader:
        loss = model(characters, targets)
        accelerator.backward(loss)
        optimizer.step()
        optimizer.zero_grad()
    mean = accelerator.reduce(loss.detach(), "mean")
    accelerator.print(f"{accelerator.num_processes} processes, {len(loader)} steps, loss {float(mean):.3f}")
    accelerator.end_training()


if __name__ == "__main__":
    main()
