"""Seeds are a promise between machines: their values must never change."""

from __future__ import annotations

import random
import subprocess
import sys
import threading

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

from manyhands.training.seeds import derive, epoch_order, generators, seed_generators


def test_derived_seeds_are_what_they_always_were() -> None:
    assert derive(0, "leaf", 0, 0) == 627764458509004216
    assert derive(7, "item", 3, 41) == 273144244047689898
    assert derive(-1, "probe") == 6135977939564590904


def test_the_order_of_an_epoch_is_what_it_always_was() -> None:
    assert epoch_order(0, 0, 8, shuffle=True) == [6, 5, 2, 3, 0, 4, 1, 7]
    assert epoch_order(0, 1, 8, shuffle=True) != epoch_order(0, 0, 8, shuffle=True)
    assert epoch_order(3, 9, 5, shuffle=False) == [0, 1, 2, 3, 4]


def test_another_process_derives_the_same_numbers() -> None:
    code = (
        "from manyhands.training.seeds import derive, epoch_order, seed_generators; import torch, random;"
        "import numpy as np; seed_generators(derive(5, 'leaf', 2, 1));"
        "print(derive(5, 'leaf', 2, 1), epoch_order(5, 2, 6, shuffle=True), torch.rand(1).item(),"
        " np.random.rand(), random.random())"
    )
    there = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60
    ).stdout.strip()
    with generators(derive(5, "leaf", 2, 1)):
        drawn = torch.rand(1).item(), np.random.rand(), random.random()
    here = f"{derive(5, 'leaf', 2, 1)} {epoch_order(5, 2, 6, shuffle=True)} {drawn[0]} {drawn[1]} {drawn[2]}"
    assert there == here


@given(st.integers(-(2**63), 2**63), st.integers(0, 2**40), st.integers(0, 2**40))
def test_a_seed_fits_every_generator_and_depends_on_each_number(run: int, a: int, b: int) -> None:
    seed = derive(run, "leaf", a, b)
    assert 0 <= seed < 2**63
    assert seed != derive(run, "leaf", a, b + 1)
    assert seed != derive(run, "item", a, b)
    assert derive(run, "leaf", 1, 23) != derive(run, "leaf", 12, 3)


def test_a_block_leaves_the_callers_generators_as_they_were() -> None:
    seed_generators(1)
    expected = torch.rand(2).tolist(), np.random.rand(), random.random()
    seed_generators(1)
    with generators(99):
        torch.rand(5), np.random.rand(), random.random()
    assert (torch.rand(2).tolist(), np.random.rand(), random.random()) == expected


def test_two_threads_do_not_draw_from_each_others_seeds() -> None:
    # A feeder and a validation shared the process's generators: augmented items changed with the timing.
    def draw(seed: int) -> list[float]:
        with generators(seed):
            return [torch.rand(1).item() for _ in range(20)]

    expected = {seed: draw(seed) for seed in range(4)}
    wrong: list[int] = []

    def work(seed: int) -> None:
        wrong.extend(seed for _ in range(100) if draw(seed) != expected[seed])

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
