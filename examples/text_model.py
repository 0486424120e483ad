"""A small language model over characters, and a text for it: shared by the three text examples.

Each line of harbour.txt is one sample. Lines differ in length, so they are padded: attention_mask is 0 on
padding, and the label there is -100, which the loss and the weights of the step leave out.
"""

from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention
from torch.utils.data import Dataset

TEXT = (Path(__file__).parent / "harbour.txt").read_text(encoding="utf-8")
CHARACTERS = sorted(set(TEXT))
LENGTH, WIDTH, HEADS = 112, 64, 4


def encode(text: str) -> list[int]:
    """Characters as numbers; those that the text does not have are left out."""
    return [CHARACTERS.index(character) for character in text if character in CHARACTERS]


class Lines(Dataset):
    """The lines of the text, each character to be guessed from those before it."""

    def __init__(self) -> None:
        self.lines = [line + "\n" for line in TEXT.splitlines() if line]

    def __len__(self) -> int:
        return len(self.lines)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        tokens = torch.tensor(encode("\n" + self.lines[index])[: LENGTH + 1])
        size = len(tokens) - 1
        item = {
            "input_ids": torch.zeros(LENGTH, dtype=torch.long),
            "attention_mask": torch.zeros(LENGTH, dtype=torch.bool),
            "labels": torch.full((LENGTH,), -100),
        }
        item["input_ids"][:size] = tokens[:-1]
        item["attention_mask"][:size] = True
        item["labels"][:size] = tokens[1:]
        return item


class Block(nn.Module):
    """Attention to what came before, then a small network on each position."""

    def __init__(self) -> None:
        super().__init__()
        self.norms = nn.ModuleList([nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)])
        self.mix = nn.Linear(WIDTH, 3 * WIDTH)
        self.out = nn.Linear(WIDTH, WIDTH)
        self.think = nn.Sequential(nn.Linear(WIDTH, 4 * WIDTH), nn.GELU(), nn.Linear(4 * WIDTH, WIDTH))

    def forward(self, x: Tensor, visible: Tensor) -> Tensor:
        batch, length, _ = x.shape
        parts = self.mix(self.norms[0](x)).view(batch, length, 3 * HEADS, -1).transpose(1, 2)
        query, key, value = parts.chunk(3, dim=1)
        heads = scaled_dot_product_attention(query, key, value, attn_mask=visible)
        x = x + self.out(heads.transpose(1, 2).reshape(batch, length, WIDTH))
        return x + self.think(self.norms[1](x))


class TextModel(nn.Module):
    """input_ids (B, T) and attention_mask (B, T) to logits (B, T, characters)."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.character = nn.Embedding(len(CHARACTERS), WIDTH)
        self.position = nn.Embedding(LENGTH, WIDTH)
        self.blocks = nn.ModuleList([Block(), Block()])
        self.head = nn.Linear(WIDTH, len(CHARACTERS))

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        places = torch.arange(input_ids.shape[1], device=input_ids.device)
        before = places[:, None] >= places[None, :]
        visible = before & attention_mask[:, None, None, :]
        x = self.character(input_ids) + self.position(places)
        for block in self.blocks:
            x = block(x, visible)
        return self.head(x)
