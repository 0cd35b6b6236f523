"""Hugging Face's Trainer as its users write it, with its own checkpoints: nothing here is Paceline's."""

import argparse
from pathlib import Path

import torch
from gpt2 import load_samples, make_model
from transformers import Trainer, TrainingArguments, set_seed
from transformers.trainer_utils import get_last_checkpoint

parser = argparse.ArgumentParser()
parser.add_argument("--steps", type=int, default=60)
parser.add_argument("--save-every", type=int, default=20)
parser.add_argument("--output-dir", type=Path, required=True)


def main() -> None:
    args = parser.parse_args()
    set_seed(1)
    arguments = TrainingArguments(
        output_dir=str(args.output_dir),
        max_steps=args.steps,
        save_steps=args.save_every,
        save_total_limit=2,
        per_device_train_batch_size=16,
        learning_rate=3e-3,
        logging_steps=1,
        report_to="none",
        disable_tqdm=True,
        use_cpu=not torch.cuda.is_available(),
    )
    args.output_dir.mkdir(parents=True, exist_ok=True)
    trainer = Trainer(make_model(), arguments, train_dataset=load_samples())
    trainer.train(resume_from_checkpoint=get_last_checkpoint(str(args.output_dir)))


if __name__ == "__main__":
    main()
