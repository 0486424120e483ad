"""Optimizers as text: torch's own come through, anything else is refused by name."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from torch import nn

from manyhands.errors import ProtocolError, UsageError
from manyhands.pipeline.stage.optimizers import OPTIMIZERS, OptimizerRecipe


def parameters() -> list[nn.Parameter]:
    return [nn.Parameter(torch.ones(2))]


class Mine(torch.optim.SGD):
    pass


@pytest.mark.parametrize(
    ("optimizer", "options"),
    [
        (torch.optim.SGD, {"lr": 0.1, "momentum": 0.9, "nesterov": True}),
        (torch.optim.AdamW, {"lr": 3e-4, "betas": (0.8, 0.95), "fused": False, "foreach": True}),
        (torch.optim.Adafactor, {"eps": (None, 1e-4)}),
        (torch.optim.Adam, {}),
    ],
)
def test_there_and_back(optimizer: type[torch.optim.Optimizer], options: dict[str, Any]) -> None:
    recipe = OptimizerRecipe.of(optimizer, options)
    made = OptimizerRecipe.from_text(*recipe.to_text()).build(parameters())
    wanted = optimizer(parameters(), **options)
    assert type(made) is optimizer
    assert made.defaults == wanted.defaults


def test_no_parameters_need_no_optimizer() -> None:
    assert OptimizerRecipe.of(torch.optim.SGD, {"lr": 0.1}).build([]) is None


@pytest.mark.parametrize("optimizer", [torch.optim.LBFGS, torch.optim.SparseAdam, Mine, print, "Adam", None])
def test_what_is_not_in_the_table(optimizer: Any) -> None:
    with pytest.raises(UsageError, match=r"torch\.optim's SGD, .*AdamW"):
        OptimizerRecipe.of(optimizer, {"lr": 0.1})


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"learning_rate": 0.1}, "takes no option 'learning_rate' here; it takes lr, betas"),
        ({"capturable": True}, "takes no option 'capturable'"),
        ({"lr": "fast"}, "option lr of Adam is 'fast', and its default is 0.001"),
        ({"lr": float("nan")}, "option lr of Adam is nan"),
        ({"lr": True}, "option lr of Adam is True"),
        ({"lr": torch.tensor(0.1)}, "option lr of Adam is tensor"),
        ({"betas": (0.9,)}, "option betas of Adam"),
        ({"amsgrad": 1}, "option amsgrad of Adam is 1"),
        ({"lr": -1.0}, "refuses these options: Invalid learning rate"),
    ],
)
def test_options_that_cannot_be(options: dict[str, Any], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        OptimizerRecipe.of(torch.optim.Adam, options)


@pytest.mark.parametrize(
    ("kind", "text"),
    [
        ("os.system", "{}"),
        ("Optimizer", "{}"),
        ("SGD", "[]"),
        ("SGD", "null"),
        ("SGD", "{"),
        ("SGD", "[" * 100_000),
        ("SGD", '{"lr": 1e999}'),
        ("SGD", '{"params": 3}'),
        ("SGD", '{"__class__": "x"}'),
        ("SGD", '{"lr": [1]}'),
        ("Adam", '{"betas": [[0.1], 2]}'),
        ("Rprop", '{"etas": [0.5, 1.2, 3]}'),
    ],
)
def test_text_that_nobody_of_ours_wrote(kind: str, text: str) -> None:
    with pytest.raises(ProtocolError):
        OptimizerRecipe.from_text(kind, text)


def test_values_that_torch_refuses() -> None:
    recipe = OptimizerRecipe.from_text("Adam", json.dumps({"betas": [2.0, 0.9]}))
    with pytest.raises(ProtocolError, match="Invalid beta"):
        recipe.build(parameters())


def test_the_table_is_of_torchs_own() -> None:
    for key, cls in OPTIMIZERS.items():
        assert getattr(torch.optim, key) is cls
