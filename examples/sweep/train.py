"""Train a small net on scikit-learn's handwritten digits, with the values that a sweep has chosen.

Reports the accuracy and the loss on held-out digits after each epoch, so that a sweep can end early what does
not learn, and at the end how long one image takes and how many weights the net has. Alone: `python train.py
--epochs 5`.
"""

import argparse
import gzip
import importlib.util
import time
from pathlib import Path

import numpy as np
import paceline
import torch
from torch import nn

HELD_OUT = 360


def load_digits() -> tuple[torch.Tensor, torch.Tensor]:
    """Images (1797 x 64, from 0 to 1) and labels, in a fixed random order."""
    package = importlib.util.find_spec("sklearn")
    if package is None or package.origin is None:
        raise SystemExit("the digits ship inside scikit-learn: pip install scikit-learn")
    path = Path(package.origin).parent / "datasets" / "data" / "digits.csv.gz"
    with gzip.open(path) as file:
        table = torch.from_numpy(np.loadtxt(file, delimiter=",", dtype=np.float32))
    table = table[torch.randperm(len(table), generator=torch.Generator().manual_seed(0))]
    return table[:, :-1] / 16, table[:, -1].long()


def held_out(model: nn.Module, images: torch.Tensor, labels: torch.Tensor) -> dict[str, float]:
    """How well it does on digits that it has not seen."""
    with torch.no_grad():
        told = model(images)
    accuracy = (told.argmax(1) == labels).float().mean()
    return {"accuracy": float(accuracy), "loss": float(nn.functional.cross_entropy(told, labels))}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--epochs", type=int, default=27)
    parser.add_argument("--lr", type=float, default=0.05)
    parser.add_argument("--width", type=int, default=32)
    parser.add_argument("--momentum", type=float, default=0.9)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--save-every", type=int, default=0, help="epochs; 0: only when told to stop")
    args = parser.parse_args()
    run = paceline.init()
    torch.set_num_threads(1)
    torch.manual_seed(args.seed)
    images, labels = load_digits()
    train = len(images) - HELD_OUT
    model = nn.Sequential(nn.Linear(64, args.width), nn.ReLU(), nn.Linear(args.width, 10))
    optimizer = torch.optim.SGD(model.parameters(), lr=args.lr, momentum=args.momentum)
    restored = run.restore(model=model, optimizer=optimizer)
    for group in optimizer.param_groups:  # what came back may be another trial's, with its values
        group.update(lr=args.lr, momentum=args.momentum)
    for epoch in range(restored.step if restored else 0, args.epochs):
        for rows in torch.randperm(train).split(args.batch):
            loss = nn.functional.cross_entropy(model(images[rows]), labels[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        if args.save_every and (epoch + 1) % args.save_every == 0:
            run.save(epoch + 1, model=model, optimizer=optimizer)
        run.report(epoch + 1, **held_out(model, images[train:], labels[train:]))
        if run.should_stop():  # preempted, or not good enough to go on
            run.save(epoch + 1, model=model, optimizer=optimizer)
            return
    begun = time.perf_counter()
    with torch.no_grad():
        for image in images[train:]:
            model(image)
    latency_us = (time.perf_counter() - begun) / HELD_OUT * 1e6
    run.report(
        args.epochs,
        **held_out(model, images[train:], labels[train:]),
        latency_us=latency_us,
        weights=sum(p.numel() for p in model.parameters()),
    )


if __name__ == "__main__":
    main()
