"""Q and D: the same bits everywhere, no bias, a quarter of the bytes, and nothing that breaks them."""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from manyhands.training.quantize import BLOCK, GROUP, Quantizer, encoded_bytes, num_units, round_trip

KEYS = st.integers(0, (1 << 63) - 1)
FLOATS = st.floats(-3.0000000054977558e38, 3.0000000054977558e38, width=32)


def encoded(values: Tensor, key: int | None, quantizer: Quantizer | None = None) -> Any:
    out = torch.empty(encoded_bytes(values.numel()), dtype=torch.uint8).numpy()
    (quantizer or Quantizer()).encode(values, out, key)
    return out


def by_blocks(values: Tensor) -> Tensor:
    """As rows of 128, with zeros at the end."""
    padded = torch.zeros(-(-values.numel() // BLOCK) * BLOCK)
    padded[: values.numel()] = values
    return padded.view(-1, BLOCK)


def test_the_bits_are_these() -> None:
    # Written down, so that another machine, torch or numpy that rounds otherwise is found out.
    values = torch.arange(-3000, 70000, dtype=torch.float32) * torch.tensor([0.37, -1.0, 1e-6, 40.0]).repeat(
        18250
    )
    digests = [hashlib.sha256(encoded(values, key).tobytes()).hexdigest()[:16] for key in (None, 0, 1 << 62)]
    assert digests == ["4efd99b15c1ee0dc", "39747fc37064b36f", "d91079a1cc3975d7"]


@settings(max_examples=60, deadline=None)
@given(values=st.lists(FLOATS, max_size=400), key=KEYS)
def test_every_value_comes_back_within_a_step_of_its_block(values: list[float], key: int) -> None:
    row = torch.tensor(values, dtype=torch.float32)
    largest = by_blocks(row).abs().amax(1, keepdim=True).double().expand(-1, BLOCK).reshape(-1)[: row.numel()]
    gone = (round_trip(row, key).double() - row.double()).abs()
    assert bool((gone <= largest / 126.5 * 1.0001 + 1e-36).all())
    nearest = (round_trip(row, None).double() - row.double()).abs()
    assert bool((nearest <= largest / 253 * 1.0001 + 1e-36).all())


@settings(max_examples=20, deadline=None)
@given(
    count=st.integers(0, 3 * GROUP), key=st.none() | KEYS, seed=st.integers(0, 99), place=st.integers(0, 15)
)
def test_neither_threads_nor_alignment_nor_what_came_before_show(
    count: int, key: int | None, seed: int, place: int
) -> None:
    values = torch.randn(count, generator=torch.Generator().manual_seed(seed)) * 1e-3
    expected = encoded(values, key).tobytes()
    used = Quantizer()
    encoded(torch.randn(GROUP + 77), 3, used)
    elsewhere = torch.empty(count + place)[place:].copy_(values)
    torch.set_num_threads(2)
    try:
        assert encoded(elsewhere, key, used).tobytes() == expected
    finally:
        torch.set_num_threads(1)
    out, moved = torch.empty(count), torch.ones(count)
    used.decode(np.frombuffer(expected, np.uint8).copy(), out)
    used.decode(np.frombuffer(expected, np.uint8).copy(), moved, add=True)
    assert torch.equal(moved, 1.0 + out)


@pytest.mark.parametrize("count", [BLOCK, GROUP, 10_000_000, 10_000_016])
def test_the_bytes_are_a_quarter(count: int) -> None:
    assert encoded_bytes(count) <= 0.27 * 4 * count


def test_rounding_has_no_bias() -> None:
    # One value many times, by its place and by its key: the mean is the value, within four deviations.
    block = torch.full((BLOCK,), 0.3)
    block[0] = 1.0
    step = 1.0 / 126.5
    by_place = round_trip(block.repeat(2000), 5).view(-1, BLOCK)[:, 1:]
    by_key = torch.stack([round_trip(block, key)[1:] for key in range(2000)])
    for told in (by_place, by_key):
        assert len(told.unique()) == 2, "the two levels beside it"
        assert abs(float(told.double().mean()) - 0.3) < 4 * step / 2 / told.numel() ** 0.5
    places = by_key.double().mean(0)
    assert float((places - 0.3).abs().max()) < 5 * step / 2 / 2000**0.5, "at no place either"


def test_noise_of_neighbours_steps_and_groups_is_unrelated() -> None:
    # Over values half way between two levels, rounding up is a coin for each.
    values = torch.full((3 * GROUP,), 0.5)
    values[::BLOCK] = 126.5
    coins = [(round_trip(values, key) > 0.5).float() - 0.5 for key in (1, 2, 1 << 40)]
    rows = [coins[0], coins[1], coins[2], coins[0].roll(1), coins[0].roll(GROUP), coins[0].roll(BLOCK)]
    used = torch.ones(3 * GROUP, dtype=torch.bool)
    for start in (0, 1):
        used[start::BLOCK] = False
    for other in rows[1:]:
        relation = float((rows[0][used] * other[used]).mean()) * 4
        assert abs(relation) < 5 / int(used.sum()) ** 0.5


def test_zero_blocks_and_tiny_ones_are_zero() -> None:
    values = torch.tensor([0.0, -0.0, 1e-37, -1e-40]).repeat(50)
    for key in (None, 9):
        told = round_trip(values, key)
        assert bool((told == 0.0).all())
        assert not bool(torch.signbit(told).any())


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_a_block_that_is_not_finite_comes_back_as_nan(bad: float) -> None:
    values = torch.ones(5 * BLOCK)
    values[BLOCK + 7] = bad
    told = round_trip(values, 1).view(5, BLOCK)
    assert bool(told[1].isnan().all())
    assert bool(told[[0, 2, 3, 4]].isfinite().all())
    assert encoded(values, 1).tobytes() == encoded(values, 1).tobytes()


def test_the_largest_floats_stay_numbers() -> None:
    values = torch.tensor([3e38, -3e38, 1.5e38])
    told = round_trip(values, 4)
    assert bool(told.isfinite().all())
    torch.testing.assert_close(told, values, rtol=0.02, atol=0)


def test_what_rounding_left_is_in_the_next_change() -> None:
    generator = torch.Generator().manual_seed(1)
    own = torch.randn(GROUP + 333, generator=generator)
    held, peer = own.clone(), own.clone()
    quantizer = Quantizer()
    change = torch.empty(encoded_bytes(own.numel()), dtype=torch.uint8).numpy()
    for _ in range(30):
        own += 0.01 * torch.randn(own.shape, generator=generator)
        quantizer.encode_change(own, held, change)
        Quantizer().decode(change, peer, add=True)
        assert torch.equal(peer, held), "a peer holds what the coordinator thinks it holds"
    # Thirty roundings without feedback would have gathered several of these.
    assert float((own - held).abs().max()) < 0.06 / 126.5
    quantizer.encode_change(own, held, change)
    assert float((own - held).abs().max()) < 0.001 / 126.5, "and a change of nothing tells the rest"


def test_units_are_a_power_of_two_of_leaves() -> None:
    assert [num_units(count) for count in (1, 2, 3, 4, 8, 9, 16, 17, 32, 33, 1 << 20)] == [
        1, 2, 2, 2, 2, 4, 4, 8, 8, 8, 8,
    ]  # fmt: skip
