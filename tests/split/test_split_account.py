"""What a trainer says to its loaders, and when: the account without a stream, a lock or a clock."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from manyhands.errors import ProtocolError
from manyhands.split.credits import Window
from manyhands.split.intake.account import Account
from manyhands.split.intake.lateness import LATE_SECONDS
from manyhands.split.messages import Batch, Forget, Make, Need, Used
from manyhands.split.plan import Plan
from manyhands.split.seats import Seat
from manyhands.split.terms import Terms

BYTES = 1 << 20


def seat(number: int, capacity: int = 2) -> Seat:
    return Seat(number, f"loader {number}", capacity, None, Window(most_bytes=BYTES))  # type: ignore[arg-type]


def works():
    return Plan(Terms("training", {"train": 40}, 4)).works("train", 0)


def serials(posts: Any, to: Seat) -> list[int]:
    return [
        serial for who, make in posts if who is to and isinstance(make, Make) for serial, _ in make.leases
    ]


def batch(serial: int) -> tuple[Batch, Any]:
    indices = tuple(range(4 * serial, 4 * serial + 4))
    return Batch(serial, indices), [torch.zeros(4)]


def said(posts: Any) -> list[tuple[int, type]]:
    return [(who.number, type(message)) for who, message in posts]


def test_batches_come_out_in_the_order_of_need_whoever_made_them():
    account, first, second = Account(64), seat(1), seat(2)
    assert account.sit(first, 0.0) == []  # nothing is to be made yet
    assert serials(account.seek(works(), 0.0), first) == [0, 1]
    assert serials(account.sit(second, 0.0), second) == [2, 3]
    posts = account.arrived(second, *batch(2), BYTES, 1.0)
    assert account.made(account.head) is None
    assert serials(posts, second) == [4]
    account.arrived(first, *batch(0), BYTES, 1.0)
    made = account.made(account.head)
    assert made is not None
    assert made.indices == (0, 1, 2, 3)
    account.consumed(0, 1.0)
    assert account.head == 1
    assert account.consumed(0, 1.0) == []  # said twice
    figures = account.figures()
    assert (figures.loaders, figures.waiting_batches, figures.waiting_bytes) == (2, 1, BYTES)


def test_a_late_batch_is_asked_of_another_loader_and_credit_is_said_while_the_trainer_waits():
    account, first, second = Account(64), seat(1, capacity=1), seat(2, capacity=1)
    account.sit(first, 0.0)
    account.seek(works(), 0.0)
    account.sit(second, 0.0)
    account.arrived(second, *batch(1), 10, 0.5)
    assert account.due(LATE_SECONDS, 1.0) == []
    assert serials(account.due(LATE_SECONDS + 1.0, 2.0), second) == [0]
    account.arrived(second, *batch(0), 10, 2.5)
    account.consumed(0, 2.5)
    account.consumed(1, 2.5)
    assert (2, Used) in said(account.due(0.0, 2.5))


def test_the_head_may_come_beyond_the_window_and_that_is_said_once():
    account, only = Account(64), seat(1, capacity=8)
    account.sit(only, 0.0)
    account.seek(works(), 0.0)
    while not only.window.is_nearly_full:
        serial = 1 + account.figures().waiting_batches
        account.arrived(only, *batch(serial), BYTES, 0.1)
    assert said(account.due(0.0, 0.1)) == [(1, Need)]
    assert account.due(0.1, 0.2) == []


def test_a_new_position_gives_back_what_lay_here():
    account, only = Account(64), seat(1)
    account.sit(only, 0.0)
    account.seek(works(), 0.0)
    account.arrived(only, *batch(0), BYTES, 0.1)
    posts = account.seek(works(), 0.2)
    assert said(posts)[0] == (1, Forget)
    assert only.window.waiting_bytes == 0
    below = posts[0][1].below
    account.arrived(only, *batch(1), BYTES, 0.3)  # it was on its way
    assert account.figures().duplicates == 1
    assert account.head == below


def test_what_is_wrong_stays_leased_and_goes_to_another_one():
    account, liar, other = Account(64), seat(1), seat(2)
    account.sit(liar, 0.0)
    account.seek(works(), 0.0)
    account.sit(other, 0.0)
    with pytest.raises(ProtocolError, match="sent other samples than batch 0"):
        account.arrived(liar, Batch(0, (9, 9, 9, 9)), [torch.zeros(4)], BYTES, 0.1)
    account.leave(liar, 0.2)
    assert serials(account.arrived(other, *batch(2), BYTES, 0.3), other) == [0]  # before any later one
    assert account.leave(liar, 0.3) == []
    assert account.arrived(liar, *batch(1), BYTES, 0.4) == []  # it has gone
