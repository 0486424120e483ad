"""A machine that is lent only while its owner does nothing with it."""

from __future__ import annotations

import subprocess
import sys

import psutil
import pytest
from lent import ENDLESS, coordinator, join, wait_steps

from manyhands.pool.lending.idle import Idle
from manyhands.testing.process import wait_for


def run(idle: Idle, shares: list[float], start: float = 0.0) -> list[bool]:
    """What it says each second, while others take these shares of a processor."""
    idle.tick(start, 0.0)
    taken, told = 0.0, []
    for second, share in enumerate(shares, 1):
        taken += share
        told.append(idle.tick(start + second, taken))
    return told


def test_a_short_burst_is_no_owner() -> None:
    assert run(Idle(10.0), [0.1, 0.9, 0.1, 0.9, 0.1]) == [False] * 5


def test_a_busy_owner_has_the_machine_until_it_was_quiet_for_long_enough() -> None:
    told = run(Idle(3.0), [0.0, 0.5, 0.5, 0.5, 0.0, 0.0, 0.5, 0.0, 0.0, 0.0, 0.0])
    assert told == [False, False, True, True, True, True, True, True, True, False, False]


def test_two_looks_at_one_moment_change_nothing() -> None:
    idle = Idle(3.0)
    idle.tick(1.0, 5.0)
    assert idle.tick(1.0, 9.0) is False


@pytest.mark.slow
def test_it_pauses_and_comes_back_by_itself(tmp_path) -> None:
    with (
        coordinator(**ENDLESS) as cluster,
        join(
            "--when-idle",
            state=cluster.state_dir,
            folder=tmp_path / "a",
            MANYHANDS_ADVANCED__IDLE_SECONDS="2",
        ) as joined,
    ):
        wait_steps(cluster)
        child = joined.child()
        with subprocess.Popen([sys.executable, "-c", "while True: pass"]) as owner:
            wait_for(lambda: child.status() == psutil.STATUS_STOPPED, 60.0, "the pause")
            assert "paused until it is idle" in joined.errors
            owner.kill()
        wait_steps(cluster, 3)
        assert joined.child().pid == child.pid
        assert "going on" in joined.errors
