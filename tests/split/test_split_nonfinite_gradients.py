"""A loss that is a number with gradients that are none: found, named, and no weight is touched."""

from __future__ import annotations

import copy

import pytest
import torch
from split_feeds import LocalFeed
from split_training_parts import digits, fit, model
from torch import nn

from manyhands.errors import NonFinite
from manyhands.split.training.gradients import first_nonfinite
from manyhands.split.training.setup import Setup


class Rooted(nn.Module):
    """The slope of the root is infinite at 0, its value is 0; where `at` comes by, one feature is exactly that."""

    def __init__(self, at: int) -> None:
        super().__init__()
        self.at, self.calls = at, 0
        self.scale = nn.Parameter(torch.ones(6))
        self.inner = model()

    def forward(self, x):
        self.calls += 1
        root = torch.sqrt((self.scale * x * (self.calls != self.at)).abs().sum(1, keepdim=True))
        return self.inner(x) + root


def test_the_step_and_the_parameter_are_named_and_the_weights_are_those_before():
    net = Rooted(at=3)
    run, watcher = fit(LocalFeed({"train": digits()}, batch_size=16), Setup(net))
    with pytest.raises(
        NonFinite,
        match=r"the gradient of scale at epoch 0, batch 2 \(samples .*\) is not finite .* after 2 steps",
    ):
        run.run()
    assert len(watcher.losses) == 2
    assert all(torch.isfinite(parameter).all() for parameter in net.parameters())
    assert run.learner.is_whole


def test_in_fp16_an_overflow_costs_its_step_and_halves_the_scale():
    net = Rooted(at=2)
    run, watcher = fit(LocalFeed({"train": digits()}, batch_size=16), Setup(net, precision="fp16"))
    run.run()
    assert len(watcher.losses) == 5
    assert run.learner.steps == 4
    assert run.learner.scale.value == 65536.0 / 2
    assert all(torch.isfinite(parameter).all() for parameter in net.parameters())


def test_in_fp16_what_no_scale_mends_stops_the_run_too():
    """torch's scaler would go on skipping for ever."""
    net = model()
    net[0].weight.register_hook(lambda gradient: gradient * float("nan"))
    before = copy.deepcopy(net.state_dict())
    run, watcher = fit(LocalFeed({"train": digits(700)}, batch_size=16), Setup(net, precision="fp16"))
    with pytest.raises(NonFinite, match=r"the gradient of 0\.weight at epoch 0, batch 16 .* after 0 steps"):
        run.run()
    assert len(watcher.losses) == 16
    assert all(torch.equal(before[name], value) for name, value in net.state_dict().items())


def test_any_kind_of_gradient_is_looked_at():
    odd = torch.zeros(3)
    odd[1] = float("-inf")
    sparse = torch.sparse_coo_tensor(
        [[1]], torch.tensor([[float("nan"), 0.0]]), (4, 2), check_invariants=True
    )
    whole = {
        "a": torch.full((2,), 3e38),
        "empty": torch.empty(0),
        "half": torch.ones(2, dtype=torch.bfloat16),
    }
    assert first_nonfinite({}) is None
    assert first_nonfinite(whole) is None
    assert first_nonfinite({**whole, "odd": odd}) == "odd"
    assert (
        first_nonfinite({**whole, "double": torch.ones(1, dtype=torch.float64), "sparse": sparse}) == "sparse"
    )
