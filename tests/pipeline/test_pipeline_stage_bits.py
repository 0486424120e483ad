"""The oracle: a model cut into stages computes the bits of one process, at every cut and in every schedule."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from stage_models import WIDTH, Mix, Spec, chain, cuts, masked, model_of, schedule, skips
from stage_pairs import MEAN, SCHEDULES, batches, train
from torch import Tensor, nn

from manyhands.pipeline.graph import MAIN_INPUT
from manyhands.pipeline.stage.engine import StageSettings
from manyhands.pipeline.stage.optimizers import OptimizerRecipe


@pytest.fixture(autouse=True)
def _one_thread_and_seed() -> None:
    torch.set_num_threads(1)
    torch.manual_seed(11)


@pytest.mark.parametrize("num_stages", [2, 3, 4])
def test_skips_at_every_cut(num_stages: int) -> None:
    model, data = skips(), batches(2)
    for bounds in cuts(len(model.layers), num_stages):
        train(model, bounds, data)


def test_a_sum_at_the_producer_has_other_bits() -> None:
    """The witness that the test above can fail: the same terms, added in another order."""
    a = torch.randn(64, WIDTH, requires_grad=True)
    mixes = [Mix() for _ in range(4)]

    def loss(*taken: Tensor) -> Tensor:
        out = taken[0]
        for mix, skip in zip(mixes, taken, strict=True):
            out = mix(out, skip)
        return out.square().mean()

    (whole,) = torch.autograd.grad(loss(a, a, a, a), a)
    apart = [a.detach().requires_grad_() for _ in mixes]
    terms = torch.autograd.grad(loss(*apart), apart)
    at_producer = terms[0] + terms[1] + terms[2] + terms[3]
    assert torch.allclose(at_producer, whole, atol=1e-6)
    assert not torch.equal(at_producer, whole)


@pytest.mark.parametrize("num_samples", [8, 10])
@pytest.mark.parametrize("name", SCHEDULES)
def test_every_schedule(name: str, num_samples: int) -> None:
    """Ten samples in four micro-batches: two have three, two have two."""
    data = batches(3, num_samples)
    for bounds in [(0, 1, 3, 6, 8), (0, 3, 4, 5, 8)]:
        train(skips(), bounds, data, name=name, num_micro_batches=4)


@pytest.mark.parametrize("name", SCHEDULES)
def test_batch_norm_sees_micro_batches_in_order(name: str) -> None:
    layers = [nn.Linear(WIDTH, WIDTH), nn.BatchNorm1d(WIDTH), nn.ReLU(), nn.Linear(WIDTH, WIDTH)]
    model = chain([*layers, nn.BatchNorm1d(WIDTH, momentum=None), nn.Tanh()])
    train(model, (0, 2, 3, 4, 6), batches(3, 12), name=name, num_micro_batches=3)


@pytest.mark.parametrize("name", SCHEDULES)
def test_dropout_is_the_same_wherever_it_lies(name: str) -> None:
    layers = [nn.Dropout(0.4), nn.Linear(WIDTH, WIDTH), nn.Dropout(0.2), nn.ReLU(), nn.AlphaDropout(0.1)]
    model, data = chain([*layers, nn.Linear(WIDTH, WIDTH)]), batches(2)
    for bounds in [(0, 1, 2, 4, 6), (0, 3, 4, 5, 6)]:
        train(model, bounds, data, name=name, num_micro_batches=2, settings=StageSettings(run_seed=5))


def test_dropout_depends_on_the_run_and_the_step() -> None:
    model, (x, _) = chain([nn.Dropout(0.5), nn.Identity()]), batches(1)[0]
    first, other = (model.pipeline((0, 1, 2), StageSettings(run_seed=seed)) for seed in (0, 1))
    again = first.predict(x)
    assert torch.equal(first.predict(x), again)
    assert not torch.equal(other.predict(x), again)
    first.step_number = 1
    assert not torch.equal(first.predict(x), again)


@pytest.mark.parametrize("name", SCHEDULES)
def test_masks_go_to_their_consumers(name: str) -> None:
    extra = {"mask": torch.rand(8, WIDTH) < 0.3, "columns": torch.rand(1, WIDTH) < 0.2}
    for bounds in [(0, 1, 2, 4, 6), (0, 2, 3, 5, 6)]:
        train(masked(), bounds, batches(2), name=name, num_micro_batches=2, extra=extra)


class Ranked(nn.Module):
    """Makes a number for each sample, and which column is its largest: an edge of integers."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        out = self.linear(x)
        return out, out.argmax(dim=1, keepdim=True)


class Taken(nn.Module):
    """Adds the column of that number."""

    def forward(self, x: Tensor, index: Tensor) -> Tensor:
        return x * 2 + x.gather(1, index)


@pytest.mark.parametrize("name", SCHEDULES)
def test_an_integer_edge_has_no_gradient(name: str) -> None:
    model = model_of(
        [
            Spec(Ranked(), (MAIN_INPUT,), ("a", "index")),
            Spec(nn.Linear(WIDTH, WIDTH), ("a",), ("b",)),
            Spec(nn.Tanh(), ("b",), ("c",)),
            Spec(Taken(), ("c", "index"), ("d",)),
        ],
        without_gradient=["index"],
    )
    train(model, (0, 1, 2, 3, 4), batches(2), name=name, num_micro_batches=2)


class TwoFaced(nn.Module):
    """An output that nothing differentiable is made of: its gradient is None all the way."""

    def forward(self, x: Tensor, skip: Tensor) -> Tensor:
        return x * 3 + skip.detach()


@pytest.mark.parametrize("name", SCHEDULES)
def test_a_gradient_that_is_none_stays_none(name: str) -> None:
    model = model_of(
        [
            Spec(nn.Linear(WIDTH, WIDTH), (MAIN_INPUT,), ("a",)),
            Spec(nn.Linear(WIDTH, WIDTH), (MAIN_INPUT,), ("unused",)),
            Spec(nn.Linear(WIDTH, WIDTH), ("a",), ("b",)),
            Spec(TwoFaced(), ("b", "unused"), ("c",)),
        ]
    )
    train(model, (0, 1, 2, 3, 4), batches(2), name=name, num_micro_batches=2)
    pipeline = model.pipeline((0, 1, 2, 4))
    pipeline.set_optimizer(OptimizerRecipe.of(torch.optim.SGD, {"lr": 0.1, "weight_decay": 0.1}))
    before = pipeline.tensors()["1.weight"].clone()
    pipeline.train_batch(schedule("naive", 3, 1), *batches(1)[0], MEAN)
    assert torch.equal(
        pipeline.tensors()["1.weight"], before
    )  # without a gradient, weight decay passes it by


def test_frozen_layers() -> None:
    layers: list[nn.Module] = [nn.Linear(WIDTH, WIDTH) for _ in range(4)]
    for at in (0, 2):
        layers[at].requires_grad_(False)
    for name in SCHEDULES:
        train(chain(layers), (0, 1, 2, 3, 4), batches(2), name=name, num_micro_batches=2)


@pytest.mark.parametrize("name", SCHEDULES)
def test_a_prediction_that_layers_behind_it_take(name: str) -> None:
    """What comes after the loss has no gradient, and does not stop a schedule."""
    model = chain([Mix() for _ in range(4)])
    model = model._replace(graph=dataclasses.replace(model.graph, prediction="1"))
    for bounds in [(0, 1, 2, 3, 4), (0, 1, 4)]:
        train(model, bounds, batches(2), name=name, num_micro_batches=2)
