"""Replicas, several stages a worker, and what stages compute by: over real workers, against one process."""

from __future__ import annotations

import asyncio
import os
import signal
from typing import Any

import pytest
import torch
from boss_models import OneProcess, batch, open_crew, residual
from torch import Tensor, nn

from manyhands import BossMan, UsageError
from manyhands.pipeline.crew import Crew

LOSS = nn.MSELoss()
ROWS = 12
Result = tuple[list[float], dict[str, Tensor]]


@pytest.fixture(scope="module")
def four(boss_state) -> Any:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MANYHANDS_STATE_DIR", str(boss_state))
        crew = asyncio.run(open_crew(4))
    yield crew
    crew.close()


async def trained(crew: Crew, model: Any, steps: int = 6, *, kills: int | None = None, **more: Any) -> Result:
    """Steps of four micro-batches each; `kills` is a worker that is killed before the fifth."""
    torch.manual_seed(3)
    schedule = more.pop("schedule", "1f1b")
    boss = BossMan(crew, model, **more)
    await boss.distribute_model()
    await boss.send_optimizer(torch.optim.SGD, {"lr": 0.1, "momentum": 0.9})
    losses = []
    for step in range(steps):
        if step == 4 and kills is not None:
            os.kill(crew.members[kills].hello.pid, signal.SIGKILL)
        losses.append(await boss.train_batch(*batch(step, ROWS), LOSS, micro_batches=4, schedule=schedule))
    return losses, await boss.state_dict()


def one_process(weights: dict[str, Tensor], steps: int = 6) -> Result:
    model = OneProcess(weights)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    losses = []
    for step in range(steps):
        x, y = batch(step, ROWS)
        optimizer.zero_grad()
        loss = LOSS(model(x), y)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses, model.state_dict()


def first_weights(crew: Crew) -> dict[str, Tensor]:
    return asyncio.run(trained(crew, residual(), 0))[1]


def assert_close(one: Result, other: Result, tolerance: float = 1e-6) -> None:
    assert one[0] == pytest.approx(other[0], abs=tolerance)
    for mine, theirs in zip(one[1].values(), other[1].values(), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=0, atol=tolerance)


def assert_same(one: Result, other: Result) -> None:
    assert one[0] == other[0]
    assert all(torch.equal(one[1][name], other[1][name]) for name in other[1])


@pytest.mark.parametrize("schedule", ["1f1b", "zero_bubble"])
def test_replicas_train_as_one_process(four, schedule):
    expected = one_process(first_weights(four))
    assert_close(asyncio.run(trained(four, residual(), replicas=2, schedule=schedule)), expected)


def test_replicas_of_one_worker_each_train_as_one_process(four):
    expected = one_process(first_weights(four))
    assert_close(asyncio.run(trained(four, residual(), replicas=4)), expected)


def test_replicas_follow_a_loop_by_hand_and_clip_alike(four):
    """Forward, loss, backward by hand: each replica has a part of the batch, the loss is over the whole."""

    async def main():
        torch.manual_seed(3)
        boss = BossMan(four, residual(), replicas=2)
        await boss.distribute_model()
        await boss.send_optimizer(torch.optim.SGD, {"lr": 0.1})
        one = OneProcess(await boss.state_dict())
        own = torch.optim.SGD(one.parameters(), lr=0.1)
        for step in range(3):
            x, y = batch(step, 7)
            prediction = await boss.forward(x, {})
            LOSS(prediction, y).backward()
            await boss.backward(prediction.grad)
            norm = await boss.clip_grad_norm_(0.05)
            own.zero_grad()
            LOSS(one(x), y).backward()
            assert norm == pytest.approx(float(nn.utils.clip_grad_norm_(one.parameters(), 0.05)), abs=1e-6)
            with torch.no_grad():  # a look between backward and step changes nothing
                assert (await boss.forward(x[:1], {})).shape == (1, 1)
            await boss.optim_step()
            own.step()
        for name, mine in (await boss.state_dict()).items():
            torch.testing.assert_close(mine, one.state_dict()[f"l{name}"], rtol=0, atol=1e-6)
        rows = boss.get_model_stats()
        assert rows[0]["worker"].count("worker") == 2
        assert [row["layers"][0] for row in await boss.get_worker_mem_stats()][::2] == [0, 0]

    asyncio.run(main())


def test_a_replica_without_a_micro_batch_steps_with_the_others(four):
    async def main():
        torch.manual_seed(3)
        boss = BossMan(four, residual(), replicas=2)
        await boss.distribute_model()
        await boss.send_optimizer(torch.optim.SGD, {"lr": 0.1})
        one = OneProcess(await boss.state_dict())
        own = torch.optim.SGD(one.parameters(), lr=0.1)
        for step in range(3):
            x, y = batch(step, 1)
            loss = await boss.train_batch(x, y, LOSS, micro_batches=1)
            own.zero_grad()
            expected = LOSS(one(x), y)
            expected.backward()
            own.step()
            assert loss == expected.item()
        for name, mine in (await boss.state_dict()).items():
            assert torch.equal(mine, one.state_dict()[f"l{name}"])

    asyncio.run(main())


def normed() -> list[Any]:
    return [
        (nn.Linear, {"in_features": 1, "out_features": 8}, (4, 1)),
        (nn.BatchNorm1d, {"num_features": 8}, (4, 8)),
        (nn.Dropout, {"p": 0.5}, (4, 8)),
        (nn.Linear, {"in_features": 8, "out_features": 1}, (4, 8)),
    ]


def test_dropout_is_that_of_the_micro_batch_whoever_runs_it(four):
    """Random numbers are keyed by micro-batch, and it does not matter which replica has it."""
    layers = [normed()[0], *normed()[2:], (nn.Sigmoid, {}, (4, 1))]
    one = asyncio.run(trained(four, layers, 3))
    two = asyncio.run(trained(four, layers, 3, replicas=2))
    assert_close(two, one)


def test_buffers_are_the_first_replicas(four):
    """Its micro-batches alone count: two of the four of each step."""
    _, weights = asyncio.run(trained(four, normed(), 3, replicas=2))
    assert int(weights["1.num_batches_tracked"]) == 3 * 2
    assert weights["1.running_var"].ne(1.0).all()


@pytest.mark.parametrize("replicas", [3, 5])
def test_replicas_that_do_not_go_into_the_workers_are_refused(four, replicas):
    with pytest.raises(UsageError, match=rf"replicas={replicas} .* 4 workers"):
        asyncio.run(BossMan(four, residual(), replicas=replicas).distribute_model())
    with pytest.raises(UsageError, match="replicas=0"):
        BossMan(four, residual(), replicas=0)


@pytest.mark.slow
def test_a_killed_worker_of_a_replica_leaves_the_bits_alone(four):
    async def main() -> Result:
        crew = await open_crew(4)
        try:
            return await trained(crew, residual(), 9, kills=2, replicas=2, snapshot_every=3)
        finally:
            await asyncio.to_thread(crew.close)

    assert_same(asyncio.run(main()), asyncio.run(trained(four, residual(), 9, replicas=2)))


def test_interleaved_has_the_bits_of_one_stage_a_worker(crew):
    """And a run may go over to it and back."""
    expected = asyncio.run(trained(crew, residual()))
    assert_same(asyncio.run(trained(crew, residual(), schedule="interleaved")), expected)
    cuts = [1, 3, 4, 6, 9]
    assert_same(asyncio.run(trained(crew, residual(), schedule="interleaved", cuts=cuts)), expected)

    async def both() -> Result:
        torch.manual_seed(3)
        boss = BossMan(crew, residual(), snapshot_every=4)
        await boss.distribute_model()
        await boss.send_optimizer(torch.optim.SGD, {"lr": 0.1, "momentum": 0.9})
        losses = []
        for step in range(6):
            schedule = "1f1b" if step in (0, 4) else "interleaved"
            losses.append(
                await boss.train_batch(*batch(step, ROWS), LOSS, micro_batches=4, schedule=schedule)
            )
        return losses, await boss.state_dict()

    assert_same(asyncio.run(both()), expected)


def test_interleaved_needs_layers_for_its_stages(crew):
    with pytest.raises(UsageError, match=r"2 stages on each of 3 workers are 6, and the model has 4 layers"):
        asyncio.run(trained(crew, residual()[:4], schedule="interleaved"))


def test_recomputed_activations_have_the_same_bits(crew):
    expected = asyncio.run(trained(crew, residual()))
    assert_same(asyncio.run(trained(crew, residual(), recompute=True)), expected)


def test_bf16_is_autocast_on_every_stage(crew):
    def in_bf16(weights: dict[str, Tensor]) -> list[float]:
        model, losses = OneProcess(weights), []
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
        for step in range(3):
            optimizer.zero_grad()
            x, y = batch(step, ROWS)
            with torch.autocast("cpu", dtype=torch.bfloat16):
                loss = LOSS(model(x), y)
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        return losses

    weights = first_weights(crew)
    losses, _ = asyncio.run(trained(crew, residual(), 3, precision="bf16"))
    assert losses == pytest.approx(in_bf16(weights), abs=1e-5)
    assert losses != asyncio.run(trained(crew, residual(), 3))[0]
    with pytest.raises(UsageError, match="precision='fp8'"):
        BossMan(crew, residual(), precision="fp8")
    with pytest.raises(UsageError, match="tied='close'"):
        BossMan(crew, residual(), tied="close")


def test_fp16_skips_a_step_that_overflowed_and_takes_the_next(crew):
    """A loss of 10^6 with a scale of 65536 is beyond fp16: that step changes no weight, and the scale halves."""

    async def main() -> None:
        torch.manual_seed(3)
        boss = BossMan(crew, residual(), precision="fp16")
        await boss.distribute_model()
        await boss.send_optimizer(torch.optim.SGD, {"lr": 0.1})
        before = await boss.state_dict()
        x, y = batch(0, ROWS)
        await boss.train_batch(x, y + 1e6, LOSS, micro_batches=4)
        after = await boss.state_dict()
        assert all(torch.equal(before[name], after[name]) for name in before)
        one = OneProcess(before)
        own = torch.optim.SGD(one.parameters(), lr=0.1)
        for step in range(3):
            loss = await boss.train_batch(*batch(step, ROWS), LOSS, micro_batches=2)
            own.zero_grad()
            x, y = batch(step, ROWS)
            expected = LOSS(one(x), y)
            expected.backward()
            own.step()
            assert loss == pytest.approx(expected.item(), abs=2e-3)
        for name, mine in (await boss.state_dict()).items():
            torch.testing.assert_close(mine, one.state_dict()[f"l{name}"], rtol=0, atol=2e-3)
            assert not torch.equal(mine, before[name])

    asyncio.run(main())
