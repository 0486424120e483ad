"""A boss and three worker processes against one process: the same bits, whichever way the loop is written."""

from __future__ import annotations

import asyncio

import pytest
import torch
from boss_models import OneProcess, batch, equals, residual
from torch import nn

from manyhands import BossMan, RunFailed, UsageError
from manyhands.pipeline.crew import Crew

LOSS = nn.MSELoss()
STEPS = 12


async def started(crew: Crew, optimizer=torch.optim.SGD, options=None, **more) -> BossMan:
    boss = BossMan(crew, residual(), **more)
    await boss.distribute_model()
    await boss.send_optimizer(optimizer, options or {"lr": 0.1})
    return boss


def reference_step(
    model: OneProcess, optimizer: torch.optim.Optimizer, step: int, clip: float | None = None
) -> float:
    x, y = batch(step)
    optimizer.zero_grad()
    loss = LOSS(model(x), y)
    loss.backward()
    if clip is not None:
        nn.utils.clip_grad_norm_(model.parameters(), clip)
    optimizer.step()
    return loss.item()


@pytest.mark.parametrize(
    ("optimizer", "options"), [(torch.optim.SGD, {"lr": 0.1}), (torch.optim.Adam, {"lr": 3e-3})]
)
def test_a_step_by_hand_has_the_bits_of_one_process(crew, optimizer, options):
    async def main():
        boss = await started(crew, optimizer, options, cuts=[4, 6])
        assert "res_1" in boss.gather_dependencies()
        one = OneProcess(await boss.state_dict())
        own = optimizer(one.parameters(), **options)
        for step in range(STEPS):
            x, y = batch(step)
            prediction = await boss.forward(x, {})
            loss = LOSS(prediction, y)
            loss.backward()
            await boss.backward(prediction.grad)
            await boss.optim_step()
            assert loss.item() == reference_step(one, own, step)
        assert equals(await boss.state_dict(), one)

    asyncio.run(main())


def test_a_whole_step_in_one_command_has_the_bits_of_one_process(crew):
    async def main():
        boss = await started(crew)
        one = OneProcess(await boss.state_dict())
        own = torch.optim.SGD(one.parameters(), lr=0.1)
        for step in range(STEPS):
            loss = await boss.train_batch(*batch(step), LOSS, micro_batches=1, schedule="naive")
            assert loss == reference_step(one, own, step)
        assert equals(await boss.state_dict(), one)

    asyncio.run(main())


def test_every_schedule_has_the_same_bits(crew):
    async def train(schedule):
        torch.manual_seed(1)
        boss = await started(crew, torch.optim.AdamW, {"lr": 1e-2})
        losses = [
            await boss.train_batch(*batch(at), LOSS, micro_batches=4, schedule=schedule) for at in range(4)
        ]
        return losses, await boss.state_dict()

    first, weights = asyncio.run(train("naive"))
    for schedule in ("gpipe", "1f1b", "zero_bubble"):
        losses, others = asyncio.run(train(schedule))
        assert losses == first
        assert all(torch.equal(weights[name], others[name]) for name in weights)


def test_a_loss_of_the_users_own_is_taken_at_the_boss(crew):
    def loss_of(prediction, target):
        return ((prediction - target) ** 2).mean()

    async def main():
        boss = await started(crew)
        one = OneProcess(await boss.state_dict())
        own = torch.optim.SGD(one.parameters(), lr=0.1)
        for step in range(3):
            loss = await boss.train_batch(*batch(step), loss_of, micro_batches=1)
            x, y = batch(step)
            own.zero_grad()
            expected = loss_of(one(x), y)
            expected.backward()
            own.step()
            assert loss == expected.item()
        assert equals(await boss.state_dict(), one)

    asyncio.run(main())


def test_a_plain_loop_with_scheduler_and_clipping_has_the_bits_of_one_process(crew):
    boss = asyncio.run(started(crew))
    net = boss.plain()
    optimizer = net.optimizer(torch.optim.SGD, lr=0.2)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, step_size=3, gamma=0.5)
    one = OneProcess(net.state_dict())
    own = torch.optim.SGD(one.parameters(), lr=0.2)
    own_scheduler = torch.optim.lr_scheduler.StepLR(own, step_size=3, gamma=0.5)
    for step in range(STEPS):
        x, y = batch(step)
        optimizer.zero_grad()
        loss = LOSS(net(x), y)
        loss.backward()
        net.clip_grad_norm_(0.05)
        optimizer.step()
        scheduler.step()
        assert loss.item() == reference_step(one, own, step, clip=0.05)
        own_scheduler.step()
    assert equals(net.state_dict(), one)
    with torch.no_grad():
        assert torch.equal(net.eval()(batch(0)[0]), one(batch(0)[0]))


def test_gradients_add_up_until_the_step(crew):
    boss = asyncio.run(started(crew))
    net = boss.plain()
    optimizer = net.optimizer(torch.optim.SGD, lr=0.2)
    one = OneProcess(net.state_dict())
    own = torch.optim.SGD(one.parameters(), lr=0.2)
    for step in range(2):
        x, y = batch(step)
        LOSS(net(x), y).backward()
        LOSS(one(x), y).backward()
    optimizer.step()
    own.step()
    assert equals(net.state_dict(), one)
    LOSS(net(x), y).backward()
    optimizer.zero_grad()
    optimizer.step()
    assert equals(net.state_dict(), one)


def test_loaded_weights_are_where_they_belong(crew):
    async def main():
        boss = await started(crew)
        weights = {name: torch.full_like(one, 0.25) for name, one in (await boss.state_dict()).items()}
        await boss.load_state_dict(weights)
        assert all(torch.equal(one, weights[name]) for name, one in (await boss.state_dict()).items())
        with pytest.raises(UsageError, match=r"lacks '8\.weight'"):
            await boss.load_state_dict({name: one for name, one in weights.items() if name != "8.weight"})
        with pytest.raises(UsageError, match=r"0\.weight is \(16, 1\)"):
            await boss.load_state_dict({**weights, "0.weight": torch.zeros(3, 1)})

    asyncio.run(main())


def test_what_is_asked_wrong_costs_nothing(crew):
    """A bad batch fails on a worker in the middle of a step; the step after it is as if it had not been."""

    async def main():
        boss = await started(crew)
        one = OneProcess(await boss.state_dict())
        own = torch.optim.SGD(one.parameters(), lr=0.1)
        for step in range(2):
            await boss.train_batch(*batch(step), LOSS, micro_batches=1)
            reference_step(one, own, step)
        x, y = batch(2)
        with pytest.raises(RunFailed, match=r"worker 0 .*mat1 and mat2"):
            await boss.train_batch(torch.zeros(8, 3), y, LOSS, micro_batches=1)
        with pytest.raises(RunFailed, match="worker 2"):
            await boss.train_batch(x, torch.zeros(8, 7, 5), LOSS, micro_batches=1)
        with pytest.raises(UsageError, match="8 samples cannot be parted into 9"):
            await boss.train_batch(x, y, LOSS, micro_batches=9)
        with pytest.raises(UsageError, match="mask"):
            await boss.forward(x, {"mask": x})
        with pytest.raises(UsageError, match="no forward to go back through"):
            await boss.backward(x)
        await boss.train_batch(x, y, LOSS, micro_batches=1)
        reference_step(one, own, 2)
        assert equals(await boss.state_dict(), one)

    asyncio.run(main())


def test_what_cannot_be_is_said_before_anything_is_sent(crew):
    async def main():
        with pytest.raises(UsageError, match="distribute_model"):
            await BossMan(crew, residual()).forward(batch(0)[0])
        with pytest.raises(UsageError, match="each gets one layer"):
            await BossMan(crew, residual()[:2]).distribute_model()
        with pytest.raises(UsageError, match=r"cuts=\[3\]"):
            await BossMan(crew, residual(), cuts=[3]).distribute_model()
        boss = BossMan(crew, residual())
        await boss.distribute_model()
        with pytest.raises(UsageError, match="send_optimizer"):
            await boss.train_batch(*batch(0), LOSS)
        with pytest.raises(UsageError, match=r"torch\.optim"):
            await boss.send_optimizer(nn.Linear, {})

    asyncio.run(main())


def test_statistics_name_every_layer_and_worker(crew):
    async def main():
        boss = await started(crew, cuts=[1, 8])
        rows = boss.get_model_stats()
        assert [row["parameters"] for row in rows] == [32, 0, 272, 0, 272, 0, 272, 0, 17, 0]
        assert rows[0]["worker"].startswith("worker 0 (")
        workers = await boss.get_worker_mem_stats()
        assert [row["layers"] for row in workers] == [[0], list(range(1, 8)), [8, 9]]
        assert workers[1]["weight_bytes"] == 3 * 272 * 4
        assert all(row["free_bytes"] > 0 for row in workers)
        await boss.node_mem_clear()

    asyncio.run(main())
