"""Hugging Face's Trainer as its users write it; its checkpoints go through Paceline's.

Paceline's are the lines with `callback`: without them the script runs as well, and starts anew after a fault.
"""

import argparse
import tempfile

import torch
from gpt2 import load_samples, make_model
from paceline.training.huggingface import PacelineCallback
from transformers import Trainer, TrainingArguments, set_seed

parser = argparse.ArgumentParser()
parser.add_argument("--steps", type=int, default=60)
parser.add_argument("--save-every", type=int, default=20)


def main() -> None:
    args = parser.parse_args()
    set_seed(1)
    arguments = TrainingArguments(
        output_dir=tempfile.mkdtemp(),
        max_steps=args.steps,
        save_steps=args.save_every,
        save_total_limit=1,
        per_device_train_batch_size=16,
        learning_rate=3e-3,
        logging_steps=1,
        report_to="none",
        disable_tqdm=True,
        use_cpu=not torch.cuda.is_available(),
    )
    callback = PacelineCallback()
    trainer = Trainer(make_model(), arguments, train_dataset=load_samples(), callbacks=[callback])
    trainer.train(resume_from_checkpoint=callback.restore())


if __name__ == "__main__":
    main()
