"""Models as people write them, tiny, and the layers of a reading run one after the other in this process."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional

from manyhands.pipeline.graph import MAIN_INPUT
from manyhands.pipeline.models import Reading
from manyhands.pipeline.recipes import BuiltLayer, build, decode, encode
from manyhands.pipeline.wrapped import wrapped_linear

RESIDUAL = [
    (nn.Linear, {"in_features": 1, "out_features": 16}, (32, 1)),
    (nn.ReLU, {}, (32, 16)),
    (wrapped_linear, {"in_features": 16, "out_features": 16, "out_variables": ["res_1"]}, [(32, 16)]),
    (nn.ReLU, {}, (32, 16)),
    (nn.Linear, {"in_features": 16, "out_features": 16}, (32, 16)),
    (
        wrapped_linear,
        {"in_features": 16, "out_features": 16, "dependencies": ["res_1"], "out_variables": []},
        [(32, 16), (32, 16)],
    ),
    (nn.Linear, {"in_features": 16, "out_features": 1}, (32, 16)),
    (nn.Sigmoid, {}, (32, 1)),
]


class Gated(nn.Module):
    """A class of the user's own: two names in, two out, buffers, dropout, pairs instead of a dict."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.fc = nn.Linear(width, width)
        self.norm = nn.BatchNorm1d(width)
        self.drop = nn.Dropout(0.25)

    def forward(self, x: Tensor, skip: Tensor, mask: Tensor) -> tuple[Tensor, list[tuple[str, Tensor]]]:
        y = (self.drop(self.norm(self.fc(x))) + skip).masked_fill(mask, 0.0)
        return y, [("twice", y * 2), ("same", y)]


GATED = [
    (
        nn.Embedding,
        {"num_embeddings": 10, "embedding_dim": 8, "out_variables": ["words"]},
        ((32,), torch.int64),
    ),
    (nn.Linear, {"in_features": 8, "out_features": 8}, (32, 8)),
    (
        Gated,
        {"width": 8, "dependencies": ["words", "mask"], "out_variables": ["twice", "same"]},
        [(32, 8), (32, 8), ((32, 8), torch.bool)],
    ),
    (
        wrapped_linear,
        {"in_features": 8, "out_features": 8, "dependencies": ["same", "twice", "words"]},
        (32, 8),
    ),
]


class Residual(nn.Module):
    """Convolutions, an in-place sum, a parameter used directly, a mask, an extra that may be left out."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.norm1 = nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4)
        self.conv2, self.norm2 = nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4)
        self.relu = nn.ReLU(inplace=True)
        self.scale = nn.Parameter(torch.full((4, 1, 1), 1.5))
        self.head = nn.Linear(4 * 4 * 4, 5)

    def forward(self, x: Tensor, mask: Tensor, noise: Tensor | None = None) -> Tensor:
        skip = self.relu(self.norm1(self.conv1(x)))
        y = self.norm2(self.conv2(skip))
        y += skip
        y = (self.relu(y) * self.scale).masked_fill(mask, 0.0)
        if noise is not None:
            y.add_(noise)
        return self.head(y.view(x.size(0), -1))


class Block(nn.Module):
    """Causal attention by hand, with dropout as a function and a mask cut to the length."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.ln1, self.qkv, self.proj = (
            nn.LayerNorm(width),
            nn.Linear(width, 3 * width),
            nn.Linear(width, width),
        )
        self.ln2, self.up, self.down = nn.LayerNorm(width), nn.Linear(width, 32), nn.Linear(32, width)
        self.register_buffer("mask", torch.ones(12, 12, dtype=torch.bool).tril(), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        batch, length, width = x.shape
        heads = self.qkv(self.ln1(x)).view(batch, length, 3, self.heads, width // self.heads)
        q, k, v = heads.permute(2, 0, 3, 1, 4).unbind(0)
        scores = (q @ k.transpose(-2, -1)) / (width // self.heads) ** 0.5
        scores = scores.masked_fill(~self.mask[:length, :length], float("-inf"))
        weights = functional.dropout(scores.softmax(-1), 0.1, self.training)
        x = x + self.proj((weights @ v).transpose(1, 2).reshape(batch, length, width))
        return x + self.down(functional.gelu(self.up(self.ln2(x))))


class GPT(nn.Module):
    """Tied embeddings, positions that no sample has a part in."""

    def __init__(self, num_blocks: int = 2) -> None:
        super().__init__()
        self.wte, self.wpe, self.drop = nn.Embedding(20, 16), nn.Embedding(12, 16), nn.Dropout(0.1)
        self.blocks = nn.ModuleList(Block(16, 2) for _ in range(num_blocks))
        self.norm, self.head = nn.LayerNorm(16), nn.Linear(16, 20, bias=False)
        self.head.weight = self.wte.weight

    def forward(self, ids: Tensor) -> Tensor:
        positions = torch.arange(0, ids.shape[1], device=ids.device)
        x = self.drop(self.wte(ids) + self.wpe(positions))
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x))


class Recurrent(nn.Module):
    """Nested results, a state whose second dimension is the batch's, constants of both kinds."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(4, 6, batch_first=True)
        self.attention = nn.MultiheadAttention(6, 2, batch_first=True)
        self.head = nn.Linear(6, 2)
        self.offset = torch.full((6,), 0.25)

    def forward(self, x: Tensor) -> Tensor:
        out, (hidden, cell) = self.lstm(x)
        out, _ = self.attention(out, out, out, need_weights=False)
        first, second = (out + self.offset).chunk(2, dim=1)
        pooled = torch.cat([second, first], dim=1).mean(1)
        return self.head(pooled + hidden[-1] + torch.tensor([0.5]) * cell[-1])


def built(reading: Reading) -> list[BuiltLayer]:
    """The layers, each from the bytes of its recipe, with the first weights that the reading has."""
    layers = []
    for index, recipe in enumerate(reading.recipes):
        layer = build(decode(encode(recipe)))
        weights = reading.weights_of(index)
        with torch.no_grad():
            for name, tensor in (*layer.named_parameters(), *layer.named_buffers()):
                if name in weights:
                    tensor.copy_(weights[name])
        layers.append(layer)
    return layers


def prediction(
    reading: Reading, layers: list[BuiltLayer], x: Tensor, extra: Mapping[str, Tensor] | None = None
) -> Tensor:
    """What the layers give, edge by edge."""
    values = {MAIN_INPUT: x, **({} if extra is None else extra)}
    for layer, module in zip(reading.graph.layers, layers, strict=True):
        made = module(*(values[name] for name in layer.inputs))
        values |= dict(zip(layer.outputs, made, strict=True))
    return values[reading.graph.prediction]
