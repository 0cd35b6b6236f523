"""A GPT-2 of two layers, made from its configuration, and the text that it learns: nothing is downloaded."""

import sys
from pathlib import Path

from torch import Tensor
from transformers import GPT2Config, GPT2LMHeadModel

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "chargpt"))
from chargpt import CONTEXT, load_text


def make_model() -> GPT2LMHeadModel:
    shape = {"vocab_size": 128, "n_positions": CONTEXT, "n_embd": 64, "n_layer": 2, "n_head": 2}
    return GPT2LMHeadModel(GPT2Config(**shape, bos_token_id=0, eos_token_id=0))


def load_samples() -> list[dict[str, Tensor]]:
    rows = load_text()[: 2000 * CONTEXT].view(-1, CONTEXT)
    return [{"input_ids": row, "labels": row} for row in rows]
