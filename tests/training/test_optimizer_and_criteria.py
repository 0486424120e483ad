"""Which optimizers serve, how gradients are clipped, and how a criterion travels."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from torch import nn

from manyhands.errors import Mismatch, ProtocolError, UsageError
from manyhands.training import criteria
from manyhands.training.optimizer import (
    build_optimizer,
    build_scheduler,
    clip,
    describe_optimizer,
    updates_apart,
)
from manyhands.training.state import ModelState


def test_the_default_is_adam() -> None:
    optimizer = build_optimizer(None, ModelState(nn.Linear(2, 2)))
    assert type(optimizer) is torch.optim.Adam
    assert optimizer.param_groups[0]["lr"] == 1e-3


def test_an_optimizer_over_the_models_parameters_is_taken_as_it_is() -> None:
    model = nn.Linear(2, 2)
    mine = torch.optim.SGD([model.weight], lr=0.5)
    assert build_optimizer(mine, ModelState(model)) is mine
    assert (
        build_optimizer(lambda p: torch.optim.AdamW(p, lr=0.1), ModelState(model)).param_groups[0]["lr"]
        == 0.1
    )


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (torch.optim.SGD(nn.Linear(2, 2).parameters(), lr=1.0), "2 parameter.s. that are not the model's"),
        (torch.optim.LBFGS, "LBFGS calls a closure"),
        (lambda params: "sgd", "must be a torch Optimizer"),
    ],
)
def test_an_optimizer_that_cannot_serve_is_refused(given: Any, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        build_optimizer(given, ModelState(nn.Linear(2, 2)))


def test_a_scheduler_is_built_by_a_callable() -> None:
    optimizer = torch.optim.SGD(nn.Linear(2, 2).parameters(), lr=1.0)
    assert build_scheduler(None, optimizer) is None
    assert build_scheduler(lambda o: torch.optim.lr_scheduler.StepLR(o, 1), optimizer) is not None
    with pytest.raises(UsageError, match=r"callable.optimizer. that returns an LRScheduler"):
        build_scheduler(lambda o: 3, optimizer)


def test_the_description_holds_class_and_options() -> None:
    optimizer = torch.optim.SGD(nn.Linear(2, 2).parameters(), lr=0.5, momentum=0.9)
    described = describe_optimizer(optimizer)
    assert described["class"] == "SGD"
    assert described["groups"][0]["momentum"] == 0.9
    assert "params" not in described["groups"][0]


@pytest.mark.parametrize("max_norm", [0.5, 1e6, None])
def test_clipping_is_torchs_to_the_bit(max_norm: float | None) -> None:
    torch.manual_seed(0)
    mine = [torch.randn(5, 4), torch.randn(7), torch.randn(2, 2, dtype=torch.bfloat16)]
    theirs = [nn.Parameter(torch.empty_like(g)) for g in mine]
    for parameter, gradient in zip(theirs, mine, strict=True):
        parameter.grad = gradient.clone()
    norm = clip(mine, max_norm)
    if max_norm is None:
        assert norm is None
    else:
        assert norm == float(nn.utils.clip_grad_norm_(theirs, max_norm))
    assert all(torch.equal(g, p.grad) for g, p in zip(mine, theirs, strict=True) if p.grad is not None)


@pytest.mark.parametrize("kind", [torch.optim.SGD, torch.optim.AdamW, torch.optim.RMSprop, torch.optim.NAdam])
def test_an_elementwise_optimizer_may_update_part_by_part(kind: Any) -> None:
    def model() -> nn.Sequential:
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))

    whole, parts = model(), model()
    one, two = kind(whole.parameters(), lr=0.1), kind(parts.parameters(), lr=0.1)
    assert updates_apart(one)
    for step in range(3):
        gradients = [
            torch.randn(p.shape, generator=torch.Generator().manual_seed(step)) for p in whole.parameters()
        ]
        for parameter, gradient in zip(whole.parameters(), gradients, strict=True):
            parameter.grad = gradient.clone()
        one.step()
        for parameter, gradient in zip(parts.parameters(), gradients, strict=True):
            parameter.grad = gradient.clone()
            two.step()
            parameter.grad = None
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), parts.parameters(), strict=True))


def test_a_subclass_or_a_hook_is_not_taken_apart() -> None:
    class Odd(torch.optim.SGD):
        pass

    assert not updates_apart(Odd(nn.Linear(1, 1).parameters(), lr=1.0))
    hooked = torch.optim.SGD(nn.Linear(1, 1).parameters(), lr=1.0)
    hooked.register_step_post_hook(lambda *args: None)
    assert not updates_apart(hooked)


# ---- criteria ----


@pytest.mark.parametrize(
    "criterion",
    [
        nn.CrossEntropyLoss(ignore_index=3, label_smoothing=0.1, reduction="sum"),
        nn.CrossEntropyLoss(weight=torch.tensor([1.0, 2.0])),
        nn.MSELoss(),
        nn.HuberLoss(delta=0.5),
        nn.BCEWithLogitsLoss(pos_weight=torch.ones(3)),
    ],
)
def test_a_loss_of_torch_comes_back_the_same(criterion: nn.Module) -> None:
    text = criteria.describe(criterion)
    back = criteria.settle(text, None)
    assert type(back) is type(criterion)
    assert criteria.describe(back) == text
    assert {n: b.shape for n, b in back.named_buffers()} == {n: b.shape for n, b in criterion.named_buffers()}


def test_none_stays_none() -> None:
    assert criteria.describe(None) is None
    assert criteria.settle(None, None) is None


def test_code_of_the_users_must_be_given_on_both_sides() -> None:
    def mine(output: Any, target: Any) -> Any:
        return output.sum()

    announced = criteria.describe(mine)
    assert criteria.settle(announced, mine) is mine
    with pytest.raises(Mismatch, match=r"give TrainingNode the same with criterion="):
        criteria.settle(announced, None)
    with pytest.raises(Mismatch, match="give both the same"):
        criteria.settle(criteria.describe(nn.MSELoss()), nn.L1Loss())


def test_an_option_that_is_code_does_not_get_lost() -> None:
    # describe() left distance_function out, and a node computed the default distance.
    odd = nn.TripletMarginWithDistanceLoss(distance_function=lambda a, b: (a - b).abs().sum(1))
    with pytest.raises(Mismatch, match="TripletMarginWithDistanceLoss"):
        criteria.settle(criteria.describe(odd), None)


@pytest.mark.parametrize(
    "announced",
    [
        "not json",
        json.dumps({"loss": "Linear", "options": {}}),
        json.dumps({"loss": "__import__", "options": {}}),
        json.dumps({"loss": "MSELoss", "options": []}),
        json.dumps({"loss": "MSELoss", "options": {"surprise": 1}}),
        json.dumps({"loss": "CrossEntropyLoss", "options": {"weight": {"shape": [1 << 60]}}}),
        json.dumps({"loss": "CrossEntropyLoss", "options": {"weight": {"shape": "x"}}}),
    ],
)
def test_a_hostile_description_is_refused(announced: str) -> None:
    with pytest.raises(ProtocolError):
        criteria.settle(announced, None)
