"""What is decided over all stages, optimizers, precision and recomputation: the bits of one process again."""

from __future__ import annotations

import copy

import pytest
import torch
from stage_models import WIDTH, Model, chain, schedule, skips
from stage_pairs import MEAN, SCHEDULES, batches, train
from torch import nn

from manyhands.errors import RunFailed
from manyhands.pipeline.schedules.operations import Operation
from manyhands.pipeline.stage.engine import StageSettings, Step
from manyhands.pipeline.stage.optimizers import OPTIMIZERS, OptimizerRecipe
from manyhands.pipeline.stage.updates import Decision, total_norm

BOUNDS = (0, 2, 3, 5, 8)


@pytest.fixture(autouse=True)
def _one_thread_and_seed() -> None:
    torch.set_num_threads(1)
    torch.manual_seed(17)


@pytest.mark.parametrize("kind", sorted(OPTIMIZERS))
def test_every_optimizer(kind: str) -> None:
    train(skips(), BOUNDS, batches(4), optimizer=OPTIMIZERS[kind], options={"lr": 0.01})


def test_options_reach_the_optimizer() -> None:
    options = {"lr": 0.01, "betas": (0.5, 0.7), "amsgrad": True, "weight_decay": 0.2}
    train(skips(), BOUNDS, batches(4), optimizer=torch.optim.AdamW, options=options)


@pytest.mark.parametrize("name", SCHEDULES)
def test_global_clipping(name: str) -> None:
    """Once so that it always acts, once so that it never does: torch multiplies then, too."""
    for max_norm in (0.01, 1e6):
        train(skips(), BOUNDS, batches(3), name=name, num_micro_batches=2, max_norm=max_norm)


def test_the_norm_of_stages_norms_has_other_bits() -> None:
    """Why each tensor's norm goes to the boss: the witness."""
    drawn = [torch.randn(50) for _ in range(24)]
    norms = {str(at): float(torch.linalg.vector_norm(one)) for at, one in enumerate(drawn)}
    whole = total_norm(norms, norms)
    assert whole == float(torch.nn.utils.get_total_norm(drawn))
    by_stage = [total_norm(norms, map(str, range(at, at + 8))) for at in range(0, 24, 8)]
    assert sum(one * one for one in by_stage) ** 0.5 != whole


@pytest.mark.parametrize("name", SCHEDULES)
def test_bf16(name: str) -> None:
    layers = [nn.Linear(WIDTH, WIDTH), nn.LayerNorm(WIDTH), nn.GELU(), nn.Linear(WIDTH, WIDTH), nn.Tanh()]
    model = chain([*layers, nn.Linear(WIDTH, WIDTH)])
    settings = StageSettings(precision="bf16")
    train(model, (0, 1, 3, 5, 6), batches(3), name=name, num_micro_batches=2, settings=settings)


def narrow() -> Model:
    return chain([nn.Linear(WIDTH, WIDTH), nn.Tanh(), nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)])


def test_fp16_as_torch_scales_it() -> None:
    """One target overflows fp16: every stage skips that step, and the scale is halved."""
    model, data = narrow(), batches(6)
    data[2][1][0, 0] = 1e30
    pipeline = model.pipeline((0, 1, 3, 4), StageSettings(precision="fp16"))
    pipeline.set_optimizer(OptimizerRecipe.of(torch.optim.AdamW, {"lr": 0.01}))
    plain = nn.Sequential(*copy.deepcopy(model.layers))
    optimizer = torch.optim.AdamW(plain.parameters(), lr=0.01)
    scaler = torch.amp.GradScaler("cpu", init_scale=pipeline.scale.value)
    before = pipeline.scale.value
    for x, target in data:
        mine = pipeline.train_batch(schedule("1f1b", 3, 1), x, target, MEAN, max_norm=0.5)
        optimizer.zero_grad()
        with torch.autocast("cpu", dtype=torch.float16):
            loss = nn.functional.mse_loss(plain(x), target)
        scaler.scale(loss).backward()
        scaler.unscale_(optimizer)
        torch.nn.utils.clip_grad_norm_(plain.parameters(), 0.5)
        scaler.step(optimizer)
        scaler.update()
        assert mine == float(loss.detach())
        for one, other in zip(pipeline.tensors().values(), plain.parameters(), strict=True):
            assert torch.equal(one, other)
    assert pipeline.scale.value == before / 2


@pytest.mark.parametrize("name", SCHEDULES)
def test_recomputation_changes_nothing(name: str) -> None:
    layers: list[nn.Module] = [nn.Linear(WIDTH, WIDTH), nn.BatchNorm1d(WIDTH), nn.Dropout(0.3)]
    model = chain([*layers, nn.Linear(WIDTH, WIDTH), nn.BatchNorm1d(WIDTH), nn.Tanh()])
    settings = StageSettings(recompute=True)
    train(model, (0, 1, 3, 4, 6), batches(3, 12), name=name, num_micro_batches=3, settings=settings)
    train(skips(), BOUNDS, batches(2), name=name, num_micro_batches=2, settings=settings)


def test_recomputation_holds_no_graph() -> None:
    def saved(*, recompute: bool) -> int:
        pipeline = chain([nn.Linear(WIDTH, WIDTH) for _ in range(4)]).pipeline(
            (0, 4), StageSettings(recompute=recompute)
        )
        engine, kept = pipeline.engines[0], []
        engine.begin(Step(0, (1.0,)))
        arrived = {key: torch.randn(2, WIDTH) for key in engine.needs("forward")}
        with torch.autograd.graph.saved_tensors_hooks(
            lambda tensor: kept.append(tensor) or tensor, lambda x: x
        ):
            engine.run("forward", 0, arrived)
        return len(kept)

    assert saved(recompute=False) > 0
    assert saved(recompute=True) == 0


def test_eval_mode_and_no_graph() -> None:
    model, (x, _) = chain([nn.Dropout(0.5), nn.BatchNorm1d(WIDTH), nn.Linear(WIDTH, WIDTH)]), batches(1)[0]
    pipeline, reference = model.pipeline((0, 1, 2, 3)), model.one_process()
    pipeline.train(False)
    for layer in reference.layers:
        layer.eval()
    prediction = pipeline.predict(x)
    assert not prediction.requires_grad
    assert torch.equal(prediction, reference.predict(x))
    assert torch.equal(pipeline.tensors()["1.running_mean"], torch.zeros(WIDTH))


def test_a_step_is_done_once() -> None:
    pipeline = narrow().pipeline((0, 2, 4))
    engine = pipeline.engines[1]
    with pytest.raises(RunFailed, match="send_optimizer"):
        engine.update(0)
    pipeline.set_optimizer(OptimizerRecipe.of(torch.optim.SGD, {"lr": 0.1, "momentum": 0.9}))
    pipeline.train_batch(schedule("naive", 2, 1), *batches(1)[0], MEAN)
    before = {name: tensor.clone() for name, tensor in engine.weights.tensors().items()}
    engine.put_gradients({name: torch.ones_like(tensor) for name, tensor in before.items()})
    engine.update(0, Decision(2.0))
    assert all(torch.equal(tensor, before[name]) for name, tensor in engine.weights.tensors().items())
    engine.update(1)
    assert not any(torch.equal(tensor, before[name]) for name, tensor in engine.weights.tensors().items())
    with pytest.raises(RunFailed, match="step 3 cannot follow step 1"):
        engine.update(3)


def test_a_backward_without_its_forward() -> None:
    pipeline = narrow().pipeline((0, 2, 4))
    engine = pipeline.engines[0]
    engine.begin(Step(0, (1.0, 1.0)))
    engine.run("forward", 0, {key: torch.randn(2, WIDTH) for key in engine.needs("forward", 0)})
    with pytest.raises(RunFailed, match="backward of micro-batch 1"):
        engine.run("backward", 1, {})


def test_a_schedule_that_waits_for_itself() -> None:
    pipeline = narrow().pipeline((0, 2, 4))
    pipeline.set_optimizer(OptimizerRecipe.of(torch.optim.SGD, {"lr": 0.1}))
    backward_first = ((Operation("backward", 0, 0), Operation("forward", 0, 0)),)
    with pytest.raises(RunFailed, match="waits for another"):
        pipeline.train_batch(backward_first, *batches(1)[0], MEAN)


def test_replicas_average_after_the_weight_pass() -> None:
    """Two copies of the pipeline take half of the micro-batches each: near to one process, the copies equal."""
    model, (x, target) = skips(), batches(1, 16)[0]
    options = {"lr": 0.05}
    replicas = [model.pipeline(BOUNDS) for _ in range(2)]
    plan = schedule("zero_bubble", 4, 2)
    for at, replica in enumerate(replicas):
        replica.set_optimizer(OptimizerRecipe.of(torch.optim.SGD, options))
        replica.backward_batch(plan, x.chunk(2)[at], target.chunk(2)[at], MEAN, num_micro_batches=2)
    for first, second in zip(*(replica.engines for replica in replicas), strict=True):
        mine, theirs = first.gradients(), second.gradients()
        mean = {name: (mine[name] + theirs[name]) / 2 for name in mine}
        first.put_gradients(mean)
        second.put_gradients(mean)
        first.update(0)
        second.update(0)
    reference = model.one_process()
    optimizer = torch.optim.SGD(reference.parameters().values(), **options)
    reference.train_batch(optimizer, x, target, MEAN, num_micro_batches=4)
    for name, tensor in reference.tensors().items():
        assert torch.equal(replicas[0].tensors()[name], replicas[1].tensors()[name])
        torch.testing.assert_close(replicas[0].tensors()[name], tensor, rtol=0, atol=1e-6)
