"""Lightning as its users write it, with its own checkpoints: nothing here is Paceline's."""

import argparse
import os

from charmodule import Batches, CharModule
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import ModelCheckpoint

parser = argparse.ArgumentParser()
parser.add_argument("--steps", type=int, default=60)
parser.add_argument("--save-every", type=int, default=20)
parser.add_argument("--output-dir", required=True)


def main() -> None:
    args = parser.parse_args()
    saving = ModelCheckpoint(args.output_dir, every_n_train_steps=args.save_every, save_last=True)
    trainer = Trainer(
        max_epochs=1,
        accelerator="auto",
        strategy="ddp",
        devices=int(os.environ.get("LOCAL_WORLD_SIZE", "1")),
        num_nodes=int(os.environ.get("GROUP_WORLD_SIZE", "1")),
        callbacks=[saving],
        logger=False,
        enable_progress_bar=False,
    )
    trainer.fit(CharModule(), Batches(args.steps), ckpt_path="last")


if __name__ == "__main__":
    main()
