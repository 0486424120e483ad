"""The byte window: two batches and two round trips at least, bounded on both ends, and never a deadlock."""

from __future__ import annotations

import random

import pytest

from manyhands.errors import ProtocolError
from manyhands.split.credits import LEAST_WINDOW_BYTES, Allowance, Window

MIB = 1 << 20


def test_the_window_holds_two_batches_however_large():
    window = Window(most_bytes=16 * MIB)
    window.arrived(40 * MIB, 0.0)
    assert window.window_bytes == 80 * MIB


def test_the_window_grows_to_two_bandwidth_delay_products_and_stops_there():
    """A link of 100 MB/s and 0.2 s: what the window limits doubles it, until the link is the limit."""
    link, window, now = 100e6, Window(round_trip_seconds=0.2), 0.0
    for _ in range(200):
        rate = min(link, window.window_bytes / 0.2)
        now += 0.5
        window.arrived(MIB, now)
        window.received_bytes += int(rate * 0.5) - MIB
        window.consumed(MIB)
    assert 2 * link * 0.2 * 0.95 <= window.window_bytes <= 2 * link * 0.2 * 1.05


def test_a_fast_far_link_does_not_take_all_memory():
    window = Window(round_trip_seconds=10.0, most_bytes=8 * MIB)
    for step in range(50):
        window.arrived(MIB, step * 200.0)
        window.received_bytes += 10**12
        window.consumed(MIB)
    assert window.window_bytes == 8 * MIB


def test_a_loader_that_sends_without_credit_is_told_so():
    window = Window()
    for _ in range(LEAST_WINDOW_BYTES // MIB + 1):
        window.check(MIB)
        window.arrived(MIB, 0.0)
    with pytest.raises(ProtocolError, match="1,048,576 bytes beside 5,242,880 that are not consumed"):
        window.check(MIB)


@pytest.mark.parametrize("seed", range(20))
def test_in_any_order_both_ends_stay_within_the_window_and_everything_arrives(seed):
    """Batches become ready in any order and are consumed by serial number; old serials come late, as leased again."""
    rng = random.Random(seed)
    window, allowance = Window(), Allowance()
    sizes = {serial: rng.randint(1, 3 * MIB) for serial in range(300)}
    ready, arrived, head = list(sizes), set(), 0
    rng.shuffle(ready)
    largest = max(sizes.values())
    while head < len(sizes):
        # Those near the head are ready: leases are bounded. Among them, any may be first.
        near = [serial for serial in ready if serial < head + 20]
        choices = [serial for serial in near if allowance.may_send(serial, sizes[serial])]
        if choices:
            serial = rng.choice(choices)
            window.check(sizes[serial])
            ready.remove(serial)
            allowance.sent(serial, sizes[serial])
            window.arrived(sizes[serial], 0.0)
            arrived.add(serial)
        elif head not in arrived:
            assert window.is_nearly_full
            allowance.needed = head
        if head in arrived and rng.random() < 0.7:
            window.consumed(sizes[head])
            allowance.acknowledged((head,), window.window_bytes)
            head += 1
        assert window.waiting_bytes == allowance.sent_bytes
        assert window.waiting_bytes <= max(LEAST_WINDOW_BYTES, 2 * largest) + largest
