"""Partial sums: the order of additions, what is absent, what is finite, what must agree."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from manyhands.errors import ProtocolError
from manyhands.training.buffers import Fold
from manyhands.training.gradients import GradientLayout, Partial, collect, combine, first_non_finite, witness
from manyhands.training.state import ModelState


class Model(nn.Module):
    def __init__(self, *dtypes: torch.dtype) -> None:
        super().__init__()
        self.weights = nn.ParameterList(
            nn.Parameter(torch.zeros(3, dtype=dtype)) for dtype in dtypes or (torch.float32,)
        )
        self.register_buffer("mean", torch.zeros(2))
        self.register_buffer("count", torch.zeros((), dtype=torch.long))
        self.register_buffer("ema", torch.zeros(2))


FOLDS = {"mean": Fold.MEAN, "count": Fold.AGREE, "ema": Fold.FIRST}


def partial(
    model: Model, layout: GradientLayout, values: list[list[float] | None], **buffers: float
) -> Partial:
    state = ModelState(model)
    by_name = {
        name: None if value is None else torch.tensor(value, dtype=parameter.dtype)
        for (name, parameter), value in zip(state.trainable.items(), values, strict=True)
    }
    filled = {name: torch.full_like(state.buffers[name], buffers.get(name, 0)) for name in layout.folds}
    return collect(layout, [by_name[name] for name in layout.parameters], 1.0, filled, layout.allocate())


def values_of(layout: GradientLayout, sum_: Partial) -> dict[str, list[float]]:
    return {s.name: v.tolist() for s, v in zip(layout.layout.specs, sum_.buffer.views, strict=True)}


def test_the_first_term_is_copied_not_added_to_zeros() -> None:
    # 0.0 + -0.0 is 0.0: a sum that starts from zeros loses the sign, and the next AdamW step sees it.
    model = Model(torch.float32, torch.float32)
    layout = GradientLayout.of(ModelState(model), {})
    one = partial(model, layout, [[-0.0, 1.0, 2.0], [1.0, 1.0, 1.0]])
    two = partial(model, layout, [None, [1.0, 1.0, 1.0]])
    merged = combine(layout, one, two)
    assert math.copysign(1.0, values_of(layout, merged)["weights.0"][0]) == -1.0
    merged = combine(layout, partial(model, layout, [None, None]), one)
    assert math.copysign(1.0, values_of(layout, merged)["weights.0"][0]) == -1.0


def test_none_is_the_identity_and_stays_none() -> None:
    model = Model(torch.float32, torch.float32)
    layout = GradientLayout.of(ModelState(model), {})
    one, two = partial(model, layout, [[1.0, 2.0, 3.0], None]), partial(model, layout, [None, None])
    merged = combine(layout, one, two)
    assert merged.present == 0b01
    assert values_of(layout, merged)["weights.0"] == [1.0, 2.0, 3.0]
    assert combine(layout, two, partial(model, layout, [None, None])).present == 0


def test_sums_are_wide() -> None:
    model = Model(torch.bfloat16, torch.float64, torch.float16)
    layout = GradientLayout.of(ModelState(model), {})
    dtypes = {s.name: s.dtype for s in layout.layout.specs}
    assert dtypes == {"weights.0": torch.float32, "weights.1": torch.float64, "weights.2": torch.float32}
    a = partial(model, layout, [[256.0] * 3, [1.0 + 2**-50] * 3, [2048.0] * 3])
    b = partial(model, layout, [[1.0] * 3, [2**-52] * 3, [1.0] * 3])
    merged = values_of(layout, combine(layout, a, b))
    assert merged["weights.0"] == [257.0] * 3, "bf16 would give 256"
    assert merged["weights.1"] == [1.0 + 2**-50 + 2**-52] * 3
    assert merged["weights.2"] == [2049.0] * 3, "fp16 would give 2048"


def test_the_factor_is_one_multiplication_in_the_sums_dtype() -> None:
    model = Model(torch.bfloat16)
    state = ModelState(model)
    layout = GradientLayout.of(state, {})
    gradient = torch.tensor([0.1, 0.2, 0.3], dtype=torch.bfloat16)
    made = collect(layout, [gradient], 3.0, {}, layout.allocate())
    assert torch.equal(made.buffer.views[0], gradient.float() * 3.0)


def test_buffers_are_folded_by_kind() -> None:
    model = Model()
    layout = GradientLayout.of(ModelState(model), FOLDS)
    a = partial(model, layout, [[1.0] * 3], mean=1.5, count=7, ema=3.0)
    b = partial(model, layout, [[2.0] * 3], mean=2.0, count=7, ema=5.0)
    merged = values_of(layout, combine(layout, a, b))
    assert merged["mean"] == [3.5, 3.5]
    assert merged["count"] == 7
    assert merged["ema"] == [3.0, 3.0], "leaf 0's value counts"


def test_integers_that_differ_are_named() -> None:
    model = Model()
    layout = GradientLayout.of(ModelState(model), FOLDS)
    a, b = (partial(model, layout, [[1.0] * 3], count=n) for n in (7, 8))
    with pytest.raises(
        ProtocolError, match=r"buffer count must be equal in every micro-batch .* 7 in one and 8"
    ):
        combine(layout, a, b)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_one_bad_value_is_seen_and_named(bad: float) -> None:
    model = Model(torch.float32, torch.float32)
    layout = GradientLayout.of(ModelState(model), {})
    made = partial(model, layout, [[1.0, 1.0, 1.0], [1.0, bad, 1.0]])
    assert witness(made) is None
    assert first_non_finite(layout, made) == "weights.1"


def test_large_finite_values_are_finite_though_their_sum_is_not() -> None:
    model = Model()
    layout = GradientLayout.of(ModelState(model), {})
    made = partial(model, layout, [[3e38, 3e38, 3e38]])
    assert witness(made) is not None
    assert first_non_finite(layout, made) is None
    merged = combine(layout, made, partial(model, layout, [[3e38, 0.0, 0.0]]))
    assert witness(merged) is None, "leaves of 1e38 overflow in the sum, and that is seen"


def test_a_reused_buffer_forgets_an_absent_gradient() -> None:
    model = Model(torch.float32, torch.float32)
    layout = GradientLayout.of(ModelState(model), {})
    buffer = layout.allocate()
    collect(layout, [torch.full((3,), math.nan)] * 2, 1.0, {}, buffer)
    made = collect(layout, [None, torch.ones(3)], 1.0, {}, buffer)
    assert witness(made) is not None


@pytest.mark.parametrize("rows", [3, 700])
def test_a_leaf_is_weighed_alike_in_small_and_in_large_bodies(rows: int) -> None:
    model = nn.Linear(500, rows)
    layout = GradientLayout.of(ModelState(model), {})
    given = [torch.randn(500, rows).t(), torch.tensor([-0.0, 1e-42, 1e38] * (rows // 3) + [0.5] * (rows % 3))]
    sum_ = collect(layout, given, 4.1, {}, layout.allocate())
    for view, gradient in zip(sum_.buffer.views, given, strict=True):
        assert torch.equal(view.view(torch.int32), (gradient.contiguous() * 4.1).view(torch.int32))
    assert sum_.present == 0b11
    without = collect(layout, [None, given[1]], 1.0, {}, sum_.buffer)
    assert without.present == 0b10
    assert not without.buffer.views[0].any()
    assert torch.equal(without.buffer.views[1], given[1])
