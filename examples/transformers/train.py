"""Hugging Face's Trainer as its users write it, with a GPT-2 made from its configuration.

Paceline's are the lines with `callback`: without them the script runs as well, and starts anew after a fault.
"""

import argparse
import sys
import tempfile
from pathlib import Path

import torch
from paceline.training.huggingface import PacelineCallback
from transformers import GPT2Config, GPT2LMHeadModel, Trainer, TrainingArguments, set_seed

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "chargpt"))
from chargpt import CONTEXT, load_text

parser = argparse.ArgumentParser()
parser.add_argument("--steps", type=int, default=60)
parser.add_argument("--save-every", type=int, default=20)


def main() -> None:
    args = parser.parse_args()
    set_seed(1)
    rows = load_text()[: 2000 * CONTEXT].view(-1, CONTEXT)
    samples = [{"input_ids": row, "labels": row} for row in rows]
    shape = {"vocab_size": 128, "n_positions": CONTEXT, "n_embd": 64, "n_layer": 2, "n_head": 2}
    model = GPT2LMHeadModel(GPT2Config(**shape, bos_token_id=0, eos_token_id=0))
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
    trainer = Trainer(model, arguments, train_dataset=samples, callbacks=[callback])
    trainer.train(resume_from_checkpoint=callback.restore())


if __name__ == "__main__":
    main()
