"""Nodes that pause past their lease, come late, or whose stream loses, repeats or damages messages: same bits."""

from __future__ import annotations

import signal
from itertools import product
from typing import get_args

import pytest
from chaos_runs import Chaos, check

from manyhands.errors import UsageError
from manyhands.testing.faults import Action, Fault, Point

DAMAGE = 5
"""A node's exit code when what it heard or said was refused as damaged."""


def test_a_node_that_stops_past_its_lease_and_goes_on_changes_no_bit(chaos: Chaos) -> None:
    with chaos.cluster("norm-sgd", 2, [[Fault(at="computing", action="stop", count=4)]]) as cluster:
        chaos.begin(cluster, 2)
        stopped = cluster.wait_fired(0)
        assert stopped.step is not None
        cluster.wait_step(stopped.step)  # its leaves went to the other node
        cluster.cont(0)
        report = cluster.wait()
        assert [cluster.returncode(node) for node in (0, 1)] == [0, 0]
    check(report, "norm-sgd")
    assert report["reissued"] >= 1


def test_nodes_that_join_in_the_middle_and_outlive_the_first_change_no_bit(chaos: Chaos) -> None:
    late, first = [Fault(at="hello", action="stop")], [Fault(at="granted", count=30)]
    with chaos.cluster("tokens", 3, [late, late, first], epochs=16) as cluster:
        for node in (0, 1):
            cluster.wait_fired(node)
        chaos.begin(cluster, 1)
        for node, step in ((0, 3), (1, 12)):
            cluster.wait_step(step)
            cluster.cont(node)
        report = cluster.wait()
        assert [cluster.returncode(node) for node in range(3)] == [0, 0, -signal.SIGKILL]
    check(report, "tokens", epochs=16)
    assert report["nodes_seen"] == 3


def test_messages_lost_repeated_damaged_and_cut_off_change_no_bit(chaos: Chaos) -> None:
    scripts = [
        [
            Fault(at="granted", action="duplicate", count=2),
            Fault(at="computed", action="duplicate", count=3),
            Fault(at="sent", action="duplicate", count=4),
            Fault(at="computed", action="drop", count=6),
        ],
        [
            Fault(at="computing", action="disconnect", count=2),
            Fault(at="half_sent", action="disconnect", count=4),
            Fault(at="state_half", action="disconnect", count=6),
        ],
        [Fault(at="sent", action="corrupt", count=3)],
    ]
    with chaos.cluster("norm-adamw", 3, scripts) as cluster:
        chaos.begin(cluster, 3)
        assert cluster.returncode(2) == DAMAGE
        report = cluster.wait()
        assert sorted((f.node, f.fault.action) for f in cluster.fired) == sorted(
            (node, fault.action) for node, script in enumerate(scripts) for fault in script
        )
        assert [cluster.returncode(node) for node in (0, 1)] == [0, 0]
    check(report, "norm-adamw")


def single_faults() -> list[Fault]:
    """Every action at every point, but kills (test_protocol_points) and wrong values, which do change bits."""
    faults = []
    for at, action in product(get_args(Point), get_args(Action)):
        try:
            fault = Fault(at=at, action=action, count=1 if at in ("hello", "everything", "probed") else 3)
        except UsageError:  # there is no such fault
            continue
        if action not in ("kill", "wrong"):
            faults.append(fault)
    return faults


@pytest.mark.slow
@pytest.mark.parametrize("fault", single_faults(), ids=lambda fault: f"{fault.at}-{fault.action}")
def test_any_single_fault_changes_no_bit(chaos: Chaos, fault: Fault) -> None:
    is_join = fault.at in ("hello", "everything", "probed")
    with chaos.cluster("wide", 2, [[fault]]) as cluster:
        chaos.begin(cluster, 1 if is_join else 2)
        assert cluster.wait_fired(0).fault == fault
        report = cluster.wait()
    check(report, "wide")
