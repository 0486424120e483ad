"""Runs in int8 with machines that come and go: the bits of one process that rounds alike."""

from __future__ import annotations

import signal

import pytest
from chaos_runs import Chaos, audit, check

from manyhands.testing.faults import Fault

INT8 = {"compression": "int8"}


@pytest.mark.parametrize("job", ["branches", pytest.param("wide", marks=pytest.mark.slow)])
def test_a_node_dies_half_way_through_a_unit_and_another_comes(chaos: Chaos, job: str) -> None:
    with chaos.cluster(job, 2, [[Fault(at="half_sent", count=3)]], **INT8) as cluster:
        chaos.begin(cluster, 2)
        cluster.wait_fired(0)
        assert cluster.returncode(0) == -signal.SIGKILL
        cluster.start_node()
        report = cluster.wait()
        audit(cluster, report)
    check(report, job, **INT8)


def test_a_node_dies_while_a_change_of_the_weights_arrives(chaos: Chaos) -> None:
    with chaos.cluster("wide", 3, [[Fault(at="state_half", count=4)]], **INT8) as cluster:
        chaos.begin(cluster, 3)
        cluster.wait_fired(0)
        assert cluster.returncode(0) == -signal.SIGKILL
        cluster.start_node()
        report = cluster.wait()
    check(report, "wide", **INT8)


def test_a_stopped_node_that_missed_changes_gets_the_weights_whole(chaos: Chaos) -> None:
    with chaos.cluster("wide", 2, [[Fault(at="computing", action="stop", step=2)]], **INT8) as cluster:
        chaos.begin(cluster, 2)
        cluster.wait_fired(0)
        cluster.wait_step(8)
        cluster.cont(0)
        report = cluster.wait()
    check(report, "wide", **INT8)


def test_a_coordinator_killed_and_resumed_keeps_what_rounding_left(chaos: Chaos) -> None:
    changes = {**INT8, "checkpoint_interval": 1e-3}
    with chaos.cluster("norm-adamw", 2, **changes) as cluster:
        chaos.begin(cluster, 2)
        cluster.wait_step(20)
        cluster.kill_coordinator()
        cluster.restart_coordinator()
        report = cluster.wait()
        audit(cluster, report)
    check(report, "norm-adamw", **changes)
