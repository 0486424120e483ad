"""Real processes: they train, die where the script says, and never outlive the cluster."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from manyhands.errors import UsageError
from manyhands.testing import Fault, LocalCluster

JOBS = str(Path(__file__).with_name("jobs.py"))


def own_children() -> set[int]:
    return {child.pid for child in psutil.Process().children(recursive=True)}


@pytest.fixture(scope="module")
def undisturbed() -> str:
    with LocalCluster(f"{JOBS}:build", nodes=1, arguments={"epochs": 40}) as cluster:
        return str(cluster.wait()["weights_sha256"])


def test_faults_fire_in_real_processes_and_change_no_bit(undisturbed):
    scripts = [
        [Fault(at="computing", step=4, action="kill")],
        [Fault(at="half_sent", action="kill", count=3)],
        [Fault(at="granted", action="stop", count=2)],
    ]
    before = own_children()
    with LocalCluster(f"{JOBS}:build", nodes=4, arguments={"epochs": 40}, faults=scripts) as cluster:
        assert cluster.wait_fired(0).fault.at == "computing"
        assert cluster.returncode(0) == -signal.SIGKILL
        assert cluster.wait_fired(1).fault.at == "half_sent"
        assert cluster.returncode(1) == -signal.SIGKILL
        cluster.wait_fired(2)
        cluster.cont(2)
        report = cluster.wait()
        assert sorted(fired.node for fired in cluster.fired) == [0, 1, 2]
        assert cluster.returncode(3) == 0
        folder = cluster.folder
    assert report["samples_applied"] == report["samples_expected"] == 40 * 96
    assert report["reissued"] >= 2
    assert report["weights_sha256"] == undisturbed
    assert own_children() == before
    assert not folder.exists()


@pytest.mark.slow  # tests/chaos kills coordinators in the quick suite
def test_a_coordinator_that_is_killed_goes_on_where_it_was(undisturbed):
    with LocalCluster(f"{JOBS}:build", nodes=2, arguments={"epochs": 40}) as cluster:
        cluster.wait_step(3)
        cluster.kill_coordinator()
        port = cluster.port
        cluster.restart_coordinator()
        assert cluster.port == port
        report = cluster.wait()
    assert report["weights_sha256"] == undisturbed
    assert report["samples_applied"] == report["samples_expected"]


def test_errors_come_back_as_what_they_were():
    with pytest.raises(UsageError, match="batch_size"):
        LocalCluster(f"{JOBS}:build", nodes=0, arguments={"batch_size": 0}).start()
    with LocalCluster(f"{JOBS}:build", nodes=1, node_target=f"{JOBS}:other_model") as cluster:
        assert cluster.returncode(0) == 4
        assert "the node's model is not the run's" in cluster.logs(0)


@pytest.mark.slow
def test_a_wrong_sum_changes_bits_and_a_damaged_one_is_refused(undisturbed):
    faults = [[Fault(at="sent", step=3, action="wrong")]]
    with LocalCluster(f"{JOBS}:build", nodes=1, arguments={"epochs": 40}, faults=faults) as cluster:
        wrong = cluster.wait()
        assert len(cluster.fired) == 1
    assert wrong["weights_sha256"] != undisturbed
    faults = [[Fault(at="sent", step=3, action="corrupt")]]
    with LocalCluster(f"{JOBS}:build", nodes=1, arguments={"epochs": 40}, faults=faults) as cluster:
        cluster.wait_fired(0)
        assert cluster.returncode(0) == 5
        cluster.start_node()
        assert cluster.wait()["weights_sha256"] == undisturbed


def test_nothing_outlives_a_cluster_whose_process_is_killed():
    """SIGKILL leaves no one to clean up: the kernel must, stopped children included."""
    script = f"""
import os, signal
from manyhands.testing import LocalCluster
cluster = LocalCluster({JOBS + ":build"!r}, nodes=2, arguments={{"epochs": 100000}})
cluster.start()
cluster.wait_step(1)
cluster.stop_signal(1)
print(cluster.pid(0), cluster.pid(1), cluster._coordinator.pid, flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""
    killed = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=90)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    left = [psutil.Process(int(pid)) for pid in killed.stdout.split() if psutil.pid_exists(int(pid))]
    _, alive = psutil.wait_procs(left, timeout=10)
    assert [p for p in alive if p.status() != psutil.STATUS_ZOMBIE] == []
