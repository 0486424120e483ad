"""Workers that die at any moment: the run goes on, and its bits are those of a run where nobody died."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Iterator

import pytest
import torch
from boss_models import batch, open_crew, residual
from torch import nn

from manyhands import BossMan, RunFailed
from manyhands.clock import SystemClock
from manyhands.pipeline.crew import Crew
from manyhands.pipeline.localworkers import LocalWorkers
from manyhands.pipeline.members import Member

LOSS = nn.MSELoss()
Result = tuple[list[float], dict[str, torch.Tensor]]
"""The loss of each step, and the weights at the end."""
STEPS = 9
KILLED_AT = 5
PATIENCE_SECONDS = 10.0
"""The longest that a step with a loss in it may take."""


async def train(crew: Crew, *, victim: int | None = None, moment: str = "") -> Result:
    """Nine steps on three workers of `crew`, those beyond are spares; the `victim`-th is killed around the sixth."""
    torch.manual_seed(0)
    doomed = None if victim is None else crew.alive[victim]
    clock = SystemClock()
    boss = BossMan(crew, residual(), snapshot_every=4, cuts=[3, 7])
    await boss.distribute_model()
    await boss.send_optimizer(torch.optim.Adam, {"lr": 1e-2})
    losses = []
    for step in range(STEPS):
        kills = doomed if step == KILLED_AT else None
        x, y = batch(step)
        since = clock.monotonic()
        if moment == "forward":
            kill(kills)
        prediction = await boss.forward(x, {})
        loss = LOSS(prediction, y)
        loss.backward()
        if moment == "backward":
            kill(kills)
        await boss.backward(prediction.grad)
        if moment == "step":
            kill(kills)
        await boss.optim_step()
        losses.append(loss.item())
        if kills is not None:
            assert clock.monotonic() - since < PATIENCE_SECONDS
            assert not kills.is_alive
    return losses, await boss.state_dict()


@pytest.fixture(scope="module")
def doomed_crew(boss_state) -> Iterator[Crew]:
    """Workers to be killed; `refill` brings as many as a test needs."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MANYHANDS_STATE_DIR", str(boss_state))
        crew = asyncio.run(open_crew(3))
    yield crew
    crew.close()


def refill(crew: Crew, num_workers: int) -> Crew:
    """Start what is missing of `num_workers`."""
    more = LocalWorkers()
    crew.at_close(more.close)
    more.start(crew.invite, [None] * (num_workers - len(crew)))
    crew.wait(num_workers, 300)
    return crew


def kill(victim: Member | None) -> None:
    """SIGKILL a worker: the process whose number is in its hello."""
    if victim is not None:
        os.kill(victim.hello.pid, signal.SIGKILL)


@pytest.fixture(scope="module")
def undisturbed(crew) -> Result:
    return asyncio.run(train(crew))


def assert_same(one: Result, other: Result) -> None:
    assert one[0] == other[0]
    assert one[1].keys() == other[1].keys()
    assert all(torch.equal(one[1][name], other[1][name]) for name in one[1])


def test_the_layers_of_a_killed_worker_go_to_the_others(undisturbed, doomed_crew):
    assert_same(asyncio.run(train(refill(doomed_crew, 3), victim=1, moment="backward")), undisturbed)


@pytest.mark.slow
@pytest.mark.parametrize("moment", ["forward", "backward", "step"])
@pytest.mark.parametrize("victim", [0, 1, 2])
def test_any_worker_may_die_at_any_operation(undisturbed, doomed_crew, victim, moment):
    assert_same(asyncio.run(train(refill(doomed_crew, 3), victim=victim, moment=moment)), undisturbed)


@pytest.mark.slow
def test_a_spare_takes_over(undisturbed, doomed_crew):
    crew = refill(doomed_crew, 4)
    assert_same(asyncio.run(train(crew, victim=0, moment="step")), undisturbed)
    assert len(crew) == 3


def test_without_any_worker_the_error_says_how_to_go_on(monkeypatch, tmp_path, doomed_crew):
    monkeypatch.setattr("manyhands.pipeline.driver.REPLACEMENT_SECONDS", 0.5)
    crew = doomed_crew

    async def ended() -> None:
        boss = BossMan(crew, residual(), checkpoint_dir=tmp_path, snapshot_every=1)
        await boss.distribute_model()
        await boss.send_optimizer(torch.optim.SGD, {"lr": 0.1})
        await boss.train_batch(*batch(0), LOSS, micro_batches=1)
        for member in crew.alive:
            kill(member)
        with pytest.raises(RunFailed, match=r"resume"):
            await boss.train_batch(*batch(1), LOSS, micro_batches=1)

    async def resumed() -> None:
        boss = BossMan(crew, residual())
        await boss.resume(tmp_path)
        await boss.train_batch(*batch(1), LOSS, micro_batches=1)
        assert await boss.state_dict()

    asyncio.run(ended())
    refill(crew, 2)
    asyncio.run(resumed())
