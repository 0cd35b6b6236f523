"""Train a small net on scikit-learn's handwritten digits, and save it as a folder that can be served."""

import argparse

import paceline
import torch
from sklearn.datasets import load_digits
from torch import nn

HELD_OUT = 360


def load() -> tuple[torch.Tensor, torch.Tensor]:
    """All images (1797 x 64, from 0 to 1) and labels, in a fixed random order; the last are held out."""
    found = load_digits()
    order = torch.randperm(len(found.target), generator=torch.Generator().manual_seed(0))
    return torch.from_numpy(found.data).float()[order] / 16, torch.from_numpy(found.target)[order]


class Digits(nn.Module):
    """Takes pixels; gives what each digit is worth, and the digit that it is."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))

    def forward(self, pixels: torch.Tensor) -> dict[str, torch.Tensor]:
        scores = self.layers(pixels)
        return {"digit": scores.argmax(1), "scores": scores.softmax(1)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--epochs", type=int, default=30)
    parser.add_argument("--out", required=True, help="folder for the model")
    args = parser.parse_args()
    torch.manual_seed(0)
    run = paceline.init()
    pixels, labels = (tensor[:-HELD_OUT] for tensor in load())
    net = Digits()
    optimizer = torch.optim.Adam(net.parameters(), lr=0.01)
    for epoch in range(args.epochs):
        for rows in torch.randperm(len(labels)).split(64):
            loss = nn.functional.cross_entropy(net.layers(pixels[rows]), labels[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        run.report(epoch, loss=loss)
    print(f"model in {paceline.save_model(net, args.out, example=pixels[:1])}", flush=True)


if __name__ == "__main__":
    main()
