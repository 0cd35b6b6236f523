"""The digits in Paceline's step loop: a rank that loses a peer keeps its process, model and optimizer.

Runs the same under Paceline (loop.yaml), with `python train_loop.py` and with
`torchrun --nproc-per-node 2 train_loop.py`.
"""

import argparse

import paceline
import torch
from torch import nn
from train import TEST_SAMPLES, load_digits, make_model


def rows_of(step: int, samples: int, batch: int) -> torch.Tensor:
    """The samples of a step. They depend on its number alone, whoever makes it, and how often."""
    epoch, index = divmod(step - 1, samples // batch)
    order = torch.randperm(samples, generator=torch.Generator().manual_seed(epoch))
    return order[index * batch : (index + 1) * batch]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--epochs", type=int, default=30)
    parser.add_argument("--batch", type=int, default=64, help="samples of one step, over all ranks")
    args = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    run = paceline.init()
    images, labels = load_digits()
    samples = len(images) - TEST_SAMPLES
    net = make_model()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.05, momentum=0.9)
    steps = args.epochs * (samples // args.batch)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)

    def step(number: int, model: nn.Module) -> None:
        """One step, whole: it may be called again for the same number, with another gang."""
        batch = rows_of(number, samples, args.batch)
        rows = batch[run.rank :: run.world_size]
        losses = nn.functional.cross_entropy(model(images[rows]), labels[rows], reduction="none")
        optimizer.zero_grad()
        # The ranks' gradients are averaged: so they are those of the batch's mean, whatever part each has.
        (losses.sum() * run.world_size / len(batch)).backward()
        optimizer.step()
        schedule.step()
        run.report(number, loss=losses.mean())

    done = run.loop(step, steps=steps, model=net, optimizer=optimizer, schedule=schedule, save_every=20)
    if run.rank == 0 and done == steps:
        with torch.no_grad():
            hits = net(images[samples:]).argmax(1) == labels[samples:]
        print(f"test accuracy {hits.float().mean().item():.2%} after {done} steps", flush=True)
    if torch.distributed.is_initialized():
        torch.distributed.barrier()  # leave together
        torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main()
