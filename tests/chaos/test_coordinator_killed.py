"""The coordinator is SIGKILLed at random moments and started again: nodes come back, and no bit is lost."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest
from chaos_runs import Chaos, alone, audit, check

from manyhands.clock import SystemClock
from manyhands.testing.cluster import LocalCluster
from manyhands.testing.process import wait_for

BACK_SECONDS = 5.0
"""What a coordinator's return may cost: from when nodes can join to its first step."""
EARLY_SECONDS = 1.0
LATE_SECONDS = 0.8
EVERY_MINUTES = 0.002
"""Between checkpoints, so that runs that never live for long get on."""
ITEMS = 450
"""What one incarnation may use, 30 steps, so that the run is not over before the last kill."""


def kill_at_a_random_moment(cluster: LocalCluster, chance: random.Random, returns: list[float]) -> None:
    """Early: while it reads what was saved, listens, lets nodes in. Late: nodes are back and compute."""
    if chance.random() < 0.4:
        SystemClock().sleep(chance.uniform(0.0, EARLY_SECONDS))
    else:
        returns.append(seconds_until_back(cluster))
        SystemClock().sleep(chance.uniform(0.0, LATE_SECONDS))
    cluster.kill_coordinator()
    cluster.restart_coordinator(until="loaded")


def seconds_until_back(cluster: LocalCluster) -> float:
    """From when nodes could join this incarnation to its first step; all of them must be back in time."""
    cluster.wait_ready()
    cluster.wait_nodes(2, BACK_SECONDS)
    cluster.wait_step(0, BACK_SECONDS)
    return min(cluster.step_seconds.values())


@pytest.mark.parametrize(
    ("kills", "epochs", "seed"),
    [(3, 25, 1), pytest.param(20, 130, 2, marks=[pytest.mark.slow, pytest.mark.timeout(600)])],
)
def test_kills_at_random_moments(
    chaos: Chaos, tell: Callable[[str], None], kills: int, epochs: int, seed: int
) -> None:
    chance, returns = random.Random(seed), list[float]()
    changes = {"epochs": epochs, "checkpoint_interval": EVERY_MINUTES}
    with chaos.cluster("norm-adamw", 2, items_before_gate=ITEMS, **changes) as cluster:
        cluster.wait_step(0)
        for _ in range(kills):
            kill_at_a_random_moment(cluster, chance, returns)
        returns.append(seconds_until_back(cluster))
        chaos.begin(cluster, 2)
        report = cluster.wait(300)
        audit(cluster, report)
        assert [cluster.returncode(node) for node in (0, 1)] == [0, 0]
    tell(f"{kills} kills of the coordinator; seconds until nodes were back: {[round(s, 2) for s in returns]}")
    check(report, "norm-adamw", epochs=epochs)
    assert max(returns) < BACK_SECONDS


@pytest.mark.slow
def test_a_kill_at_the_very_end(chaos: Chaos) -> None:
    """The last step is committed and perhaps not saved, and nodes have perhaps not heard that they may go."""
    with chaos.cluster("norm-adamw", 2, gated=False) as cluster:
        cluster.wait_step(alone("norm-adamw").steps - 1)
        cluster.kill_coordinator()
        cluster.restart_coordinator()
        report = cluster.wait()
        audit(cluster, report)
    check(report, "norm-adamw")


@pytest.mark.slow
def test_processes_that_load_data_go_with_a_killed_coordinator(chaos: Chaos) -> None:
    changes = {"epochs": 30, "checkpoint_interval": EVERY_MINUTES, "num_workers": 2}
    with chaos.cluster("norm-adamw", 1, gated=False, **changes) as cluster:
        cluster.wait_step(20)
        cluster.kill_coordinator()
        wait_for(lambda: len(chaos.left_behind()) == 1, 10.0, "the node alone")
        cluster.restart_coordinator()
        report = cluster.wait()
    check(report, "norm-adamw", **changes)
