"""Lightning as its users write it; its checkpoints go through Paceline's.

Paceline's are the lines with `callback`: without them the script runs as well, and starts anew after a fault.
"""

import argparse
import os

from charmodule import Batches, CharModule
from lightning.pytorch import Trainer
from paceline.training.lightning import PacelineCallback

parser = argparse.ArgumentParser()
parser.add_argument("--steps", type=int, default=60)
parser.add_argument("--save-every", type=int, default=20)


def main() -> None:
    args = parser.parse_args()
    callback = PacelineCallback(every_n_steps=args.save_every)
    trainer = Trainer(
        max_epochs=1,
        accelerator="auto",
        strategy="ddp",
        devices=int(os.environ.get("LOCAL_WORLD_SIZE", "1")),
        num_nodes=int(os.environ.get("GROUP_WORLD_SIZE", "1")),
        callbacks=[callback],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
    )
    trainer.fit(CharModule(), Batches(args.steps), ckpt_path=callback.restore())


if __name__ == "__main__":
    main()
