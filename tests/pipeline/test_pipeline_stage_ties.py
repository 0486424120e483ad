"""A parameter that several stages hold is one parameter: its gradients meet, and its copies never differ."""

from __future__ import annotations

import pytest
import torch
from stage_models import WIDTH, Mix, Model, Spec, cuts, model_of, schedule
from stage_pairs import SCHEDULES, Batches, train
from torch import Tensor, nn

from manyhands.pipeline.graph import MAIN_INPUT
from manyhands.pipeline.stage.engine import StageSettings
from manyhands.pipeline.stage.local import LocalPipeline
from manyhands.pipeline.stage.optimizers import OptimizerRecipe
from manyhands.training.objective import Objective

WORDS, LENGTH = 9, 5
NEXT_WORD = Objective(None)
TIES = (("0.weight", "2.weight", "5.weight"),)


@pytest.fixture(autouse=True)
def _one_thread_and_seed() -> None:
    torch.set_num_threads(1)
    torch.manual_seed(3)


class Again(nn.Module):
    """Looks the same words up a second time: a third use of the table."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(WORDS, WIDTH))

    def forward(self, x: Tensor, words: Tensor) -> Tensor:
        return x * nn.functional.embedding(words, self.weight)


def language_model() -> Model:
    """The table of words is taken by layers 0, 2 and 5."""
    return model_of(
        [
            Spec(nn.Embedding(WORDS, WIDTH), (MAIN_INPUT,), ("a",)),
            Spec(Mix(), ("a",), ("b",)),
            Spec(Again(), ("b", MAIN_INPUT), ("c",)),
            Spec(Mix(), ("c", "a"), ("d",)),
            Spec(nn.LayerNorm(WIDTH), ("d",), ("e",)),
            Spec(nn.Linear(WIDTH, WORDS, bias=False), ("e",), ("logits",)),
        ],
        ties=TIES,
    )


def texts(num_steps: int, num_samples: int = 8) -> Batches:
    drawn = [torch.randint(WORDS, (num_samples, LENGTH + 1)) for _ in range(num_steps)]
    return [(text[:, :-1].contiguous(), text[:, 1:].contiguous()) for text in drawn]


def assert_copies_agree(pipeline: LocalPipeline) -> None:
    held = [
        one.weights.parameters["0.weight"] for one in pipeline.engines if "0.weight" in one.weights.parameters
    ]
    for copy in held:
        assert torch.equal(copy, held[0])


@pytest.mark.parametrize("num_stages", [1, 2, 3, 6])
def test_at_every_cut(num_stages: int) -> None:
    model, data = language_model(), texts(3)
    for bounds in cuts(6, num_stages):
        pipeline = train(model, bounds, data, objective=NEXT_WORD, num_micro_batches=2)
        assert_copies_agree(pipeline)


@pytest.mark.parametrize("name", SCHEDULES)
def test_in_every_schedule(name: str) -> None:
    model, data = language_model(), texts(3)
    for bounds in [(0, 1, 2, 4, 6), (0, 2, 3, 5, 6)]:
        pipeline = train(model, bounds, data, name=name, objective=NEXT_WORD, num_micro_batches=4)
        assert_copies_agree(pipeline)


@pytest.mark.parametrize("name", ["gpipe", "zero_bubble"])
def test_totals_once_a_step_are_near(name: str) -> None:
    """tied="fast": a message a step; the sums differ in their last bits."""
    settings = StageSettings(tied="fast")
    for bounds in [(0, 1, 2, 4, 6), (0, 2, 3, 5, 6)]:
        pipeline = train(
            language_model(),
            bounds,
            texts(3),
            name=name,
            settings=settings,
            objective=NEXT_WORD,
            num_micro_batches=4,
            tolerance=1e-6,
        )
        assert_copies_agree(pipeline)


def test_copies_follow_an_optimizer_with_state() -> None:
    """Only the owner has moments: a copy with its own would drift, and a norm would count it twice."""
    pipeline = train(
        language_model(),
        (0, 2, 4, 6),
        texts(5),
        optimizer=torch.optim.AdamW,
        options={"lr": 0.01, "weight_decay": 0.1},
        objective=NEXT_WORD,
        num_micro_batches=2,
        max_norm=0.05,
    )
    assert_copies_agree(pipeline)
    assert sum("0.weight" in one.snapshot().parameters for one in pipeline.engines) == 1


def test_ignored_targets_weigh_nothing() -> None:
    """One micro-batch has half of its targets ignored, another one all of them: its mean is over nothing."""
    data = texts(2)
    for _, target in data:
        target[2:4] = -100
        target[4, :3] = -100
    train(language_model(), (0, 2, 4, 6), data, objective=NEXT_WORD, num_micro_batches=4)


def test_loss_of_a_batch_without_targets_is_zero() -> None:
    pipeline = language_model().pipeline((0, 2, 4, 6))
    pipeline.set_optimizer(OptimizerRecipe.of(torch.optim.SGD, {"lr": 1.0}))
    before = {name: tensor.clone() for name, tensor in pipeline.tensors().items()}
    x, target = texts(1)[0]
    plan = schedule("1f1b", 3, 2)
    loss = pipeline.train_batch(plan, x, torch.full_like(target, -100), NEXT_WORD, num_micro_batches=2)
    assert loss == 0.0
    for name, tensor in pipeline.tensors().items():
        assert torch.equal(tensor, before[name])
