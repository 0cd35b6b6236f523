"""Hugging Face Accelerate as its users write it: it finds torchrun's variables. Its checkpoints go through
Paceline.

Paceline's are the lines marked so: without them the script runs as well, and starts anew after a fault. The
model is the character GPT of ../chargpt, made from its configuration: nothing is downloaded.
"""

import argparse
import sys
from pathlib import Path

import paceline  # Paceline
import torch
from accelerate import Accelerator
from accelerate.utils import DataLoaderConfiguration
from torch.utils.data import DataLoader, TensorDataset

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "chargpt"))
from chargpt import CONTEXT, load_text, make_model

parser = argparse.ArgumentParser()
parser.add_argument("--samples", type=int, default=1600)
parser.add_argument("--batch", type=int, default=16, help="of each process")
parser.add_argument("--save-every", default="10 steps")


def main() -> None:
    args = parser.parse_args()
    order = DataLoaderConfiguration(use_seedable_sampler=True, data_seed=1)  # the same in each attempt
    cpu = not torch.cuda.is_available()  # else it takes no CPU for one of several
    accelerator = Accelerator(cpu=cpu, dataloader_config=order)
    rows = load_text()[: args.samples * (CONTEXT + 1)].view(args.samples, CONTEXT + 1)
    loader = DataLoader(TensorDataset(rows[:, :-1], rows[:, 1:]), batch_size=args.batch, shuffle=True)
    model = make_model()
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    model, optimizer, loader = accelerator.prepare(model, optimizer, loader)
    done = 0

    run = paceline.init(total_steps=len(loader))  # Paceline
    state = {"model": accelerator.unwrap_model(model), "optimizer": optimizer.optimizer}  # Paceline
    restored = run.restore(**state)  # Paceline
    done = restored.step if restored else 0  # Paceline

    for characters, targets in accelerator.skip_first_batches(loader, done):
        loss = model(characters, targets)
        accelerator.backward(loss)
        optimizer.step()
        optimizer.zero_grad()
        done += 1
        accelerator.print(f"step {done}, loss {loss.item():.4f}")
        run.report(done, loss=loss)  # Paceline
        if run.should_save(done, every=args.save_every):  # Paceline
            run.save(done, **state)  # Paceline
        if run.should_stop():  # Paceline
            break  # Paceline
    else:
        mean = float(accelerator.reduce(loss.detach(), "mean"))
        accelerator.print(f"{accelerator.num_processes} processes, {len(loader)} steps, loss {mean:.3f}")
    accelerator.end_training()


if __name__ == "__main__":
    main()
