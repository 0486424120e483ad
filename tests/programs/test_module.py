"""A program in the place of the model: the pool's own step, over several steps, to the same weights."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from comparing import assert_same_buffers, bits, shipped
from torch import Tensor, nn
from zoo import ZOO, Member

from manyhands.programs.capture import capture
from manyhands.training.objective import Objective
from manyhands.training.state import ModelState
from manyhands.training.step import Leaf, leaf_gradient

MEMBERS = {member.name: member for member in ZOO}


class OwnLoss(Objective):
    """The loss that a program brings."""

    def loss(self, model: nn.Module, batch: Any) -> Tensor:
        result: Tensor = model(batch)
        return result


def trained(model: nn.Module, objective: Objective, batches: list[Any]) -> ModelState:
    """`model` after a step of Adam a batch, each the gradient of a leaf as the pool computes it."""
    state = ModelState(model.train())
    optimizer = torch.optim.Adam(state.trainable.values(), lr=1e-2)
    for step, batch in enumerate(batches):
        result = leaf_gradient(state, objective, batch, Leaf(step, 0, 1.0), run_seed=7)
        for parameter, gradient in zip(state.trainable.values(), result.gradients, strict=True):
            parameter.grad = gradient
        optimizer.step()
    return state


@pytest.mark.parametrize("name", ["cnn", "encoder", "sdpa"])
def test_it_trains_to_the_bits_of_the_model(name: str) -> None:
    member: Member = MEMBERS[name]
    model = member.model()
    batches = member.batches(*[(4, 7)] * 4, (3, 7))
    captured = capture(model, member.loss_of, batches[-2:])
    program = shipped(captured)
    eager = trained(model, Objective(member.criterion), batches)
    interpreted = trained(program, OwnLoss(), batches)
    assert list(interpreted.trainable) == list(eager.trainable)
    for key, parameter in eager.parameters.items():
        assert bits(interpreted.parameters[key]) == bits(parameter), key
    assert_same_buffers(model, program)


def test_its_tensors_are_the_ones_given() -> None:
    """So weights that arrive are written into it in place, and a shared Parameter stays shared."""
    member = MEMBERS["mlp"]
    model = member.model()
    batch = member.batches((4, 0))[0]
    captured = capture(model, member.loss_of, [batch])
    program = shipped(captured).eval()
    with torch.no_grad():
        for parameter in program.parameters():
            parameter.zero_()
    assert not program(batch).any()
