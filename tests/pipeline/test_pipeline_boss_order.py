"""Calls in an order that nobody drew: before the first batch, given up half-way, from two bosses at once."""

from __future__ import annotations

import asyncio
import copy

import pytest
import torch
from boss_models import OneProcess, batch, equals, residual
from torch import nn

from manyhands import BossMan, RunFailed, UsageError

LOSS = nn.MSELoss()


async def started(crew, **more) -> tuple[BossMan, OneProcess, torch.optim.Optimizer]:
    """The residual model on the crew, and the same in this process."""
    boss = BossMan(crew, residual(), **more)
    await boss.distribute_model()
    await boss.send_optimizer(torch.optim.SGD, {"lr": 0.1, "momentum": 0.9})
    one = OneProcess(await boss.state_dict())
    return boss, one, torch.optim.SGD(one.parameters(), lr=0.1, momentum=0.9)


async def same_step(boss: BossMan, one: OneProcess, own: torch.optim.Optimizer, step: int) -> None:
    """The same step on both sides, with the same loss to the bit."""
    x, y = batch(step)
    own.zero_grad()
    loss = LOSS(one(x), y)
    loss.backward()
    own.step()
    assert await boss.train_batch(x, y, LOSS, micro_batches=1) == loss.item()


def small_module() -> nn.Module:
    torch.manual_seed(3)
    return nn.Sequential(nn.Linear(1, 8), nn.Dropout(0.5), nn.Tanh(), nn.Linear(8, 1))


def test_a_module_may_be_asked_before_its_first_batch(crew):
    """Its cut waits for a batch's shapes; a loop's usual first lines do not."""
    module = small_module()
    before = copy.deepcopy(module.state_dict())

    async def main():
        boss = BossMan(crew, module)
        await boss.distribute_model()
        await boss.send_optimizer(torch.optim.SGD, {"lr": 0.1})
        assert boss.gather_dependencies() == {}
        return boss

    boss = asyncio.run(main())
    net = boss.plain()
    assert {name: one.tolist() for name, one in net.state_dict().items()} == {
        name: one.tolist() for name, one in before.items()
    }
    with pytest.raises(UsageError, match="its first batch places it"):
        net.load_state_dict(before)
    net.train()
    net.eval()
    x, _ = batch(0)
    module.eval()
    with torch.no_grad():
        assert torch.equal(net(x), module(x))
    assert boss.gather_dependencies()


def test_a_command_that_nobody_waits_for_any_more_leaves_no_trace(crew):
    async def main():
        boss, one, own = await started(crew)
        await same_step(boss, one, own, 0)
        given_up = asyncio.create_task(boss.train_batch(*batch(7), LOSS, micro_batches=1))
        await asyncio.sleep(0)  # it has been handed to the crew's thread
        given_up.cancel()
        with pytest.raises(asyncio.CancelledError):
            await given_up
        for step in (1, 2):
            await same_step(boss, one, own, step)
        assert equals(await boss.state_dict(), one)

    asyncio.run(main())


def test_a_batch_that_a_layer_cannot_take_is_told_with_the_layer_and_leaves_no_trace(crew):
    async def main():
        boss, one, own = await started(crew)
        await same_step(boss, one, own, 0)
        with pytest.raises(RunFailed, match=r"worker 0 .*: layer 0 \(\w+\), given \(8, 3\): RuntimeError: "):
            await boss.train_batch(torch.randn(8, 3), batch(1)[1], LOSS, micro_batches=1)
        await same_step(boss, one, own, 2)
        assert equals(await boss.state_dict(), one)

    asyncio.run(main())


def test_two_models_take_turns_on_the_same_workers(crew):
    async def main():
        first = await started(crew, cuts=[2, 5])
        second = await started(crew, cuts=[4, 6])
        for step in range(3):
            await same_step(*first, step)
            await same_step(*second, step + 1)
        assert equals(await first[0].state_dict(), first[1])
        assert equals(await second[0].state_dict(), second[1])

    asyncio.run(main())


def test_loaded_weights_count_from_now_on(crew):
    """A forward that waits for its backward keeps older steps in the log; none of them is done again on new weights."""

    async def main():
        boss, one, own = await started(crew)
        for step in range(2):
            await same_step(boss, one, own, step)
        await boss.forward(batch(0)[0], {})
        weights = {name: torch.full_like(value, 0.125) for name, value in (await boss.state_dict()).items()}
        await boss.load_state_dict(weights)
        assert all(torch.equal(value, weights[name]) for name, value in (await boss.state_dict()).items())
        one.load_state_dict({f"l{name}": value for name, value in weights.items()})
        await same_step(boss, one, own, 2)
        assert equals(await boss.state_dict(), one)

    asyncio.run(main())


def test_a_rate_that_was_set_before_the_first_step_outlives_a_placement(crew):
    async def main():
        boss, one, own = await started(crew)
        await boss.set_lr(0.5)
        own.param_groups[0]["lr"] = 0.5
        await boss.load_state_dict(await boss.state_dict())
        await same_step(boss, one, own, 0)
        assert equals(await boss.state_dict(), one)

    asyncio.run(main())


def test_evaluation_mode_outlives_a_placement(crew):
    async def main():
        module = small_module()
        boss = BossMan(crew, module)
        await boss.distribute_model()
        await boss.model_eval()
        x, _ = batch(0)
        with torch.no_grad():
            first = await boss.forward(x, {})
            await boss.load_state_dict(await boss.state_dict())
            assert torch.equal(await boss.forward(x, {}), first)
            assert torch.equal(first, module.eval()(x))

    asyncio.run(main())
