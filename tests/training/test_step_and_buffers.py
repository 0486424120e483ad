"""One leaf, and the buffers it leaves behind."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from manyhands.errors import UsageError
from manyhands.training.buffers import Fold, check_leaf_size, mutated_since, snapshot
from manyhands.training.objective import Objective
from manyhands.training.state import ModelState
from manyhands.training.step import Leaf, check_precision, evaluating, leaf_gradient

X, Y = torch.randn(4, 3), torch.tensor([0, 1, 2, 1])
LEAF = Leaf(0, 0, 4.0)


class Ema(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("ema", torch.zeros(3))

    def forward(self, x: Tensor) -> Tensor:
        self.ema.mul_(0.9).add_(x.detach().mean(0), alpha=0.1)
        return x


class Replaces(Ema):
    def forward(self, x: Tensor) -> Tensor:
        self.ema = self.ema * 0.9
        return x


def run(model: nn.Module, leaf: Leaf = LEAF, batch: object = (X, Y), **options: object):
    state = ModelState(model)
    marks = snapshot(state)
    result = leaf_gradient(state, Objective(), batch, leaf, run_seed=0, **options)  # type: ignore[arg-type]
    return result, mutated_since(state, marks)


def test_buffers_that_training_mutates_are_found_with_their_folds() -> None:
    model = nn.Sequential(nn.BatchNorm1d(3), Ema(), nn.Linear(3, 3))
    model.register_buffer("constant", torch.ones(2))
    assert run(model)[1] == {
        "0.running_mean": Fold.MEAN,
        "0.running_var": Fold.MEAN,
        "0.num_batches_tracked": Fold.AGREE,
        "1.ema": Fold.FIRST,
    }


def test_a_replaced_buffer_is_refused_by_name() -> None:
    with pytest.raises(UsageError, match=r"buffer 0\.ema is replaced by a new tensor"):
        run(nn.Sequential(Replaces(), nn.Linear(3, 3)))


def test_leaves_of_one_are_refused_and_small_ones_warned_of() -> None:
    norm = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3))
    with pytest.raises(UsageError, match="1 normalises over the batch, and each micro-batch would hold 1"):
        check_leaf_size(norm, 1)
    assert "below 8" in str(check_leaf_size(norm, 7))
    assert check_leaf_size(norm, 8) is None
    assert check_leaf_size(nn.Linear(1, 1), 1) is None


def test_a_leaf_has_the_same_bits_whatever_ran_before() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 64), nn.Dropout(0.5), nn.Linear(64, 3))
    first, _ = run(model, Leaf(3, 1, 4.0))
    torch.rand(17)
    run(model, Leaf(3, 0, 4.0))
    again, _ = run(model, Leaf(3, 1, 4.0))
    other, _ = run(model, Leaf(3, 2, 4.0))
    assert first.loss == again.loss
    assert all(torch.equal(a, b) for a, b in zip(first.gradients, again.gradients, strict=True))  # type: ignore[arg-type]
    assert first.loss != other.loss, "another leaf, another mask"


def test_a_leaf_without_targets_has_no_gradients_but_moves_buffers() -> None:
    model = nn.Sequential(nn.BatchNorm1d(3), nn.Linear(3, 3))
    result, folds = run(model, Leaf(0, 0, 0.0), (X, torch.full((4,), -100)))
    assert result.loss == 0.0
    assert result.gradients == [None] * 4
    assert "0.running_mean" in folds


class Half(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(3, 3), nn.Linear(3, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.a(x)


class Nothing(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Linear(3, 3)

    def forward(self, x: Tensor) -> Tensor:
        return x


def test_a_parameter_without_a_part_has_no_gradient() -> None:
    gradients = run(Half())[0].gradients
    assert [g is None for g in gradients] == [False, False, True, True]
    nothing = run(Nothing())[0]
    assert nothing.gradients == [None, None], "a loss that no parameter reached"
    assert nothing.loss > 0


def test_gradients_are_of_the_mean_and_left_nowhere() -> None:
    model = nn.Linear(3, 3)
    result, _ = run(model)
    expected = torch.autograd.grad(nn.functional.cross_entropy(model(X), Y), list(model.parameters()))
    assert all(torch.equal(a, b) for a, b in zip(result.gradients, expected, strict=True))  # type: ignore[arg-type]
    assert all(p.grad is None for p in model.parameters())


def test_sparse_gradients_are_refused() -> None:
    model = nn.Sequential(nn.Embedding(5, 3, sparse=True))
    with pytest.raises(UsageError, match="sparse=False"):
        run(model, Leaf(0, 0, 4.0), (torch.tensor([0, 1, 2, 3]), Y))


def test_bf16_runs_in_bf16_and_keeps_fp32_gradients() -> None:
    torch.manual_seed(0)
    model = nn.Linear(3, 3)
    exact, _ = run(model)
    mixed, _ = run(model, precision="bf16")
    assert mixed.gradients[0] is not None
    assert mixed.gradients[0].dtype == torch.float32
    assert not torch.equal(mixed.gradients[0], exact.gradients[0])  # type: ignore[arg-type]
    torch.testing.assert_close(mixed.gradients[0], exact.gradients[0], rtol=0.1, atol=0.05)
    with pytest.raises(UsageError, match="precision='int4' is not one of"):
        check_precision("int4")


def test_evaluating_comes_back_to_training() -> None:
    model = nn.Dropout().train()
    with evaluating(model):
        assert not model.training
        assert not torch.is_grad_enabled()
    assert model.training
