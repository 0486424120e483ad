"""How items become batches, what a model is called with, and what a batch weighs."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from manyhands.errors import UsageError
from manyhands.training.batch import collate, forward, size_of, targets_of, to_device
from manyhands.training.objective import Objective

X, Y = torch.randn(4, 3), torch.tensor([0, 1, 2, 1])


class Takes(nn.Module):
    """Remembers what it was called with."""

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        self.called = args, sorted(kwargs)
        return args[0] if args else next(iter(kwargs.values()))


class Named(nn.Module):
    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Any:
        self.mask = attention_mask
        return input_ids


def test_items_are_collated_by_kind() -> None:
    x, y = collate([(torch.ones(2), 1), (torch.zeros(2), 0)])
    assert x.tolist() == [[1, 1], [0, 0]]
    assert y.tolist() == [1, 0]
    rows = collate([{"input_ids": [1, 2, 3]}, {"input_ids": [4, 5, 6]}])
    assert rows["input_ids"].tolist() == [[1, 2, 3], [4, 5, 6]], "lists are rows, not columns"
    assert collate([1, 2], collate_fn=sum) == 3


@pytest.mark.parametrize(
    ("batch", "args", "names", "target"),
    [
        ((X, Y), (X,), [], Y),
        ((X, X, Y), (X, X), [], Y),
        (X, (X,), [], X),
        ({"a": X, "labels": Y}, (), ["a", "labels"], Y),
        ({"input_ids": Y}, (), ["input_ids"], Y),
        ({"label": Y, "x": X}, (), ["label", "x"], Y),
    ],
)
def test_what_the_model_and_the_loss_get(batch: Any, args: Any, names: list[str], target: Tensor) -> None:
    model = Takes()
    forward(model, batch)
    assert all(mine is given for mine, given in zip(model.called[0], args, strict=True))
    assert model.called[1] == names
    assert targets_of(batch) is target


def test_a_dict_reaches_forward_by_the_names_it_declares() -> None:
    model = Named()
    forward(model, {"input_ids": Y, "attention_mask": Y > 0, "labels": Y})
    assert model.mask is not None
    with pytest.raises(UsageError, match="declares attention_mask, input_ids"):
        forward(model, {"pixels": X})
    with pytest.raises(UsageError, match="no targets"):
        targets_of({"pixels": X})


def test_samples_are_counted_by_the_first_dimension() -> None:
    assert size_of((X, Y)) == size_of({"a": [X], "b": Y}) == size_of(X) == 4
    with pytest.raises(UsageError, match="cannot be counted"):
        size_of({"a": torch.tensor(1.0)})
    moved = to_device({"a": [X, "text"]}, torch.device("cpu"))
    assert moved["a"][1] == "text"


@pytest.mark.parametrize(
    ("criterion", "batch", "weight"),
    [
        (None, (X, Y), 4.0),
        (None, (X, torch.tensor([-100, 1, -100, -100])), 1.0),
        (None, {"input_ids": torch.ones(2, 5, dtype=torch.long)}, 10.0),
        (None, (X, torch.rand(4, 3)), 4.0),
        (nn.CrossEntropyLoss(ignore_index=1), (X, Y), 2.0),
        (nn.CrossEntropyLoss(weight=torch.tensor([1.0, 0.5, 0.25])), (X, Y), 2.25),
        (nn.CrossEntropyLoss(reduction="sum"), (X, Y), 1.0),
        (nn.NLLLoss(ignore_index=2), (X, Y), 3.0),
        (nn.MSELoss(), (X, X), 4.0),
        (lambda output, target: output.mean(), (X, Y), 4.0),
    ],
)
def test_a_leaf_weighs_what_its_mean_divides_by(criterion: Any, batch: Any, weight: float) -> None:
    assert Objective(criterion).weigh(batch) == weight


def test_a_callable_gives_the_weight() -> None:
    objective = Objective(nn.MSELoss(), weight=lambda batch: float(batch[0].sum()))
    assert objective.weigh((torch.ones(3, 2), Y)) == 6.0
    assert not objective.counts_samples
    assert Objective(nn.MSELoss()).counts_samples
    assert not Objective(None).counts_samples


def test_weighted_leaves_make_the_whole_batchs_gradient() -> None:
    for criterion, targets in [
        (None, torch.tensor([0, -100, -100, -100, 1, 2, 0, -100])),
        (nn.CrossEntropyLoss(weight=torch.tensor([1.0, 5.0, 0.1])), torch.tensor([0, 1, 2, 2, 1, 1, 0, 2])),
        (nn.CrossEntropyLoss(reduction="sum"), torch.tensor([0, 1, 2, 2, 1, 1, 0, 2])),
    ]:
        torch.manual_seed(0)
        model, x, objective = nn.Linear(3, 3), torch.randn(8, 3), Objective(criterion)
        whole = torch.autograd.grad(objective.loss(model, (x, targets)), model.weight)[0]
        summed, weights = torch.zeros_like(whole), 0.0
        for at in (0, 4):
            batch = (x[at : at + 4], targets[at : at + 4])
            w = objective.weigh(batch)
            summed += w * torch.autograd.grad(objective.loss(model, batch), model.weight)[0]
            weights += w
        torch.testing.assert_close(summed / (1.0 if objective.is_sum else weights), whole)


class Own(nn.Module):
    def forward(self, x: Tensor) -> Any:
        return {"loss": x.sum(), "logits": x}


class Steady(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x


def test_which_loss_is_taken() -> None:
    assert Objective(None).loss(Own(), (X, Y)) == X.sum()
    tokens, logits = torch.randint(0, 3, (2, 5)), torch.randn(2, 5, 3)
    flat = functional.cross_entropy(logits.reshape(10, 3), tokens.reshape(10))
    assert torch.equal(Objective(None).loss(Steady(), (logits, tokens)), flat)
    seen: list[Any] = []

    def criterion(output: Any, target: Any) -> Tensor:
        seen.append(output)
        return output["logits"].mean()

    Objective(criterion).loss(Own(), (X, Y))
    assert set(seen[0]) == {"loss", "logits"}, "a given criterion gets the output as it is"
    with pytest.raises(UsageError, match=r"scalar tensor, not \(4,\)"):
        Objective(nn.CrossEntropyLoss(reduction="none")).loss(Steady(), (X, Y))
    with pytest.raises(UsageError, match="without a loss or logits"):
        Objective(None).loss(Listing(), (X, Y))


class Listing(nn.Module):
    def forward(self, x: Tensor) -> Any:
        return [x]
