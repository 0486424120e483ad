"""A small GPT with tied embeddings, traced, built from recipes and cut, beside the module itself."""

from __future__ import annotations

import copy
from typing import NamedTuple

import pytest
import torch
from stage_models import assert_same_bits, schedule
from torch import Tensor, nn

from manyhands.pipeline.models import Example, Reading, read
from manyhands.pipeline.recipes import BuiltLayer, build
from manyhands.pipeline.stage.engine import StageSettings
from manyhands.pipeline.stage.local import LocalPipeline
from manyhands.pipeline.stage.optimizers import OptimizerRecipe
from manyhands.training.objective import Objective

WORDS, LENGTH, WIDTH = 17, 8, 16


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.ln_1, self.ln_2 = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.attend, self.project = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)
        self.up, self.act, self.down = nn.Linear(WIDTH, 2 * WIDTH), nn.GELU(), nn.Linear(2 * WIDTH, WIDTH)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        q, k, v = self.attend(self.ln_1(x)).chunk(3, -1)
        scores = (q @ k.transpose(-1, -2)) / WIDTH**0.5
        x = x + self.project(scores.masked_fill(mask, -1e9).softmax(-1) @ v)
        return x + self.down(self.act(self.up(self.ln_2(x))))


class GPT(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.tok, self.pos = nn.Embedding(WORDS, WIDTH), nn.Embedding(LENGTH, WIDTH)
        self.blocks = nn.ModuleList([Block(), Block()])
        self.ln, self.head = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, WORDS, bias=False)
        self.head.weight = self.tok.weight
        self.register_buffer("mask", torch.ones(LENGTH, LENGTH, dtype=torch.bool).triu(1))

    def forward(self, x: Tensor) -> Tensor:
        h = self.tok(x) + self.pos(torch.arange(x.shape[1], device=x.device))
        for block in self.blocks:
            h = block(h, self.mask)
        return self.head(self.ln(h))


class Case(NamedTuple):
    model: GPT
    reading: Reading
    layers: list[BuiltLayer]
    text: Tensor

    def pipeline(self, bounds: tuple[int, ...], settings: StageSettings | None = None) -> LocalPipeline:
        order = [name for name, _ in self.model.named_parameters()]
        layers = copy.deepcopy(self.layers)
        made = LocalPipeline.build(self.reading.graph, layers, bounds, settings, order=order)
        made.set_optimizer(OptimizerRecipe.of(torch.optim.AdamW, {"lr": 0.01}))
        return made


@pytest.fixture(scope="module")
def case() -> Case:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    model, text = GPT(), torch.randint(WORDS, (8, LENGTH + 1))
    reading = read(model, Example(text[:, :-1]))
    layers = [build(recipe) for recipe in reading.recipes]
    with torch.no_grad():
        for at, layer in enumerate(layers):
            weights = reading.weights_of(at)
            for name, tensor in [*layer.named_parameters(), *layer.named_buffers()]:
                tensor.copy_(weights[name])
    return Case(model, reading, layers, text)


def train_both(
    case: Case, bounds: tuple[int, ...], name: str, num_micro_batches: int, precision: str = "fp32"
) -> None:
    settings = StageSettings(precision="bf16" if precision == "bf16" else "fp32")
    pipeline, plain = case.pipeline(bounds, settings), copy.deepcopy(case.model)
    optimizer = torch.optim.AdamW(plain.parameters(), lr=0.01)
    x, y = case.text[:, :-1], case.text[:, 1:]
    plan = schedule(name, len(bounds) - 1, num_micro_batches)
    for _ in range(2):
        optimizer.zero_grad()
        whole = torch.zeros(())
        for part, target in zip(x.chunk(num_micro_batches), y.chunk(num_micro_batches), strict=True):
            with torch.autocast("cpu", dtype=torch.bfloat16, enabled=precision == "bf16"):
                loss = nn.functional.cross_entropy(plain(part).flatten(0, 1), target.flatten())
            (loss / num_micro_batches).backward()
            whole += loss.detach() / num_micro_batches
        nn.utils.clip_grad_norm_(plain.parameters(), 0.5)
        optimizer.step()
        loss = pipeline.train_batch(
            plan, x, y, Objective(None), num_micro_batches=num_micro_batches, max_norm=0.5
        )
        assert loss == float(whole)
    theirs = {name: one.detach() for name, one in plain.named_parameters()}
    assert_same_bits({name: one for name, one in pipeline.tensors().items() if name in theirs}, theirs)
    held = [engine.weights.parameters.get("tok.weight") for engine in pipeline.engines]
    copies = [one for one in held if one is not None]
    assert len(copies) == 2 or bounds[1] == len(case.layers)
    assert all(torch.equal(one, copies[0]) for one in copies)


def test_at_every_cut_in_two(case: Case) -> None:
    for cut in range(1, len(case.layers)):
        train_both(case, (0, cut, len(case.layers)), "naive", 1)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("name", ["naive", "gpipe", "1f1b", "interleaved", "zero_bubble"])
def test_in_every_schedule(case: Case, name: str, precision: str) -> None:
    quarter = len(case.layers) // 4
    train_both(case, (0, quarter, 2 * quarter, 3 * quarter, len(case.layers)), name, 4, precision)
