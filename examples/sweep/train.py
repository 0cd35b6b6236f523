"""Train a small net on scikit-learn's handwritten digits, with the values that a sweep has chosen.

Reports the accuracy on held-out digits after each epoch, so that a sweep can end early what does not learn,
and at the end how long one image takes and how many weights the net has. Alone: `python train.py --epochs 5`.
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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--epochs", type=int, default=27)
    parser.add_argument("--lr", type=float, default=0.05)
    parser.add_argument("--width", type=int, default=32)
    parser.add_argument("--momentum", type=float, default=0.9)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    run = paceline.init()
    torch.set_num_threads(1)
    torch.manual_seed(args.seed)
    images, labels = load_digits()
    train = len(images) - HELD_OUT
    model = nn.Sequential(nn.Linear(64, args.width), nn.ReLU(), nn.Linear(args.width, 10))
    optimizer = torch.optim.SGD(model.parameters(), lr=args.lr, momentum=args.momentum)
    restored = run.restore(model=model, optimizer=optimizer)
    for epoch in range(restored.step if restored else 0, args.epochs):
        for rows in torch.randperm(train).split(args.batch):
            loss = nn.functional.cross_entropy(model(images[rows]), labels[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        with torch.no_grad():
            accuracy = (model(images[train:]).argmax(1) == labels[train:]).float().mean()
        run.report(epoch + 1, accuracy=accuracy)
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
        accuracy=accuracy,
        latency_us=latency_us,
        weights=sum(p.numel() for p in model.parameters()),
    )


if __name__ == "__main__":
    main()
