"""Every kind of model and number of nodes, with a node killed in the middle: the bits of one process."""

from __future__ import annotations

import signal

import chaos_jobs
import pytest
from chaos_runs import Chaos, check

from manyhands.testing.faults import Fault


def train_with_a_kill(chaos: Chaos, job: str, nodes: int, fault: Fault) -> None:
    """Node 0 dies; where it was alone, another comes."""
    with chaos.cluster(job, nodes, [[fault]]) as cluster:
        chaos.begin(cluster, nodes)
        cluster.wait_fired(0)
        assert cluster.returncode(0) == -signal.SIGKILL
        if nodes == 1:
            cluster.start_node()
        report = cluster.wait()
    check(report, job)
    assert report["nodes_seen"] == nodes  # whoever comes takes the dead one's key over


def test_a_parameter_unused_in_some_leaves_and_a_kill_of_the_only_node(chaos: Chaos) -> None:
    train_with_a_kill(chaos, "branches", 1, Fault(at="half_sent", count=4))


@pytest.mark.slow
@pytest.mark.parametrize("nodes", [1, 2, 3, 5])
@pytest.mark.parametrize("job", chaos_jobs.JOBS)
def test_any_job_on_any_number_of_nodes(chaos: Chaos, job: str, nodes: int) -> None:
    train_with_a_kill(chaos, job, nodes, Fault(at="half_sent"))
