"""Modules on real workers against the same module in this process: outputs, losses and weights, bit for bit."""

from __future__ import annotations

import asyncio
import copy
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pytest
import torch
from boss_models import open_crew
from boss_modules import Far, Forked, Normed, Tied, dropping, made
from safetensors.torch import save_file
from torch import Tensor, nn

from manyhands import BossMan, UsageError, wrapped_linear
from manyhands.pipeline.crew import Crew

STEPS = 4
ROWS = 8
LOSS = nn.MSELoss()
Batch = tuple[Tensor, Any, Mapping[str, Tensor]]


def drawn(step: int, *sizes: int) -> Tensor:
    return torch.randn(ROWS, *sizes, generator=torch.Generator().manual_seed(step))


def forked_batch(step: int) -> Batch:
    mask = torch.rand(ROWS, 12, generator=torch.Generator().manual_seed(step)) < 0.3
    return drawn(step, 4), drawn(step + 100, 2), {"mask": mask}


def plain_batch(step: int) -> Batch:
    return drawn(step, 4), drawn(step + 100, 2), {}


def image_batch(step: int) -> Batch:
    return drawn(step, 2, 3, 3), drawn(step + 100, 2), {}


def token_batch(step: int) -> Batch:
    ids = torch.randint(0, 11, (ROWS, 7), generator=torch.Generator().manual_seed(step))
    return ids[:, :-1], ids[:, 1:].contiguous(), {}


async def trained(
    crew: Crew, model: Any, batch_of: Callable[[int], Batch], loss: nn.Module = LOSS, *, micro_batches: int = 1,
    schedule: str = "naive", **more: Any,
) -> tuple[BossMan, list[float]]:  # fmt: skip
    """A few steps of plain SGD on workers: the boss, and the losses."""
    boss = BossMan(crew, model, **more)
    await boss.distribute_model()
    await boss.send_optimizer(torch.optim.SGD, {"lr": 0.1})
    losses = []
    for step in range(STEPS):
        x, y, extra = batch_of(step)
        losses.append(
            await boss.train_batch(x, y, loss, micro_batches=micro_batches, schedule=schedule, extra=extra)
        )
    return boss, losses


def alone(
    model: nn.Module, batch_of: Callable[[int], Batch], loss: nn.Module = LOSS, micro_batches: int = 1
) -> list[float]:
    """The same steps in this process, in place; micro-batches as a loop accumulates them."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    losses = []
    for step in range(STEPS):
        x, y, extra = batch_of(step)
        optimizer.zero_grad()
        total = torch.zeros(())
        for at in range(micro_batches):
            part = slice(at * ROWS // micro_batches, (at + 1) * ROWS // micro_batches)
            one = loss(model(x[part], **{name: value[part] for name, value in extra.items()}), y[part])
            (one / micro_batches).backward()
            total = total + one.detach() / micro_batches
        optimizer.step()
        losses.append(total.item())
    return losses


def assert_same(ours: Mapping[str, Tensor], theirs: Mapping[str, Tensor]) -> None:
    assert ours.keys() == theirs.keys()
    different = [name for name in theirs if not torch.equal(ours[name], theirs[name])]
    assert not different


def cut_of(boss: BossMan) -> list[list[str]]:
    """The names of the layers on each worker."""
    rows = boss.get_model_stats()
    return [
        [row["name"] for row in rows if row["worker"] == worker]
        for worker in dict.fromkeys(row["worker"] for row in rows)
    ]


@pytest.mark.parametrize(
    ("kind", "batch_of", "loss"),
    [
        (Forked, forked_batch, LOSS),
        (Normed, image_batch, LOSS),
        (Tied, token_batch, nn.CrossEntropyLoss()),
    ],
)
def test_a_module_has_the_bits_of_one_process(crew, kind, batch_of, loss):
    """A skip over two cuts, a mask on two workers, an output used twice; statistics; one table on two workers."""
    model = made(kind)
    one = copy.deepcopy(model)

    async def main():
        boss, losses = await trained(crew, model, batch_of, loss)
        assert len(cut_of(boss)) == 3
        return losses, await boss.state_dict(), boss.gather_dependencies()

    losses, weights, edges = asyncio.run(main())
    assert losses == alone(one, batch_of, loss)
    assert_same(weights, one.state_dict())
    assert edges
    assert_same(model.state_dict(), made(kind).state_dict())  # the user's own stays as it was


@pytest.mark.parametrize("schedule", ["gpipe", "1f1b", "zero_bubble"])
def test_micro_batches_have_the_bits_of_a_loop_that_accumulates(crew, schedule):
    one, whole = made(Forked), made(Forked)

    async def main():
        boss, losses = await trained(crew, made(Forked), forked_batch, micro_batches=4, schedule=schedule)
        return losses, await boss.state_dict()

    losses, weights = asyncio.run(main())
    assert losses == alone(one, forked_batch, micro_batches=4)
    assert_same(weights, one.state_dict())
    assert losses == pytest.approx(alone(whole, forked_batch), abs=1e-6)
    for name, weight in whole.state_dict().items():
        assert torch.allclose(weights[name], weight, rtol=0.0, atol=1e-6)


def test_tied_copies_never_differ(crew):
    async def main():
        boss = BossMan(crew, made(Tied))
        await boss.distribute_model()
        await boss.send_optimizer(torch.optim.Adam, {"lr": 1e-2})
        one = made(Tied)
        own = torch.optim.Adam(one.parameters(), lr=1e-2)
        loss_fn = nn.CrossEntropyLoss()
        for step in range(STEPS):
            ids, y, _ = token_batch(step)
            await boss.train_batch(ids, y, loss_fn, micro_batches=4, schedule="1f1b")
            own.zero_grad()
            for at in range(4):
                (loss_fn(one(ids[2 * at : 2 * at + 2]), y[2 * at : 2 * at + 2]) / 4).backward()
            own.step()
            weights = await boss.state_dict()
            assert torch.equal(weights["table.weight"], weights["head.weight"])
            assert torch.equal(weights["table.weight"], one.table.weight)
        first, *_, last = cut_of(boss)
        assert any("table" in name for name in first)
        assert any("head" in name for name in last)

    asyncio.run(main())


def test_dropout_draws_the_same_wherever_it_lies(crew):
    async def weights(cuts: Sequence[int], micro_batches: int, schedule: str) -> tuple[list[float], Any]:
        torch.manual_seed(5)
        model = dropping()
        torch.manual_seed(9)
        boss, losses = await trained(
            crew, model, plain_batch, cuts=cuts, micro_batches=micro_batches, schedule=schedule
        )
        return losses, await boss.state_dict()

    losses, first = asyncio.run(weights([1, 2], 2, "gpipe"))
    for cuts, schedule in (([3, 6], "gpipe"), ([2, 4], "1f1b"), ([5, 7], "zero_bubble")):
        others, placed = asyncio.run(weights(cuts, 2, schedule))
        assert others == losses
        assert_same(placed, first)


def test_a_model_that_no_machine_holds_comes_from_files(crew, tmp_path):
    """Two shards, a module on the meta device, three workers."""
    weights = made(Normed).state_dict()
    names = list(weights)
    for shard, held in enumerate((names[::2], names[1::2])):
        save_file({name: weights[name] for name in held}, tmp_path / f"model-{shard}.safetensors")
    with torch.device("meta"):
        model = Normed()
    one = made(Normed)

    async def main():
        boss, losses = await trained(crew, model, image_batch, weights=tmp_path)
        return losses, await boss.state_dict()

    losses, state = asyncio.run(main())
    assert losses == alone(one, image_batch)
    assert_same(state, one.state_dict())
    assert all(parameter.is_meta for parameter in model.parameters())
    save_file({"conv1.weight": weights["conv1.weight"]}, tmp_path / "model-1.safetensors")
    (tmp_path / "model-0.safetensors").unlink()
    with pytest.raises(UsageError, match="no file has"):
        asyncio.run(trained(crew, model, image_batch, weights=tmp_path))


def shared_skip() -> list[Any]:
    """Layer 0 publishes "a"; layers 2 and 4 take it, and so does layer 6."""
    wide = {"in_features": 6, "out_features": 6}
    return [
        (wrapped_linear, {"in_features": 4, "out_features": 6, "out_variables": ["a"]}, (ROWS, 4)),
        (nn.Tanh, {}, (ROWS, 6)),
        (wrapped_linear, {**wide, "dependencies": ["a"]}, [(ROWS, 6)] * 2),
        (nn.Tanh, {}, (ROWS, 6)),
        (wrapped_linear, {**wide, "dependencies": ["a"]}, [(ROWS, 6)] * 2),
        (nn.Tanh, {}, (ROWS, 6)),
        (wrapped_linear, {**wide, "dependencies": ["a"]}, [(ROWS, 6)] * 2),
        (nn.Linear, {"in_features": 6, "out_features": 2}, (ROWS, 6)),
    ]


class SharedSkip(nn.Module):
    """The same, written by hand."""

    def __init__(self, weights: Mapping[str, Tensor]) -> None:
        super().__init__()
        self.l0, self.l7 = nn.Linear(4, 6), nn.Linear(6, 2)
        self.l2, self.l4, self.l6 = nn.Linear(6, 6), nn.Linear(6, 6), nn.Linear(6, 6)
        self.load_state_dict({f"l{name}": one.clone() for name, one in weights.items()})

    def forward(self, x: Tensor) -> Tensor:
        skip = self.l0(x)
        first = self.l2(torch.tanh(skip)) + skip
        second = self.l4(torch.tanh(first)) + skip
        return self.l7(self.l6(torch.tanh(second)) + skip)


async def assert_skip(crew: Crew, cuts: Sequence[int]) -> None:
    torch.manual_seed(sum(cuts))
    boss = BossMan(crew, shared_skip(), cuts=cuts)
    await boss.distribute_model()
    await boss.send_optimizer(torch.optim.SGD, {"lr": 0.1})
    one = SharedSkip(await boss.state_dict())
    losses = [await boss.train_batch(*plain_batch(step)[:2], LOSS, micro_batches=1) for step in range(STEPS)]
    assert losses == alone(one, plain_batch)
    weights = await boss.state_dict()
    assert_same({f"l{name}": value for name, value in weights.items()}, one.state_dict())


def test_a_skip_taken_twice_on_one_worker_and_once_on_the_next(crew):
    asyncio.run(assert_skip(crew, [1, 5]))


@pytest.mark.slow
def test_a_skip_taken_three_times_at_every_cut(crew):
    for first in range(1, 7):
        for second in range(first + 1, 8):
            asyncio.run(assert_skip(crew, [first, second]))


@pytest.mark.slow
def test_a_skip_of_the_first_of_four_workers_is_taken_on_the_second_and_the_fourth():
    one = made(Far)

    async def main():
        crew = await open_crew(4)
        try:
            boss, losses = await trained(crew, made(Far), forked_batch, cuts=[1, 2, 3])
            return losses, await boss.state_dict(), boss.gather_dependencies(), cut_of(boss)
        finally:
            await asyncio.to_thread(crew.close)

    losses, weights, edges, cut = asyncio.run(main())
    assert losses == alone(one, forked_batch)
    assert_same(weights, one.state_dict())
    assert cut == [["l0"], ["l1"], ["l2"], ["l3", "l4"]]
    assert edges == {"masked_fill": [1, 3], "relu": [2, 3], "masked_fill_1": [3]}


@pytest.mark.parametrize("kept", ["table.weight", "head.weight"])
def test_a_tied_table_may_stand_in_the_files_under_either_name(crew, tmp_path, kept):
    weights = made(Tied).state_dict()
    left = ({"table.weight", "head.weight"} - {kept}).pop()
    save_file({name: one for name, one in weights.items() if name != left}, tmp_path / "model.safetensors")
    with torch.device("meta"):
        model = Tied()

    async def main():
        boss = BossMan(crew, model, weights=tmp_path)
        with torch.no_grad():
            return await boss.forward(token_batch(0)[0])

    with torch.no_grad():
        assert torch.equal(asyncio.run(main()), made(Tied)(token_batch(0)[0]))
