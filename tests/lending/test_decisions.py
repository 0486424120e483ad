"""What needs no process: where messages lie, when a child is too slow, how many lanes there are."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from manyhands.errors import ProtocolError, Refused, UsageError
from manyhands.pool.lending.deaths import Deaths
from manyhands.pool.lending.given import Given, describe
from manyhands.pool.lending.lanes import Lending, devices
from manyhands.pool.lending.watchdog import FIRST_SECONDS, LEAST_SECONDS, Watchdog
from manyhands.pool.lending.words import Pulse
from manyhands.wire.ring import Ring


@given(st.lists(st.one_of(st.integers(1, 60), st.none()), max_size=200))
def test_places_lie_inside_and_never_overlap(moves):
    ring, placed = Ring(100), []
    for size in moves:
        if size is None:
            if placed:
                placed.pop(0)
                ring.free(1)
            continue
        offset = ring.place(size)
        if offset is None:
            assert placed, "an empty memory has room for what fits at all"
            continue
        assert offset >= 0
        assert offset + size <= 100
        assert all(offset + size <= a or b <= offset for a, b in placed)
        placed.append((offset, offset + size))
    with pytest.raises(ProtocolError):
        ring.free(len(placed) + 1)


def test_what_is_larger_than_the_memory_has_no_place():
    assert Ring(100).place(101) is None


def pulse(leaves: int = 0, slowest: float = 0.0, busy: float = 0.0) -> Pulse:
    return Pulse(leaves, 0, 0.0, slowest, busy)


def ticks(watchdog: Watchdog, seconds: int, *, start: float = 0.0, is_stopped: bool = False) -> list[str]:
    told = (watchdog.tick(start + second, is_stopped=is_stopped) for second in range(seconds + 1))
    return [reason for reason in told if reason]


def test_a_child_without_a_leaf_has_as_long_as_a_coordinator_waits_for_its_probe():
    assert ticks(Watchdog(), int(FIRST_SECONDS)) == []
    (reason,) = ticks(Watchdog(), int(FIRST_SECONDS) + 1)
    assert "no progress for 1201 s (it has finished no leaf yet)" in reason


def test_a_leaf_may_take_thirty_times_the_slowest_one():
    watchdog = Watchdog()
    watchdog.pulse(pulse(1, slowest=10.0, busy=1.0))
    assert ticks(watchdog, 300) == []
    (reason,) = ticks(watchdog, 0, start=301.0)
    assert "its slowest leaf took 10.0 s" in reason


def test_progress_waiting_and_a_new_stream_are_signs_of_life():
    watchdog = Watchdog()
    for leaves, busy in ((1, 1.0), (2, 100.0), (2, 0.0)):
        watchdog.pulse(pulse(leaves, slowest=0.1, busy=busy))
        assert ticks(watchdog, int(LEAST_SECONDS)) == []
    watchdog.opened()
    assert ticks(watchdog, int(FIRST_SECONDS)) == []


def test_a_pulse_that_only_repeats_itself_is_none():
    watchdog = Watchdog()
    told = []
    for second in range(int(LEAST_SECONDS) + 2):
        watchdog.pulse(pulse(5, slowest=0.1, busy=float(second + 1)))
        told.append(watchdog.tick(float(second), is_stopped=False))
    assert told[-1] is not None
    assert told[:-1] == [None] * (len(told) - 1)


def test_a_pause_of_the_machine_or_of_the_child_costs_nothing():
    watchdog = Watchdog()
    watchdog.pulse(pulse(5, slowest=0.1, busy=1.0))
    assert watchdog.tick(0.0, is_stopped=False) is None
    assert watchdog.tick(10_000.0, is_stopped=False) is None
    assert ticks(watchdog, 1000, start=10_001.0, is_stopped=True) == []


def test_the_third_death_with_one_run_is_the_last():
    deaths = Deaths()
    assert "1 of 3 times with torch alone" in deaths.count(None, "it died")
    assert "1 of 3 times with the program of run a" in deaths.count("a", "it died")
    assert "2 of 3" in deaths.count("a", "it died")
    with pytest.raises(Refused, match="it died; that was the 3rd time with the program of run a"):
        deaths.count("a", "it died")


@pytest.mark.parametrize(
    ("lending", "first", "num_cuda", "threads", "expected"),
    [
        (Lending("n"), "cpu", 0, 1, ["cpu"]),
        (Lending("n", cpus=8), "cpu", 0, 2, ["cpu"] * 4),
        (Lending("n", cpus=3), "cpu", 0, 2, ["cpu"]),
        (Lending("n", cpus=1), "cpu", 0, 4, ["cpu"]),
        (Lending("n", cpus=8), "cuda", 4, 1, ["cuda"]),
        (Lending("n", "all"), "cuda", 3, 1, ["cuda:0", "cuda:1", "cuda:2"]),
        (Lending("n", "all"), "cpu", 0, 1, ["cpu"]),
        (Lending("n", "all"), "mps", 0, 1, ["mps"]),
    ],
)
def test_lanes_follow_the_devices_and_the_threads_of_the_run(lending, first, num_cuda, threads, expected):
    assert devices(lending, first, num_cuda, threads) == expected


def test_names_have_numbers_where_there_may_be_several():
    assert Lending("box").lane_name(0) == "box"
    assert Lending("box", cpus=2).lane_name(1) == "box#2"
    with pytest.raises(UsageError, match="--cpus 9: this process may use 8"):
        Lending("box", cpus=9).check(8)


def test_what_was_given_adds_up_and_reads_well():
    total = Given(3, 48, 1.5, 2048, 10) + Given(1, 16, 0.5, 0, 0)
    assert total == Given(4, 64, 2.0, 2048, 10)
    line = "given so far: 4 micro-batches · 64 samples · 2.0 s of computing · 2.0 KiB sent · 10 B received"
    assert describe(total) == line
