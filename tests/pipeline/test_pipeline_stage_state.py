"""A stage's state: all of it, under the model's names, for the same cut or any other one."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from stage_models import WIDTH, assert_same_bits, chain, schedule
from stage_pairs import MEAN, batches
from test_pipeline_stage_ties import NEXT_WORD, language_model, texts
from torch import nn

from manyhands.errors import UsageError
from manyhands.pipeline.stage.local import LocalPipeline
from manyhands.pipeline.stage.optimizers import OPTIMIZERS, OptimizerRecipe
from manyhands.pipeline.stage.weights import StageState

LAYERS = [nn.Linear(WIDTH, WIDTH), nn.BatchNorm1d(WIDTH), nn.Dropout(0.3), nn.Linear(WIDTH, WIDTH), nn.Tanh()]


@pytest.fixture(autouse=True)
def _one_thread_and_seed() -> None:
    torch.set_num_threads(1)
    torch.manual_seed(29)


def train(pipeline: LocalPipeline, data: list[tuple[torch.Tensor, torch.Tensor]]) -> list[float]:
    plan = schedule("1f1b", len(pipeline.engines), 2)
    return [pipeline.train_batch(plan, x, y, MEAN, num_micro_batches=2) for x, y in data]


@pytest.mark.parametrize("kind", sorted(OPTIMIZERS))
@pytest.mark.parametrize("other", [(0, 2, 4, 5), (0, 1, 5)])
def test_going_on_elsewhere_has_the_same_bits(kind: str, other: tuple[int, ...]) -> None:
    """Three steps, a snapshot, three more; and the last three again from the snapshot, with another cut and another
    learning rate before it is restored.
    """
    model, data = chain(LAYERS), batches(6)
    recipe = OptimizerRecipe.of(OPTIMIZERS[kind], {"lr": 0.02})
    pipeline = model.pipeline((0, 2, 4, 5))
    pipeline.set_optimizer(recipe)
    train(pipeline, data[:3])
    for engine in pipeline.engines:
        engine.set_rate(0.03)
    state = pipeline.snapshot()
    assert (state.step, state.lr) == (2, 0.03)
    losses = train(pipeline, data[3:])
    another = model.pipeline(other)
    another.set_optimizer(recipe)
    another.restore(state)
    assert train(another, data[3:]) == losses
    assert_same_bits(another.tensors(), pipeline.tensors())
    again = another.snapshot()
    for name, tensors in pipeline.snapshot().optimizer.items():
        assert_same_bits(again.optimizer[name], tensors)


def test_copies_of_shared_parameters_come_back_too() -> None:
    model, data = language_model(), texts(4)
    plan = schedule("gpipe", 3, 2)
    recipe = OptimizerRecipe.of(torch.optim.Adam, {"lr": 0.02})
    first, second = model.pipeline((0, 2, 4, 6)), model.pipeline((0, 1, 5, 6))
    for pipeline in (first, second):
        pipeline.set_optimizer(recipe)
    for x, y in data[:2]:
        first.train_batch(plan, x, y, NEXT_WORD, num_micro_batches=2)
    second.restore(first.snapshot())
    for x, y in data[2:]:
        losses = [one.train_batch(plan, x, y, NEXT_WORD, num_micro_batches=2) for one in (first, second)]
        assert losses[0] == losses[1]
    assert_same_bits(second.tensors(), first.tensors())


def test_a_snapshot_is_a_copy() -> None:
    pipeline = chain(LAYERS).pipeline((0, 2, 5))
    pipeline.set_optimizer(OptimizerRecipe.of(torch.optim.SGD, {"lr": 0.1, "momentum": 0.9}))
    train(pipeline, batches(1))
    state = pipeline.snapshot()
    before = {name: tensor.clone() for name, tensor in {**state.parameters, **state.buffers}.items()}
    moments = {name: tensors["momentum_buffer"].clone() for name, tensors in state.optimizer.items()}
    train(pipeline, batches(1))
    assert_same_bits({**state.parameters, **state.buffers}, before)
    assert_same_bits({name: one["momentum_buffer"] for name, one in state.optimizer.items()}, moments)
    assert state.buffers["1.num_batches_tracked"].item() == 2


def test_what_is_unfinished_is_forgotten() -> None:
    pipeline = chain(LAYERS).pipeline((0, 2, 5))
    pipeline.set_optimizer(OptimizerRecipe.of(torch.optim.SGD, {"lr": 0.1}))
    state, (x, y) = pipeline.snapshot(), batches(1)[0]
    pipeline.backward_batch(schedule("gpipe", 2, 2), x, y, MEAN, num_micro_batches=2)
    pipeline.restore(state)
    assert not any(engine.gradients() for engine in pipeline.engines)
    assert_same_bits(pipeline.snapshot().buffers, state.buffers)


def test_a_state_of_another_model() -> None:
    state = chain(LAYERS).pipeline((0, 5)).snapshot()
    with pytest.raises(UsageError, match=r"it has no 4\.weight"):
        chain([*LAYERS[:4], nn.Linear(WIDTH, 2)]).pipeline((0, 2, 5)).restore(state)
    with pytest.raises(UsageError, match=r"3\.weight is \(2, 12\) here, and the state's is \(12, 12\)"):
        chain([*LAYERS[:3], nn.Linear(WIDTH, 2), nn.Tanh()]).pipeline((0, 2, 5)).restore(state)


def test_states_of_different_moments() -> None:
    state = chain(LAYERS).pipeline((0, 5)).snapshot()
    later = dataclasses.replace(state, step=3)
    with pytest.raises(UsageError, match=r"different steps, \[-1, 3\]"):
        StageState.merged([state, later])


def test_a_stage_without_parameters() -> None:
    pipeline = chain([nn.Linear(WIDTH, WIDTH), nn.ReLU(), nn.Linear(WIDTH, WIDTH)]).pipeline((0, 1, 2, 3))
    pipeline.set_optimizer(OptimizerRecipe.of(torch.optim.Adam, {"lr": 0.1}))
    train(pipeline, batches(2))
    state = pipeline.snapshot()
    assert state.step == 1
    pipeline.restore(state)
    train(pipeline, batches(1))
