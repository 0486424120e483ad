"""Which layers are seeded: every one that draws, at least."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from manyhands.pipeline.recipes import Recipe, build
from manyhands.pipeline.recipes.format import Option, TorchPart, Value
from manyhands.pipeline.stage.drawing import may_draw, seed_layer
from manyhands.pipeline.wrapped import wrapped_linear


class Noise(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x + torch.randn_like(x)


DRAWS = [
    *(nn.Dropout(), nn.Dropout2d(), nn.AlphaDropout(), nn.FeatureAlphaDropout(), nn.RReLU(), Noise()),
    *(nn.LSTM(4, 4, num_layers=2, dropout=0.5), nn.MultiheadAttention(4, 2, dropout=0.1)),
    *(nn.Sequential(nn.Linear(4, 4), nn.Dropout()), nn.TransformerEncoderLayer(4, 2, 8)),
]
QUIET = [
    *(nn.Linear(4, 4), nn.ReLU(), nn.Tanh(), nn.GELU(), nn.LayerNorm(4), nn.Identity(), nn.Flatten()),
    *(wrapped_linear(4, 4), nn.Sequential(nn.Linear(4, 4), nn.Sigmoid())),
]


@pytest.mark.parametrize("module", DRAWS, ids=lambda one: type(one).__name__)
def test_what_draws_is_seeded(module: nn.Module) -> None:
    assert may_draw(module)


@pytest.mark.parametrize("module", QUIET, ids=lambda one: type(one).__name__)
def test_what_is_not_seeded_draws_nothing(module: nn.Module) -> None:
    assert not may_draw(module)
    before = torch.get_rng_state()
    module(torch.ones(2, 4))
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize(("kind", "draws"), [("Linear", False), ("Dropout", True)])
def test_built_layers(kind: str, draws: bool) -> None:
    sizes = (Option("in_features", 4), Option("out_features", 4)) if kind == "Linear" else ()
    assert may_draw(build(Recipe(1, (TorchPart(kind, "0", sizes, (Value(0),)),), (1,)))) is draws


def test_a_seed_is_of_its_place_alone() -> None:
    drawn = {}
    for place in [(0, 0, 0, 0), (1, 0, 0, 0), (0, 1, 0, 0), (0, 0, 1, 0), (0, 0, 0, 1), (0, 0, 0, 0)]:
        torch.rand(3)
        seed_layer(*place)
        numbers = tuple(torch.rand(4).tolist())
        assert drawn.setdefault(place, numbers) == numbers
    assert len(set(drawn.values())) == 5
