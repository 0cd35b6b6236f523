"""The character GPT as a stock Ray Train run: nothing in it knows of Paceline."""

import argparse
import os
import tempfile
from pathlib import Path

import ray.train
import torch
from chargpt import batch_of, load_text, make_model
from ray.train import Checkpoint, RunConfig, ScalingConfig
from ray.train.torch import TorchConfig, TorchTrainer, prepare_model

parser = argparse.ArgumentParser()
parser.add_argument("--steps", type=int, default=40)
parser.add_argument("--samples", type=int, default=32, help="of a step, over all workers")
parser.add_argument("--workers", type=int, default=2)


def train(config: dict[str, int]) -> None:
    context = ray.train.get_context()
    rank, world_size = context.get_world_rank(), context.get_world_size()
    model = prepare_model(make_model())
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    text = load_text()
    for step in range(config["steps"]):
        loss = model(*batch_of(text, step, config["samples"], rank, world_size))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    with tempfile.TemporaryDirectory() as folder:
        if rank == 0:
            torch.save(model.state_dict(), Path(folder) / "model.pt")
        metrics = {"loss": loss.item(), "world_size": world_size}
        ray.train.report(metrics, checkpoint=Checkpoint.from_directory(folder) if rank == 0 else None)


def main() -> None:
    args = parser.parse_args()
    trainer = TorchTrainer(
        train,
        train_loop_config={"steps": args.steps, "samples": args.samples},
        scaling_config=ScalingConfig(num_workers=args.workers),
        torch_config=TorchConfig(backend="gloo"),
        run_config=RunConfig(storage_path=os.environ["PACELINE_JOB_FOLDER"]),
    )
    metrics = trainer.fit().metrics
    print(f"{metrics['world_size']} workers, loss {metrics['loss']:.3f}", flush=True)


if __name__ == "__main__":
    main()
