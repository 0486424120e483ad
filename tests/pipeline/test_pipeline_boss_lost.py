"""Longer disturbances: a worker that hangs, a boss that dies, one that is interrupted, other numbers of workers."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from boss_models import OneProcess, batch, equals, open_crew, residual
from torch import nn

from manyhands import BossMan
from manyhands.pipeline.crew import Crew
from manyhands.pipeline.localworkers import LocalWorkers
from manyhands.testing.process import wait_for
from manyhands.wire import Role, known_invite

LOSS = nn.MSELoss()
SECONDS = 100
ORPHAN_SECONDS = 30
"""The longest that a worker may outlive its boss."""
TESTS = Path(__file__).parent


async def steps(boss: BossMan, first: int, end: int) -> list[float]:
    return [await boss.train_batch(*batch(step), LOSS, micro_batches=2) for step in range(first, end)]


async def begun(crew: Crew, **more) -> BossMan:
    torch.manual_seed(0)
    boss = BossMan(crew, residual(), **more)
    await boss.distribute_model()
    await boss.send_optimizer(torch.optim.Adam, {"lr": 1e-2})
    return boss


def assert_same(ours, theirs) -> None:
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


@pytest.mark.slow
@pytest.mark.parametrize("num_workers", [1, 2, 4])
def test_a_checkpoint_goes_on_with_the_same_bits_on_another_number_of_workers(crew, tmp_path, num_workers):
    async def whole():
        boss = await begun(crew)
        first = await steps(boss, 0, 5)
        await boss.save(tmp_path)
        return first + await steps(boss, 5, 9), await boss.state_dict()

    async def rest():
        others = await open_crew(num_workers)
        try:
            torch.manual_seed(77)
            boss = BossMan(others, residual())
            await boss.resume(tmp_path)
            return await steps(boss, 5, 9), await boss.state_dict()
        finally:
            await asyncio.to_thread(others.close)

    losses, weights = asyncio.run(whole())
    later, ends = asyncio.run(rest())
    assert later == losses[5:]
    assert_same(ends, weights)


@pytest.mark.slow
def test_400_steps_of_plain_sgd_have_the_bits_of_one_process(crew):
    async def main():
        boss = BossMan(crew, residual(64))
        await boss.distribute_model()
        await boss.send_optimizer(torch.optim.SGD, {"lr": 0.1})
        one = OneProcess(await boss.state_dict(), 64)
        own = torch.optim.SGD(one.parameters(), lr=0.1)
        for step in range(400):
            x, y = batch(step, 32)
            prediction = await boss.forward(x, {})
            loss = LOSS(prediction, y)
            loss.backward()
            await boss.backward(prediction.grad)
            await boss.optim_step()
            own.zero_grad()
            expected = LOSS(one(x), y)
            expected.backward()
            own.step()
            assert loss.item() == expected.item(), step
        assert equals(await boss.state_dict(), one)

    asyncio.run(main())


@pytest.mark.slow
def test_a_worker_that_hangs_is_given_up(crew, monkeypatch):
    """SIGSTOP: its connection stays open, and nothing answers on it."""

    async def whole():
        boss = await begun(crew)
        return await steps(boss, 0, 6), await boss.state_dict()

    async def disturbed():
        monkeypatch.setenv("MANYHANDS_NETWORK__TIMEOUT", "6")
        others = await open_crew(3)
        stopped = others.members[1].hello.pid
        try:
            boss = await begun(others)
            losses = await steps(boss, 0, 3)
            os.kill(stopped, signal.SIGSTOP)
            losses += await asyncio.wait_for(steps(boss, 3, 6), SECONDS)
            assert not others.members[1].is_alive
            return losses, await boss.state_dict()
        finally:
            os.kill(stopped, signal.SIGCONT)
            await asyncio.to_thread(others.close)

    losses, weights = asyncio.run(whole())
    others, ends = asyncio.run(disturbed())
    assert others == losses
    assert_same(ends, weights)


# ---- the boss itself ---------------------------------------------------------------------------------

BOSS = """
import asyncio, sys
import torch
from boss_models import batch, residual
from manyhands import BossMan

torch.set_num_threads(1)

async def main():
    port = int(sys.argv[1])
    workers = await BossMan.setup_host(2, host="127.0.0.1", port=port, local=not port)
    print("here", *(worker.hello.pid for worker in workers), flush=True)
    torch.manual_seed(0)
    boss = BossMan(workers, residual(), checkpoint_dir=sys.argv[2], snapshot_every=2)
    await boss.distribute_model()
    await boss.send_optimizer(torch.optim.Adam, {"lr": 1e-2})
    if sys.argv[3] == "resume":
        await boss.resume(sys.argv[2])
    for step in range(int(sys.argv[4])):
        print(await boss.train_batch(*batch(step), torch.nn.MSELoss(), micro_batches=2), flush=True)
    await boss.close()

asyncio.run(main())
"""


@pytest.fixture
def free_port() -> int:
    import socket

    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return int(taken.getsockname()[1])


@pytest.fixture
def processes() -> Iterator[contextlib.ExitStack]:
    with contextlib.ExitStack() as stack:
        yield stack


def boss_process(stack: contextlib.ExitStack, *arguments: object) -> subprocess.Popen[str]:
    process = subprocess.Popen(
        [sys.executable, "-c", BOSS, *map(str, arguments)], stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        text=True, cwd=TESTS, env={**os.environ, "PYTHONPATH": f"{TESTS}:{os.environ.get('PYTHONPATH', '')}"},
    )  # fmt: skip
    stack.callback(process.communicate)
    stack.callback(process.kill)
    return process


def here(boss: subprocess.Popen[str]) -> list[int]:
    """Wait until its workers have come; their pids."""
    for line in boss.stdout:
        if line.startswith("here "):
            return [int(pid) for pid in line.split()[1:]]
    raise AssertionError(f"the boss ended before its workers came\n{boss.stderr.read()}")


def losses(boss: subprocess.Popen[str], num_steps: int) -> list[float]:
    """Wait for the losses of so many further steps."""
    return [float(boss.stdout.readline()) for _ in range(num_steps)]


def end(pid: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)


def two_workers(stack: contextlib.ExitStack, port: int, boss_state: Path) -> LocalWorkers:
    """Workers that wait for a boss that goes away, started once there is one."""
    found = None

    def is_there() -> bool:
        nonlocal found
        found = known_invite(boss_state, port, Role.WORKER)
        return found is not None

    wait_for(is_there, SECONDS, "the boss's line")
    workers = LocalWorkers()
    stack.callback(workers.close)
    stack.callback(lambda: [process.kill() for process in workers.processes])
    workers.start(str(found), [None, None], patience_hours=0.1)
    return workers


@pytest.mark.parametrize(
    "number",
    [
        signal.SIGKILL,
        pytest.param(signal.SIGTERM, marks=pytest.mark.slow),
        pytest.param(signal.SIGINT, marks=pytest.mark.slow),
    ],
)
def test_no_worker_outlives_a_boss_that_ends_while_it_trains(processes, tmp_path, number):
    """Workers write on their boss's stderr, so that it ends with the last of them."""
    boss = boss_process(processes, 0, tmp_path, "new", 1_000_000)
    workers = here(boss)
    assert len(workers) == 2
    processes.callback(lambda: [end(worker) for worker in workers])
    losses(boss, 3)
    boss.send_signal(number)
    boss.communicate(timeout=ORPHAN_SECONDS)
    workers.clear()
    assert boss.returncode == -number


@pytest.mark.slow
def test_workers_wait_for_a_boss_that_was_killed_and_it_resumes(processes, free_port, boss_state, tmp_path):
    first = boss_process(processes, free_port, tmp_path, "new", 1_000_000)
    workers = two_workers(processes, free_port, boss_state)
    here(first)
    losses(first, 3)
    first.kill()
    first.wait()
    second = boss_process(processes, free_port, tmp_path, "resume", 3)
    out, err = second.communicate(timeout=SECONDS)
    assert second.returncode == 0, err
    assert len(out.splitlines()) >= 4
    assert workers.wait() == 0


@pytest.mark.slow
def test_a_boss_that_is_interrupted_while_it_waits_for_workers_ends(
    processes, free_port, boss_state, tmp_path
):
    boss = boss_process(processes, free_port, tmp_path, "new", 1)
    wait_for(lambda: known_invite(boss_state, free_port, Role.WORKER) is not None, SECONDS, "its line")
    boss.send_signal(signal.SIGINT)
    _, err = boss.communicate(timeout=ORPHAN_SECONDS)
    assert "KeyboardInterrupt" in err
