"""Train a small conv net on scikit-learn's 1,797 handwritten digits with DistributedDataParallel.

Runs the same under Paceline, with `python train.py --out model`, and with
`torchrun --nproc-per-node 2 train.py --out model`.
"""

import argparse
import gzip
import importlib.util
import math
import os
from pathlib import Path

import numpy as np
import paceline
import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

TEST_SAMPLES = 360


def load_digits() -> tuple[torch.Tensor, torch.Tensor]:
    """All images (1797 x 1 x 8 x 8, from 0 to 1) and labels, in a fixed random order.

    The same numbers as sklearn.datasets.load_digits(). Importing scikit-learn takes over a second, reading
    its file some milliseconds, and each start and restart of a rank would pay for it.
    """
    package = importlib.util.find_spec("sklearn")
    if package is None or package.origin is None:
        raise SystemExit("the digits ship inside scikit-learn: pip install scikit-learn")
    path = Path(package.origin).parent / "datasets" / "data" / "digits.csv.gz"
    with gzip.open(path) as file:
        table = torch.from_numpy(np.loadtxt(file, delimiter=",", dtype=np.float32))
    table = table[torch.randperm(len(table), generator=torch.Generator().manual_seed(0))]
    return table[:, :-1].reshape(-1, 1, 8, 8) / 16, table[:, -1].long()


def make_model() -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(16, 32, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(32 * 4 * 4, 10),
    )


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--epochs", type=int, default=30)
    parser.add_argument("--batch", type=int, default=64, help="samples of one step, over all ranks")
    parser.add_argument("--lr", type=float, default=0.05)
    parser.add_argument("--save-every", type=int, default=20, help="steps from one checkpoint to the next")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, required=True, help="folder for the trained model")
    return parser.parse_args()


def main() -> None:
    args = parse_arguments()
    run = paceline.init()
    cuda = torch.cuda.is_available()
    device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0"))) if cuda else torch.device("cpu")
    if cuda:
        torch.cuda.set_device(device)
    torch.set_num_threads(1)  # the net is so small that more threads would only wait for each other
    torch.manual_seed(args.seed)
    net = make_model().to(device)
    model: nn.Module = net
    if run.world_size > 1:
        dist.init_process_group("nccl" if cuda else "gloo")
        model = DistributedDataParallel(net)
    images, labels = (tensor.to(device) for tensor in load_digits())
    samples = len(images) - TEST_SAMPLES
    sampler = run.sampler(samples, global_batch_size=args.batch, seed=args.seed)
    steps = args.epochs * math.ceil(samples / args.batch)
    optimizer = torch.optim.SGD(model.parameters(), lr=args.lr, momentum=0.9)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)

    restored = run.restore(model=model, optimizer=optimizer, schedule=schedule, sampler=sampler)
    done, stop = restored.step if restored else 0, False
    if run.rank == 0:
        print(f"{run.world_size} processes on {device.type}, {steps} steps, {done} of them done", flush=True)

    loss: torch.Tensor | None = None  # restored at the end of an epoch, no step of it is left
    while sampler.epoch < args.epochs and not stop:
        for share in sampler.shares():
            rows = torch.tensor(share.indices)
            loss = nn.functional.cross_entropy(model(images[rows]), labels[rows])
            optimizer.zero_grad()
            (loss * share.weight).backward()
            optimizer.step()
            schedule.step()
            done += 1
            run.report(done, loss=loss)
            stop = run.should_stop()
            if stop or done % args.save_every == 0:
                run.save(done, model=model, optimizer=optimizer, schedule=schedule, sampler=sampler)
            if stop:
                break
        if run.rank == 0 and not stop and loss is not None:
            print(f"epoch {sampler.epoch}: loss {loss.item():.4f}", flush=True)

    if run.rank == 0 and done == steps:
        with torch.no_grad():
            hits = net(images[samples:]).argmax(1) == labels[samples:]
        accuracy = hits.float().mean().item()
        run.report(done, accuracy=accuracy)
        paceline.save_model(net.cpu(), args.out, example=images[:1].cpu(), outputs=["scores"])
        print(f"test accuracy {accuracy:.2%} on {TEST_SAMPLES} digits; model in {args.out}", flush=True)
    if dist.is_initialized():
        dist.barrier()  # leave together: a gloo thread that is still busy at a rank's exit aborts it
        dist.destroy_process_group()


if __name__ == "__main__":
    main()
