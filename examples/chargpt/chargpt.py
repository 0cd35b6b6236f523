"""A small GPT on single characters, and a text that every machine has: Python's own standard library.

The samples of a step depend on the number of the step alone: whatever the launcher, and however many ranks
share a step, all see the same ones, and a run that goes on from a checkpoint repeats none and skips none.
"""

import sysconfig
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional

CONTEXT = 64
TEXT_CHARACTERS = 400_000


def load_text() -> Tensor:
    """The text as character numbers, 0 to 127; what is not ASCII is left out."""
    library = Path(sysconfig.get_path("stdlib"))
    text = b""
    for path in sorted(library.glob("*.py")):
        text += bytes(byte for byte in path.read_bytes() if byte < 128)
        if len(text) > TEXT_CHARACTERS:
            break
    return torch.frombuffer(bytearray(text[:TEXT_CHARACTERS]), dtype=torch.uint8).long()


def batch_of(text: Tensor, step: int, samples: int, rank: int, world_size: int) -> tuple[Tensor, Tensor]:
    """This rank's share of the step's samples: characters and those that follow them, each of the shape
    (samples / world_size, CONTEXT)."""
    dice = torch.Generator().manual_seed(step)
    starts = torch.randint(len(text) - CONTEXT - 1, (samples,), generator=dice)[rank::world_size]
    rows = torch.stack([text[start : start + CONTEXT + 1] for start in starts.tolist()])
    return rows[:, :-1], rows[:, 1:]


class Block(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.before_attention, self.before_mlp = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attend, self.mix = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, x: Tensor) -> Tensor:
        query, key, value = (
            part.unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for part in self.attend(self.before_attention(x)).chunk(3, -1)
        )
        seen = functional.scaled_dot_product_attention(query, key, value, is_causal=True)
        x = x + self.mix(seen.transpose(1, 2).flatten(-2))
        return x + self.mlp(self.before_mlp(x))


class CharGpt(nn.Module):
    """Scores of the next character at each place; with `targets`, the mean loss."""

    def __init__(self, width: int = 64, layers: int = 2, heads: int = 2) -> None:
        super().__init__()
        self.characters, self.places = nn.Embedding(128, width), nn.Embedding(CONTEXT, width)
        self.blocks = nn.ModuleList(Block(width, heads) for _ in range(layers))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, 128)

    def forward(self, characters: Tensor, targets: Tensor | None = None) -> Tensor:
        places = torch.arange(characters.shape[1], device=characters.device)
        x = self.characters(characters) + self.places(places)
        for block in self.blocks:
            x = block(x)
        scores = self.head(self.norm(x))
        if targets is None:
            return scores
        return functional.cross_entropy(scores.flatten(0, 1), targets.flatten())


def make_model() -> CharGpt:
    """The same weights in every process."""
    torch.manual_seed(0)
    return CharGpt()
