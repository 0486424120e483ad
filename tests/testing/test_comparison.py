"""A pool against one process, through the function that users' own tests call."""

from __future__ import annotations

from pathlib import Path

import torch

from manyhands.testing.comparison import compare, difference

JOBS = str(Path(__file__).with_name("jobs.py"))


def test_a_target_with_other_data_each_time_is_found_out():
    found = compare(f"{JOBS}:restless", nodes=1, steps=8)
    assert not found.bit_identical
    assert found.first_difference == "0.weight"
    assert found.largest_difference > 0.0


def test_differences_are_of_bits():
    ours = {"a": torch.tensor([0.0, 1.0]), "b": torch.tensor([1.0, 2.0])}
    assert difference(ours, {name: t.clone() for name, t in ours.items()}) == (0.0, None)
    assert difference(ours, {**ours, "a": torch.tensor([-0.0, 1.0])}) == (0.0, "a")
    assert difference(ours, {**ours, "b": torch.tensor([1.0, 2.5])}) == (0.5, "b")
