"""Nodes are SIGKILLed at each point of the protocol: the bits of one process, every sample once."""

from __future__ import annotations

import signal
from typing import get_args

import pytest
from chaos_runs import Chaos, check

from manyhands.testing.faults import Fault, Point

JOIN = ("hello", "everything", "probed")
WORK = tuple(point for point in get_args(Point) if point not in JOIN)


def alone_too(*together: tuple[str, ...]) -> list[object]:
    """The points of one run each; each point by itself as well, in the slow part."""
    single = [pytest.param((at,), marks=pytest.mark.slow) for points in together for at in points]
    return [*together, *single]


@pytest.mark.parametrize("points", alone_too(WORK[:3], WORK[3:]), ids="-".join)
def test_nodes_that_die_at_work_change_no_bit(chaos: Chaos, points: tuple[Point, ...]) -> None:
    with chaos.cluster("norm-sgd", len(points) + 1, [[Fault(at=at, count=3)] for at in points]) as cluster:
        chaos.begin(cluster, len(points) + 1)
        for node, at in enumerate(points):
            assert cluster.wait_fired(node).fault.at == at
            assert cluster.returncode(node) == -signal.SIGKILL
        report = cluster.wait()
        assert cluster.returncode(len(points)) == 0
    check(report, "norm-sgd")
    assert report["nodes_seen"] == len(points) + 1


def test_neighbours_that_die_at_work_change_no_bit(chaos: Chaos) -> None:
    """Their large messages pass through memory, of which the other side has a half."""
    points: tuple[Point, ...] = ("half_sent", "state_half")
    faults = [[Fault(at=at, count=3)] for at in points]
    with chaos.cluster("wide", len(points) + 1, faults, shares_memory=True) as cluster:
        chaos.begin(cluster, len(points) + 1)
        for node, at in enumerate(points):
            assert cluster.wait_fired(node).fault.at == at
            assert cluster.returncode(node) == -signal.SIGKILL
        cluster.start_node()
        report = cluster.wait()
    check(report, "wide")


@pytest.mark.parametrize("points", alone_too(JOIN), ids="-".join)
def test_nodes_that_die_at_the_door_change_no_bit(chaos: Chaos, points: tuple[Point, ...]) -> None:
    """They stop before their hello, and go on from there into their death when the others are at work."""
    pause = Fault(at="hello", action="stop")
    scripts = [[Fault(at=at)] if at == "hello" else [pause, Fault(at=at)] for at in points]
    with chaos.cluster("norm-sgd", len(points) + 1, scripts) as cluster:
        for node in range(len(points)):
            cluster.wait_fired(node)
        chaos.begin(cluster, 1)
        cluster.wait_step(1)
        for node in range(len(points)):
            cluster.cont(node)
            assert cluster.returncode(node) == -signal.SIGKILL
        report = cluster.wait()
        assert [fired.fault for fired in cluster.fired] == [fault for script in scripts for fault in script]
    check(report, "norm-sgd")
    assert report["nodes_seen"] == 1
