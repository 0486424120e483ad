"""Packed bodies: what is rounded and what is not, told in any pieces."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from manyhands.training.buffers import Fold
from manyhands.training.gradients import GradientLayout, Partial
from manyhands.training.moving import MovingState
from manyhands.training.packing import SentWeights, StatePacking, SumPacking
from manyhands.training.quantize import GROUP, round_trip
from manyhands.training.state import ModelState


class Mixed(nn.Module):
    """Parameters of three dtypes, a large one, batch statistics."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(300, 301)
        self.wide = nn.Parameter(torch.randn(7, dtype=torch.float64))
        self.short = nn.Parameter(torch.randn(40).bfloat16())
        self.frozen = nn.Parameter(torch.randn(3), requires_grad=False)
        self.last = nn.Parameter(torch.randn(2, 9))
        self.norm = nn.BatchNorm1d(5)


FOLDS = {"norm.running_mean": Fold.MEAN, "norm.num_batches_tracked": Fold.AGREE}


def test_a_sum_is_rounded_where_it_is_a_gradient_in_fp32_and_nowhere_else() -> None:
    layout = GradientLayout.of(ModelState(Mixed()), FOLDS)
    packing, other = SumPacking(layout, 5), SumPacking(layout, 5)
    buffer = layout.allocate()
    for view in buffer.views:
        view.copy_(torch.randn(view.shape) * 10)
    before = {spec.name: view.clone() for spec, view in zip(layout.layout.specs, buffer.views, strict=True)}
    packing.pack(Partial(buffer, layout.everyone), 3, 1)
    assert packing.num_bytes == len(packing.bytes) < 0.3 * layout.layout.num_bytes
    other.bytes[:] = packing.bytes
    other.unpack(buffer.body)
    after = {spec.name: view for spec, view in zip(layout.layout.specs, buffer.views, strict=True)}
    for name in ("wide", *FOLDS):
        assert torch.equal(before[name], after[name])
    for name in ("first.weight", "short", "last", "norm.bias"):
        assert not torch.equal(before[name], after[name])
        torch.testing.assert_close(before[name], after[name], rtol=0, atol=0.5)


def test_units_and_steps_have_noise_of_their_own() -> None:
    layout = GradientLayout.of(ModelState(nn.Linear(50, 50)), {})
    packing, buffer = SumPacking(layout, 5), layout.allocate()
    for view in buffer.views:
        view.copy_(torch.randn(view.shape))
    told = set()
    for seed, step, unit in ((5, 0, 0), (5, 0, 1), (5, 1, 0), (6, 0, 0)):
        packing = SumPacking(layout, seed)
        packing.pack(Partial(buffer, layout.everyone), step, unit)
        told.add(bytes(packing.bytes))
    assert len(told) == 4


@settings(max_examples=25, deadline=None)
@given(cuts=st.lists(st.integers(0, 400_000), max_size=6))
def test_weights_are_told_in_any_pieces_with_the_same_bits(cuts: list[int]) -> None:
    torch.manual_seed(3)
    model = Mixed()
    moving = MovingState(ModelState(model), FOLDS)
    moving.attach()
    sent, at_once = SentWeights(moving), SentWeights(moving)
    node = moving.body.clone()
    for _ in range(2):
        with torch.no_grad():
            for tensor in (*model.parameters(), model.norm.running_mean):
                tensor.add_(torch.randn(tensor.shape).to(tensor.dtype) * 1e-2)
        sent.begin()
        seen = 0
        for final in sorted(min(cut, len(sent.bytes)) for cut in cuts):
            told = sent.advance(final)
            assert seen <= told <= len(sent.change)
            head = bytes(sent.change[:told])
            seen = told
        assert sent.advance(len(sent.bytes)) == len(sent.change)
        if cuts:
            assert bytes(sent.change[:seen]) == head, "what was final has not changed since"
        at_once.begin()
        at_once.advance(len(sent.bytes))
        assert bytes(sent.change) == bytes(at_once.change)
        StatePacking(moving).apply(torch.frombuffer(bytearray(sent.change), dtype=torch.uint8), node)
        assert torch.equal(node, sent.body), "a node holds what the coordinator thinks it holds"
    held = sent.tensors()
    assert torch.equal(held["wide"], model.wide)
    assert torch.equal(held["short"], model.short)
    assert torch.equal(held["norm.running_mean"], model.norm.running_mean)
    assert not torch.equal(held["first.weight"], model.first.weight)
    torch.testing.assert_close(held["first.weight"], model.first.weight.detach(), rtol=0, atol=1e-3)


def test_saved_and_loaded_weights_are_those_that_nodes_hold() -> None:
    model = Mixed()
    moving = MovingState(ModelState(model), FOLDS)
    moving.attach()
    sent = SentWeights(moving)
    with torch.no_grad():
        model.first.weight.add_(torch.randn(301, 300))
    sent.begin()
    sent.advance(len(sent.bytes))
    saved = {name: value.clone() for name, value in sent.state().items()}
    other = SentWeights(moving)
    assert not torch.equal(other.body, sent.body)
    other.load(saved)
    assert torch.equal(other.body, sent.body)


def test_a_row_goes_on_over_the_borders_of_groups() -> None:
    assert GROUP < 301 * 300, "else this file tests one group only"
    values = torch.randn(GROUP + 128)
    assert torch.equal(round_trip(values, None)[GROUP:], round_trip(values[GROUP:], None))
